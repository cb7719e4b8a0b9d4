"""`mtl-re predict`: any number of rows, by any number of processes, through kills, to one checked file.

The unit of work is a window: so many consecutive rows of the input, as read. Batches are made inside a window, so a
window's rows come out the same whoever predicts it and whenever; finished windows are kept in `prediction_shards`, and
`--resume` predicts the others. The input is read to its end before the work starts, so that a bad row is told at once.
Rank 0 decides what is left to do, and in the end merges, checks and publishes.
"""

from __future__ import annotations

import hashlib
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from mtl_re import __version__
from mtl_re.config import OnBadRow, PredictConfig
from mtl_re.data.loading import parsed, write_rejected
from mtl_re.data.readers import file_digest
from mtl_re.data.validation import BadRow
from mtl_re.errors import MtlReError, RowError
from mtl_re.predict.prediction_shards import Rejected, Shards, ShardWriter, Window
from mtl_re.predict.predictor import Predictor
from mtl_re.predict.ranks import Ranks
from mtl_re.scoring import evaluation
from mtl_re.scoring.inference import Tick
from mtl_re.scoring.scorer import Scorer
from mtl_re.scoring.writers import IdDigest, check_suffix, encode, label_order, publish, unwritable

if TYPE_CHECKING:
    from mtl_re.data.validation import Example

Row = tuple[int, "Example | BadRow"]
"""A row of the input with its number."""


@dataclass
class Job:
    """One output to be made.

    Attributes:
        order: of the probabilities. shards: where finished windows are kept.
    """

    options: PredictConfig
    predictor: Predictor
    order: tuple[str, ...]
    shards: Shards
    ranks: Ranks

    @property
    def output(self) -> Path:
        return self.shards.output

    @property
    def rejected(self) -> Path:
        """Where the rows left out are listed, if there are any."""
        return self.output.with_name(f"{self.output.name}.rejected.jsonl")


def predict(checkpoints: Sequence[str], options: PredictConfig) -> int:
    """Predict all rows of a DATA and write them.

    Args:
        checkpoints: CKPT directories or hub ids; several vote softly.
        options: everything else.

    Returns:
        The number of rows written (0 on other ranks than the first).

    Raises:
        MtlReError: anything at fault in options, checkpoints, rows or the output's place; an old output stands.
    """
    output = Path(options.output)
    check_suffix(output)
    with _stopped_by_signals(), Ranks() as ranks:
        predictor = _load(checkpoints, options, ranks.device)
        order = label_order(options.label_order, predictor.taxonomy, output.suffix)
        job = Job(options, predictor, order, Shards(output), ranks)
        try:
            with ExitStack() as held:
                return _run(job, held)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise unwritable(output, error) from error


def _load(checkpoints: Sequence[str], options: PredictConfig, device: str | None) -> Predictor:
    given: list[str | dict[str, str]] = list(checkpoints)
    if options.compose:
        given.append(evaluation.checkpoint_or_composed(None, options.compose))
    if not given:
        raise MtlReError("give a checkpoint, or --compose HEAD=CKPT ... for one a head")
    members = [Scorer.load(checkpoint, device) for checkpoint in given]
    return Predictor(members, evaluation.reading_of(options, members[0]), options.batch_size, options.precision)


def _run(job: Job, held: ExitStack) -> int:
    """The whole job on this rank; `held` frees the output when it ends."""
    plan = job.ranks.decided(lambda: _prepare(job, held))
    windows = _work(job, plan)
    rows = _conclude(job, windows, plan["fingerprint"]["data"]) if job.ranks.rank == 0 else 0
    job.ranks.meet("published")
    return rows


# ---- before --------------------------------------------------------------------------------------------------------


