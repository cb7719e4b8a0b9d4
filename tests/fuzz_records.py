"""Hostile records of other tools through `mtl-re convert`'s formats, and hostile documents through `extract`'s reader.

A record is made sound first, from an awkward row (`fuzz_rows.sound_row`) in the form that the tool writes; half of them
get one fault: a value anywhere in it replaced by junk, or a key taken away. A sound record must become the row that it
was made of. What becomes of a faulty one is not foretold, but it is one of two things: rows that every command reads,
whose words stand in their sentence, or a reason in one line. Nothing else may come out, and no record may be lost.
`fuzz.py` runs these by the hundred thousand.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from fuzz_rows import KLUE, PIECES, TAXONOMY, TYPES, Made, Row, make_text, shows, sound_row, write_json, write_jsonl

from mtl_re.config import ConvertConfig, ReadingConfig
from mtl_re.data import convert
from mtl_re.data.documents import ENTITY_FIELDS, EXCLUSIVE, EXCLUSIVE_LISTS, FIELDS, Document, read_documents
from mtl_re.data.loading import parsed
from mtl_re.data.tool_records import BRACKETS, UNTYPED
from mtl_re.data.validation import BadRow

JUNK: list[Any] = [
    *(None, True, 0, -1, 3, 10**300, 0.5, 1e300, float("nan"), "", " ", "\u200b", "x", "17", "-3", "1.0"),
    *("\ud800", "\ufeff", "[" * 3000, "{'a': 1}", "[1, 2]", "(" * 90, "1+" * 4000 + "1", "가" * 30_000),
    *([], {}, [None], [[]], {"a": {}}, ["\ud800"], [1, 2, 3], [{"start": 0}]),
]
"""What stands where something else should."""


@dataclass(frozen=True)
class Record:
    """A record as a tool writes it.

    Attributes:
        row: what it must become (sentence, spans and types, label); None where nothing is foretold.
    """

    content: Any
    row: tuple[Any, ...] | None


# ---- faults --------------------------------------------------------------------------------------------------------


def spoil(content: Any, chance: random.Random) -> Any:
    """Put junk somewhere into a record, or take a key or an element away."""
    content = json.loads(json.dumps(content))
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            places.append((value, key))
            walk(value[key])

    walk(content)
    holder, key = chance.choice(places)
    if chance.random() < 0.2:
        del holder[key]
    else:
        holder[key] = chance.choice(JUNK)
    return content


# ---- formats: a sound row → the record that a tool would have of it ------------------------------------------------


def spans_of(row: Row) -> list[tuple[int, int, str]]:
    """Return (start, end, type) of subject and object, ends inclusive."""
    entities = (row["subject_entity"], row["object_entity"])
    return [(entity["start_idx"], entity["end_idx"], entity["type"]) for entity in entities]


def wanted(row: Row, types: bool = True) -> tuple[Any, ...]:
    """Return what a row made of a sound record must hold."""
    spans = spans_of(row)
    return row["sentence"], [span if types else (*span[:2], UNTYPED) for span in spans], row["label"]


def of_tokens(chance: random.Random) -> tuple[list[str], str, list[tuple[int, int]], list[tuple[int, int]]]:
    """Return tokens, their text, and two spans as inclusive tokens and as inclusive characters."""
    while True:
        tokens = [chance.choice([*PIECES, *BRACKETS]) for _ in range(chance.randint(2, 15))]
        spelled = [BRACKETS.get(token, token) for token in tokens]
        first, second, third, fourth = sorted(chance.choices(range(len(tokens)), k=4))
        if (
            second < third
            and shows(" ".join(spelled[first : second + 1]))
            and shows(" ".join(spelled[third : fourth + 1]))
        ):
            break
    ranges = [(first, second), (third, fourth)]
    if chance.random() < 0.5:
        ranges.reverse()
    starts = [len(" ".join([*spelled[:n], ""])) for n in range(len(tokens))]
    spans = [(starts[one], starts[last] + len(spelled[last]) - 1) for one, last in ranges]
    return tokens, " ".join(spelled), ranges, spans


def tacred(chance: random.Random, number: int) -> Record:
    tokens, text, ranges, spans = of_tokens(chance)
    label, kinds = chance.choice(KLUE), chance.choices(TYPES, k=2)
    content: Row = {"id": f"t{number}", "token": tokens if chance.random() < 0.8 else repr(tokens), "relation": label}
    for name, (first, last), kind in zip(("subj", "obj"), ranges, kinds, strict=True):
        content |= {f"{name}_start": first, f"{name}_end": last, f"{name}_type": kind}
    return Record(content, (text, [(*span, kind) for span, kind in zip(spans, kinds, strict=True)], label))


def opennre(chance: random.Random, number: int) -> Record:
    if chance.random() < 0.5:
        tokens, text, ranges, spans = of_tokens(chance)
        label = chance.choice(KLUE)
        content: Row = {"token": tokens, "relation": label}
        for name, (first, last) in zip("ht", ranges, strict=True):
            content[name] = {"pos": [first, last + 1]}
        return Record(content, (text, [(*span, UNTYPED) for span in spans], label))
    row = labelled(chance, number)
    content = {"text": row["sentence"], "relation": row["label"]}
    for name, (start, end, kind) in zip("ht", spans_of(row), strict=True):
        content[name] = {"pos": [start, end + 1], "type": kind}
        if chance.random() < 0.5:
            content[name]["name"] = row["sentence"][start : end + 1]
    return Record(content, wanted(row))


def label_studio(chance: random.Random, number: int) -> Record:
    """Positions count UTF-16 units; a region may quote its words, with the line ends of a browser."""
    row = labelled(chance, number)
    while "\r\n" in row["sentence"]:
        row = labelled(chance, number)
    text, results, quoting = row["sentence"], [], chance.random() < 0.5
    for name, (start, end, kind) in zip("so", spans_of(row), strict=True):
        units = [len(text[:place].encode("utf-16-le")) // 2 for place in (start, end + 1)]
        value: Row = {"start": units[0], "end": units[1], "labels": [kind]}
        if quoting:
            value["text"] = text[start : end + 1]
        results.append({"id": name, "type": "labels", "value": value})
    link = {"type": "relation", "from_id": "s", "to_id": "o", "direction": "right", "labels": [row["label"]]}
    if chance.random() < 0.3:
        link |= {"from_id": "o", "to_id": "s", "direction": "left"}
    data = {"text": text} if chance.random() < 0.7 else {"source": text}
    return Record({"id": number, "data": data, "annotations": [{"result": [*results, link]}]}, wanted(row))


def doccano(chance: random.Random, number: int) -> Record:
    row = labelled(chance, number)
    entities = [
        {"id": n, "label": kind, "start_offset": start, "end_offset": end + 1}
        for n, (start, end, kind) in enumerate(spans_of(row))
    ]
    links = [{"id": 0, "from_id": 0, "to_id": 1, "type": row["label"]}]
    return Record({"id": number, "text": row["sentence"], "entities": entities, "relations": links}, wanted(row))


def korre(chance: random.Random, number: int) -> Record:
    row = labelled(chance, number)
    content = {"sentence": row["sentence"], "relation": row["label"]}
    for name, (start, end, kind) in zip(("subj", "obj"), spans_of(row), strict=True):
        as_cell = chance.choice([int, str, float])
        content |= {f"{name}_name": row["sentence"][start : end + 1], f"{name}_start_pos": as_cell(start)}
        content |= {f"{name}_end_pos": as_cell(end + 1), f"{name}_type": kind}
    return Record(content, wanted(row))


def boostcamp(chance: random.Random, number: int) -> Record:
    row = labelled(chance, number)
    content = {"id": number, "sentence": row["sentence"], "label": row["label"]}
    for name in ("subject_entity", "object_entity"):
        entity = {key: value for key, value in row[name].items() if key != "type"} | {"entity_type": row[name]["type"]}
        content[name] = entity if chance.random() < 0.3 else repr(entity)
    return Record(content, wanted(row))


COLUMNS = {
    "subject": {"start": "s.from", "end": "s.to", "word": "s.word", "type": "s.type"},
    "object": {"start": "o.from", "end": "o.to"},
    "sentence": "문장",
    "label": "관계",
    "ends": "exclusive",
    "first": 1,
}
"""A table of one's own, as `--columns` describes it."""


