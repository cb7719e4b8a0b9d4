"""The batch order is a pure function, deals every row once, and padding changes nothing but shapes."""

from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import TAXONOMIES
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_re.features.collate import Collator, epoch_steps, sorted_batches, step_parts
from mtl_re.features.featurizer import Features, FeatureTable
from mtl_re.taxonomy import IGNORE

TAXONOMY = TAXONOMIES["klue-hierarchical"]
quick = settings(derandomize=True, deadline=None, max_examples=60)


def lengths_of(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(8, 200, rows)


# ---- order ---------------------------------------------------------------------------------------------------------


@quick
@given(rows=st.integers(1, 700), step_rows=st.integers(1, 40), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 99))
def test_an_epoch_takes_every_row_once(rows, step_rows, seed, epoch):
    steps = epoch_steps(rows, step_rows, seed, epoch)
    assert sorted(np.concatenate(steps).tolist()) == list(range(rows))
    sizes = sorted(len(step) for step in steps)
    assert len(steps) == -(-rows // step_rows), "as many steps as the schedule counts on"
    assert sizes[1:] == [step_rows] * (len(steps) - 1), "all full but one"


def flat(steps):
    return [step.tolist() for step in steps]


def test_the_order_is_a_function_of_row_count_seed_and_epoch():
    first = flat(epoch_steps(300, 16, 7, 2))
    np.random.seed(5)
    torch.manual_seed(5)
    assert flat(epoch_steps(300, 16, 7, 2)) == first
    for other in (epoch_steps(300, 16, 7, 3), epoch_steps(300, 16, 8, 2), epoch_steps(301, 16, 7, 2)):
        assert flat(other) != first


def test_the_order_of_a_known_case_does_not_change():
    """A changed order breaks the resuming of runs that were started before."""
    assert flat(epoch_steps(6, 2, 42, 0)) == [[3, 2], [5, 4], [1, 0]]


def test_rows_meet_other_rows_in_another_epoch():
    neighbours = [{frozenset(step.tolist()) for step in epoch_steps(3000, 8, 0, epoch)} for epoch in range(2)]
    assert len(neighbours[0] & neighbours[1]) < 5


def test_steps_are_not_sorted_by_anything():
    """Every step is a plain sample of the rows: steps of like length learn slower."""
    means = np.array([step.mean() for step in epoch_steps(3200, 32, 0, 0)])
    assert abs(means.std() / (3200 / np.sqrt(12 * 32)) - 1) < 0.2, "means spread as those of random samples do"


@quick
@given(
    rows=st.integers(0, 70),
    processes=st.integers(1, 5),
    batch_size=st.integers(1, 40),
    cost=st.sampled_from([0, 64, 10**6]),
)
def test_parts_of_a_step(rows, processes, batch_size, cost):
    step, lengths = np.arange(rows) * 3, lengths_of(rows)
    parts = step_parts(step, lengths, processes, batch_size, cost)
    assert len(parts) == processes
    assert sorted(row for process in parts for part in process for row in part) == step.tolist(), "each row once"
    shares = [sum(map(len, process)) for process in parts]
    assert max(shares) - min(shares) <= 1
    for process, share in zip(parts, shares, strict=True):
        assert all(0 < len(part) <= batch_size for part in process) or (share == 0 and len(process) == 1)
        taken = [lengths[row // 3] for part in process for row in part]
        assert taken == sorted(taken), "like lengths together"
    if cost == 10**6:
        fewest = [max(1, -(-share // batch_size)) for share in shares]
        assert [len(process) for process in parts] == fewest, "a dear pass is made only where rows do not fit"


def padding(parts, lengths):
    padded = sum(lengths[part].max() * len(part) for part in parts)
    return 1 - lengths.sum() / padded


def test_the_cuts_cost_least():
    """Against every way to cut a small step."""
    lengths = np.array([24, 32, 72, 80, 88, 240])  # multiples of 8: nothing is rounded
    rows, cost = np.arange(6), 40
    best = min(
        sum(lengths[part].max() * len(part) + cost for part in np.split(rows, cuts))
        for number in range(6)
        for cuts in map(list, combinations(range(1, 6), number))
    )
    (found,) = step_parts(rows, lengths, 1, 6, cost)
    assert sum(lengths[part].max() * len(part) + cost for part in found) == best
    assert [part.tolist() for part in found] == [[0, 1], [2, 3, 4], [5]]


def test_little_of_a_step_is_padding():
    lengths = np.random.default_rng(0).lognormal(3.7, 0.4, 32).astype(int) + 10
    rows = np.arange(32)
    (found,) = step_parts(rows, lengths, 1, 32, 64)
    assert padding(found, lengths) < 0.15 < 0.35 < padding([rows], lengths)
    (one,) = step_parts(rows, lengths, 1, 32, 10**6)
    assert len(one) == 1


@quick
@given(rows=st.integers(0, 200), batch_size=st.integers(1, 64))
def test_sorted_batches(rows, batch_size):
    lengths = lengths_of(rows)
    batches = sorted_batches(lengths, batch_size)
    taken = np.concatenate(batches) if batches else np.zeros(0, int)
    assert sorted(taken.tolist()) == list(range(rows))
    assert (np.diff(lengths[taken]) <= 0).all(), "the longest first"
    assert all(len(batch) <= batch_size for batch in batches)


# ---- batches -------------------------------------------------------------------------------------------------------


def small_table() -> FeatureTable:
    """Rows of 5, 3 and 4 tokens; the first two have a second segment."""

    def made(ids, second, target):
        return Features(np.array(ids, np.int32), np.array([1, 2, 2, 3], np.int32), second, np.array(target, np.int64))

    return FeatureTable.from_rows(
        [
            made([2, 11, 12, 13, 3], 3, [1, 4, IGNORE]),
            made([2, 14, 3], 2, [0, IGNORE, IGNORE]),
            made([2, 15, 16, 3], 4, [2, IGNORE, 9]),
        ],
        3,
    )


def test_what_a_batch_holds():
    batch = Collator(small_table(), 0, True)([0, 2])
    assert batch["input_ids"].tolist() == [[2, 11, 12, 13, 3], [2, 15, 16, 3, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]
    assert batch["targets"].tolist() == [[1, 4, IGNORE], [2, IGNORE, 9]]
    assert batch["positions"].tolist() == [[1, 2, 2, 3]] * 2
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_token_types_only_where_asked_for_and_padding_is_the_tokenizers():
    batch = Collator(small_table(), 7, False)(np.array([1, 0]))
    assert "token_type_ids" not in batch
    assert batch["input_ids"].tolist()[0] == [2, 14, 3, 7, 7]


def test_lengths_in_steps_stay_within_the_longest_row():
    """A batch may be wider than its rows, but an encoder may have no positions beyond the longest row."""
    table = small_table()  # 5, 3 and 4 tokens
    assert Collator(table, 0, False, 2)([1])["input_ids"].shape == (1, 4)
    assert Collator(table, 0, False, 2)([0])["input_ids"].shape == (1, 5)
    assert Collator(table, 0, False, 8)([1])["input_ids"].tolist() == [[2, 14, 3, 0, 0]]
    assert Collator(table, 0, False, 8)([1])["attention_mask"].tolist() == [[1, 1, 1, 0, 0]]


@pytest.mark.parametrize("rows", [[], np.zeros(0, np.int64)], ids=["list", "array"])
def test_an_empty_part_becomes_a_row_that_trains_nothing(rows):
    table = small_table()
    batch = Collator(table, 0, True)(rows)
    assert batch["targets"].tolist() == [[IGNORE] * 3]
    assert batch["input_ids"].shape == (1, 5)
    batch["targets"][:] = 0
    assert Collator(table, 0, True)(rows)["targets"].tolist() == [[IGNORE] * 3]
    assert table.targets[0].tolist() == [1, 4, IGNORE], "the table is not written to"


def test_every_row_of_a_real_table_comes_back(table):
    collate = Collator(table, 0, False)
    for rows in sorted_batches(table.lengths, 7):
        batch = collate(rows)
        assert batch["input_ids"].shape[1] == table.lengths[rows].max()
        for line, row in enumerate(rows):
            known = batch["attention_mask"][line].bool()
            assert batch["input_ids"][line][known].tolist() == table[row].input_ids.tolist()
            assert batch["targets"][line].tolist() == table[row].targets.tolist()
