"""A record of another tool → rows in KLUE-RE's JSON form, and what of it cannot be carried over.

Enters: one record as its tool writes it. Leaves: rows that `validation.parse_row` accepts, and a `Dropped` for every
annotation that becomes none. A format is one generator function from a record to these, and one entry in `FORMATS`;
nothing else knows it. `convert` applies them to a whole file.

Spans become inclusive character positions. Subject and object keep the order of the source: where a label carries a
direction of its own (SemEval's `Cause-Effect(e2,e1)`), swapping the entities by it would give the answer away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

from mtl_re.data.validation import literal, parse_row, shown, span_clash, string_of
from mtl_re.errors import MtlReError, RowError
from mtl_re.files import read_yaml
from mtl_re.taxonomy import NO_RELATION, Taxonomy

Record = Mapping[str, Any]
Row = dict[str, Any]

BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}
"""Penn Treebank's names of brackets, as TACRED's tokens spell them."""
UNTYPED = "ENT"
"""Entity type of a format that has none."""
_KLUE = Taxonomy.from_prefixes()


@dataclass(frozen=True)
class Dropped:
    """What a record holds and a row cannot: `what` names the kind, for counting; `where` the one at hand."""

    what: str
    where: str = ""


@dataclass
class Conversion:
    """How records are read.

    Attributes:
        types: entity type of the source → type of the row (`PERSON` → `PER`); others stay as they are.
        no_relation: labels of the source that mean "no relation"; they become `no_relation`.
        pairs: `related`: annotated relations only; `all`: also every other ordered pair of a text's entities, labelled
            `no_relation` (for annotation tools, which record relations and not their absence).
        columns: for the format `columns`, see `Columns`.
    """

    types: Mapping[str, str] = field(default_factory=dict)
    no_relation: Sequence[str] = ("no_relation", "Other", "NA")
    pairs: Literal["related", "all"] = "related"
    columns: Columns | None = None


@dataclass(frozen=True)
class Mention:
    """An entity while it is converted: inclusive characters of the text."""

    start: int
    end: int
    type: str


Format = Callable[[Record, Conversion], Iterator[Row | Dropped]]


# ---- rows ----------------------------------------------------------------------------------------------------------


def make_row(
    id: Any, text: str, pair: Sequence[Mention], label: str | None, options: Conversion, source: Any = None
) -> Row | Dropped:
    """Return a row in KLUE's JSON form, or why the record cannot become one.

    Args:
        pair: subject and object.
    """
    entities: dict[str, dict[str, Any]] = {}
    for name, span in zip(("subject_entity", "object_entity"), pair, strict=True):
        if not 0 <= span.start <= span.end < len(text):
            return Dropped("a span outside its text", f"{name} {span.start}..{span.end} of {len(text)} characters")
        entities[name] = {
            "word": text[span.start : span.end + 1],
            "start_idx": span.start,
            "end_idx": span.end,
            "type": options.types.get(span.type, span.type),
        }
    if clash := span_clash(*((span.start, span.end) for span in pair)):
        reasons = {"same": "subject and object are the same span", "crossing": "subject and object cross"}
        return Dropped(reasons[clash], str(entities["subject_entity"]["word"]))
    row = {"guid": _given(id), "sentence": text, **entities, "label": None, "source": _given(source)}
    try:
        parse_row(row, _KLUE)  # without the label: its names are the source's own
        named = None if label is None else string_of({"label": label}, "label")
    except RowError as error:
        return Dropped(f"a row whose {error.field} cannot be used", error.reason)
    return row | {"label": NO_RELATION if named in options.no_relation else named}


def join_tokens(tokens: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Tokens → text with one space between them, and each token's inclusive characters."""
    text, places = "", []
    for token in (BRACKETS.get(token, token) for token in tokens):
        text += " " if text else ""
        places.append((len(text), len(text) + len(token) - 1))
        text += token
    return text, places


def python_offset(text: str, utf16: int) -> int:
    """A position counted in UTF-16 code units, as browsers count, in Python characters."""
    return len(text.encode("utf-16-le")[: 2 * utf16].decode("utf-16-le", "ignore"))


def _whole(value: Any) -> int:
    """A position; pandas writes 3 as 3.0 in a column with gaps."""
    if isinstance(value, bool) or not isinstance(value, int):
        number = float(str(value).strip())
        if not number.is_integer():
            raise ValueError(f"{value!r} is no whole number")
        return int(number)
    return value


