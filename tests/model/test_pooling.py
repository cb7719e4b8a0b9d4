"""Every pooling against loops that read one number at a time."""

import pytest
import torch

from mtl_re.model.pooling import POOLINGS

BATCH, LENGTH, DIM = 5, 12, 4


def draw(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(BATCH, LENGTH, DIM, generator=generator)
    positions = torch.tensor([[1, 3, 5, 9], [6, 8, 1, 2], [1, 1, 2, 2], [10, 11, 1, 9], [4, 6, 7, 10]])
    return hidden, positions


def mean_of(row, start: int, end: int) -> list[float]:
    return [sum(float(row[place][d]) for place in range(start, end + 1)) / (end - start + 1) for d in range(DIM)]


def state(row, place: int) -> list[float]:
    return [float(value) for value in row[place]]


def by_hand(name: str, row, p: list[int]) -> list[float]:
    """The pair vector of one row; `p`: subject start and end, object start and end."""
    first_markers = state(row, p[0]) + state(row, p[2])
    all_markers = [value for place in p for value in state(row, place)]
    means = mean_of(row, p[0], p[1]) + mean_of(row, p[2], p[3])
    return {
        "cls": state(row, 0),
        "markers": first_markers,
        "cls_markers": state(row, 0) + first_markers,
        "markers_both": all_markers,
        "cls_markers_both": state(row, 0) + all_markers,
        "mean": means,
        "cls_mean": state(row, 0) + means,
    }[name]


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_is_what_the_loops_say(name):
    hidden, positions = draw()
    found = POOLINGS[name].function(hidden, positions)
    assert found.shape == (BATCH, POOLINGS[name].width * DIM)
    expected = [by_hand(name, row, place.tolist()) for row, place in zip(hidden, positions, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("name", POOLINGS)
def test_padding_is_never_read(name):
    hidden, positions = draw()
    longer = torch.cat([hidden, torch.full((BATCH, 7, DIM), 1e6)], dim=1)
    pool = POOLINGS[name].function
    torch.testing.assert_close(pool(longer, positions), pool(hidden, positions))


@pytest.mark.parametrize("name", POOLINGS)
def test_gradients_reach_the_states_that_are_read_and_no_others(name):
    hidden, positions = draw()
    hidden.requires_grad_()
    POOLINGS[name].function(hidden, positions).sum().backward()
    for row, place in enumerate(positions.tolist()):
        read = {
            "cls": {0},
            "markers": {place[0], place[2]},
            "cls_markers": {0, place[0], place[2]},
            "markers_both": set(place),
            "cls_markers_both": {0, *place},
            "mean": {*range(place[0], place[1] + 1), *range(place[2], place[3] + 1)},
            "cls_mean": {0, *range(place[0], place[1] + 1), *range(place[2], place[3] + 1)},
        }[name]
        assert set(hidden.grad[row].abs().sum(-1).nonzero().flatten().tolist()) == read


@pytest.mark.parametrize("name", POOLINGS)
def test_half_precision_stays_half(name):
    hidden, positions = draw()
    found = POOLINGS[name].function(hidden.bfloat16(), positions)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), POOLINGS[name].function(hidden, positions), atol=3e-2, rtol=3e-2)
