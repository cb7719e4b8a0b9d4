"""Documents → rows of triples, for the command `extract` and for the page alike.

Enters: `Document`s. Leaves: one row a triple (`COLUMNS`), with spans of the document. A document is cut into sentences
(`sentences`), its entities are given or found (`ner`), every pair of a sentence is scored (`triples`), and the triples
whose score reaches the threshold become rows. The four steps are methods of `DocumentExtractor`, so that the command
can name a bad document between them, and the page can say which step left nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mtl_re.config import Cut
from mtl_re.data.documents import Document
from mtl_re.data.validation import Entity, Example
from mtl_re.errors import MtlReError, RowError, tell
from mtl_re.predict import triples
from mtl_re.predict.ner import EntityFinder, read_types
from mtl_re.predict.predictor import Predictor
from mtl_re.predict.sentences import sentence_ranges
from mtl_re.predict.triples import Triple

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
document as it was given, also where it was composed; `score` is the probability of the relation, `coarse` that of its
coarse class."""


def load_finder(
    spec: str, types: str | None, known: Sequence[str], device: str | None = None, precision: str = "no"
) -> EntityFinder:
    """Load what `--entities` names, and say which of its types the relation model does not know.

    Args:
        types: YAML map from the model's tags to entity types (None: the package's own).
        known: Entity types that the relation model was trained with (empty: any).
        precision: Arithmetic of its forward pass.

    Raises:
        MtlReError: It names nothing, the model cannot be loaded, or the relation model knows none of its types.
    """
    kind, colon, model = spec.partition(":")
    if kind != "ner" or not colon or not model:
        raise MtlReError(f"--entities {spec}: expected ner:MODEL, MODEL being a directory or hub id of transformers")
    finder = EntityFinder.load(model, read_types(types), device, precision=precision)
    found = set(finder.types.values())
    if known and (strange := sorted(found - set(known))):
        text = f"ner:{model}: the relation model was trained with no entity of type {', '.join(strange)}"
        if set(strange) == found:
            raise MtlReError(f"{text}; it knows {', '.join(sorted(known))}: map the tags to these (--ner_types)")
        tell(f"{text}; such entities are left out")
    return finder


def known_only(found: Sequence[Entity], known: Sequence[str]) -> list[Entity]:
    """Return the entities whose type the relation model has been trained with (`known` is empty: any)."""
    return [entity for entity in found if not known or entity.type in known]


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a document with its entities, whose spans are the sentence's.

    Attributes:
        row: The document's place among those that are worked on together.
        start: The sentence's first character in the document.
    """

    row: int
    start: int
    text: str
    entities: tuple[Entity, ...]

    def given_span(self, document: Document) -> tuple[int, int]:
        """Return its inclusive characters in its document as that was given."""
        return document.given_span(self.start, self.start + len(self.text) - 1)


def cut(row: int, document: Document, how: Cut) -> list[Sentence]:
    """Return a document's sentences, or all of it as one (`whole`), each with those of its entities that lie in it."""
    given = document.entities or ()
    ranges = [(0, len(document.text))]
    if how != "whole":
        spans = [(entity.start, entity.end) for entity in given]
        ranges = sentence_ranges(document.text, spans, joined=how == "joined")
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


PAIRS = 8_192
"""Pairs that are laid out and scored together: memory follows this and the longest sentence, not the documents."""


def grouped(sentences: Sequence[Sentence]) -> Iterator[list[Sentence]]:
    """Yield the sentences in runs of about `PAIRS` ordered pairs of entities; one with more stands alone."""
    group: list[Sentence] = []
    pairs = 0
    for sentence in sentences:
        more = len(sentence.entities) * (len(sentence.entities) - 1)
        if group and pairs + more > PAIRS:
            yield group
            group, pairs = [], 0
        group.append(sentence)
        pairs += more
    if group:
        yield group


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
        start, end = document.given_span(sentence.start + entity.start, sentence.start + entity.end)
        row |= {f"{side}_type": entity.type, f"{side}_start": start, f"{side}_end": end}
    start, end = sentence.given_span(document)
    return row | {"sentence_start": start, "sentence_end": end}


