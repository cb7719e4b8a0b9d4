"""The moving average of the weights: its formula, that it is what is scored and kept, and that training ignores it."""

import pytest
import torch
from distributed_worker import lines, make_config, rows_file, shrink, weights
from torch import nn

from mtl_re import train as train_module
from mtl_re.averaging import WeightAverage
from mtl_re.train import train


@pytest.fixture
def go(tmp_path, monkeypatch):
    """Train in a directory of its own: go(name, **{dotted: value}) → run directory."""
    shrink(monkeypatch)
    rows = rows_file(tmp_path / "train.json")

    def start(name, **options):
        return train(make_config({"data.train": str(rows), "train.run_dir": str(tmp_path / name)} | options))

    return start


def moved(layer: nn.Linear, value: float) -> None:
    with torch.no_grad():
        layer.weight.fill_(value)


def test_formula():
    layer = nn.Linear(1, 1)
    moved(layer, 4.0)
    average = WeightAverage(layer, 0.5)
    expected = 4.0
    for step in range(1, 40):
        moved(layer, float(step))
        average.update(step)
        kept = min(0.5, step / (step + 9))
        expected = kept * expected + (1 - kept) * step
        assert average.tensors()["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_applied_and_taken_back_whatever_happens_inside():
    layer = nn.Linear(1, 1)
    moved(layer, 0.0)
    average = WeightAverage(layer, 0.9)
    moved(layer, 1.0)
    inside = []

    def fail():
        with average.applied():
            inside.append(layer.weight.item())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside == [0.0]
    assert layer.weight.item() == 1.0


def test_without_decay_nothing_is_kept_or_changed():
    layer = nn.Linear(1, 1)
    average = WeightAverage(layer, 0.0)
    average.update(1)
    before = layer.weight.item()
    with average.applied():
        assert layer.weight.item() == before
    assert average.tensors() == {}


def test_what_takes_no_gradient_is_left_alone():
    pair = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})
    pair["b"].requires_grad_(False)
    assert set(WeightAverage(pair, 0.9).tensors()) == {"a.weight", "a.bias"}


def test_the_kept_model_is_the_average_and_training_is_as_without(go, monkeypatch):
    real, seen = train_module.step, []

    def watched(run, state, *rest):
        if not seen:
            seen.append({name: p.detach().clone() for name, p in run.plain_model.named_parameters()})
        real(run, state, *rest)
        seen.append({name: p.detach().clone() for name, p in run.plain_model.named_parameters()})

    monkeypatch.setattr(train_module, "step", watched)
    averaged = go("averaged", **{"data.valid_fraction": 0.0, "optim.ema": 0.6})
    steps = list(seen)
    seen.clear()
    plain = go("plain", **{"data.valid_fraction": 0.0})
    assert all(torch.equal(steps[-1][name], tensor) for name, tensor in seen[-1].items())
    expected = steps[0]
    for step, now in enumerate(steps[1:], start=1):
        kept = min(0.6, step / (step + 9))
        expected = {name: kept * tensor + (1 - kept) * now[name] for name, tensor in expected.items()}
    found = weights(averaged)
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name
    assert any(not torch.equal(found[name], tensor) for name, tensor in weights(plain).items())


def test_the_average_is_what_is_scored(go, monkeypatch):
    monkeypatch.setattr(WeightAverage, "update", lambda self, step: None)  # stays what it was at the start
    first = go("first", **{"train.max_steps": 1, "optim.lr": 1e-12, "optim.weight_decay": 0.0})
    later = go("later", **{"optim.lr": 1e-2, "optim.ema": 0.5})
    start, scored = lines(first, "valid")[-1], lines(later, "valid")[-1]
    assert scored["auprc"] == pytest.approx(start["auprc"], abs=1e-3)
