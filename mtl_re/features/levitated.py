"""Levitated markers: the pairs of one sentence share a pass (Zhong & Chen 2021, PURE's approximation; Ye et al. 2022).

The sentence stands unmarked. Behind it stand four marker tokens for every pair (subject start and end, object start and
end), each with the position id of the token it marks. Text sees text alone; markers see the text and the markers of
their own pair (`pairs` of `pad_pairs`), so the text's states do not depend on the pairs, nor one pair's on another. A
row of a `FeatureTable` holds one pair; `pad_pairs` lays rows of equal text side by side. Only numpy is needed, for
exports.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtl_re.features.featurizer import Features

MARKS = 4
"""Marker tokens of a pair, the last tokens of its row, in the order of `featurizer.POSITIONS`."""
TEXT, PADDING = 0, -1
"""Values of `pairs` for the tokens that belong to no pair; the pairs count from 1."""


def same_text(rows: Sequence[Features]) -> list[list[int]]:
    """Return the numbers of rows whose text is the same, tokens cut away by truncation left out, in order."""
    groups: dict[bytes, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.input_ids[:-MARKS].tobytes(), []).append(number)
    return list(groups.values())


def pad_pairs(rows: Sequence[Features], pad_id: int, token_types: bool, length_step: int = 1) -> dict[str, np.ndarray]:
    """Return the model's inputs for some rows, int64; rows of the same text stand in one sequence.

    Args:
        length_step: the sequences' padded length is a multiple of it.

    Shape: input_ids, attention_mask, position_ids, pairs, token_type_ids (sequences, length): `pairs` says to which
    pair of its sequence a token belongs; positions (rows, 5): the sequence of a row's pair and its four marker tokens.
    """
    groups = same_text(rows)
    texts = [len(rows[group[0]].input_ids) - MARKS for group in groups]
    longest = max(text + MARKS * len(group) for text, group in zip(texts, groups, strict=True))
    shape = (len(groups), -(-longest // length_step) * length_step)
    ids, pairs = np.full(shape, pad_id, np.int64), np.full(shape, PADDING, np.int64)
    places, positions = np.zeros(shape, np.int64), np.zeros((len(rows), 1 + MARKS), np.int64)
    for sequence, (text, group) in enumerate(zip(texts, groups, strict=True)):
        ids[sequence, :text], pairs[sequence, :text] = rows[group[0]].input_ids[:text], TEXT
        places[sequence, :text] = np.arange(text)
        for pair, number in enumerate(group, start=1):
            marks = slice(text + MARKS * (pair - 1), text + MARKS * pair)
            ids[sequence, marks], pairs[sequence, marks] = rows[number].input_ids[text:], pair
            places[sequence, marks] = rows[number].positions
            positions[number] = sequence, *range(marks.start, marks.stop)
    batch = {"input_ids": ids, "attention_mask": (pairs != PADDING).astype(np.int64), "positions": positions}
    batch |= {"position_ids": places, "pairs": pairs}
    return batch | ({"token_type_ids": np.zeros(shape, np.int64)} if token_types else {})