def columns(chance: random.Random, number: int) -> Record:
    row = labelled(chance, number)
    content: Row = {"문장": row["sentence"], "관계": row["label"]}
    for name, (start, end, kind) in zip("so", spans_of(row), strict=True):
        content[name] = {"from": start + 1, "to": end + 2, "type": kind, "word": row["sentence"][start : end + 1]}
    text, spans, label = wanted(row)
    return Record(content, (text, [spans[0], (*spans[1][:2], UNTYPED)], label))


def semeval(chance: random.Random, number: int) -> Record:
    """A line of its text file, which knows no line break and no quotation mark or blank at the ends of a sentence."""
    while True:
        row = labelled(chance, number)
        text = row["sentence"]
        if not {"\n", "\r"} & {*text} and text == text.strip() and text[0] != '"' != text[-1]:
            break
    marks = []  # (place, order at that place, tag): ends before beginnings, an outer one around an inner one
    for name, (start, end, _) in zip(("e1", "e2"), spans_of(row), strict=True):
        marks += [(start, 1, -end, f"<{name}>"), (end + 1, 0, -start, f"</{name}>")]
    made, last = "", 0
    for place, _, _, tag in sorted(marks):
        made, last = made + text[last:place] + tag, place
    return Record({"id": number, "text": made + text[last:], "relation": row["label"]}, wanted(row, types=False))


