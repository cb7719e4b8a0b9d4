"""The joint loss is the likelihood of the product, splitting a step changes nothing, and an empty head adds nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TAXONOMIES

from mtl_re.config import LossConfig
from mtl_re.errors import MtlReError, entry
from mtl_re.features.collate import Collator, step_parts
from mtl_re.scoring import gating
from mtl_re.taxonomy import IGNORE, Taxonomy
from mtl_re.training import losses
from mtl_re.training.losses import LOSSES, HeadLoss, combine, head_losses, normalise
from mtl_re.training.train import global_counts

KLUE = TAXONOMIES["klue-hierarchical"]
REDUCTIONS = ("joint", "per_head")

each_taxonomy = pytest.mark.parametrize("taxonomy", TAXONOMIES.values(), ids=TAXONOMIES)
each_loss = pytest.mark.parametrize("kind", LOSSES)
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def draw(taxonomy, rows: int = 24, seed: int = 0, scale: float = 2.0):
    """Logits by head that take gradients, and the targets of random labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = {
        head.name: (torch.randn(rows, len(head.classes), generator=generator) * scale).requires_grad_()
        for head in taxonomy.heads
    }
    gold = torch.randint(len(taxonomy.labels), (rows,), generator=generator)
    targets = torch.tensor([list(taxonomy.targets(taxonomy.labels[label]).values()) for label in gold])
    return logits, targets, gold


def joint(logits, targets, options=None, weights=None, reduction="joint"):
    losses = head_losses(logits, targets, options or LossConfig())
    counts = {name: int(loss.count) for name, loss in losses.items()}
    return combine(losses, counts, len(targets), weights or dict.fromkeys(logits, 1.0), reduction)


# ---- law 2: the likelihood of the product --------------------------------------------------------------------------


