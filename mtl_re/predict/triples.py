"""One sentence and its entities → triples: `Predictor.extract` and `mtl-re extract`.

Enters: a sentence and entity spans (inclusive Python characters). Leaves: `Triple`s, the most probable first. Every
ordered pair of entities is scored whose subject is of a type that the taxonomy's relations take; one may lie inside the
other, but not cross it. Each pair
gives its most probable relation, whatever class the gate would open, with the full product probability
p(coarse)·p(fine | coarse) of that one label as score. So a score over 0.5 beats no_relation and every other relation
together; lower thresholds trade precision for recall.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from itertools import permutations
from typing import Any

import numpy as np
import torch

from mtl_re.config import ExtractConfig
from mtl_re.data.documents import EntityLike, entity_at
from mtl_re.data.unicode_form import composed, is_decomposed
from mtl_re.data.validation import Entity, Example, parse_row, shown, span_clash
from mtl_re.errors import MtlReError
from mtl_re.features import markers
from mtl_re.scoring import gating
from mtl_re.taxonomy import Taxonomy

CLASH = "their spans cross or are the same"
"""Why two entities make no pair; see `span_clash`."""
_AT = re.compile(r"(?P<word>.+)@(?P<start>\d+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Triple:
    """A relation between two entities of a sentence.

    Attributes:
        score: The probability of that one label. coarse: The probability of its coarse class.
    """

    subject: Entity
    relation: str
    object: Entity
    score: float
    coarse: float

    def record(self) -> dict[str, Any]:
        """Return the triple as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        spans = [f"{entity.word} ({entity.start}..{entity.end})" for entity in (self.subject, self.object)]
        return f"{self.score:.3f}\t{spans[0]}\t{self.relation}\t{spans[1]}"


def triples_of(
    pairs: Sequence[Example], probs: np.ndarray, taxonomy: Taxonomy, keep: Callable[[int, float], bool]
) -> list[Triple]:
    """Return the triples of scored pairs, the most probable first.

    Args:
        pairs: Of one sentence.
        probs: (pairs, labels) in the order of the taxonomy's labels.
        keep: Says of (label index, score) whether it becomes a triple (see `keeps`).
    """
    scored = torch.from_numpy(probs)
    labels, scores = gating.best_relation(scored, taxonomy)
    groups = torch.tensor(taxonomy.group_of_label)[labels]
    opened = gating.coarse(scored, taxonomy).gather(1, groups[:, None])[:, 0]
    triples = [
        Triple(pair.subject, taxonomy.labels[label], pair.object, score, coarse)
        for pair, label, score, coarse in zip(pairs, labels.tolist(), scores.tolist(), opened.tolist(), strict=True)
        if keep(label, score)
    ]
    return sorted(triples, key=lambda triple: (-triple.score, _span(triple.subject), _span(triple.object)))


def keeps(taxonomy: Taxonomy, threshold: float | Mapping[str, float | None]) -> Callable[[int, float], bool]:
    """Return the rule by which a pair's most probable relation becomes a triple: (label index, score) → kept or not.

    Args:
        threshold: Least score, which is kept itself: one for all relations, or relation → its own (None: no triple of
            this relation is kept).

    Raises:
        MtlReError: A threshold is no probability, or the map leaves a relation of the taxonomy out.
    """
    if isinstance(threshold, str):
        raise MtlReError(f"threshold: {threshold!r}; expected a probability, 0 to 1, or `stored` of a `Predictor`")
    of_relation: Mapping[str, float | None]
    of_relation = threshold if isinstance(threshold, Mapping) else dict.fromkeys(taxonomy.labels, threshold)
    relations = [label for label in taxonomy.labels if label != taxonomy.no_relation]
    if missing := [label for label in relations if label not in of_relation]:
        raise MtlReError(f"threshold: none is given for {missing[0]!r}; give one for each relation, or one for all")
    for value in of_relation.values():
        if value is not None and not 0 <= value <= 1:  # False for NaN as well
            raise MtlReError(f"threshold: {value}; expected a probability, 0 to 1")
    limits = [of_relation.get(label) for label in taxonomy.labels]

    def keep(label: int, score: float) -> bool:
        limit = limits[label]
        return limit is not None and score >= limit

    return keep


