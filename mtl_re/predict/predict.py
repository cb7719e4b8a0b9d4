"""`mtl-re predict`: rows → predictions, by a `windows.WindowJob`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mtl_re import __version__
from mtl_re.config import PredictConfig, RayConfig
from mtl_re.data.loading import parsed, tell_decomposed
from mtl_re.data.unicode_form import is_decomposed
from mtl_re.data.validation import BadRow, Example
from mtl_re.errors import MtlReError, RowError
from mtl_re.predict.folders import Unit
from mtl_re.predict.parts import RejectedRow
from mtl_re.predict.predictor import Predictor
from mtl_re.predict.process_group import ProcessGroup
from mtl_re.predict.ray_engine import MakeJob, absolute, run_folder
from mtl_re.predict.windows import Answer, Progress, WindowJob, run_job
from mtl_re.scoring.composed import ComposedModel, checkpoint_or_composed
from mtl_re.scoring.decoding import decoding_of
from mtl_re.scoring.writers import IdDigest, check_suffix, encode_rows, label_order, publish


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
    if options.engine == "ray":
        return _on_ray(checkpoints, options)
    check_suffix(Path(options.output))

    def job(group: ProcessGroup) -> PredictionJob:
        return PredictionJob(group.agreed(lambda: _load(checkpoints, options, group.device)), options, group)

    return run_job(job)


def _on_ray(checkpoints: Sequence[str], options: PredictConfig) -> int:
    """Predict the files of a folder by the workers of a Ray cluster, and return the number of rows written."""
    heads = [name.partition("=") for name in options.compose or ()]
    composed = [f"{head}{equals}{absolute(path)}" for head, equals, path in heads]
    there = replace(options, compose=composed or None)
    load = partial(_jobs, [absolute(checkpoint) for checkpoint in checkpoints], there)
    return run_folder(PredictionJob, load, options, [*checkpoints, *composed])


def _jobs(checkpoints: Sequence[str], options: PredictConfig, device: str | None) -> MakeJob:
    """Load the checkpoints for the files of a folder, and return what makes the job of one of them."""
    predictor = _load(checkpoints, options, device)
    of_file = replace(options, engine="local", ray=RayConfig(), resume=True)

    def make(unit: Unit) -> PredictionJob:
        return PredictionJob(predictor, replace(of_file, data=unit.data, output=str(unit.output)), ProcessGroup())

    return make


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


class PredictionJob(WindowJob["Example"]):
    """The predictions of one DATA.

    Args:
        predictor: The checkpoints.
        options: The command's.
        group: The processes that share the work.

    Raises:
        MtlReError: The label order is not one of this model's labels.
    """

    command = "predict"

    def __init__(self, predictor: Predictor, options: PredictConfig, group: ProcessGroup) -> None:
        super().__init__(options, options.data, Path(options.output), group)
        self.predictor, self.settings = predictor, options
        self.order = label_order(options.label_order, predictor.taxonomy, self.output.suffix)
        self.apart = 0  # rows with decomposed characters

    def rows(self) -> Iterator[tuple[int, Example | BadRow]]:
        return parsed(self.settings.data, self.predictor.taxonomy, self.settings)

    def fingerprint(self) -> dict[str, Any]:
        options = self.settings
        return identity(self.predictor) | {
            "reading": [options.span_ends, options.first_character, options.normalise],
            "gate": self.predictor.decoding.gate,
            "label order": list(self.order),
            "form": self.output.suffix,
            "weights": options.weights,
        }

    def look_at(self, row: Example) -> None:
        self.apart += is_decomposed(row.sentence)

    def looked(self, rows: int) -> None:
        tell_decomposed(self.settings.data, self.apart, rows)

    def answer(self, rows: list[tuple[int, Example]], tick: Progress) -> Answer:
        examples, rejected = self._usable(rows)
        networks = self.predictor.networks
        predictions = self.predictor.predict(examples, lambda finished: tick(finished / networks))
        encoded = encode_rows(predictions, self.output.suffix, self.order)
        ids = IdDigest(example.id for example in examples).hexdigest()
        return Answer(encoded, len(predictions), ids, len(examples), rejected, {})

    def _usable(self, rows: list[tuple[int, Example]]) -> tuple[list[Example], list[RejectedRow]]:
        """Split rows into those that every member can take, and the others with the reason.

        Where rows may not be left out, all are returned, and the prediction names the first that does not fit.
        """
        examples = [example for _, example in rows]
        rejected: list[RejectedRow] = []
        if self.settings.on_bad_row == "skip":
            numbers = {id(example): number for number, example in rows}

            def reject(example: Example, error: RowError) -> None:
                rejected.append((numbers[id(example)], error.field, error.reason))

            examples = self.predictor.usable(examples, reject)
            assert len(examples) + len(rejected) == len(rows), (len(examples), len(rejected), len(rows))
        return examples, rejected

    def publish(self, chunks: Iterable[bytes], expected: Callable[[], Iterable[tuple[int, str]]]) -> None:
        publish(chunks, self.output, self.predictor.taxonomy, self.order, expected)


def identity(predictor: Predictor) -> dict[str, Any]:
    """Return what a predictor's probabilities depend on, as JSON values: checkpoints, decoding, arithmetic, batches."""
    decoding = predictor.decoding
    return {
        "mtl-re": __version__,
        **{f"checkpoint {n}": digest for n, digest in enumerate(predictor.digests, start=1)},
        "prior": decoding.prior,
        "restrict": decoding.restrict,
        "threshold": decoding.threshold,
        "batch_size": predictor.batch_size,
        "precision": predictor.precision,
        "device": next(predictor.members[0].root.parameters()).device.type,
    }