class DocumentExtractor:
    """A relation model, and perhaps an entity finder, that make rows of documents.

    Args:
        predictor: The relation model.
        finder: Finds entities where a document gives none (None: such a document is at fault).
        how: Documents become sentences (see `config.ExtractConfig.sentences`).
    """

    def __init__(self, predictor: Predictor, finder: EntityFinder | None, how: Cut = "split") -> None:
        self.predictor, self.finder, self.how = predictor, finder, how

    def check(self, document: Document) -> None:
        """Raise RowError if the entities of a document are missing, or of a type that the model does not know."""
        if document.entities is None and self.finder is None:
            raise RowError("entities", "missing; give them in the row, or --entities ner:MODEL to have them found")
        known = self.predictor.entity_types
        for number, entity in enumerate(document.entities or ()):
            if known and entity.type not in known:
                raise RowError(f"entities[{number}].type", triples.unknown_type(entity.type, known))

    def sentences(self, documents: Sequence[Document]) -> list[Sentence]:
        """Return the sentences of checked documents, with entities found in those whose document gives none."""
        cuts = [part for row, document in enumerate(documents) for part in cut(row, document, self.how)]
        if self.finder is None:
            return cuts
        bare = [number for number, one in enumerate(cuts) if documents[one.row].entities is None]
        found = self.finder.find([cuts[number].text for number in bare])
        for number, entities in zip(bare, found, strict=True):
            cuts[number] = replace(cuts[number], entities=tuple(known_only(entities, self.predictor.entity_types)))
        return cuts

    def pairs(
        self,
        documents: Sequence[Document],
        sentences: Sequence[Sentence],
        reject: Callable[[int, str, RowError], None] | None = None,
        left: Counter[str] | None = None,
    ) -> list[list[Example]]:
        """Return the pairs of each sentence that are to be scored.

        Args:
            left: Takes the reasons why two entities make no pair, with the number of pairs.
            reject: Takes what cannot be scored, a pair that does not fit into the model's length or a sentence that no
                row could hold: its document's place, its name and the reason.

        Raises:
            MtlReError: There is no `reject`, and a sentence is at fault; the message names the document. (A pair that
                does not fit ends the work when it is scored.)
        """
        made: list[list[Example]] = []
        places: dict[int, int] = {}
        for sentence in sentences:
            source = f"{documents[sentence.row].id}: "
            known, taxonomy = self.predictor.entity_types, self.predictor.taxonomy
            try:
                pairs, none = triples.candidates(sentence.text, sentence.entities, taxonomy, known, source)
            except RowError as error:
                if reject is None:
                    raise MtlReError(f"document {source}{error}") from error
                start, end = sentence.given_span(documents[sentence.row])
                reject(sentence.row, f"{source}sentence {start}..{end}", error)
                pairs, none = [], {}
            if left is not None:
                left.update(none)
            made.append(pairs)
            places |= {id(pair): sentence.row for pair in pairs}
        if reject is None:
            return made  # the featurizer names the first that does not fit
        every = [pair for pairs in made for pair in pairs]
        usable = self.predictor.usable(every, lambda pair, error: reject(places[id(pair)], pair.id, error))
        kept = set(map(id, usable))
        return [[pair for pair in pairs if id(pair) in kept] for pairs in made]

    def rows(
        self,
        documents: Sequence[Document],
        sentences: Sequence[Sentence],
        pairs: Sequence[Sequence[Example]],
        keep: Callable[[int, float], bool],
        tick: Callable[[int], object] | None = None,
    ) -> Iterator[Row]:
        """Score all pairs together, and yield a row for each triple, sentence by sentence, the surest of it first.

        Args:
            pairs: Of each sentence.
            keep: Says of (label index, score) whether it becomes a triple (see `triples.keeps`).
            tick: As for `Predictor.probabilities`.
        """
        every = [pair for made in pairs for pair in made]
        probs = self.predictor.probabilities(every, tick) if every else np.zeros((0, 0))
        start = 0
        for sentence, made in zip(sentences, pairs, strict=True):
            if made:
                scores = probs[start : start + len(made)]
                start += len(made)
                for triple in triples.triples_of(made, scores, self.predictor.taxonomy, keep):
                    yield table_row(documents[sentence.row], sentence, triple)
