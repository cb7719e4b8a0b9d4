"""Hostile input by the hundred thousand through every reader, the markers, the tokenizer and every converter.

    python tests/fuzz.py --rows 100000

What is made and what must become of it: `fuzz_rows` (rows of the four file formats, whole files damaged) and
`fuzz_records` (records of other tools for `mtl-re convert`, documents for `mtl-re extract`). Figures go to stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuzz_records import MAKERS, converted, documents
from fuzz_rows import WRITERS, TokenCheck, damaged, real_tokenizers, scratch_tokenizers, structured


def parts(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict[str, int]]]]:
    """Yield each part by name, with the function that runs it and returns its counts."""
    rows, records, seed = options.rows, options.records or options.rows, options.seed
    tokenizers = real_tokenizers(options.tokenizer) if options.tokenizer else scratch_tokenizers()

    def read(kind: str) -> dict[str, int]:
        tokens = TokenCheck(tokenizers)
        return dict(
            structured(folder, kind, rows, seed, tokens) + tokens.counts + damaged(folder, kind, options.files, seed)
        )

    for kind in WRITERS:
        yield kind, lambda kind=kind: read(kind)
    for name in MAKERS:
        yield f"convert --from {name}", lambda name=name: dict(converted(folder, name, records, seed))
    yield "documents", lambda: dict(documents(folder, records, seed))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="through each reader")
    parser.add_argument("--records", type=int, help="through each converter, and documents (default: --rows)")
    parser.add_argument("--files", type=int, default=2000, help="damaged files for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", help="folder of a pretrained encoder (default: one made from the sample)")
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for name, run in parts(Path(folder), options):
            with contextlib.redirect_stderr(io.StringIO()):  # the readers' notes on encodings, one a file
                figures[name] = run()
            print(f"{name}: {figures[name]} ({time.monotonic() - began:.0f} s)", file=sys.stderr)
    figures["rows in all"] = sum(counts["rows"] for counts in figures.values())
    figures["seconds"], figures["seed"] = round(time.monotonic() - began, 1), options.seed
    print(json.dumps(figures, indent=1))
    if options.output:
        options.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
