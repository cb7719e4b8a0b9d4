"""`mtl-re extract`: one sentence, or any number of documents → triples.

A document is cut into sentences (`sentences`), its entities are given or found (`ner`), every pair of a sentence is
scored (`triples`), and the triples whose score reaches the threshold become rows of a table, one a triple, with the
spans of the document. Any number of documents go through a `windows.WindowJob`, as rows go through `mtl-re predict`.
"""

from __future__ import annotations

import csv
import io
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mtl_re.config import ExtractConfig, RayConfig
from mtl_re.data.documents import Document, digest_of, read_documents
from mtl_re.data.loading import tell_decomposed
from mtl_re.data.unicode_form import is_decomposed
from mtl_re.data.validation import Entity, Example
from mtl_re.errors import MtlReError, RowError, tell
from mtl_re.files import whole_file
from mtl_re.predict import triples
from mtl_re.predict.parts import RejectedRow
from mtl_re.predict.predict import identity
from mtl_re.predict.predictor import Predictor
from mtl_re.predict.process_group import ProcessGroup
from mtl_re.predict.ray_engine import MakeJob, absolute, run_folder
from mtl_re.predict.sentences import sentence_ranges
from mtl_re.predict.triples import Triple
from mtl_re.predict.windows import Answer, Progress, WindowJob, run_job
from mtl_re.scoring.writers import IdDigest, check_suffix, write_table

if TYPE_CHECKING:
    from mtl_re.data.validation import BadRow

Row = dict[str, str | int | float]
SIDES = ("subject", "object")
COLUMNS: dict[str, type] = {
    "document": str,
    "subject": str,
    "relation": str,
    "object": str,
    "score": float,
    "coarse": float,
    **{f"{side}_{key}": kind for side in SIDES for key, kind in (("type", str), ("start", int), ("end", int))},
    "sentence_start": int,
    "sentence_end": int,
}
"""Columns of the output and their types: `subject` and `object` are words; spans are inclusive characters of the
document; `score` is the probability of the relation, `coarse` that of its coarse class."""


class Finder(Protocol):
    """What finds entities: an `ner.EntityFinder`."""

    def find(self, texts: Sequence[str]) -> list[list[Entity]]:
        """Return the entities of each text."""

    def digest(self) -> str:
        """Return a digest of all that the result depends on."""


class _HashedFinder:
    """A finder that is used for many files, whose digest is computed once."""

    def __init__(self, finder: Finder) -> None:
        self.find, self._digest = finder.find, finder.digest()

    def digest(self) -> str:
        """Return the finder's digest."""
        return self._digest


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
    return run_folder("extract", partial(_jobs, absolute(ckpt), there), options, [ckpt, options.ner_types])


def _jobs(ckpt: str, options: ExtractConfig, device: str | None) -> MakeJob:
    """Load the models for the files of a folder, and return what makes the job of one of them."""
    predictor = _predictor(ckpt, options, device)
    _ = predictor.digests  # hashed here, once: a job may work with a copy, which carries them
    finder = None
    if options.entities is not None:
        finder = _HashedFinder(_finder(options.entities, options.ner_types, device))
    of_file = replace(options, engine="local", ray=RayConfig(), resume=True)

    def make(data: str, output: Path) -> ExtractionJob:
        return ExtractionJob(predictor, finder, data, output, of_file, ProcessGroup())

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


def _of_sentence(ckpt: str, sentence: str, options: ExtractConfig) -> list[Triple]:
    """Return the triples of one sentence, and print why pairs were not scored."""
    entities = [triples.find_entity(sentence, text) for text in options.entity]
    predictor = _predictor(ckpt, options)
    if options.entities is not None:
        found = _finder(options.entities, options.ner_types, None).find([sentence])[0]
        entities += _known(found, predictor.entity_types)
    _, left = triples.candidates(sentence, entities, predictor.taxonomy, predictor.entity_types)
    for reason in triples.explain_left_out(entities, left):
        tell(reason)
    return predictor.extract(sentence, entities, options.threshold)


def _finder(spec: str, types: str | None, device: str | None) -> Finder:
    """Load what `--entities` names.

    Raises:
        MtlReError: It names nothing, or the model cannot be loaded.
    """
    from mtl_re.predict.ner import EntityFinder, read_types

    kind, colon, model = spec.partition(":")
    if kind != "ner" or not colon or not model:
        raise MtlReError(f"--entities {spec}: expected ner:MODEL, MODEL being a directory or hub id of transformers")
    return EntityFinder.load(model, read_types(types), device)


