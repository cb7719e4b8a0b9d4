"""What the page asks of a checkpoint: a marked sentence → HTML, an uploaded file → a contest submission.

Enters: a `Predictor`, drafts and paths of uploaded files. Leaves: HTML, and files in this server's temporary directory.
Nothing in here imports Gradio: `components.py` only connects its parts to these functions, so they are tested without a
browser.
"""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from mtl_re.config import DemoConfig, Gate
from mtl_re.data import sample
from mtl_re.data.loading import read_examples
from mtl_re.data.validation import Entity, Example, parse_row
from mtl_re.errors import MtlReError
from mtl_re.features import markers
from mtl_re.features.markers import ROLES, Role
from mtl_re.page.draft import Draft, python_span
from mtl_re.page.rendering import View, file_html, hint_html, marked_html, problem_html, result_html, view_of
from mtl_re.page.translations import TEXTS, Language
from mtl_re.predict.predictor import Predictor
from mtl_re.scoring import gating
from mtl_re.scoring.writers import Prediction, write_predictions
from mtl_re.taxonomy import Taxonomy

UPLOAD_SUFFIXES = (".csv", ".json", ".jsonl")
"""Files that can be uploaded; compressed ones are not, because they would get around the limit on the size."""
EXAMPLE_LABELS = ("org:founded", "per:title", "per:spouse", "no_relation", "org:place_of_headquarters", "per:children")
GATES: tuple[Gate, Gate] = ("hard", "soft")
ROWS_PER_TURN = 256
"""Rows of a file that are predicted before a question of the other tab can have its turn."""


class PageBackend:
    """A checkpoint behind the page. It answers one request at a time, because fast tokenizers are not thread-safe.

    Args:
        predictor: of one checkpoint.
        options: the limits on an uploaded file.
        directory: where submissions are written.
    """

    def __init__(self, predictor: Predictor, options: DemoConfig, directory: Path) -> None:
        self.predictor, self.options, self.directory = predictor, options, directory
        self.taxonomy: Taxonomy = predictor.taxonomy
        self.types: list[str] = predictor.members[0].config.entity_types or list(markers.TYPE_WORDS)
        self.lock = threading.Lock()

    def view(self, draft: Draft, types: dict[Role, str]) -> View:
        """Predict a draft in which both entities are marked.

        Raises:
            MtlReError: the row is invalid, or the model does not know an entity type.
        """
        subject, object = (self._entity(draft, role, types[role]) for role in ROLES)
        example = parse_row(Example("sentence", draft.sentence, subject, object).to_row(), self.taxonomy)
        with self.lock:
            prediction = self.predictor.predict([example])[0]
        probs = torch.tensor([[prediction.probs[label] for label in self.taxonomy.labels]], dtype=torch.float64)
        hard, soft = (self.taxonomy.labels[int(gating.labels(probs, self.taxonomy, gate))] for gate in GATES)
        return view_of(prediction, hard, soft, self.taxonomy)

    def _entity(self, draft: Draft, role: Role, kind: str) -> Entity:
        start, end = draft.span(role) or (0, -1)
        return Entity(draft.sentence[start : end + 1], start, end, kind)

    def predict_file(self, path: Path, language: Language) -> tuple[Path, Counter[str]]:
        """Predict an uploaded file.

        Returns:
            The path of the submission, in a new directory, and the number of rows of each predicted label.

        Raises:
            MtlReError: the suffix is not supported, the file is too large, has too many rows, or a row is invalid.
        """
        words, options = TEXTS[language], self.options
        if path.suffix.lower() not in UPLOAD_SUFFIXES:
            raise MtlReError(words["wrong_kind"])
        if path.stat().st_size > options.max_megabytes * 1e6:
            raise MtlReError(words["too_big"].format(megabytes=options.max_megabytes))
        rows = list(islice(read_examples(str(path), self.taxonomy), options.max_rows + 1))
        if len(rows) > options.max_rows:
            raise MtlReError(words["too_many"].format(rows=options.max_rows))
        labels: Counter[str] = Counter()

        def predictions() -> Iterator[Prediction]:
            for start in range(0, len(rows), ROWS_PER_TURN):
                with self.lock:
                    predicted = self.predictor.predict(rows[start : start + ROWS_PER_TURN])
                labels.update(prediction.label for prediction in predicted)
                yield from predicted

        output = Path(tempfile.mkdtemp(prefix="result-", dir=self.directory)) / "submission.csv"
        write_predictions(predictions(), output, self.taxonomy)
        return output, labels


def example_rows(taxonomy: Taxonomy) -> list[Example]:
    """Return sentences to try, from the embedded corpus' validation split; none if the label set is not KLUE's."""
    if not set(EXAMPLE_LABELS) <= set(taxonomy.labels):
        return []
    rows = [parse_row(row, taxonomy) for row in sample.rows("valid", 300)]
    return [next(row for row in rows if row.label == label) for label in EXAMPLE_LABELS]


# ---- events ----------------------------------------------------------------------------------------------------------


def answer(backend: PageBackend, draft: Draft, types: dict[Role, str], language: Language) -> tuple[str, str]:
    """Return (preview, result) as HTML; until both entities are marked, the result says what is missing."""
    preview = marked_html(draft, types, language)
    if draft.subject is None or draft.object is None:
        return preview, hint_html(TEXTS[language]["waiting"])
    try:
        return preview, result_html(backend.view(draft, types), draft, language)
    except MtlReError as error:
        return preview, problem_html(str(error), language)


def mark_selection(draft: Draft, role: Role, text: str, start: int, stop: int) -> Draft | None:
    """Return the draft with a browser's selection marked, or None if nothing is selected."""
    span = python_span(text, start, stop)
    return None if span is None else draft.edited(text).marked(role, span)


def submission(backend: PageBackend, path: str | None, language: Language) -> tuple[str, str | None]:
    """Return (message as HTML, path of the submission or None) for an uploaded file."""
    if path is None:
        return problem_html(TEXTS[language]["file_missing"], language), None
    upload = Path(path)
    try:
        output, labels = backend.predict_file(upload, language)
    except MtlReError as error:
        return problem_html(str(error).replace(path, upload.name), language), None
    return file_html(upload.name, labels, language), str(output)
