"""Dropout from a quarter of the random numbers is dropout: rate, scale, gradient, seed."""

import pytest
import torch
from conftest import tiny_model
from torch import nn

from mtl_re.model.cpu.dropout import QuickDropout, dropped, use_quick_dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rate_and_scale(rate, dtype):
    torch.manual_seed(0)
    found = dropped(torch.ones(401, 499, dtype=dtype), rate)
    share = (found == 0).double().mean()
    assert abs(share - rate) < 4 * (rate * (1 - rate) / found.numel()) ** 0.5  # four standard errors
    assert (found[found != 0] == torch.tensor(1, dtype=dtype) / (1 - rate)).all()
    rows, columns = ((found == 0).double().mean(dim) for dim in (1, 0))
    for part, size in ((rows, 499), (columns, 401)):  # every place alike: none of the four parts of a draw is special
        assert abs(part - rate).max() < 6 * (rate * (1 - rate) / size) ** 0.5


def test_gradient_is_what_was_kept():
    torch.manual_seed(1)
    states = torch.randn(7, 5, requires_grad=True)
    found = dropped(states, 0.4)
    found.sum().backward()
    assert torch.equal(states.grad, torch.where(found == 0, 0.0, 1 / torch.tensor(0.6)))
    assert 0 < (states.grad == 0).sum() < states.numel()


def test_seed_decides():
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(dropped(torch.ones(1000), 0.3))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_nothing_is_drawn_for_rate_0_or_in_evaluation():
    before = torch.get_rng_state()
    states = torch.randn(4, generator=torch.Generator().manual_seed(0))
    assert dropped(states, 0.0) is states
    assert QuickDropout(0.5).eval()(states) is states
    assert torch.equal(torch.get_rng_state(), before)


def test_every_dropout_of_a_network_is_replaced(tokenizer):
    model = tiny_model(tokenizer)
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    names = set(model.state_dict())
    use_quick_dropout(model)
    found = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert [module.p for module in found] == rates
    assert {type(module) for module in found} == {QuickDropout}
    assert set(model.state_dict()) == names