@each_taxonomy
def test_joint_loss_is_the_likelihood_of_the_product(taxonomy):
    logits, targets, gold = draw(taxonomy)
    loss = joint(logits, targets)
    probs = gating.product(logits, taxonomy)
    likelihood = -probs.log().gather(1, gold[:, None]).mean()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, likelihood, atol=1e-6, rtol=1e-6)
    ours = torch.autograd.grad(loss, list(logits.values()))
    theirs = torch.autograd.grad(likelihood, list(logits.values()))
    for name, one, other in zip(logits, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


# ---- one head ------------------------------------------------------------------------------------------------------


@each_loss
@each_taxonomy
def test_sums_and_counts_are_over_labelled_rows_only(kind, taxonomy):
    logits, targets, _ = draw(taxonomy)
    options = LossConfig(kind=kind, label_smoothing=0.1)
    losses = head_losses(logits, targets, options)
    for column, (name, scores) in enumerate(logits.items()):
        known = targets[:, column] != IGNORE
        assert int(losses[name].count) == int(known.sum())
        alone = LOSSES[kind](scores[known], targets[known, column], options)
        torch.testing.assert_close(losses[name].sum, alone)


@each_loss
def test_sums_are_fp32_whatever_the_logits_are(kind):
    logits, targets, _ = draw(KLUE)
    losses = head_losses({name: scores.bfloat16() for name, scores in logits.items()}, targets, LossConfig(kind=kind))
    assert {loss.sum.dtype for loss in losses.values()} == {torch.float32}


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_cross_entropy_and_smoothing_are_the_formula(smoothing):
    logits, targets, _ = draw(KLUE)
    found = head_losses(logits, targets, LossConfig(label_smoothing=smoothing))
    for column, (name, scores) in enumerate(logits.items()):
        expected = 0.0
        for row, target in enumerate(targets[:, column].tolist()):
            if target != IGNORE:
                log_p = scores[row].detach().log_softmax(-1)
                expected += float(-(1 - smoothing) * log_p[target] - smoothing * log_p.mean())
        assert found[name].sum.item() == pytest.approx(expected, rel=1e-5)
        torch_says = F.cross_entropy(
            scores, targets[:, column], reduction="sum", ignore_index=IGNORE, label_smoothing=smoothing
        )
        torch.testing.assert_close(found[name].sum, torch_says)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_is_the_formula(gamma):
    logits, targets, _ = draw(KLUE)
    found = head_losses(logits, targets, LossConfig(kind="focal", focal_gamma=gamma))
    for column, (name, scores) in enumerate(logits.items()):
        expected = 0.0
        for row, target in enumerate(targets[:, column].tolist()):
            if target != IGNORE:
                p = scores[row].softmax(-1)[target].item()
                expected += -((1 - p) ** gamma) * np.log(p)
        assert found[name].sum.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_focal_without_gamma_is_cross_entropy(smoothing):
    logits, targets, _ = draw(KLUE)
    focal, plain = (
        joint(logits, targets, LossConfig(kind=kind, focal_gamma=0.0, label_smoothing=smoothing)) for kind in LOSSES
    )
    torch.testing.assert_close(focal, plain)
    for one, other in zip(*(torch.autograd.grad(loss, list(logits.values())) for loss in (focal, plain)), strict=True):
        torch.testing.assert_close(one, other)


@each_loss
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("size", [50.0, 1e4, 1e30])
def test_extreme_logits_have_finite_losses_and_gradients(kind, gamma, smoothing, size):
    options = LossConfig(kind=kind, focal_gamma=gamma, label_smoothing=smoothing)
    scores = torch.tensor([[size, -size, 0.0], [-size, size, 0.0], [0.0, 0.0, 0.0], [size, size, size]])
    targets = torch.tensor([0, 0, 1, IGNORE])  # right and sure, wrong and sure, even, not labelled
    scores.requires_grad_()
    loss = LOSSES[kind](scores, targets, options)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(scores.grad).all()
    assert (scores.grad[3] == 0).all()


# ---- law 3: splitting a step ---------------------------------------------------------------------------------------


def step_rows(table, rows: int = 16) -> np.ndarray:
    """Rows of a step: first those without a label for the org head, then the rest, so that some parts have none."""
    org = table.targets[:, 1] != IGNORE
    return np.concatenate([np.flatnonzero(~org)[:11], np.flatnonzero(org)[:5]])[:rows]


def gradients(model, table, parts, options, weights) -> dict[str, torch.Tensor]:
    """Gradients of a step, summed over its parts as processes and passes do."""
    rows = np.concatenate(parts)
    run = SimpleNamespace(train_table=table, taxonomy=model.taxonomy)
    counts, labelled = global_counts(run, rows)
    assert labelled == len(rows)
    collate = Collator(table, 0, model.takes_types)
    model.zero_grad()
    total = 0.0
    for part in parts:
        batch = dict(collate(part))
        targets = batch.pop("targets")
        losses = head_losses(model(**batch), targets, options)
        loss = combine(losses, counts, labelled, weights, options.reduction)
        loss.backward()
        total += loss.item()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found | {"loss": torch.tensor(total)}


def check_same(whole, split, name: str) -> None:
    """Gradients of one step, split in two ways, differ by rounding only."""
    norm = torch.stack([gradient.norm() for gradient in whole.values()]).norm()
    assert norm > 0.1
    for parameter, gradient in whole.items():
        difference = float((split[parameter] - gradient).norm() / norm)
        assert difference < 2e-6, f"{name}: {parameter} differs by {difference:.1e} of the norm"


SPLITS = {
    "2 x 8": [8],
    "4 x 4": [4, 8, 12],
    "uneven": [10, 15],
    "no org row in the first": [11],
    "single rows": list(range(1, 16)),
    "an empty part": [8, 8],
    "an empty part at the end": [5, 16],
}


@each_loss
@each_reduction
def test_splitting_a_step_does_not_change_its_gradient(tiny, table, kind, reduction):
    model, _ = tiny
    options = LossConfig(kind=kind, reduction=reduction, label_smoothing=0.1)
    weights = normalise({"coarse": 2.0, "org": 0.5}, [head.name for head in model.taxonomy.heads])
    rows = step_rows(table)
    whole = gradients(model, table, [rows], options, weights)
    for name, cuts in SPLITS.items():
        check_same(whole, gradients(model, table, np.split(rows, cuts), options, weights), name)


@each_reduction
def test_steps_that_are_dealt_with_too_few_rows(tiny, table, reduction):
    model, _ = tiny
    options, weights = LossConfig(reduction=reduction), dict.fromkeys(("coarse", "org", "per"), 1.0)
    rows = step_rows(table, 3)
    parts = [part for process in step_parts(rows, table.lengths[rows], 4, 8, 64) for part in process]
    assert sorted(map(len, parts)) == [0, 1, 1, 1]
    whole, split = (gradients(model, table, dealt, options, weights) for dealt in ([rows], parts))
    check_same(whole, split, "dealt to 4")


def test_local_means_would_fail_this_suite(tiny, table):
    """The wrong algebra (each part divides by its own counts) differs by far more than the tolerance above."""
    model, _ = tiny
    options = LossConfig(reduction="per_head")
    weights = dict.fromkeys(("coarse", "org", "per"), 1.0)
    rows = step_rows(table)
    whole = gradients(model, table, [rows], options, weights)["heads.org.weight"]
    parts = [gradients(model, table, [part], options, weights)["heads.org.weight"] for part in np.split(rows, [13])]
    wrong = sum(parts) / 2
    assert float((wrong - whole).norm() / whole.norm()) > 0.1


@each_loss
@each_reduction
def test_an_empty_head_adds_nothing_and_leaves_no_parameter_unused(tiny, table, kind, reduction):
    model, _ = tiny
    options = LossConfig(kind=kind, reduction=reduction)
    rows = np.flatnonzero((table.targets[:, 1:] == IGNORE).all(axis=1))[:4]
    weights = dict.fromkeys(("coarse", "org", "per"), 1.0)
    found = gradients(model, table, [rows], options, weights)
    for name, gradient in found.items():
        assert gradient is not None, f"{name} takes no part in the loss; DDP would stop"
        assert torch.isfinite(gradient).all(), name
        empty = name.startswith(("heads.org", "heads.per"))
        assert bool((gradient == 0).all()) == empty or "embeddings" in name, name


@each_loss
def test_rows_without_any_label_give_zero(kind):
    logits, targets, _ = draw(KLUE)
    options = LossConfig(kind=kind, label_smoothing=0.1)
    losses = head_losses(logits, torch.full_like(targets, IGNORE), options)
    for reduction in REDUCTIONS:
        loss = combine(losses, dict.fromkeys(losses, 0), 0, dict.fromkeys(losses, 1.0), reduction)
        assert loss.item() == 0
        for gradient in torch.autograd.grad(loss, list(logits.values()), retain_graph=True):
            assert (gradient == 0).all()


# ---- combine and weights -------------------------------------------------------------------------------------------


def test_combine_multiplies_weights_and_divides_by_step_counts():
    losses = {
        "coarse": HeadLoss(torch.tensor(6.0), torch.tensor(4)),
        "org": HeadLoss(torch.tensor(2.0), torch.tensor(1)),
        "per": HeadLoss(torch.tensor(3.0), torch.tensor(2)),
    }
    counts, weights = {"coarse": 12, "org": 4, "per": 6}, {"coarse": 0.5, "org": 2.0, "per": 0.0}
    assert float(combine(losses, counts, 12, weights, "joint")) == pytest.approx(0.5 * 6 / 12 + 2 * 2 / 12)
    assert float(combine(losses, counts, 12, weights, "per_head")) == pytest.approx(0.5 * 6 / 12 + 2 * 2 / 4)


@each_taxonomy
def test_per_head_is_joint_with_hidden_weights(taxonomy):
    logits, targets, _ = draw(taxonomy)
    counts = {name: max(int((targets[:, column] != IGNORE).sum()), 1) for column, name in enumerate(logits)}
    hidden = {name: len(targets) / count for name, count in counts.items()}
    torch.testing.assert_close(
        joint(logits, targets, reduction="per_head"), joint(logits, targets, weights=hidden, reduction="joint")
    )


HEADS = ("coarse", "org", "per")


def test_only_ratios_of_weights_count():
    even = normalise({}, HEADS)
    assert even == {"coarse": 1.0, "org": 1.0, "per": 1.0}
    for size in (1, 10, 0.1, 1e6):
        assert normalise(dict.fromkeys(HEADS, size), HEADS) == pytest.approx(even)
    assert normalise({"coarse": 2}, HEADS) == pytest.approx({"coarse": 1.5, "org": 0.75, "per": 0.75})
    assert normalise({"org": 0, "per": 0}, HEADS) == pytest.approx({"coarse": 3.0, "org": 0.0, "per": 0.0})
    for weights in ({"coarse": 5}, {"per": 0.3, "org": 4}, {"coarse": 0}):
        found = normalise(weights, HEADS)
        assert sum(found.values()) == pytest.approx(3)
        assert list(found) == list(HEADS), "in the order of the heads"


def test_weights_that_mean_nothing():
    with pytest.raises(MtlReError, match=r"no head is called 'orgs'; the heads are coarse, org, per"):
        normalise({"orgs": 2.0}, HEADS)
    with pytest.raises(MtlReError, match="all weights are 0"):
        normalise(dict.fromkeys(HEADS, 0.0), HEADS)
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(MtlReError, match=r"loss\.weights\.org: .* out of range"):
            LossConfig(weights={"org": weight})


def test_an_unknown_loss_lists_the_known_ones():
    with pytest.raises(MtlReError, match=r"loss\.kind: 'hinge'; expected one of cross_entropy, focal"):
        entry("loss.kind", "hinge", LOSSES)


def test_columns_must_match_the_heads():
    logits, targets, _ = draw(KLUE)
    with pytest.raises(ValueError, match="zip"):
        head_losses(logits, targets[:, :2], LossConfig())


# ---- several readings of a row, R-Drop -----------------------------------------------------------------------------


@each_loss
def test_losses_of_several_views_are_averaged(kind):
    options = LossConfig(kind=kind, label_smoothing=0.1)
    views = [draw(KLUE, seed=seed)[0] for seed in range(3)]
    targets = draw(KLUE)[1]
    together = {name: torch.cat([view[name] for view in views]) for name in views[0]}
    found = head_losses(together, targets, options)
    alone = [head_losses(view, targets, options) for view in views]
    for name, loss in found.items():
        torch.testing.assert_close(loss.sum, sum(one[name].sum for one in alone) / 3)
        assert loss.count == alone[0][name].count
        assert loss.penalty is None


@each_reduction
def test_rdrop_adds_the_symmetric_divergence_of_labelled_rows(reduction):
    one, other, targets = draw(KLUE, seed=1)[0], draw(KLUE, seed=2)[0], draw(KLUE)[1]
    together = {name: torch.cat([one[name], other[name]]) for name in one}
    losses = head_losses(together, targets, LossConfig(rdrop=3.0))
    for column, (name, loss) in enumerate(losses.items()):
        expected = 0.0
        for row, target in enumerate(targets[:, column].tolist()):
            if target != IGNORE:
                p, q = (logits[name][row].detach().double().softmax(-1) for logits in (one, other))
                expected += 3.0 * 0.5 * float((p * (p / q).log()).sum() + (q * (q / p).log()).sum())
        assert loss.penalty.item() == pytest.approx(expected, rel=1e-5)
    plain = joint(together, targets, reduction=reduction)
    counts = {name: int(loss.count) for name, loss in losses.items()}
    penalised = combine(losses, counts, len(targets), dict.fromkeys(one, 1.0), reduction)
    added = sum(
        loss.penalty / (len(targets) if reduction == "joint" else counts[name]) for name, loss in losses.items()
    )
    torch.testing.assert_close(penalised, plain + added)


def test_rdrop_of_equal_readings_adds_nothing_and_views_stay_paired():
    """With two draws of the pair's dropout a row stands four times: reading 1, reading 2, reading 1, reading 2."""
    logits, targets, _ = draw(KLUE)
    other = draw(KLUE, seed=5)[0]
    alike = {name: torch.cat([scores, scores]) for name, scores in logits.items()}
    assert all(loss.penalty.item() == 0 for loss in head_losses(alike, targets, LossConfig(rdrop=1.0)).values())
    pairs = {name: torch.cat([logits[name], logits[name], other[name], other[name]]) for name in logits}
    assert all(loss.penalty.item() == 0 for loss in head_losses(pairs, targets, LossConfig(rdrop=1.0)).values())
    crossed = {name: torch.cat([logits[name], other[name]] * 2) for name in logits}
    once = {name: torch.cat([logits[name], other[name]]) for name in logits}
    for name, loss in head_losses(crossed, targets, LossConfig(rdrop=1.0)).items():
        torch.testing.assert_close(loss.penalty, head_losses(once, targets, LossConfig(rdrop=1.0))[name].penalty)


# ---- class weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cross_entropy", "focal"])
@pytest.mark.parametrize("rdrop", [0.0, 1.0])
def test_class_weights_are_exact_however_a_step_is_split(kind, rdrop):
    taxonomy = Taxonomy.from_option("hierarchical")
    generator = torch.Generator().manual_seed(0)
    labels = [taxonomy.labels[index] for index in torch.randint(0, 30, (24,), generator=generator).tolist()]
    targets = torch.tensor([list(taxonomy.targets(label).values()) for label in labels])
    weights = losses.class_weights("balanced", taxonomy, targets.numpy())
    options = LossConfig(kind=kind, rdrop=rdrop, label_smoothing=0.1)
    counts = {head.name: int((targets[:, n] != IGNORE).sum()) for n, head in enumerate(taxonomy.heads)}
    views = 2 if rdrop else 1
    scores = {h.name: torch.randn(views, 24, len(h.classes), generator=generator) for h in taxonomy.heads}

    def loss(rows: slice) -> torch.Tensor:
        part = {name: values[:, rows].flatten(0, 1) for name, values in scores.items()}
        made = losses.head_losses(part, targets[rows], options, weights)
        return losses.combine(made, counts, 24, dict.fromkeys(counts, 1.0), "joint")

    whole = loss(slice(0, 24))
    torch.testing.assert_close(sum(loss(slice(start, start + 5)) for start in range(0, 24, 5)), whole)
    plain = losses.head_losses({n: v.flatten(0, 1) for n, v in scores.items()}, targets, options)
    assert not torch.isclose(losses.combine(plain, counts, 24, dict.fromkeys(counts, 1.0), "joint"), whole)
    weighted = losses.head_losses({n: v.flatten(0, 1) for n, v in scores.items()}, targets, options, weights)
    assert all(weighted[name].sum == plain[name].sum for name in counts)  # what is logged stays raw


def test_balanced_weights_give_classes_the_same_weight_in_all(tmp_path):
    taxonomy = Taxonomy.from_option("hierarchical")
    labels = ["no_relation"] * 6 + ["org:founded"] * 3 + ["per:title"] * 2 + ["per:spouse"]
    targets = np.array([list(taxonomy.targets(label).values()) for label in labels])
    made = losses.class_weights("balanced", taxonomy, targets)
    assert made["coarse"].tolist() == pytest.approx([12 / 18, 12 / 9, 12 / 9])
    index = {name: taxonomy.fine[1].classes.index(name) for name in ("per:title", "per:spouse")}
    assert made["per"][index["per:title"]] * 2 == pytest.approx(float(made["per"][index["per:spouse"]]))
    (tmp_path / "weights.yaml").write_text("no_relation: 0.5\nper:spouse: 3\n")
    given = losses.class_weights(str(tmp_path / "weights.yaml"), taxonomy, targets)
    assert given["coarse"][0] / given["coarse"][1] == pytest.approx(0.5)
    assert float((given["coarse"] * torch.tensor([6.0, 3.0, 3.0])).sum()) == pytest.approx(12)
    assert losses.class_weights("none", taxonomy, targets) == {}


@pytest.mark.parametrize(
    ("text", "message"), [("per:job: 2", "no class"), ("org: 0", "above 0"), ("org: yes", "above 0")]
)
def test_class_weights_at_fault(tmp_path, text, message):
    (tmp_path / "weights.yaml").write_text(text)
    taxonomy = Taxonomy.from_option("hierarchical")
    with pytest.raises(MtlReError, match=message):
        losses.class_weights(str(tmp_path / "weights.yaml"), taxonomy, np.zeros((1, 3), int))
