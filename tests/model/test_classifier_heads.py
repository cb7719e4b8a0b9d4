"""Hidden layers of a head, and coarse logits that read the fine heads."""

import math

import pytest
import torch
from conftest import small_model, tiny_model

from mtl_re.config import LossConfig
from mtl_re.model.classifier_heads import classifier, with_fine_evidence
from mtl_re.model.network import load
from mtl_re.scoring import gating
from mtl_re.taxonomy import Taxonomy
from mtl_re.training.losses import combine, head_losses

KLUE = Taxonomy.from_prefixes()


def random_logits(rows=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {head.name: torch.randn(rows, len(head.classes), generator=generator) for head in KLUE.heads}


def test_with_fine_evidence_the_product_is_one_softmax_over_the_labels():
    """p(label) ∝ exp(own coarse logit + fine logit - log of the number of labels beside it)."""
    logits = random_logits()
    found = gating.product(with_fine_evidence(logits, KLUE), KLUE)
    for row in range(50):
        scores = []
        for label in KLUE.labels:
            group = KLUE.coarse_of(label)
            members = KLUE.groups[group]
            score = logits["coarse"][row, list(KLUE.groups).index(group)].item()
            if len(members) > 1:
                score += logits[group][row, members.index(label)].item() - math.log(len(members))
            scores.append(math.exp(score))
        expected = [score / sum(scores) for score in scores]
        assert found[row].tolist() == pytest.approx(expected, abs=1e-6)


def test_rows_of_no_relation_reach_the_fine_heads_with_evidence_alone():
    targets = torch.tensor([list(KLUE.targets("no_relation").values())])
    for evidence in (False, True):
        logits = {name: scores.requires_grad_() for name, scores in random_logits(1).items()}
        given = with_fine_evidence(logits, KLUE) if evidence else logits
        losses = head_losses(given, targets, LossConfig())
        combine(losses, dict.fromkeys(logits, 1), 1, dict.fromkeys(logits, 1.0), "joint").backward()
        for name in ("org", "per"):
            reached = logits[name].grad is not None and bool(logits[name].grad.abs().sum() > 0)
            assert reached is evidence
            if evidence:
                assert (logits[name].grad > 0).all()  # every fine logit is pushed down


def test_layers_of_a_head():
    torch.manual_seed(0)
    states = torch.randn(3, 8)
    made = classifier(8, 5, 2, 0.5).eval()
    expected = states
    for place in (0, 3):
        expected = torch.nn.functional.gelu(made[place](expected))
    assert torch.equal(made(states), made[6](expected))
    assert isinstance(classifier(8, 5, 0, 0.5), torch.nn.Linear)


@pytest.mark.parametrize("settings", [{"head_layers": 1}, {"gate_evidence": "fine"}, {}])
def test_a_checkpoint_keeps_its_heads(tiny, tmp_path, settings):
    tokenizer = tiny[1]
    model = tiny_model(tokenizer, **settings).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert [key for key in ("head_layers", "gate_evidence") if key in text] == list(settings)
    loaded = load(str(tmp_path))[0]
    given = {"input_ids": torch.arange(24).view(2, 12) + 5, "attention_mask": torch.ones(2, 12).long()}
    given["positions"] = torch.tensor([[1, 3, 5, 8]] * 2)
    with torch.inference_mode():
        for name, logits in model(**given).items():
            assert torch.equal(logits, loaded(**given)[name])


def test_no_parameter_is_unused():
    model = small_model("bert", head_layers=1, gate_evidence="fine")
    given = {"input_ids": torch.arange(24).view(2, 12) + 5, "attention_mask": torch.ones(2, 12).long()}
    given["positions"] = torch.tensor([[1, 3, 5, 8]] * 2)
    sum(scores.square().sum() for scores in model(**given).values()).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