def labelled(chance: random.Random, number: int) -> Row:
    """Return a sound row with a label."""
    return sound_row(chance, number) | {"label": chance.choice(KLUE)}


MAKERS: dict[str, Callable[[random.Random, int], Record]] = {
    "tacred": tacred,
    "semeval": semeval,
    "opennre": opennre,
    "label-studio": label_studio,
    "doccano": doccano,
    "korre": korre,
    "boostcamp": boostcamp,
    "columns": columns,
}


def make_record(chance: random.Random, number: int, name: str) -> Record:
    record = MAKERS[name](chance, number)
    if chance.random() < 0.5:
        return record
    if chance.random() < 0.02:
        return Record(chance.choice(JUNK), None)
    return Record(spoil(record.content, chance), None)


def write_semeval(records: list[Record]) -> str:
    """Return the text file of records; a spoilt one's parts stand in it as they are, or not at all."""
    lines = []
    for record in records:
        content = record.content if isinstance(record.content, dict) else {}
        for part in (f'{content.get("id", "")}\t"{content.get("text", "")}"', content.get("relation", "")):
            lines.append(
                " ".join(str(part).encode("utf-8", "replace").decode().splitlines()) if record.row is None else part
            )
        lines += ["Comment: none", ""]
    return "\n".join(lines)


def converted(folder: Path, name: str, rows: int, seed: int, batch: int = 500) -> Counter[str]:
    """Make `rows` records of one format, convert them in files of `batch` by the command's function, and check all.

    Raises:
        AssertionError: a record was lost or changed, or something else than rows and reasons came out.
    """
    chance, counts = random.Random(f"{seed}{name}"), Counter[str]()
    (folder / "columns.yaml").write_text(yaml.safe_dump(COLUMNS, allow_unicode=True), encoding="utf-8")
    for start in range(0, rows, batch):
        records = [make_record(chance, number, name) for number in range(start, min(start + batch, rows))]
        source, output = folder / f"records{chance.choice(('.json', '.jsonl'))}", folder / "converted.jsonl"
        if name == "semeval":
            source = source.with_suffix(".txt")
            source.write_text(write_semeval(records), encoding="utf-8", newline="\n")
        else:
            write = write_jsonl if source.suffix == ".jsonl" else write_json
            source.write_bytes(write([Made(record.content, True) for record in records], chance)[0])
        try:
            counts += _check_conversion(source, output, name, records)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {name}, records {start}..: {type(error).__name__}: {error}") from error
        source.unlink()
        output.unlink()
    return counts


def _check_conversion(source: Path, output: Path, name: str, records: list[Record]) -> Counter[str]:
    table = str(source.parent / "columns.yaml") if name == "columns" else None
    report = convert.convert(str(source), name, ConvertConfig(output=str(output), columns=table))
    if name != "semeval":
        assert report.records == len(records), f"{report.records} records read of {len(records)}"
    for what in report.dropped:
        assert len(f"{what}{report.first[what]}".splitlines()) == 1, (what, report.first[what])
    made: Counter[str] = Counter()
    for number, example in parsed(str(output), TAXONOMY):
        if isinstance(example, BadRow):  # a spoilt label's name is the source's own, and may be any text
            assert example.field == "label", f"row {number} was written, and reads as {example}"
            continue
        spans = [(entity.start, entity.end, entity.type) for entity in (example.subject, example.object)]
        made[repr((example.sentence, spans, example.label))] += 1
    missing = Counter(repr(record.row) for record in records if record.row is not None) - made
    assert not missing, f"{missing.total()} sound records became something else; one is {next(iter(missing))}"
    return Counter({"rows": len(records), "accepted": report.rows, "reasons": report.dropped.total()})


