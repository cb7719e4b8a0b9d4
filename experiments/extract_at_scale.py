"""Does `mtl-re extract` take any number of documents in flat memory, and end in the same bytes however often it dies?

    python experiments/extract_at_scale.py CKPT DATA --sentences 100000 --entities 5 --output DIR

Documents are made of DATA's sentences, each with its two entities and further words of it (`pairs_speed.entities_of`),
five sentences a document. `mtl-re extract` goes through them once undisturbed and once killed by SIGKILL twice, each
time resumed. The resident memory of both is noted every second. The texts stay in a temporary folder; DIR gets
`figures.json`, `memory.csv` and `memory.png`.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib
import psutil
from pairs_speed import TAXONOMY, entities_of

from mtl_re.config import ReadingConfig
from mtl_re.data.loading import load_examples
from mtl_re.data.readers import file_digest
from mtl_re.data.validation import Example
from mtl_re.predict.parts import PartFiles

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SENTENCES = 5
"""Sentences of a document."""


def sentences_of(rows: Sequence[Example], entities: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield sentences with so many entities without end: DATA's in a new order, with other words, each time round."""
    for turn in range(sys.maxsize):
        chance = random.Random(f"{seed}-{turn}")
        for row in chance.sample(rows, len(rows)):
            kinds = [row.subject.type, row.object.type]
            if found := entities_of(row, entities, kinds, chance):
                spans = [{"start": one.start, "end": one.end, "type": one.type} for one in found]
                yield {"text": row.sentence, "entities": spans}


def write_documents(path: Path, sentences: Iterator[dict[str, Any]], number: int) -> None:
    """Write documents of `SENTENCES` sentences, `number` sentences in all, their spans moved into the document."""
    remaining = islice(sentences, number)
    with path.open("w", encoding="utf-8") as file:
        for count in range(-(-number // SENTENCES)):
            text, entities = "", []
            for sentence in islice(remaining, SENTENCES):
                start = len(text)
                text += sentence["text"].strip() + "\n"
                lead = len(sentence["text"]) - len(sentence["text"].lstrip())
                for one in sentence["entities"]:
                    moved = {"start": start + one["start"] - lead, "end": start + one["end"] - lead}
                    entities.append(one | moved)
            file.write(json.dumps({"id": f"d{count}", "text": text, "entities": entities}, ensure_ascii=False) + "\n")


def watch(command: list[str], parts: PartFiles, kill_at: int | None, began: float) -> tuple[list[tuple], int]:
    """Run a command, note (seconds, MB, finished windows) every second, and kill it when so many windows are finished.

    Returns:
        The notes, and the exit status.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    seen, notes = psutil.Process(process.pid), []
    while process.poll() is None:
        try:
            memory = seen.memory_info().rss / 1e6
        except psutil.NoSuchProcess:
            break
        finished = len(parts.windows())
        notes.append((round(time.monotonic() - began, 1), round(memory, 1), finished))
        if kill_at is not None and finished >= kill_at:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(1)
    return notes, process.wait()


def draw(runs: dict[str, list[tuple]], path: Path) -> None:
    """Draw the memory of each run over time."""
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    for name, notes in runs.items():
        axes.plot([second / 60 for second, *_ in notes], [memory for _, memory, _ in notes], label=name, linewidth=1)
    axes.set(xlabel="minutes", ylabel="resident memory, MB", ylim=(0, None), title="mtl-re extract")
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt")
    parser.add_argument("data")
    parser.add_argument("--sentences", type=int, default=100_000)
    parser.add_argument("--entities", type=int, default=5)
    parser.add_argument("--window", type=int, default=512, help="documents of a window")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="folder of the figures")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows = list(load_examples(options.data, TAXONOMY, "error", ReadingConfig())[0])
    with tempfile.TemporaryDirectory() as folder:
        documents = Path(folder) / "documents.jsonl"
        write_documents(documents, sentences_of(rows, options.entities, options.seed), options.sentences)
        windows = -(-options.sentences // SENTENCES // options.window)
        command = [sys.executable, "-m", "mtl_re", "extract", options.ckpt, "--data", str(documents)]
        command += ["--window", str(options.window), "--precision", options.precision, "--output"]
        runs: dict[str, list[tuple]] = {}
        whole, killed = Path(folder) / "whole.jsonl", Path(folder) / "killed.jsonl"
        began = time.monotonic()
        runs["undisturbed"], status = watch([*command, str(whole)], PartFiles(whole), None, began)
        assert status == 0, f"the undisturbed run ended with {status}"
        statuses, notes, began = [], [], time.monotonic()
        for kill_at in (windows // 3, 2 * windows // 3, None):
            more, status = watch([*command, str(killed), "--resume"], PartFiles(killed), kill_at, began)
            notes += more
            statuses.append(status)
        runs["killed twice and resumed"] = notes
        with whole.open(encoding="utf-8") as file:
            triples = sum(1 for _ in file)
        seconds = runs["undisturbed"][-1][0]
        figures = {
            "sentences": options.sentences,
            "entities": options.entities,
            "documents": -(-options.sentences // SENTENCES),
            "window": options.window,
            "precision": options.precision,
            "triples": triples,
            "seconds": seconds,
            "sentences_per_s": round(options.sentences / seconds, 1),
            "exit statuses": statuses,
            "same bytes": file_digest(str(whole)) == file_digest(str(killed)),
            "sha256": file_digest(str(whole)),
            "MB": {name: megabytes([memory for _, memory, _ in notes]) for name, notes in runs.items()},
        }
    (options.output / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    with (options.output / "memory.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["run", "seconds", "MB", "finished windows"])
        for name, notes in runs.items():
            table.writerows((name, *note) for note in notes[:: max(1, len(notes) // 200)])
    draw(runs, options.output / "memory.png")
    print(json.dumps(figures, indent=1))
    return 0 if figures["same bytes"] else 1


def megabytes(memory: list[float]) -> dict[str, float]:
    """Return the peak, and the medians of the second and of the last tenth of a run."""
    tenth = max(1, len(memory) // 10)
    middle = {
        name: sorted(part)[len(part) // 2]
        for name, part in (("second", memory[tenth : 2 * tenth] or memory), ("last", memory[-tenth:]))
    }
    return {"peak": max(memory), "second tenth": middle["second"], "last tenth": middle["last"]}


if __name__ == "__main__":
    raise SystemExit(main())
