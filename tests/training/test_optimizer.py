"""Every trainable parameter in one group with the right rate and decay, and the shape of the schedule."""

import math
from itertools import pairwise

import pytest
import torch
from conftest import ENCODERS, small_model, tiny_model
from torch import nn
from transformers import AlbertConfig, AlbertModel

from mtl_re.config import OptimConfig
from mtl_re.errors import MtlReError
from mtl_re.training.optimizer import make_optimizer, parameter_groups, rate_factor, set_rates


def by_name(groups) -> dict[str, dict]:
    return {name: group for group in groups for name in group["names"]}


each_encoder = pytest.mark.parametrize("kind", ENCODERS)


@each_encoder
def test_groups_hold_every_trainable_parameter_once(kind):
    model = small_model(kind)
    groups = parameter_groups(model, OptimConfig(layer_decay=0.8, head_lr=1e-3))
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    held = dict(model.named_parameters())
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert parameter is held[name], name


@each_encoder
def test_biases_and_norms_are_not_decayed_and_matrices_are(kind):
    model = small_model(kind)
    found = by_name(parameter_groups(model, OptimConfig(weight_decay=0.05)))
    norms = {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__
        for own, _ in module.named_parameters(recurse=False)
    }
    assert norms
    for name in found:
        plain = name in norms or name.endswith(".bias")
        assert found[name]["weight_decay"] == (0.0 if plain else 0.05), name


@each_encoder
def test_layer_decay_falls_from_the_heads_down(kind):
    model = small_model(kind)
    found = by_name(parameter_groups(model, OptimConfig(lr=1.0, head_lr=0.5, layer_decay=0.5)))
    for name, group in found.items():
        rate = group["peak_lr"]
        if not name.startswith("encoder."):
            assert rate == 0.5, name
        elif "embeddings" in name and "layer." not in name:
            assert rate == 0.5**3, name
    depths = [
        {group["peak_lr"] for name, group in found.items() if f"layer.{n}." in name or f"layers.{n}." in name}
        for n in range(3)
    ]
    assert depths == [{0.25}, {0.5}, {1.0}]


def test_layer_decay_of_an_encoder_without_numbered_layers_is_refused():
    config = AlbertConfig(vocab_size=40, hidden_size=16, embedding_size=8, num_attention_heads=2, intermediate_size=32)
    model = nn.ModuleDict({"encoder": AlbertModel(config)})
    parameter_groups(model, OptimConfig())
    with pytest.raises(MtlReError, match=r"optim\.layer_decay: this encoder has no numbered layers"):
        parameter_groups(model, OptimConfig(layer_decay=0.9))


def test_head_rate_and_its_default():
    model = small_model("bert")
    own = by_name(parameter_groups(model, OptimConfig(lr=1e-5, head_lr=1e-3)))
    shared = by_name(parameter_groups(model, OptimConfig(lr=1e-5)))
    for name in own:
        encoder = name.startswith("encoder.")
        assert own[name]["peak_lr"] == (1e-5 if encoder else 1e-3), name
        assert shared[name]["peak_lr"] == 1e-5, name
    assert by_name(parameter_groups(model, OptimConfig(lr=1e-5, head_lr=0.0)))["pair.1.weight"]["peak_lr"] == 0.0


def test_a_frozen_head_is_in_no_group():
    model = small_model("bert")
    model.heads["org"].requires_grad_(False)
    names = by_name(parameter_groups(model, OptimConfig()))
    assert "heads.per.weight" in names
    assert not [name for name in names if name.startswith("heads.org")]


def test_a_frozen_head_does_not_move(tokenizer):
    model = tiny_model(tokenizer)
    model.heads["org"].requires_grad_(False)
    before = {name: model.heads[name].weight.clone() for name in ("org", "per")}
    optimizer = make_optimizer(model, OptimConfig(lr=0.1, weight_decay=1.0))
    ids = torch.tensor([[2, 7, 8, 9, 3]])
    logits = model(ids, torch.ones_like(ids), torch.tensor([[1, 2, 2, 3]]))
    sum(scores.square().sum() for scores in logits.values()).backward()
    optimizer.step()
    assert torch.equal(model.heads["org"].weight, before["org"])
    assert not torch.equal(model.heads["per"].weight, before["per"])


# ---- schedule ------------------------------------------------------------------------------------------------------

SCHEDULES = ("linear", "cosine", "constant")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("total", [1, 2, 7, 100, 1015])
def test_shape_of_the_schedule(schedule, warmup, total):
    options = OptimConfig(schedule=schedule, warmup=warmup)
    factors = [rate_factor(step, total, options) for step in range(total)]
    rising = math.ceil(total * warmup)
    assert all(0 < factor <= 1 for factor in factors), "no step is wasted at rate 0"
    assert factors[:rising] == sorted(factors[:rising])
    assert factors[rising:] == sorted(factors[rising:], reverse=True)
    if rising < total:
        assert factors[rising] == 1.0, "the peak is reached"
        end = rate_factor(total, total, options)
        assert end == pytest.approx(1.0 if schedule == "constant" else 0.0, abs=1e-12)
    if rising:
        assert factors[0] == pytest.approx(1 / (rising + 1))
        assert len({round(b - a, 9) for a, b in pairwise(factors[:rising])}) <= 1, "linear"


def test_linear_and_cosine_by_value():
    linear, cosine = (OptimConfig(schedule=name, warmup=0.2) for name in ("linear", "cosine"))
    assert [rate_factor(step, 10, linear) for step in range(10)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    assert rate_factor(6, 10, cosine) == pytest.approx(0.5)


def test_rates_are_set_from_the_peak_however_often():
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [p], "peak_lr": peak, "lr": peak} for p, peak in zip(parameters, (0.1, 2.0), strict=True)]
    optimizer = torch.optim.AdamW(groups)
    for factor in (0.5, 0.25, 0.25):
        set_rates(optimizer, factor)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.5]
