"""`mtl-re predict`: any number of rows, by any number of processes, through kills, to one checked file.

The unit of work is a window: so many consecutive rows of the input, as read. Batches are made inside a window, so a
window's rows come out the same whichever process predicts it and whenever. Each process predicts a fixed share of the
windows and writes a part file for each (`parts`); `--resume` predicts the windows that have none. The input is read to
its end before the work starts, so that a bad row is reported at once. Rank 0 decides what is left to do, and in the end
merges the parts, checks the output and publishes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from mtl_re import __version__
from mtl_re.config import OnBadRow, PredictConfig
from mtl_re.data.loading import cures, parsed, tell_decomposed, write_rejected
from mtl_re.data.readers import file_digest
from mtl_re.data.unicode_form import is_decomposed
from mtl_re.data.validation import BadRow
from mtl_re.errors import MtlReError, RowError
from mtl_re.files import remove, unwritable
from mtl_re.predict.parts import PartFiles, RejectedRow, WindowPart
from mtl_re.predict.predictor import Predictor
from mtl_re.predict.process_group import ProcessGroup
from mtl_re.scoring.composed import ComposedModel, checkpoint_or_composed
from mtl_re.scoring.decoding import decoding_of
from mtl_re.scoring.inference import Tick
from mtl_re.scoring.writers import IdDigest, check_suffix, encode_rows, label_order, publish
from mtl_re.signals import stop_signals

if TYPE_CHECKING:
    from mtl_re.data.validation import Example

NumberedRow = tuple[int, "Example | BadRow"]
"""A row of the input with its number."""
_POLL = 0.2  # seconds between two looks at the parts of other processes


@dataclass(frozen=True)
class PredictionJob:
    """One output to be made.

    Attributes:
        order: Label order of the probabilities. parts: Where finished windows are kept.
    """

    options: PredictConfig
    predictor: Predictor
    order: tuple[str, ...]
    parts: PartFiles
    group: ProcessGroup

    @property
    def output(self) -> Path:
        return self.parts.output

    @property
    def rejected(self) -> Path:
        """Where the rows left out are listed, if there are any."""
        return self.output.with_name(f"{self.output.name}.rejected.jsonl")


@dataclass(frozen=True)
class WorkPlan:
    """What rank 0 has decided.

    Attributes:
        fingerprint: All that the bytes of the output depend on, as JSON values.
        total: Rows of the input, if they could be counted. finished: Windows that have a part, and their input rows.
    """

    fingerprint: dict[str, Any]
    total: int | None
    finished: dict[int, int]


def predict(checkpoints: Sequence[str], options: PredictConfig) -> int:
    """Predict all rows of a DATA and write them.

    Args:
        checkpoints: CKPT directories or hub ids; several vote softly.
        options: Everything else.

    Returns:
        The number of rows written (0 on other ranks than the first).

    Raises:
        MtlReError: Options, checkpoints, rows or the output's directory are at fault; an old output stands.
    """
    output = Path(options.output)
    check_suffix(output)
    with stop_signals(interrupt=True) as received, ProcessGroup() as group, ExitStack() as held:
        predictor = group.agreed(lambda: _load(checkpoints, options, group.device))
        order = label_order(options.label_order, predictor.taxonomy, output.suffix)
        job = PredictionJob(options, predictor, order, PartFiles(output), group)
        try:
            plan = group.from_first(lambda: _prepare(job, held))
            with group.faults_told():
                windows = _work(job, plan)
            return _conclude(job, windows, plan) if group.rank == 0 else 0
        except BrokenPipeError:
            raise
        except OSError as error:
            raise unwritable(output, error) from error
        except KeyboardInterrupt as error:
            if group.size > 1 and signal.SIGTERM in received:
                text = "stopped by the launcher, because another process ended or because it was told to stop"
                raise MtlReError(text) from error
            raise


def _load(checkpoints: Sequence[str], options: PredictConfig, device: str | None) -> Predictor:
    given: list[str | dict[str, str]] = list(checkpoints)
    if options.compose:
        given.append(checkpoint_or_composed(None, options.compose))
    if not given:
        raise MtlReError("give a checkpoint, or --compose HEAD=CKPT ... for one a head")
    members = [ComposedModel.load(checkpoint, device) for checkpoint in given]
    configs = [member.root.config for member in members]
    decoding = decoding_of(configs, options.prior, options.threshold, options.gate, options.restrict)
    return Predictor(members, decoding, options.batch_size, options.precision, options.weights)


# ---- before --------------------------------------------------------------------------------------------------------


def _prepare(job: PredictionJob, held: ExitStack) -> WorkPlan:
    """Rank 0: hold the output, look through the input, and find out what is left to do."""
    held.enter_context(job.parts.locked())
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0  # `torchrun --max-restarts`
    resume = job.options.resume or restarted
    fingerprint = _fingerprint(job)
    finished = job.parts.recover(fingerprint, job.options.on_bad_row == "skip") if resume else {}
    total = _count(job)
    if not resume:
        if job.parts.windows():
            lost = f"{job.parts.rows():,} rows of an interrupted prediction are thrown away"
            _say(f"{job.output}: {lost} (--resume would keep them)")
        job.parts.remove()
    held.push(lambda kind, *_: _keep_or_clear(job) if kind else None)
    return WorkPlan(fingerprint, total, finished)


def _keep_or_clear(job: PredictionJob) -> None:
    """After a fault: say what is kept, or remove the parts where no row is finished."""
    if rows := job.parts.rows():
        _say(f"{job.output}: {rows:,} finished rows are kept; the same command with --resume goes on from there")
    else:
        job.parts.remove()


def _fingerprint(job: PredictionJob) -> dict[str, Any]:
    """Return all that the bytes of the output depend on, as JSON values."""
    options, predictor = job.options, job.predictor
    decoding = predictor.decoding
    return {
        "mtl-re": __version__,
        **{f"checkpoint {n}": _identity(member) for n, member in enumerate(predictor.members, start=1)},
        "data": file_digest(options.data),
        "reading": [options.span_ends, options.first_character, options.normalise],
        "gate": decoding.gate,
        "prior": decoding.prior,
        "restrict": decoding.restrict,
        "threshold": decoding.threshold,
        "label order": list(job.order),
        "form": job.output.suffix,
        "window": options.window,
        "batch_size": options.batch_size,
        "precision": predictor.precision,
        "weights": options.weights,
        "device": next(predictor.members[0].root.parameters()).device.type,
    }


def _identity(member: ComposedModel) -> str:
    """Return a digest of each head's config, weights and tokenizer, wherever they were loaded from."""
    by_network: dict[int, str] = {}
    for model, tokenizer in member.networks.values():
        if id(model) not in by_network:
            config = {key: value for key, value in model.config.to_dict().items() if key != "transformers_version"}
            digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
            digest.update(tokenizer.backend_tokenizer.to_str().encode())
            for name, tensor in sorted(model.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            by_network[id(model)] = digest.hexdigest()
    digests = {head: by_network[id(model)] for head, (model, _) in member.networks.items()}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _count(job: PredictionJob) -> int | None:
    """Check and count the rows of the input; None for a data set of the hub, which is not downloaded twice for that.

    Raises:
        MtlReError: A row is bad and may not be left out, or the input ends in a fault.
    """
    if job.options.data.startswith("hub:"):
        return None
    rows, apart = 0, 0
    for _, row in parsed(job.options.data, job.predictor.taxonomy, job.options):
        rows += 1
        if isinstance(row, BadRow):
            _reject(row, job.options.on_bad_row)
        else:
            apart += is_decomposed(row.sentence)
    tell_decomposed(job.options.data, apart, rows)
    return rows


def _reject(row: BadRow, on_bad_row: OnBadRow) -> None:
    if on_bad_row == "error" and row.fits:
        raise MtlReError(f"{row}; {cures([row], 1)[-1]}")
    if on_bad_row == "error":
        raise MtlReError(f"{row} (on_bad_row skip leaves such rows out)")


# ---- the work ------------------------------------------------------------------------------------------------------


def _work(job: PredictionJob, plan: WorkPlan) -> int:
    """Predict this rank's share of the windows that are left, and return the number of all windows.

    Of n ranks, rank k predicts every n-th of them from the k-th on. Rank 0 then waits for the parts of the others.
    """
    group, parts, finished = job.group, job.parts, plan.finished
    windows, left, mine, rows_done = 0, 0, 0, sum(finished.values())
    with _bar(job, plan) as bar:

        def show() -> None:
            others = len(parts.windows()) - len(finished) - mine if group.size > 1 and group.rank == 0 else 0
            rows = rows_done + others * job.options.window
            bar.update((rows if plan.total is None else min(rows, plan.total)) - bar.n)

        def tick(rows: int) -> None:
            bar.update(rows / job.predictor.networks)

        for number, rows in _windows(job):
            windows += 1
            if number in finished:
                continue
            if left % group.size == group.rank:
                _predict_window(job, plan, number, rows, tick)
                mine += 1
                rows_done += len(rows)
                show()
            left += 1
        while group.rank == 0 and len(parts.windows()) < windows:
            time.sleep(_POLL)
            show()
    return windows


def _bar(job: PredictionJob, plan: WorkPlan) -> Any:
    """Return a bar over the rows of all ranks, those of an earlier run included; the rate is this run's."""
    return tqdm(
        total=plan.total,
        initial=sum(plan.finished.values()),
        desc=f"predict {job.options.data}",
        unit="row",
        unit_scale=True,
        smoothing=0.1,
        disable=job.group.rank > 0,
        file=sys.stderr,
    )


def _windows(job: PredictionJob) -> Iterator[tuple[int, list[NumberedRow]]]:
    rows = parsed(job.options.data, job.predictor.taxonomy, job.options)
    for number in count():
        if not (window := list(islice(rows, job.options.window))):
            return
        yield number, window


def _predict_window(job: PredictionJob, plan: WorkPlan, number: int, rows: list[NumberedRow], tick: Tick) -> None:
    examples, rejected = _usable(job, rows)
    predictions = job.predictor.predict(examples, tick)
    encoded = encode_rows(predictions, job.output.suffix, job.order)
    ids = IdDigest(example.id for example in examples).hexdigest()
    job.parts.write(WindowPart(number, plan.fingerprint, len(predictions), ids, rejected), encoded)


def _usable(job: PredictionJob, rows: list[NumberedRow]) -> tuple[list[Example], list[RejectedRow]]:
    """Split a window into the rows that every member can take, and the others with the reason.

    Raises:
        MtlReError: There are others, and they may not be left out.
    """
    examples: list[Example] = []
    numbers: dict[int, int] = {}
    rejected: list[RejectedRow] = []
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


def _conclude(job: PredictionJob, windows: int, plan: WorkPlan) -> int:
    """Rank 0: merge the parts in the input's order, check the file, publish it, and return the number of its rows."""
    parts, data = job.parts, job.options.data
    summaries = [(part.rows, part.ids, len(part.rejected)) for part, _ in parts.in_order(windows)]
    rows, lost = sum(summary[0] for summary in summaries), sum(summary[2] for summary in summaries)
    if not data.startswith("hub:") and file_digest(data) != plan.fingerprint["data"]:
        parts.remove()
        raise MtlReError(f"{data}: it was changed while its rows were predicted; predict it again")
    if not rows:
        first = next(_rejected(job, windows))
        parts.remove()
        raise MtlReError(f"{first}; none of the {lost:,} rows can be used")
    if lost:
        write_rejected(job.rejected, _rejected(job, windows))
        _say(f"{data}: {lost} bad rows left out, listed in {job.rejected}")
    else:
        remove(job.rejected)  # an earlier output's
    chunks = (encoded for _, encoded in parts.in_order(windows))
    expected = [(number, ids) for number, ids, _ in summaries]
    publish(chunks, job.output, job.predictor.taxonomy, job.order, lambda: expected)
    parts.remove()
    return rows


def _rejected(job: PredictionJob, windows: int) -> Iterator[BadRow]:
    for part, _ in job.parts.in_order(windows):
        for number, field, reason in part.rejected:
            yield BadRow(job.options.data, number, field, reason)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