def candidates(
    sentence: str, entities: Sequence[EntityLike], taxonomy: Taxonomy, known: Sequence[str] = (), source: str = ""
) -> tuple[list[Example], dict[str, int]]:
    """Return the pairs to score as examples whose ids name the two spans; and reason → number of pairs left out.

    Args:
        known: entity types that the model was trained with (empty: any).
        source: stands before the ids, such as the name of a document.

    Raises:
        MtlReError: An entity is at fault (named by its index in the list), listed twice or of an unknown type, or the
            sentence is no text.
    """
    checked: list[Entity] = []
    for index, given in enumerate(entities):
        entity = entity_at(sentence, given, f"entities[{index}]")
        if known and entity.type not in known:
            raise MtlReError(f"entities[{index}]: {_named(entity)}: {unknown_type(entity.type, known)}")
        if entity in checked:
            raise MtlReError(f"entities[{index}]: {_named(entity)} is listed twice; give each entity once")
        checked.append(entity)
    subjects, left, pairs = subject_types(taxonomy), Counter[str](), []
    for subject, object in permutations(checked, 2):
        if subjects is not None and subject.type not in subjects:
            left[f"no relation takes a subject of type {subject.type}"] += 1
            continue
        if span_clash((subject.start, subject.end), (object.start, object.end)):
            left[CLASH] += 1
            continue
        pairs.append(pair_example(f"{source}{_named(subject)} → {_named(object)}", sentence, subject, object, taxonomy))
    return pairs, dict(left)


def unknown_type(kind: str, known: Sequence[str]) -> str:
    """Return what to say of an entity type that the model has never seen: the known ones, and the likely one."""
    names = {name: name for name in known} | {word: name for name, word in markers.TYPE_WORDS.items() if name in known}
    plain = kind.upper()
    likely = names.get(plain) or names.get(kind) or next((name for name in known if plain.startswith(name)), None)
    if likely is None:
        likely = next(iter(get_close_matches(plain, known, 1)), None)
    hint = "" if likely is None else f"; did you mean {likely}?"
    return f"the type {kind!r} is unknown to this model (known: {', '.join(sorted(known))}){hint}"


def explain_left_out(entities: Sequence[Entity], left: Mapping[str, int]) -> list[str]:
    """Return why pairs were not scored, one reason a line."""
    if len(entities) < 2:
        return ["a single entity: a relation needs two"]
    return [f"{count} ordered pair(s) not scored: {reason}" for reason, count in left.items()]


def subject_types(taxonomy: Taxonomy) -> frozenset[str] | None:
    """Return the entity types that the subject of a relation may have.

    None: any type, because a coarse class with relations restricts its subjects not at all (`subject_types` without the
    class, or with an empty list).
    """
    known = taxonomy.subject_types or {}
    classes = [name for name, labels in taxonomy.groups.items() if labels != (taxonomy.no_relation,)]
    if not all(known.get(name) for name in classes):
        return None
    return frozenset(kind for name in classes for kind in known[name])


def pair_example(id: str, sentence: str, subject: Entity, object: Entity, taxonomy: Taxonomy) -> Example:
    """Return one pair as an example, checked like any row of a file.

    Raises:
        RowError: The sentence or a span is at fault, or the spans overlap.
    """
    spans = Example(id, sentence, subject, object).to_row()
    return parse_row(spans, taxonomy)


def _named(entity: Entity) -> str:
    return f"{shown(entity.word)} ({entity.start}..{entity.end} {entity.type})"


def _span(entity: Entity) -> tuple[int, int, str]:
    return entity.start, entity.end, entity.type


# ---- the command ---------------------------------------------------------------------------------------------------


def find_entity(sentence: str, text: str) -> Entity:
    """Return the entity that `WORD:TYPE` or `WORD@START:TYPE` names in a sentence.

    Raises:
        MtlReError: The text has another form, or the word occurs not at all, or several times without a START.
    """
    named, colon, kind = text.rpartition(":")
    if composed(named) in composed(sentence) and named not in sentence:
        # In the sentence's own form: what a Mac's keyboard writes and what its files hold may differ.
        named = unicodedata.normalize("NFD" if is_decomposed(sentence) else "NFC", named)
    if not colon or not named or not kind:
        raise MtlReError(f"--entity {shown(text)}: expected WORD:TYPE or WORD@START:TYPE, such as 세종대왕:PER")
    at = _AT.fullmatch(named)
    if at is not None and sentence.startswith(at["word"], start := int(at["start"])):
        return Entity(at["word"], start, start + len(at["word"]) - 1, kind)
    starts = [start for start in range(len(sentence)) if sentence.startswith(named, start)]
    if len(starts) == 1:
        return Entity(named, starts[0], starts[0] + len(named) - 1, kind)
    if starts:
        choices = ", ".join(f"{named}@{start}:{kind}" for start in starts)
        raise MtlReError(f"--entity {shown(text)}: occurs {len(starts)} times in the sentence; say which: {choices}")
    raise MtlReError(f"--entity {shown(text)}: {shown(named)} does not occur in the sentence")


def render_triples(triples: Sequence[Triple], options: ExtractConfig) -> str:
    """Return the triples as text or JSON, one a line."""
    if options.format == "json":
        return "\n".join(json.dumps(triple.record(), ensure_ascii=False) for triple in triples)
    if options.threshold == "stored":
        return "\n".join(map(str, triples)) or "no relation reaches its stored threshold"
    return "\n".join(map(str, triples)) or f"no relation scores {options.threshold:g} or more"