def _given(value: Any) -> str | None:
    """An id, label or type as text; None for an empty cell, null or NaN."""
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f"{shown(value)} where an id, a label or a type is expected")
    return str(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{shown(value)} where a text is expected")
    return value


def _names(given: Any) -> list[str]:
    """The labels of a region or a relation, a list in every export."""
    if not isinstance(given or [], list):
        raise TypeError(f"{shown(given)} where a list of labels is expected")
    return [name for name in map(_given, given or []) if name is not None]


def _listed(tokens: Any) -> list[str] | None:
    """Tokens, also as the text of a list, as a CSV holds them; None if they are no list."""
    if isinstance(tokens, str):
        with suppress(RowError):
            tokens = literal(tokens, "token")
    return list(map(str, tokens)) if isinstance(tokens, list | tuple) else None


NO_LIST = "tokens that are no list"


# ---- formats of data sets ------------------------------------------------------------------------------------------


def tacred(record: Record, options: Conversion) -> Iterator[Row | Dropped]:
    """TACRED and Re-TACRED (Zhang et al. 2017): tokens, inclusive token spans `subj_start`..`subj_end`, `relation`."""
    if (tokens := _listed(record["token"])) is None:
        yield Dropped(NO_LIST, str(record["token"])[:40])
        return
    text, places = join_tokens(tokens)
    spans = []
    for name in ("subj", "obj"):
        first, last = _whole(record[f"{name}_start"]), _whole(record[f"{name}_end"])
        if not 0 <= first <= last < len(places):
            yield Dropped("a span outside its tokens", f"{name} {first}..{last} of {len(places)} tokens")
            return
        spans.append(Mention(places[first][0], places[last][1], _given(record.get(f"{name}_type")) or UNTYPED))
    yield make_row(record.get("id"), text, spans, _given(record.get("relation")), options, record.get("docid"))


def semeval(record: Record, options: Conversion) -> Iterator[Row | Dropped]:
    """SemEval-2010 task 8 (Hendrickx et al. 2010): `<e1>` is the subject, `<e2>` the object; the label keeps its
    direction. Records come from `semeval_records`."""
    text, spans = _text(record["text"]), []
    for name in ("e1", "e2"):
        match = re.search(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
        if match is None or not match[1]:
            yield Dropped(f"a sentence without <{name}>", text[:40])
            return
        before, inside = (len(re.sub(r"</?e[12]>", "", part)) for part in (text[: match.start()], match[1]))
        spans.append(Mention(before, before + inside - 1, UNTYPED))
    yield make_row(record.get("id"), re.sub(r"</?e[12]>", "", text), spans, record.get("relation"), options)


def opennre(record: Record, options: Conversion) -> Iterator[Row | Dropped]:
    """OpenNRE (Han et al. 2019): head `h` and tail `t` with `pos: [start, end)` over `text` or over `token`. A `name`
    must be the text of its span, but for case and spaces (wiki80's names are in lower case)."""
    if "token" in record:
        if (tokens := _listed(record["token"])) is None:
            yield Dropped(NO_LIST, str(record["token"])[:40])
            return
        text, places = join_tokens(tokens)
    else:
        text = _text(record["text"])
        places = [(place, place) for place in range(len(text))]
    spans = []
    for name in ("h", "t"):
        first, end = (_whole(position) for position in record[name]["pos"][:2])
        if not 0 <= first < end <= len(places):
            yield Dropped("a span outside its text", f"{name} {first}..{end}")
            return
        spans.append(Mention(places[first][0], places[end - 1][1], _given(record[name].get("type")) or UNTYPED))
        word, named = text[spans[-1].start : spans[-1].end + 1], _given(record[name].get("name")) or ""
        if named and _bare(named) != _bare(word):
            yield Dropped("a name that is not the text of its span (`pos` ends behind it)", f"{named!r}, not {word!r}")
            return
    yield make_row(record.get("id"), text, spans, _given(record.get("relation")), options)


def _bare(text: str) -> str:
    return "".join(text.casefold().split())


# ---- formats of annotation tools -------------------------------------------------------------------------------------


def label_studio(record: Record, options: Conversion) -> Iterator[Row | Dropped]:
    """Label Studio's JSON export: `labels` regions (exclusive ends, UTF-16 positions) and `relation` results."""
    text = _annotated_text(record)
    if text is None:
        yield Dropped("a record of which no text holds the annotated words", str(record.get("id", "")))
        return
    for annotation in record["annotations"]:
        if annotation.get("was_cancelled"):
            yield Dropped("a cancelled annotation")
            continue
        spans: dict[Any, Mention] = {}
        related: list[tuple[Any, Any, str | None]] = []
        for result in annotation["result"]:
            if result.get("type") == "relation":
                ends = (result["from_id"], result["to_id"])
                ends = ends[::-1] if result.get("direction") == "left" else ends
                labels: list[str | None] = [*_names(result.get("labels"))] or [None]
                related += [(*ends, label) for label in labels]
            elif "start" in (value := result.get("value", {})):
                start, end = _region(text, value)
                kinds = _names(value.get("labels") or value.get("hypertextlabels")) or [UNTYPED]
                spans[result["id"]] = Mention(start, end - 1, kinds[0])
                if len(kinds) > 1:
                    yield Dropped("a second type of one entity", kinds[1])
            else:
                yield Dropped(f"a result of type {result.get('type')!r}")
        yield from annotated_pairs(record.get("id"), text, spans, related, options)


def _region(text: str, value: Mapping[str, Any]) -> tuple[int, int]:
    """The characters [start, end) of a region, whose positions count UTF-16 code units."""
    return python_offset(text, _whole(value["start"])), python_offset(text, _whole(value["end"]))


def _annotated_text(record: Record) -> str | None:
    """The text of a record that was annotated: where regions quote their words, the one that has them there (a browser
    counts a line end as one character); else `text`, or the only one."""
    data: Mapping[str, Any] = record["data"]
    texts = [data["text"]] if isinstance(data.get("text"), str) else []
    texts += [value for value in data.values() if isinstance(value, str) and value not in texts]
    values = [result.get("value", {}) for one in record["annotations"] for result in one["result"]]
    quoted = [value for value in values if "start" in value and isinstance(value.get("text"), str)]
    if not quoted:
        return texts[0] if "text" in data or len(texts) == 1 else None
    for text in [*texts, *(text.replace("\r\n", "\n") for text in texts)]:
        if all(text[slice(*_region(text, value))] == value["text"].replace("\r\n", "\n") for value in quoted):
            return text
    return None


def doccano(record: Record, options: Conversion) -> Iterator[Row | Dropped]:
    """doccano's JSONL export: `entities` with offsets (exclusive ends), and `relations` between their ids."""
    spans = {
        entity["id"]: Mention(
            _whole(entity["start_offset"]), _whole(entity["end_offset"]) - 1, _given(entity["label"]) or UNTYPED
        )
        for entity in record["entities"]
    }
    related = [(link["from_id"], link["to_id"], _given(link.get("type"))) for link in record["relations"]]
    yield from annotated_pairs(record.get("id"), _text(record["text"]), spans, related, options)


def annotated_pairs(
    id: Any,
    text: str,
    spans: Mapping[Any, Mention],
    related: Sequence[tuple[Any, Any, str | None]],
    options: Conversion,
) -> Iterator[Row | Dropped]:
    """Rows of one annotated text: its relations, and under `pairs: all` every other ordered pair as `no_relation`."""
    seen: dict[tuple[Any, Any], str] = {}
    rows: list[tuple[Any, Any, str]] = []
    for first, second, label in related:
        if first not in spans or second not in spans:
            yield Dropped("a relation of an entity that is not there", f"{first} → {second}")
        elif label is None:
            yield Dropped("a relation without a label", f"{first} → {second}")
        elif (first, second) in seen:
            yield Dropped("a second relation of one pair", f"{seen[first, second]} and {label}")
        else:
            seen[first, second] = label
            rows.append((first, second, label))
    others = [pair for pair in permutations(spans, 2) if pair not in seen]
    if options.pairs == "all":
        rows += [(first, second, NO_RELATION) for first, second in others]
    elif others:
        for _ in others:
            yield Dropped("a pair without an annotated relation (--pairs all makes it no_relation)")
    for number, (first, second, label) in enumerate(rows, start=1):
        name = None if id is None else f"{id}-{number}"
        yield make_row(name, text, (spans[first], spans[second]), label, options)


# ---- tables with other column names ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class EntityColumns:
    """Where an entity's parts stand: field names, dotted into nested maps (`subject_entity.entity_type`)."""

    start: str
    end: str
    type: str | None = None
    word: str | None = None


@dataclass(frozen=True)
class Columns:
    """Field names of a table.

    Attributes:
        ends: whether an entity's end is its last character or the one behind it.
        first: number of a sentence's first character, 0 or 1.
    """

    subject: EntityColumns
    object: EntityColumns
    sentence: str = "sentence"
    label: str | None = "label"
    id: str | None = "id"
    source: str | None = None
    ends: Literal["inclusive", "exclusive"] = "inclusive"
    first: int = 0

    @classmethod
    def from_yaml(cls, path: Path) -> Columns:
        """Read the map of a YAML file with this class's fields.

        Raises:
            MtlReError: the file cannot be read, or a key is missing, unknown or of the wrong type.
        """
        given = read_yaml(path)
        try:
            entities = {name: EntityColumns(**given.pop(name)) for name in ("subject", "object")}
            columns = cls(**entities, **given)  # type: ignore[arg-type] # checked below, or a TypeError
        except KeyError as error:
            raise MtlReError(f"{path}: the key {error} is missing") from error
        except TypeError as error:
            known = "sentence, label, id, source, ends, first, subject and object, each with start, end, type, word"
            raise MtlReError(f"{path}: {error}; the keys are {known}") from error
        if columns.ends not in ("inclusive", "exclusive") or columns.first not in (0, 1):
            raise MtlReError(f"{path}: ends must be inclusive or exclusive, and first 0 or 1")
        return columns


def columns(record: Record, options: Conversion) -> Iterator[Row | Dropped]:
    """A table whose columns a YAML file names (`Columns`)."""
    if options.columns is None:
        raise MtlReError("convert: --from columns needs --columns FILE.yaml with the names of the fields")
    yield from _by_columns(record, options.columns, options)


KORRE = Columns(
    subject=EntityColumns("subj_start_pos", "subj_end_pos", "subj_type", "subj_name"),
    object=EntityColumns("obj_start_pos", "obj_end_pos", "obj_type", "obj_name"),
    label="relation",
    ends="exclusive",
)
BOOSTCAMP = Columns(
    subject=EntityColumns(
        "subject_entity.start_idx", "subject_entity.end_idx", "subject_entity.entity_type", "subject_entity.word"
    ),
    object=EntityColumns(
        "object_entity.start_idx", "object_entity.end_idx", "object_entity.entity_type", "object_entity.word"
    ),
)


def korre(record: Record, options: Conversion) -> Iterator[Row | Dropped]:
    """KorRE's flat columns: `subj_name`, `subj_start_pos`, exclusive `subj_end_pos`, `subj_type`, ..., `relation`."""
    yield from _by_columns(record, KORRE, options)


def boostcamp(record: Record, options: Conversion) -> Iterator[Row | Dropped]:
    """The contest's CSV as some teams rewrote it, with `entity_type` in place of `type`."""
    yield from _by_columns(record, BOOSTCAMP, options)


def _by_columns(record: Record, names: Columns, options: Conversion) -> Iterator[Row | Dropped]:
    text, spans = _text(_at(record, names.sentence)), []
    for part in (names.subject, names.object):
        start, end = (_whole(_at(record, name)) - names.first for name in (part.start, part.end))
        end -= names.ends == "exclusive"
        if part.word is not None and text[start : end + 1] != (word := str(_at(record, part.word))):
            yield Dropped(
                "a word that is not the text of its span (are `ends` and `first` right?)",
                f"{word!r}, but characters {start}..{end} are {text[start : end + 1]!r}",
            )
            return
        kind = None if part.type is None else _given(_at(record, part.type))
        spans.append(Mention(start, end, kind or UNTYPED))
    id, label, source = (_optional(record, names, field) for field in ("id", "label", "source"))
    yield make_row(id, text, spans, _given(label), options, source)


def _optional(record: Record, names: Columns, field: str) -> Any:
    """The value of a column that may be left out by `null`; `id` is taken where there is one, unless it was named."""
    key = getattr(names, field)
    if key is None or (field == "id" and key == "id" and key not in record):
        return None
    return _at(record, key)


def _at(record: Record, name: str) -> Any:
    """The value under a dotted name; a cell that holds a Python dict as text is looked into."""
    value: Any = record
    for part in [name] if name in record else name.split("."):
        if isinstance(value, str):
            value = literal(value, name)
        value = value[part]
    return value


FORMATS: dict[str, Format] = {
    "tacred": tacred,
    "semeval": semeval,
    "opennre": opennre,
    "label-studio": label_studio,
    "doccano": doccano,
    "korre": korre,
    "boostcamp": boostcamp,
    "columns": columns,
}
