"""`mtl-re extract`: one sentence, or any number of documents → triples.

What a document becomes is `document_triples`' business: rows of a table, one a triple, with the spans of the document.
Here any number of documents go through a `windows.WindowJob`, as rows go through `mtl-re predict`, to a checked file.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mtl_re.config import ExtractConfig, RayConfig
from mtl_re.data.documents import Document, digest_of, parse_document, read_documents
from mtl_re.data.loading import tell_decomposed
from mtl_re.data.raw_rows import parquet_rows
from mtl_re.data.unicode_form import is_decomposed
from mtl_re.data.validation import BadRow, Entity
from mtl_re.errors import MtlReError, RowError, tell
from mtl_re.files import whole_file
from mtl_re.predict import triples
from mtl_re.predict.document_triples import COLUMNS, DocumentExtractor, Row, grouped, known_only, load_finder
from mtl_re.predict.folders import Unit
from mtl_re.predict.ner import EntityFinder
from mtl_re.predict.parts import RejectedRow
from mtl_re.predict.predict import identity
from mtl_re.predict.predictor import Predictor
from mtl_re.predict.process_group import ProcessGroup
from mtl_re.predict.ray_engine import MakeJob, absolute, run_folder
from mtl_re.predict.sentences import looks_wrapped
from mtl_re.predict.triples import Triple
from mtl_re.predict.windows import Answer, Progress, WindowJob, run_job
from mtl_re.scoring.writers import IdDigest, check_suffix, csv_line, write_table


def extract(ckpt: str, options: ExtractConfig) -> list[Triple] | int:
    """Return the triples of `options.sentence`, the surest first; or write those of `options.data`.

    Args:
        ckpt: A CKPT directory or hub id.
        options: Everything else.

    Returns:
        The triples of the sentence, or the number of triples written (0 on other ranks than the first).

    Raises:
        MtlReError: The checkpoint, an entity, a document or the output is at fault.
    """
    if options.sentence is not None:
        return _of_sentence(ckpt, options.sentence, options)
    if options.engine == "ray":
        return _on_ray(ckpt, options)
    data, output = options.data or "", Path(options.output or "")  # `ExtractConfig` has seen that they are given
    check_suffix(output)

    def job(group: ProcessGroup) -> ExtractionJob:
        return group.agreed(lambda: ExtractionJob.load(ckpt, data, output, options, group))

    return run_job(job)


def _on_ray(ckpt: str, options: ExtractConfig) -> int:
    """Write the triples of the files of a folder by the workers of a Ray cluster, and return their number."""
    there = options
    if options.entities is not None:
        kind, colon, model = options.entities.partition(":")
        there = replace(there, entities=f"{kind}{colon}{absolute(model)}")
    if options.ner_types is not None:
        there = replace(there, ner_types=absolute(options.ner_types))
    return run_folder(ExtractionJob, partial(_jobs, absolute(ckpt), there), options, [ckpt, options.ner_types])


def _jobs(ckpt: str, options: ExtractConfig, device: str | None) -> MakeJob:
    """Load the models for the files of a folder, and return what makes the job of one of them."""
    predictor = _predictor(ckpt, options, device)
    _ = predictor.digests  # hashed here, once: a job may work with a copy, which carries them
    finder = _finder(options, predictor, device)
    of_file = replace(options, engine="local", ray=RayConfig(), resume=True)

    def make(unit: Unit) -> ExtractionJob:
        return ExtractionJob(predictor, finder, unit.data, unit.output, of_file, ProcessGroup(), unit.source)

    return make


def _predictor(ckpt: str, options: ExtractConfig, device: str | None = None) -> Predictor:
    return Predictor.from_pretrained(
        ckpt,
        device=device,
        gate=options.gate,
        prior=options.prior,
        restrict=options.restrict,
        batch_size=options.batch_size,
        precision=options.precision,
    )


def _finder(options: ExtractConfig, predictor: Predictor, device: str | None) -> EntityFinder | None:
    """Load what `--entities` names, if it is given."""
    if options.entities is None:
        return None
    return load_finder(options.entities, options.ner_types, predictor.entity_types, device, options.precision)


def _of_sentence(ckpt: str, sentence: str, options: ExtractConfig) -> list[Triple]:
    """Return the triples of one sentence, with spans of it as it was given, and print why pairs were not scored."""
    given = [triples.find_entity(sentence, text) for text in options.entity]
    document = parse_document({"text": sentence, "entities": given}, reading=options)
    sentence, entities = document.text, list(document.entities or ())
    predictor = _predictor(ckpt, options)
    if finder := _finder(options, predictor, None):
        spans = {(entity.start, entity.end) for entity in entities}
        found = known_only(finder.find([sentence])[0], predictor.entity_types)
        entities += [entity for entity in found if (entity.start, entity.end) not in spans]
    _, left = triples.candidates(sentence, entities, predictor.taxonomy, predictor.entity_types)
    for reason in triples.explain_left_out(entities, left):
        tell(reason)
    made = predictor.extract(sentence, entities, options.threshold)
    return [replace(one, subject=_own(document, one.subject), object=_own(document, one.object)) for one in made]


def _own(document: Document, entity: Entity) -> Entity:
    start, end = document.given_span(entity.start, entity.end)
    return replace(entity, start=start, end=end)


# ---- documents -----------------------------------------------------------------------------------------------------


_TOLD = {
    "unsure": "have entities without a word behind an emoji or another character that JavaScript counts twice: their "
    "spans are taken for characters; give a `word` to each to have it checked",
    "wrapped": "seem to have hard-wrapped lines, each of which is taken for a sentence or more; --sentences joined "
    "reads them as paragraphs",
    "bare": "list no entities (an empty list) and are not searched; leave the field out to have them found",
    "repeated": "have the id of an earlier one; nothing tells their triples apart",
}
"""What is said of documents before the work, behind their number."""


class ExtractionJob(WindowJob[Document]):
    """The triples of the documents of one DATA.

    Args:
        predictor: The relation model.
        finder: Finds entities where a row gives none (None: such a row is at fault).
        data, output: The documents, and the file of triples.
        options: The command's.
        group: The processes that share the work.
        name: The id of a document that is a .txt file (None: the file's name).
    """

    command = "extract"
    left_out_name = "bad documents, sentences or pairs"

    def __init__(
        self,
        predictor: Predictor,
        finder: EntityFinder | None,
        data: str,
        output: Path,
        options: ExtractConfig,
        group: ProcessGroup,
        name: str | None = None,
    ) -> None:
        super().__init__(options, data, output, group)
        self.predictor = predictor
        self.thresholds: float | Mapping[str, float | None]
        if options.threshold == "stored":
            self.predictor, self.thresholds = predictor.with_stored_thresholds()
        else:
            self.thresholds = options.threshold
        self.keep = triples.keeps(predictor.taxonomy, self.thresholds)
        self.extractor = DocumentExtractor(self.predictor, finder, options.sentences)
        self.settings, self.name = options, name
        self.apart, self.seen = 0, Counter[str]()  # documents with decomposed characters; what `_TOLD` says of others
        self.ids = array("Q")  # a hash of each document's

    @classmethod
    def load(cls, ckpt: str, data: str, output: Path, options: ExtractConfig, group: ProcessGroup) -> ExtractionJob:
        """Load the models that the options name.

        Raises:
            MtlReError: One of them cannot be loaded.
        """
        predictor = _predictor(ckpt, options, group.device)
        return cls(predictor, _finder(options, predictor, group.device), data, output, options, group)

    def digest(self) -> str:
        return digest_of(self.data)

    def rows(self) -> Iterator[tuple[int, Document | BadRow]]:
        for number, row in read_documents(self.data, self.settings, self.name):
            try:
                if isinstance(row, Document):
                    self.extractor.check(row)
                yield number, row
            except RowError as error:
                yield number, BadRow(self.data, number, error.field, error.reason)

    def fingerprint(self) -> dict[str, Any]:
        options, finder = self.settings, self.extractor.finder
        return identity(self.predictor) | {
            "reading": [options.span_ends, options.first_character, options.normalise],
            "least score": self.thresholds,
            "sentences": options.sentences,
            "entities": None if finder is None else finder.digest,
            "form": self.output.suffix,
        }

    def look_at(self, row: Document) -> None:
        self.apart += is_decomposed(row.text)
        self.seen["unsure"] += row.unsure
        self.seen["wrapped"] += self.settings.sentences == "split" and looks_wrapped(row.text)
        self.seen["bare"] += row.entities == () and self.extractor.finder is not None
        self.ids.frombytes(hashlib.blake2b(row.id.encode(errors="backslashreplace"), digest_size=8).digest())

    def looked(self, rows: int) -> None:
        tell_decomposed(self.data, self.apart, rows)
        self.seen["repeated"] = len(self.ids) - len(np.unique(np.asarray(self.ids)))
        for name, text in _TOLD.items():
            if count := self.seen[name]:
                tell(f"{self.data}: {count:,} of {rows:,} documents {text}")

    def answer(self, rows: list[tuple[int, Document]], tick: Progress) -> Answer:
        rejected: list[RejectedRow] = []
        documents = [document for _, document in rows]

        def reject(place: int, name: str, error: RowError) -> None:
            rejected.append((rows[place][0], error.field, f"{name}: {error.reason}"))

        sentences = self.extractor.sentences(documents)
        skip = self.settings.on_bad_row == "skip"
        left = Counter[str]()
        made: list[Row] = []
        for group in grouped(sentences):
            pairs = self.extractor.pairs(documents, group, reject if skip else None, left)
            passes = max(sum(map(len, pairs)) * self.predictor.networks, 1)
            step = partial(_advance, tick, len(rows) * len(group) / len(sentences) / passes)
            made += self.extractor.rows(documents, group, pairs, self.keep, step)
        ids = IdDigest(str(row["document"]) for row in made).hexdigest()
        clashes = left[triples.CLASH]
        told = {f"ordered pairs of entities were not scored: {triples.CLASH}": clashes} if clashes else {}
        return Answer(encode(made, self.output.suffix), len(made), ids, len(documents), rejected, told)

    def publish(self, chunks: Iterable[bytes], expected: Callable[[], Iterable[tuple[int, str]]]) -> None:
        suffix = self.output.suffix
        with whole_file(self.output) as partial:
            write_table(chunks, partial, suffix, list(COLUMNS), _schema)
            check_file(partial, suffix, frozenset(self.predictor.taxonomy.labels), expected())


def _advance(tick: Progress, share: float, passes: int) -> None:
    """Tell the progress of `passes` rows through networks, each of which is this share of a document."""
    tick(passes * share)


# ---- the file of triples -------------------------------------------------------------------------------------------


def encode(rows: Iterable[Row], suffix: str) -> bytes:
    """Return rows as lines of a .csv without its header, or as JSON lines for the other formats."""
    text = io.StringIO()
    if suffix == ".csv":
        text.writelines(csv_line([row[name] for name in COLUMNS]) for row in rows)
    else:
        text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.getvalue().encode()


def table_bytes(rows: Iterable[Row], suffix: str) -> bytes:
    """Return a whole .csv or .jsonl of rows, as the command writes it."""
    header = f"{','.join(COLUMNS)}\n".encode() if suffix == ".csv" else b""
    return header + encode(rows, suffix)


def _schema() -> Any:
    import pyarrow as pa

    kinds = {str: pa.string(), float: pa.float64(), int: pa.int64()}
    return pa.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])


def read_triples(path: Path, suffix: str | None = None) -> Iterator[Row]:
    """Yield the rows of a file of triples, with the types of `COLUMNS`.

    Args:
        suffix: Names its format where the file's own name does not.
    """
    suffix = path.suffix if suffix is None else suffix
    if suffix == ".parquet":
        yield from parquet_rows(path)
        return
    with path.open(encoding="utf-8", newline="") as lines:
        if suffix == ".csv":
            yield from ({name: kind(row[name]) for name, kind in COLUMNS.items()} for row in csv.DictReader(lines))
        else:
            yield from map(json.loads, lines)


def check_file(path: Path, suffix: str, labels: frozenset[str], expected: Iterable[tuple[int, str]]) -> None:
    """Read a file of triples back: relations, scores, number of rows, documents in order.

    Args:
        expected: For each run of rows their number and the `IdDigest` of their documents.

    Raises:
        MtlReError: The file is at fault.
    """
    rows = read_triples(path, suffix)
    for count, ids in expected:
        digest = IdDigest()
        for row in islice(rows, count):
            digest.add(str(row["document"]))
            if row["relation"] not in labels or not 0 <= float(row["score"]) <= 1 + 1e-9:
                raise MtlReError(
                    f"{path.name}: {row['relation']!r} with score {row['score']} was written; no such triple"
                )
        if digest.count != count or digest.hexdigest() != ids:
            raise MtlReError(f"{path.name}: rows are missing, or their documents are out of order")
    if next(rows, None) is not None:
        raise MtlReError(f"{path.name}: more rows were written than there are triples")


def render(result: list[Triple] | int, options: ExtractConfig) -> str:
    """Return what the command prints: the triples of a sentence, or how many were written."""
    if isinstance(result, int):
        return f"{result} triples in {options.output}"
    return triples.render_triples(result, options)
