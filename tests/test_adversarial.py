"""The embeddings move along their gradient, by the length asked for, and come back bit for bit."""

import pytest
import torch
from torch import nn

from mtl_re.adversarial import perturbed


@pytest.fixture
def embedding():
    torch.manual_seed(0)
    made = nn.Embedding(7, 3)
    made(torch.tensor([1, 4, 4])).square().sum().backward()
    return made


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_move_has_the_length_and_the_direction(embedding, epsilon, scale):
    before, gradient = embedding.weight.detach().clone(), embedding.weight.grad.clone()
    embedding.weight.grad *= scale  # fp16's loss scale
    with perturbed(embedding, epsilon):
        move = embedding.weight.detach() - before
        assert move.norm().item() == pytest.approx(epsilon, rel=1e-3)
        torch.testing.assert_close(move / epsilon, gradient / gradient.norm(), atol=1e-4, rtol=1e-3)
        assert not move[0].any()  # a token that is not in the batch stays
    assert torch.equal(embedding.weight.detach(), before)
    assert torch.equal(embedding.weight.grad, gradient * scale)


@pytest.mark.parametrize("value", [None, 0.0, float("inf"), float("nan")])
def test_nothing_moves_without_a_usable_gradient(embedding, value):
    before = embedding.weight.detach().clone()
    if value is None:
        embedding.weight.grad = None
    else:
        embedding.weight.grad[1] = value
        embedding.weight.grad[4] = value
    with perturbed(embedding, 1.0):
        assert torch.isfinite(embedding.weight).all()
        if value != 0.0:
            assert torch.equal(embedding.weight.detach(), before)
    assert torch.equal(embedding.weight.detach(), before)


def test_weights_come_back_after_a_fault(embedding):
    before = embedding.weight.detach().clone()
    with pytest.raises(RuntimeError), perturbed(embedding, 1.0):
        raise RuntimeError
    assert torch.equal(embedding.weight.detach(), before)
