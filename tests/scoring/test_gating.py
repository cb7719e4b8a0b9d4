"""The product of the heads, priors and gates, against loops over rows and labels."""

import math

import pytest
import torch
from conftest import TAXONOMIES

from mtl_re.errors import MtlReError
from mtl_re.predict import triples
from mtl_re.scoring import gating
from mtl_re.taxonomy import Taxonomy

ROWS = 40

each_taxonomy = pytest.mark.parametrize("taxonomy", TAXONOMIES.values(), ids=TAXONOMIES)


def draw(taxonomy, seed: int = 0, scale: float = 2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {
        head.name: torch.randn(ROWS, len(head.classes), generator=generator, dtype=dtype) * scale
        for head in taxonomy.heads
    }


def softmax(scores: list[float], temperature: float = 1.0) -> list[float]:
    top = max(scores)
    powers = [math.exp((score - top) / temperature) for score in scores]
    return [power / sum(powers) for power in powers]


def by_hand(logits, taxonomy, row: int, temperatures) -> dict[str, float]:
    """Label → probability, with the words of the taxonomy and no index arithmetic."""
    heads = {head.name: head for head in taxonomy.heads}
    p = {
        name: dict(zip(head.classes, softmax(logits[name][row].tolist(), temperatures.get(name, 1.0)), strict=True))
        for name, head in heads.items()
    }
    if taxonomy.layout == "flat":
        return p["label"]
    return {
        label: p["coarse"][coarse] * (p[coarse][label] if len(members) > 1 else 1.0)
        for coarse, members in taxonomy.groups.items()
        for label in members
    }


# ---- the product ---------------------------------------------------------------------------------------------------


@each_taxonomy
@pytest.mark.parametrize("warm", [False, True], ids=["plain", "temperatures"])
def test_product_is_coarse_times_fine(taxonomy, warm):
    logits = draw(taxonomy)
    temperatures = {head.name: 0.5 + number for number, head in enumerate(taxonomy.heads)} if warm else {}
    probs = gating.product(logits, taxonomy, temperatures)
    for row in range(ROWS):
        expected = by_hand(logits, taxonomy, row, temperatures)
        torch.testing.assert_close(probs[row], torch.tensor([expected[label] for label in taxonomy.labels]).double())


@each_taxonomy
def test_probabilities_sum_to_one_and_none_is_zero(taxonomy):
    probs = gating.product(draw(taxonomy, scale=5), taxonomy)
    torch.testing.assert_close(probs.sum(-1), torch.ones(ROWS).double())
    assert (probs > 0).all(), "zeros outside the gated branch would ruin AUPRC"


@each_taxonomy
def test_single_precision_and_large_logits(taxonomy):
    probs = gating.product(draw(taxonomy, scale=100, dtype=torch.float32), taxonomy)
    assert probs.dtype == torch.float32
    assert torch.isfinite(probs).all()
    torch.testing.assert_close(probs.sum(-1), torch.ones(ROWS))


@each_taxonomy
def test_coarse_probabilities_are_sums_over_the_groups(taxonomy):
    logits = draw(taxonomy)
    probs = gating.product(logits, taxonomy)
    found = gating.coarse(probs, taxonomy)
    index = {label: position for position, label in enumerate(taxonomy.labels)}
    for row in range(ROWS):
        for position, members in enumerate(taxonomy.groups.values()):
            expected = sum(float(probs[row, index[label]]) for label in members)
            assert float(found[row, position]) == pytest.approx(expected)
    if taxonomy.layout == "hierarchical":
        torch.testing.assert_close(found, logits["coarse"].softmax(-1))


# ---- the gate ------------------------------------------------------------------------------------------------------


def gate_by_hand(probs: list[float], taxonomy, gate: str) -> str:
    p = dict(zip(taxonomy.labels, probs, strict=True))
    if gate == "soft" or taxonomy.layout == "flat":
        return max(p, key=p.get)
    best = max(taxonomy.groups.values(), key=lambda members: sum(p[label] for label in members))
    return max(best, key=p.get)


@each_taxonomy
@pytest.mark.parametrize("gate", ["hard", "soft"])
def test_gate_reads_the_label_off(taxonomy, gate):
    for seed in range(5):
        probs = gating.product(draw(taxonomy, seed, scale=0.7), taxonomy)
        found = gating.labels(probs, taxonomy, gate)
        assert [taxonomy.labels[index] for index in found] == [
            gate_by_hand(row, taxonomy, gate) for row in probs.tolist()
        ]


@each_taxonomy
def test_gates_differ_only_where_there_are_branches(taxonomy):
    probs = gating.product(draw(taxonomy, scale=0.7), taxonomy)
    same = gating.labels(probs, taxonomy, "hard") == gating.labels(probs, taxonomy, "soft")
    if taxonomy.layout == "flat":
        assert same.all()
        assert (gating.labels(probs, taxonomy, "hard") == probs.argmax(-1)).all()
    else:
        assert not same.all(), "the case is one where the gates disagree"


@pytest.mark.parametrize("gate", ["hard", "soft"])
def test_a_hand_made_row(gate):
    taxonomy = TAXONOMIES["no-none-hierarchical"]  # up: rise, jump; down: fall, drop, sink
    probs = torch.tensor([[0.35, 0.05, 0.2, 0.2, 0.2]])
    label = taxonomy.labels[int(gating.labels(probs, taxonomy, gate))]
    assert label == {"hard": "fall", "soft": "rise"}[gate]


@each_taxonomy
def test_labels_and_heads_agree_with_compose(taxonomy):
    """Decoding every head's argmax and composing is the hard gate, without a prior."""
    logits = draw(taxonomy)
    found = gating.labels(gating.product(logits, taxonomy), taxonomy, "hard")
    for row in range(ROWS):
        classes = {name: int(scores[row].argmax()) for name, scores in logits.items()}
        assert taxonomy.labels[found[row]] == taxonomy.compose(classes)


# ---- restriction by the subject's type -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["hierarchical", "flat"])
def test_an_empty_list_of_subject_types_means_any_type(layout):
    """As `Taxonomy` documents it, and as a coarse class that is not named at all."""
    plain = Taxonomy.from_prefixes(layout=layout).to_dict()
    empty, unnamed = (
        Taxonomy.from_dict({**plain, "subject_types": types})
        for types in ({"org": [], "per": ["PER"]}, {"per": ["PER"]})
    )
    probs = gating.product(draw(empty), empty)
    kinds = [("ORG", "PER", "LOC")[row % 3] for row in range(ROWS)]
    found = gating.restrict(probs, empty, kinds)
    assert torch.equal(found, gating.restrict(probs, unnamed, kinds))
    org, per = (torch.tensor(empty.group_of_label) == group for group in (1, 2))
    assert (found[:, org] > 0).all(), "org takes any subject"
    assert (found[0::3, per] == 0).all()
    assert triples.subject_types(empty) is triples.subject_types(unnamed) is None


# ---- the best relation ---------------------------------------------------------------------------------------------


@each_taxonomy
def test_best_relation_against_a_plain_loop(taxonomy):
    probs = gating.product(draw(taxonomy, scale=0.7), taxonomy)
    indices, values = gating.best_relation(probs, taxonomy)
    for row, index, value in zip(probs.tolist(), indices.tolist(), values.tolist(), strict=True):
        relations = {label: p for label, p in zip(taxonomy.labels, row, strict=True) if label != taxonomy.no_relation}
        assert taxonomy.labels[index] == max(relations, key=relations.get)
        assert value == row[index]


def test_the_best_relation_may_stand_outside_the_class_that_the_hard_gate_opens():
    taxonomy = TAXONOMIES["klue-hierarchical"]
    groups = torch.tensor(taxonomy.group_of_label)
    probs = torch.zeros(1, 30, dtype=torch.float64)
    probs[0, groups == 1] = 0.4 / 11  # org: 0.4 in all, 0.036 a label
    probs[0, 20], probs[0, 0] = 0.38, 0.22  # per: one label holds nearly all of its class
    index, value = gating.best_relation(probs, taxonomy)
    assert (int(index), float(value)) == (20, 0.38)
    assert int(gating.labels(probs, taxonomy, "hard", threshold=0.0)) != 20


# ---- prior ---------------------------------------------------------------------------------------------------------


def shares(count: int, seed: int) -> list[float]:
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.2
    return (drawn / drawn.sum()).tolist()


@each_taxonomy
def test_shift_prior_is_the_formula(taxonomy):
    probs = gating.product(draw(taxonomy), taxonomy)
    target, trained = shares(len(taxonomy.groups), 1), shares(len(taxonomy.groups), 2)
    found = gating.shift_prior(probs, taxonomy, target, trained)
    names = list(taxonomy.groups)
    for row in range(ROWS):
        raw = {
            label: float(probs[row, position]) * target[g] / trained[g]
            for position, label in enumerate(taxonomy.labels)
            for g in [names.index(taxonomy.coarse_of(label))]
        }
        expected = [raw[label] / sum(raw.values()) for label in taxonomy.labels]
        torch.testing.assert_close(found[row], torch.tensor(expected).double())


@each_taxonomy
def test_shift_prior_leaves_the_fine_probabilities_alone(taxonomy):
    probs = gating.product(draw(taxonomy), taxonomy)
    count = len(taxonomy.groups)
    found = gating.shift_prior(probs, taxonomy, shares(count, 1), shares(count, 2))
    groups = torch.tensor(taxonomy.group_of_label)
    conditional = [p / gating.coarse(p, taxonomy)[:, groups] for p in (probs, found)]
    torch.testing.assert_close(conditional[0], conditional[1])


@each_taxonomy
def test_the_prior_of_training_changes_nothing_and_there_is_a_way_back(taxonomy):
    probs = gating.product(draw(taxonomy), taxonomy)
    target, trained = shares(len(taxonomy.groups), 1), shares(len(taxonomy.groups), 2)
    torch.testing.assert_close(gating.shift_prior(probs, taxonomy, trained, trained), probs)
    there = gating.shift_prior(probs, taxonomy, target, trained)
    torch.testing.assert_close(gating.shift_prior(there, taxonomy, trained, target), probs)


def test_shares_that_do_not_fit():
    taxonomy = TAXONOMIES["klue-hierarchical"]
    probs = gating.product(draw(taxonomy), taxonomy)
    with pytest.raises(MtlReError, match=r"2 shares for 3 coarse classes \(no_relation, org, per\)"):
        gating.shift_prior(probs, taxonomy, [0.5, 0.5], [0.3, 0.3, 0.4])
    with pytest.raises(MtlReError, match="coarse class 'org' had no training row"):
        gating.shift_prior(probs, taxonomy, [0.3, 0.3, 0.4], [0.6, 0.0, 0.4])