def _prepare(job: Job, held: ExitStack) -> dict[str, Any]:
    """Rank 0: hold the output, look through the input, and find out what is left to do."""
    held.enter_context(job.shards.claimed())
    fingerprint = _fingerprint(job)
    finished: list[Window] = []
    if job.options.resume:
        skip = job.options.on_bad_row == "skip"
        finished = [window for window in job.shards.recover(fingerprint) if skip or not window.rejected]
    total = _count(job)
    if not job.options.resume and job.shards.numbers():
        lost = job.shards.finished()
        _say(f"{job.output}: {lost:,} rows of an interrupted prediction are thrown away (--resume would keep them)")
        job.shards.remove()
    held.push(lambda kind, *_: _keep_or_clear(job) if kind else None)
    return {
        "fingerprint": fingerprint,
        "total": total,
        "finished": sorted(window.window for window in finished),
        "rows": sum(window.read for window in finished),
    }


def _keep_or_clear(job: Job) -> None:
    """After a fault: say what is kept, or leave nothing behind if that is nothing."""
    if rows := job.shards.finished():
        _say(f"{job.output}: {rows:,} finished rows are kept; the same command with --resume goes on from there")
    else:
        job.shards.remove()


def _fingerprint(job: Job) -> dict[str, Any]:
    """All that the bytes of the output depend on, as JSON values."""
    options, predictor = job.options, job.predictor
    reading = predictor.reading
    return {
        "mtl-re": __version__,
        **{f"checkpoint {n}": _identity(member) for n, member in enumerate(predictor.members, start=1)},
        "data": file_digest(options.data),
        "gate": reading.gate,
        "prior": reading.prior,
        "restrict": reading.restrict,
        "threshold": reading.threshold,
        "label order": list(job.order),
        "form": job.output.suffix,
        "window": options.window,
        "batch_size": options.batch_size,
        "precision": predictor.precision,
        "device": next(predictor.members[0].root.parameters()).device.type,
    }


