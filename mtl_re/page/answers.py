"""What the demo page asks of a checkpoint: one sentence → HTML, one uploaded file → a submission.

Enters: a `Predictor`, drafts and paths of uploads. Leaves: what is shown, and files in this run's own folder. No gradio
in here: the page (`demo_page`) only joins its parts to these functions, so they are tested without a browser.
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
from mtl_re.page import view as demo_view
from mtl_re.page.texts import TEXTS, Language
from mtl_re.page.view import ROLES, Draft, Role, View
from mtl_re.predict.predictor import Predictor
from mtl_re.scoring import gating
from mtl_re.scoring.writers import Prediction, write_predictions
from mtl_re.taxonomy import Taxonomy

KINDS = (".csv", ".json", ".jsonl")
"""Files the page takes; packed ones would make the limit on size void."""
EXAMPLE_LABELS = ("org:founded", "per:title", "per:spouse", "no_relation", "org:place_of_headquarters", "per:children")
GATES: tuple[Gate, Gate] = ("hard", "soft")
WINDOW = 256  # rows between two moments at which the other tab may use the model


class Answers:
    """What the page asks of a checkpoint; one question at a time, since tokenizers do not like to be shared.

    Args:
        predictor: of one checkpoint.
        options: the limits on an uploaded file.
        folder: where submissions are written.
    """

    def __init__(self, predictor: Predictor, options: DemoConfig, folder: Path) -> None:
        self.predictor, self.options, self.folder = predictor, options, folder
        self.taxonomy: Taxonomy = predictor.taxonomy
        self.types: list[str] = predictor.members[0].config.entity_types or list(markers.TYPE_WORDS)
        self._lock = threading.Lock()

    def view(self, draft: Draft, types: dict[Role, str]) -> View:
        """The answer to a draft in which both entities are marked.

        Raises:
            MtlReError: the model cannot take this row.
        """
        subject, object = (self._entity(draft, role, types[role]) for role in ROLES)
        example = parse_row(Example("sentence", draft.sentence, subject, object).to_row(), self.taxonomy)
        with self._lock:
            prediction = self.predictor.predict([example])[0]
        probs = torch.tensor([[prediction.probs[label] for label in self.taxonomy.labels]], dtype=torch.float64)
        hard, soft = (self.taxonomy.labels[int(gating.labels(probs, self.taxonomy, gate))] for gate in GATES)
        return demo_view.view_of(prediction, hard, soft, self.taxonomy)

    def _entity(self, draft: Draft, role: Role, kind: str) -> Entity:
        start, end = draft.span(role) or (0, -1)
        return Entity(draft.sentence[start : end + 1], start, end, kind)

    def file(self, path: Path, language: Language) -> tuple[Path, Counter[str]]:
        """An uploaded file → a submission in a new folder, and how often each label is predicted.

        Raises:
            MtlReError: another kind of file, too large, too many rows, or a row at fault.
        """
        words, options = TEXTS[language], self.options
        if path.suffix.lower() not in KINDS:
            raise MtlReError(words["wrong_kind"])
        if path.stat().st_size > options.max_megabytes * 1e6:
            raise MtlReError(words["too_big"].format(megabytes=options.max_megabytes))
        rows = list(islice(read_examples(str(path), self.taxonomy), options.max_rows + 1))
        if len(rows) > options.max_rows:
            raise MtlReError(words["too_many"].format(rows=options.max_rows))
        labels: Counter[str] = Counter()

        def predictions() -> Iterator[Prediction]:
            for start in range(0, len(rows), WINDOW):
                with self._lock:
                    found = self.predictor.predict(rows[start : start + WINDOW])
                labels.update(prediction.label for prediction in found)
                yield from found

        output = Path(tempfile.mkdtemp(prefix="result-", dir=self.folder)) / "submission.csv"
        write_predictions(predictions(), output, self.taxonomy)
        return output, labels


def examples(taxonomy: Taxonomy) -> list[Example]:
    """Sentences to try, of the embedded corpus' validation split; none where the label set is another one."""
    if not set(EXAMPLE_LABELS) <= set(taxonomy.labels):
        return []
    rows = [parse_row(row, taxonomy) for row in sample.rows("valid", 300)]
    return [next(row for row in rows if row.label == label) for label in EXAMPLE_LABELS]


# ---- what happens when something is pressed --------------------------------------------------------------------------


def answer(answers: Answers, draft: Draft, types: dict[Role, str], language: Language) -> tuple[str, str]:
    """(preview, result) as HTML: the result once both entities are marked, else what is missing."""
    preview = demo_view.marked_html(draft, types, language)
    if draft.subject is None or draft.object is None:
        return preview, demo_view.hint_html(TEXTS[language]["waiting"])
    try:
        return preview, demo_view.result_html(answers.view(draft, types), draft, language)
    except MtlReError as error:
        return preview, demo_view.problem_html(str(error), language)


def mark(draft: Draft, role: Role, text: str, start: int, stop: int) -> Draft | None:
    """The draft with a browser's selection marked; None if nothing is selected."""
    span = demo_view.python_span(text, start, stop)
    return None if span is None else draft.edited(text).marked(role, span)


def submission(answers: Answers, path: str | None, language: Language) -> tuple[str, str | None]:
    """(message as HTML, path of the submission or None) for an uploaded file."""
    if path is None:
        return demo_view.problem_html(TEXTS[language]["file_missing"], language), None
    given = Path(path)
    try:
        output, labels = answers.file(given, language)
    except MtlReError as error:
        return demo_view.problem_html(str(error).replace(path, given.name), language), None
    return demo_view.file_html(given.name, labels, language), str(output)