def _known(found: Sequence[Entity], known: Sequence[str]) -> list[Entity]:
    """Return the entities whose type the relation model has been trained with."""
    return [entity for entity in found if not known or entity.type in known]


# ---- documents -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a document with its entities, whose spans are the sentence's.

    Attributes:
        row: The document's place in its window. start: The sentence's first character in the document.
    """

    row: int
    start: int
    text: str
    entities: tuple[Entity, ...]


def cut(row: int, document: Document, whole: bool) -> list[Sentence]:
    """Return a document's sentences, or all of it as one (`whole`), each with those of its entities that lie in it."""
    given = document.entities or ()
    ranges = [(0, len(document.text))] if whole else None
    if ranges is None:
        ranges = sentence_ranges(document.text, [(entity.start, entity.end) for entity in given])
    inside: list[list[Entity]] = [[] for _ in ranges]
    starts = [start for start, _ in ranges]
    for entity in given:
        number = bisect_right(starts, entity.start) - 1
        shift = starts[number]
        inside[number].append(replace(entity, start=entity.start - shift, end=entity.end - shift))
    return [
        Sentence(row, start, document.text[start:stop], tuple(entities))
        for (start, stop), entities in zip(ranges, inside, strict=True)
    ]


def table_row(document: Document, sentence: Sentence, triple: Triple) -> Row:
    """Return the output's row of one triple; its keys are `COLUMNS`."""
    row: Row = {
        "document": document.id,
        "subject": triple.subject.word,
        "relation": triple.relation,
        "object": triple.object.word,
        "score": triple.score,
        "coarse": triple.coarse,
    }
    for side, entity in zip(SIDES, (triple.subject, triple.object), strict=True):
        row |= {f"{side}_type": entity.type, f"{side}_start": sentence.start + entity.start}
        row |= {f"{side}_end": sentence.start + entity.end}
    return row | {"sentence_start": sentence.start, "sentence_end": sentence.start + len(sentence.text) - 1}