def _identity(scorer: Scorer) -> str:
    """Digest of what a member is: each head's config, weights and tokenizer, wherever they were loaded from."""
    done: dict[int, str] = {}
    for model, tokenizer in scorer.networks.values():
        if id(model) not in done:
            config = {key: value for key, value in model.config.to_dict().items() if key != "transformers_version"}
            digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
            digest.update(tokenizer.backend_tokenizer.to_str().encode())
            for name, tensor in sorted(model.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            done[id(model)] = digest.hexdigest()
    digests = {head: done[id(model)] for head, (model, _) in scorer.networks.items()}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _count(job: Job) -> int | None:
    """Rows of the input, all of them looked at; None for a hub data set, which is not fetched once more for that.

    Raises:
        MtlReError: a row is bad and may not be left out, or the input ends in a fault.
    """
    if job.options.data.startswith("hub:"):
        return None
    rows = 0
    for _, row in parsed(job.options.data, job.predictor.taxonomy):
        rows += 1
        if isinstance(row, BadRow):
            _reject(row, job.options.on_bad_row)
    return rows


def _reject(row: BadRow, on_bad_row: OnBadRow) -> None:
    if on_bad_row == "error":
        raise MtlReError(f"{row} (on_bad_row skip leaves such rows out)")


# ---- the work ------------------------------------------------------------------------------------------------------


def _work(job: Job, plan: dict[str, Any]) -> int:
    """Predict the windows that are left, together with the other ranks; the number of all windows."""
    finished, ranks = set(plan["finished"]), job.ranks
    windows, left, mine = 0, 0, 0
    with closing(ShardWriter(job.shards, ranks.rank, plan["fingerprint"])) as writer, _bar(job, plan) as bar:

        def show() -> None:
            bar.update(plan["rows"] + ranks.done(mine) - bar.n)

        def tick(rows: int) -> None:
            bar.update(rows / job.predictor.networks)

        claimed = ranks.claim()
        for number, rows in _windows(job):
            windows += 1
            if number in finished:
                continue
            if left == claimed:
                _predict_window(job, writer, number, rows, tick)
                mine += len(rows)
                show()
                claimed = ranks.claim()
            left += 1
        ranks.meet("predicted", show)
    return windows


def _bar(job: Job, plan: dict[str, Any]) -> Any:
    """Rows of all ranks, those of an earlier run included; the rate is this run's."""
    return tqdm(
        total=plan["total"],
        initial=plan["rows"],
        desc=f"predict {job.options.data}",
        unit="row",
        unit_scale=True,
        smoothing=0.1,
        disable=job.ranks.rank > 0,
        file=sys.stderr,
    )


def _windows(job: Job) -> Iterator[tuple[int, list[Row]]]:
    rows = parsed(job.options.data, job.predictor.taxonomy)
    for number in count():
        if not (window := list(islice(rows, job.options.window))):
            return
        yield number, window


def _predict_window(job: Job, writer: ShardWriter, number: int, rows: list[Row], tick: Tick) -> None:
    examples, rejected = _usable(job, rows)
    predictions = job.predictor.predict(examples, tick)
    encoded = encode(predictions, job.output.suffix, job.order)
    ids = IdDigest(example.id for example in examples).hexdigest()
    writer.add(number, encoded, len(predictions), ids, rejected)


def _usable(job: Job, rows: list[Row]) -> tuple[list[Example], list[Rejected]]:
    """The rows that can be read and that every member can take, and the others with the reason.

    Raises:
        MtlReError: there are others, and they may not be left out.
    """
    examples: list[Example] = []
    numbers: dict[int, int] = {}
    rejected: list[Rejected] = []
    for number, row in rows:
        if isinstance(row, BadRow):
            _reject(row, job.options.on_bad_row)
            rejected.append((number, row.field, row.reason))
        else:
            examples.append(row)
            numbers[id(row)] = number
    if job.options.on_bad_row == "skip":

        def reject(example: Example, error: RowError) -> None:
            rejected.append((numbers[id(example)], error.field, error.reason))

        every = examples  # keeps the ids in `numbers` theirs
        for member in job.predictor.members:
            examples = list(member.usable(examples, reject))
        assert len(examples) + len(rejected) == len(rows), (len(every), len(examples), len(rejected), len(rows))
    return examples, sorted(rejected)


# ---- after ---------------------------------------------------------------------------------------------------------


def _conclude(job: Job, windows: int, digest: str) -> int:
    """Rank 0: merge the shards in the input's order, check the file, publish it; the number of its rows."""
    shards, data = job.shards, job.options.data
    rows = sum(window.rows for _, window in shards.described(windows))
    lost = sum(len(window.rejected) for _, window in shards.described(windows))
    if not data.startswith("hub:") and file_digest(data) != digest:
        shards.remove()
        raise MtlReError(f"{data}: it was changed while its rows were predicted; predict it again")
    if not rows:
        first = next(_rejected(job, windows))
        shards.remove()
        raise MtlReError(f"{first}; none of the {lost:,} rows can be used")
    if lost:
        write_rejected(job.rejected, _rejected(job, windows))
        _say(f"{data}: {lost} bad rows left out, listed in {job.rejected}")
    else:
        job.rejected.unlink(missing_ok=True)  # an earlier output's
    publish(
        shards.chunks(windows),
        job.output,
        job.predictor.taxonomy,
        job.order,
        lambda: ((window.rows, window.ids) for _, window in shards.described(windows)),
    )
    shards.remove()
    return rows


def _rejected(job: Job, windows: int) -> Iterator[BadRow]:
    for _, window in job.shards.described(windows):
        for number, field, reason in window.rejected:
            yield BadRow(job.options.data, number, field, reason)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM ends the work as Ctrl-C does; a launcher's second signal does not disturb the leaving."""
    before: dict[signal.Signals, Any] = {}

    def stop(number: int, frame: Any) -> None:
        for signum in before:
            signal.signal(signum, signal.SIG_IGN)
        raise KeyboardInterrupt

    try:
        for signum in (signal.SIGTERM, signal.SIGINT):
            before[signum] = signal.signal(signum, stop)
    except ValueError:  # not the main thread: signals are not ours to take
        before.clear()
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
