"""What the page asks of a checkpoint about a text: entities found, pairs scored, triples above a threshold.

Enters: a `Markup`. Leaves: rows as `mtl-re extract` writes them, made by the same `DocumentExtractor`. All pairs are
scored once and kept (`Scored`), so that moving the threshold asks nothing of the model. Where no triple is left, what
is missing is said in words: entities, two of them in one sentence, a type that can be a subject, a score.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtl_re.data.documents import Document, parse_document
from mtl_re.data.validation import Entity
from mtl_re.errors import MtlReError, RowError
from mtl_re.page.backend import PageBackend
from mtl_re.page.draft import Markup
from mtl_re.page.translations import EXAMPLE, TEXTS, Language
from mtl_re.predict import triples
from mtl_re.predict.document_triples import DocumentExtractor, Row, Sentence
from mtl_re.predict.ner import EntityFinder

COMMAND = "mtl-re extract CKPT --data FILE.txt --entities ner:MODEL --output triples.csv"
"""What a text that is too long for the page is for."""


@dataclass(frozen=True)
class Scored:
    """Every pair of a marked text with its most probable relation.

    Attributes:
        markup: The text and its entities. stored: Whether the relations' own thresholds, and their prior, apply.
        rows: In the order of the text. sentences: The first character of each sentence.
        pairs: Pairs that were scored. left_out: Pairs and sentences that cannot be scored.
        together: Whether a sentence has two entities.
    """

    markup: Markup
    stored: bool
    rows: tuple[Row, ...]
    sentences: tuple[int, ...]
    pairs: int
    left_out: int
    together: bool


class DocumentBackend:
    """The checkpoint of a `PageBackend`, asked about whole texts.

    Args:
        page: Its predictor, options and lock are used.
        finder: Finds entities (None: they can only be marked by hand).
    """

    def __init__(self, page: PageBackend, finder: EntityFinder | None) -> None:
        self.page, self.finder, self.types = page, finder, page.types
        self.taxonomy, self.options = page.taxonomy, page.options
        self.stored_thresholds: Mapping[str, float | None] | None = None
        self._extractors = {False: DocumentExtractor(page.predictor, finder)}
        try:
            predictor, self.stored_thresholds = page.predictor.with_stored_thresholds()
        except MtlReError:
            return  # the checkpoint holds none
        self._extractors[True] = DocumentExtractor(predictor, finder)

    def found(self, markup: Markup, language: Language) -> Markup:
        """Return a markup with the entities that the finder finds in its text and that share no character with a mark.

        Raises:
            MtlReError: The text is too long, or blank.
        """
        document = self._document(Markup(markup.text), language)
        with self.page.lock:
            sentences = self._extractors[False].sentences([document])
        entities = [
            Entity(one.word, sentence.start + one.start, sentence.start + one.end, one.type)
            for sentence in sentences
            for one in sentence.entities
        ]
        return markup.joined_by(entities)

    def scored(self, markup: Markup, stored: bool, language: Language) -> Scored:
        """Score all pairs of a text; where none of its entities is marked, have them found first.

        Raises:
            MtlReError: The text is too long, blank or has too many pairs, or no entity is marked or found.
        """
        if not markup.entities and self.finder is not None and markup.text.strip():
            markup = self.found(markup, language)
        document = self._document(markup, language)
        if not markup.entities:
            raise MtlReError(TEXTS[language]["nothing_marked" if self.finder is None else "nothing_found"])
        extractor, left_out = self._extractors[stored], []
        extractor.check(document)
        sentences = extractor.sentences([document])
        self._check_pairs(sentences, language)

        def reject(_: int, name: str, error: RowError) -> None:
            left_out.append(name)

        with self.page.lock:
            pairs = extractor.pairs([document], sentences, reject)
            rows = tuple(extractor.rows([document], sentences, pairs, triples.keeps(self.taxonomy, 0.0)))
        starts = tuple(sentence.start for sentence in sentences)
        together = any(len(sentence.entities) > 1 for sentence in sentences)
        return Scored(markup, stored, rows, starts, sum(map(len, pairs)), len(left_out), together)

    def kept(self, scored: Scored, threshold: float) -> list[Row]:
        """Return the rows whose score reaches the threshold, or, of a text scored so, their relation's stored one."""
        limits = self.stored_thresholds if scored.stored and self.stored_thresholds is not None else threshold
        keep, labels = triples.keeps(self.taxonomy, limits), self.taxonomy.labels
        return [row for row in scored.rows if keep(labels.index(str(row["relation"])), float(row["score"]))]

    def _document(self, markup: Markup, language: Language) -> Document:
        words, most = TEXTS[language], self.options.max_characters
        if not markup.text.strip():
            raise MtlReError(words["text_missing"])
        if len(markup.text) > most:
            raise MtlReError(words["text_too_long"].format(characters=most, command=COMMAND))
        given = {"entities": list(markup.entities)} if markup.entities else {}
        return parse_document({"text": markup.text, **given})

    def _check_pairs(self, sentences: list[Sentence], language: Language) -> None:
        """Raise MtlReError if the sentences have too many pairs, before they are made."""
        pairs = sum(len(sentence.entities) * (len(sentence.entities) - 1) for sentence in sentences)
        if pairs > self.options.max_pairs:
            said = TEXTS[language]["too_many_pairs"]
            raise MtlReError(said.format(pairs=pairs, most=self.options.max_pairs, command=COMMAND))


def example_markup(types: Sequence[str]) -> Markup | None:
    """Return the text to try with its entities marked; None where a model does not know their types."""
    text, entities, place = "", [], 0
    for match in re.finditer(r"\[(?P<word>[^|\]]+)\|(?P<type>[^\]]+)\]", EXAMPLE.strip()):
        text += EXAMPLE[place : match.start()]
        entities.append(Entity(match["word"], len(text), len(text) + len(match["word"]) - 1, match["type"]))
        text += match["word"]
        place = match.end()
    known = {entity.type for entity in entities} <= set(types)
    return Markup(text + EXAMPLE.strip()[place:]).holding(entities) if known else None
