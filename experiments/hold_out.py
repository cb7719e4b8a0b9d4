"""Hold test rows out of a labelled file, by sentence, at given coarse shares: to select on a split of train.

    python experiments/hold_out.py ../shared/klue-re/klue-re-v1.1_train.json.gz runs/hold-out --shares 0.6,0.17,0.23

DIR/test.json gets the largest subset of the held-out rows that has these shares of the coarse classes (without
--shares, all of them), DIR/train.json the rows that were not held out.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mtl_re.config import check_shares
from mtl_re.data.loading import load_examples
from mtl_re.data.splits import split_by_sentence
from mtl_re.files import write_text
from mtl_re.outputs import check_outputs, input_files
from mtl_re.taxonomy import Taxonomy


def with_shares(groups: Sequence[str], shares: Mapping[str, float], rng: np.random.Generator) -> np.ndarray:
    """Return the numbers of the rows to take, in order: the groups have these shares, and one group loses no row."""
    counts = Counter(groups)
    if missing := [group for group in shares if not counts[group]]:
        raise SystemExit(f"--shares: {', '.join(missing)} has no held-out row")
    total = min(counts[group] / share for group, share in shares.items())
    rows = np.arange(len(groups))
    parts = [
        rng.permutation(rows[np.array(groups) == group])[: round(total * share)] for group, share in shares.items()
    ]
    return np.sort(np.concatenate(parts))


def main() -> None:
    """Write both files, and print their counts by coarse class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--fraction", type=float, default=0.2)
    parser.add_argument("--shares", help="shares of the coarse classes among the test rows, in taxonomy order")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier call")
    given = parser.parse_args()
    taxonomy = Taxonomy.from_prefixes()
    files = {name: given.directory / f"{name}.json" for name in ("train", "test")}
    check_outputs(files, input_files([given.data]), given.overwrite)
    train, test = split_by_sentence(load_examples(given.data, taxonomy)[0], given.fraction, given.seed)
    if given.shares:
        values = [float(share) for share in given.shares.split(",")]
        check_shares("--shares", values)
        shares = dict(zip(taxonomy.groups, values, strict=True))
        groups = [taxonomy.coarse_of(example.label) for example in test]
        test = [test[row] for row in with_shares(groups, shares, np.random.default_rng(given.seed))]
    for name, rows in (("train", train), ("test", test)):
        text = json.dumps([example.to_row() for example in rows], ensure_ascii=False)
        write_text(files[name], text)
        print(name, len(rows), dict(Counter(taxonomy.coarse_of(example.label) for example in rows)))


if __name__ == "__main__":
    main()