class ExtractionJob(WindowJob[Document]):
    """The triples of the documents of one DATA.

    Args:
        predictor: The relation model.
        finder: Finds entities where a row gives none (None: such a row is at fault).
        data, output: The documents, and the file of triples.
        options: The command's.
        group: The processes that share the work.
    """

    command = "extract"

    def __init__(
        self,
        predictor: Predictor,
        finder: Finder | None,
        data: str,
        output: Path,
        options: ExtractConfig,
        group: ProcessGroup,
    ) -> None:
        super().__init__(options, data, output, group)
        self.predictor = predictor
        self.thresholds: float | Mapping[str, float | None]
        if options.threshold == "stored":
            self.predictor, self.thresholds = predictor.with_stored_thresholds()
        else:
            self.thresholds = options.threshold
        self.keep = triples.keeps(predictor.taxonomy, self.thresholds)
        self.finder, self.settings = finder, options
        self.apart = 0  # documents with decomposed characters

    @classmethod
    def load(cls, ckpt: str, data: str, output: Path, options: ExtractConfig, group: ProcessGroup) -> ExtractionJob:
        """Load the models that the options name.

        Raises:
            MtlReError: One of them cannot be loaded.
        """
        finder = None if options.entities is None else _finder(options.entities, options.ner_types, group.device)
        return cls(_predictor(ckpt, options, group.device), finder, data, output, options, group)

    def digest(self) -> str:
        return digest_of(self.data)

    def rows(self) -> Iterator[tuple[int, Document | BadRow]]:
        return read_documents(self.data, self.settings)

    def fingerprint(self) -> dict[str, Any]:
        options = self.settings
        return identity(self.predictor) | {
            "reading": [options.span_ends, options.first_character, options.normalise],
            "least score": self.thresholds,
            "sentences": options.sentences,
            "entities": None if self.finder is None else self.finder.digest(),
            "form": self.output.suffix,
        }

    def look_at(self, row: Document) -> None:
        self.apart += is_decomposed(row.text)

    def looked(self, rows: int) -> None:
        tell_decomposed(self.data, self.apart, rows)

    def answer(self, rows: list[tuple[int, Document]], tick: Progress) -> Answer:
        rejected: list[RejectedRow] = []
        documents: list[tuple[int, Document]] = []
        sentences: list[Sentence] = []
        for number, document in rows:
            try:
                self._check(document)
            except RowError as error:
                rejected.append(self.rejected_row(number, error))
                continue
            sentences += cut(len(documents), document, self.settings.sentences == "whole")
            documents.append((number, document))
        sentences = self._with_entities(documents, sentences)
        pairs = self._pairs(documents, sentences, rejected)
        share = len(rows) / max(sum(map(len, pairs)) * self.predictor.networks, 1)
        made = list(self._rows(documents, sentences, pairs, lambda finished: tick(finished * share)))
        ids = IdDigest(str(row["document"]) for row in made).hexdigest()
        return Answer(encode(made, self.output.suffix), len(made), ids, len(documents), rejected)

    def _check(self, document: Document) -> None:
        """Raise RowError if the entities of a document are missing, or of a type that the model does not know."""
        if document.entities is None and self.finder is None:
            raise RowError("entities", "missing; give them in the row, or --entities ner:MODEL to have them found")
        known = self.predictor.entity_types
        for number, entity in enumerate(document.entities or ()):
            if known and entity.type not in known:
                raise RowError(f"entities[{number}].type", triples.unknown_type(entity.type, known))

    def _with_entities(self, documents: list[tuple[int, Document]], sentences: list[Sentence]) -> list[Sentence]:
        """Return the sentences, with entities found in those whose document gives none."""
        if self.finder is None:
            return sentences
        bare = [number for number, one in enumerate(sentences) if documents[one.row][1].entities is None]
        found = self.finder.find([sentences[number].text for number in bare])
        filled = list(sentences)
        for number, entities in zip(bare, found, strict=True):
            filled[number] = replace(sentences[number], entities=tuple(_known(entities, self.predictor.entity_types)))
        return filled

    def _pairs(
        self, documents: list[tuple[int, Document]], sentences: list[Sentence], rejected: list[RejectedRow]
    ) -> list[list[Example]]:
        """Return the pairs of each sentence that every member of the predictor can take.

        A pair that does not fit into the model's length goes to `rejected`, or ends the work.
        """
        pairs: list[list[Example]] = []
        rows: dict[int, int] = {}
        for sentence in sentences:
            number, document = documents[sentence.row]
            taxonomy, known = self.predictor.taxonomy, self.predictor.entity_types
            made, _ = triples.candidates(sentence.text, sentence.entities, taxonomy, known, f"{document.id}: ")
            pairs.append(made)
            rows |= {id(pair): number for pair in made}
        if self.settings.on_bad_row == "error":
            return pairs  # the featurizer names the first that does not fit

        def reject(pair: Example, error: RowError) -> None:
            rejected.append((rows[id(pair)], error.field, f"{pair.id}: {error.reason}"))

        usable = set(map(id, self.predictor.usable([pair for made in pairs for pair in made], reject)))
        return [[pair for pair in made if id(pair) in usable] for made in pairs]

    def _rows(
        self,
        documents: list[tuple[int, Document]],
        sentences: list[Sentence],
        pairs: list[list[Example]],
        tick: Callable[[int], object],
    ) -> Iterator[Row]:
        """Score all pairs of a window together, and yield the rows of the output."""
        every = [pair for made in pairs for pair in made]
        probs = self.predictor.probabilities(every, tick) if every else np.zeros((0, 0))
        start = 0
        for sentence, made in zip(sentences, pairs, strict=True):
            if made:
                scores = probs[start : start + len(made)]
                start += len(made)
                for triple in triples.triples_of(made, scores, self.predictor.taxonomy, self.keep):
                    yield table_row(documents[sentence.row][1], sentence, triple)

    def publish(self, chunks: Iterable[bytes], expected: Callable[[], Iterable[tuple[int, str]]]) -> None:
        suffix = self.output.suffix
        with whole_file(self.output) as partial:
            write_table(chunks, partial, suffix, list(COLUMNS), _schema)
            check_file(partial, suffix, frozenset(self.predictor.taxonomy.labels), expected())


# ---- the file of triples -------------------------------------------------------------------------------------------


def encode(rows: Iterable[Row], suffix: str) -> bytes:
    """Return rows as lines of a .csv without its header, or as JSON lines for the other formats."""
    text = io.StringIO()
    if suffix == ".csv":
        csv.writer(text, lineterminator="\n").writerows([row[name] for name in COLUMNS] for row in rows)
    else:
        text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.getvalue().encode()


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
        import pyarrow.parquet as pq

        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
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