# ---- documents -----------------------------------------------------------------------------------------------------


def make_document(chance: random.Random, number: int, reading: ReadingConfig) -> Record:
    """Return a document of any spelling, its spans counted as `reading` says; half of them with a fault."""
    text, spans = "", []
    for _ in range(chance.randint(0, 6)):
        text += make_text(chance, 4)
        while not shows(word := make_text(chance, 3)):
            pass
        spans.append((len(text), len(text) + len(word) - 1, chance.choice(TYPES)))
        text += word
    text += make_text(chance, 4)
    if not shows(text):
        text += "끝"
    names = {part: chance.choice(ENTITY_FIELDS[part]) for part in ENTITY_FIELDS}
    field = chance.choice(FIELDS["entities"])
    listed: list[Any] = []
    for start, end, kind in spans:
        first, last = (
            start + reading.first_character,
            end + reading.first_character + (reading.span_ends == "exclusive"),
        )
        behind = reading.span_ends == "inclusive"
        if chance.random() < 0.2 and not (behind and None in EXCLUSIVE_LISTS.get(field, ())):
            listed.append([first, last, kind])
            continue
        listed.append({names["start"]: first, names["end"]: last, names["type"]: kind})
        behind = behind and names["end"] in (*EXCLUSIVE, *EXCLUSIVE_LISTS.get(field, ()))
        if chance.random() < 0.5 or behind:
            listed[-1][names["word"]] = text[start : end + 1]
    as_text = field != "label" and chance.random() < 0.2
    content: Row = {
        chance.choice(FIELDS["id"]): chance.choice([f"d{number}", number]),
        chance.choice(FIELDS["text"]): text,
        field: repr(listed) if as_text else listed,
    }
    if chance.random() < 0.5:
        return Record(content, (text, list(dict.fromkeys(_trimmed(text, span) for span in spans))))
    return Record(spoil(content, chance), None)


def _trimmed(text: str, span: tuple[int, int, str]) -> tuple[int, int, str]:
    word = text[span[0] : span[1] + 1]
    start = span[0] + len(word) - len(word.lstrip())
    return start, start + len(word.strip()) - 1, span[2]


def documents(folder: Path, rows: int, seed: int, batch: int = 500) -> Counter[str]:
    """Make `rows` documents, read them in files of `batch`, and check every one.

    Raises:
        AssertionError: a document was lost or changed, or something else than documents and reasons came out.
    """
    chance, counts = random.Random(f"{seed}documents"), Counter[str]()
    for start in range(0, rows, batch):
        reading = ReadingConfig(
            span_ends=chance.choice(["inclusive", "exclusive"]), first_character=chance.choice([0, 1])
        )
        made = [make_document(chance, number, reading) for number in range(start, min(start + batch, rows))]
        source = folder / f"documents{chance.choice(('.json', '.jsonl'))}"
        write = write_jsonl if source.suffix == ".jsonl" else write_json
        content, numbers = write([Made(record.content, True) for record in made], chance)
        source.write_bytes(content)
        try:
            read = list(read_documents(str(source), reading))
            assert [number for number, _ in read] == numbers, f"{len(read)} documents read of {len(numbers)}"
            for (_, found), record in zip(read, made, strict=True):
                counts["accepted" if _check_document(found, record) else "refused"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, documents {start}..: {type(error).__name__}: {error}") from error
        counts["rows"] += len(made)
        source.unlink()
    return counts


def _check_document(found: Document | BadRow, record: Record) -> bool:
    """Hold one document against what must become of it; whether it was accepted."""
    if isinstance(found, BadRow):
        assert record.row is None, f"refused: {found}; {record.content!r}"
        assert found.field, found
        assert len(str(found).splitlines()) == 1, str(found)[:2000]
        assert len(str(found)) < 1500, str(found)[:2000]
        return False
    for entity in found.entities or ():
        assert found.text[entity.start : entity.end + 1] == entity.word, (found, record.content)
    if record.row is not None:
        spans = [(entity.start, entity.end, entity.type) for entity in found.entities or ()]
        assert (found.text, spans) == record.row, (found, record.content)
    return True
