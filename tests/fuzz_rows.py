"""Hostile rows through every reader, the markers and the tokenizer; `fuzz.py` runs them by the hundred thousand.

Each row is made sound first, out of awkward text (`PIECES`), with entities at the edges, adjacent, or of one character;
then half of them get one fault. What must happen is known beforehand: a sound row comes back with its id, spans and
label, and its marked text and tokens hold both entities; a faulty one is named by its number and a field, in one line.
Besides, whole files are damaged byte by byte: anything but rows and one `MtlReError` is a failure.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from mtl_re.data.loading import parsed
from mtl_re.data.validation import BadRow, Example, parse_row
from mtl_re.errors import MtlReError
from mtl_re.features import markers
from mtl_re.features.featurizer import Featurizer
from mtl_re.features.levitated import MARKS
from mtl_re.taxonomy import KLUE, Taxonomy

Row = dict[str, Any]
TAXONOMY = Taxonomy.from_prefixes()
TYPES = ["PER", "ORG", "LOC", "DAT", "POH", "NOH"]
ENTITY_KEYS = ("word", "start_idx", "end_idx", "type")

PIECES = [
    *("김하늘", "별빛연구소", "서울", "은", "는 ", "이다.", "대표 ", "1998년", "the ", "Zoë", "naïve "),
    *("\u1112\u1161\u11ab\u1100\u1173\u11af", "\u110b\u1175", "e\u0301", "a\u0308\u0323", "ﬁ", "①", "㈜"),
    *("\u200b", "\u200c", "\u200d", "\ufeff", "\u2060", "\u00ad", "\u200e", "\u202e", "\u2066", "\ufe0f"),
    *("😀", "👩\u200d👩\u200d👧", "🇰🇷", "👍🏽", "𠮷", "𝔄", "\U0010ffff", "\ufffe", "\ue000"),
    *("שלום", "مرحبا", "हिन्दी", "ไทย", "日本語", "漢字", "ʻ"),
    *("\x00", "\x01", "\x07", "\x1b[31m", "\x7f", "\x85", "\u2028", "\u2029", "\t", "\n", "\r", "\r\n", "\x0b"),
    *("@", "#", "*", "^", "@ * 사람 *", "# ^ 단체 ^", "<subj>", "</subj>", "<obj>", "<S:PER>", "</O:ORG>", "##김"),
    *("[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]", "</s>", "<s>", "<unk>", "▁", "Ġ"),
    *('"', "'", ",", ";", "\\", "\\u0041", "{'word': 'x'}", "<script>", "&lt;", "%s", "{}", "$1$", "|", "`", "../"),
    *(" ", "  ", "\u3000", "\u00a0", "\u2003", "12", "3.14", "-1", "NaN", "null", "None", "true", "x" * 60),
]
"""What sentences are made of."""
CP949 = [
    *(
        "김하늘",
        "별빛연구소",
        "서울",
        "은",
        "는 ",
        "이다.",
        "대표 ",
        "1998년",
        "쌍둥이",
        "똠방각하",
        "펲시콜라",
        "漢字",
    ),
    *("㈜", "①", "\u3000", "the ", "@ * 사람 *", '"', "'", ",", ";", "\t", "\n", "\r\n", "\\", "null", "12"),
]
"""What sentences are made of where Excel on Korean Windows wrote the file: what its encoding knows, Hangul mostly."""


def make_text(chance: random.Random, most: int = 12, pieces: list[str] = PIECES) -> str:
    """Awkward text that shows something."""
    return "".join(chance.choices(pieces, k=chance.randint(1, most)))


def shows(text: str) -> bool:
    """Whether a reader may keep the text: it can be encoded, and something in it is visible."""
    return any(c.isprintable() and c != " " for c in text) and not any("\ud800" <= c <= "\udfff" for c in text)


def sound_row(chance: random.Random, number: int, pieces: list[str] = PIECES) -> Row:
    """A row that must be accepted: two spans at random, at the edges, side by side, or one inside the other."""
    while True:
        length = 1500 if chance.random() < 0.0005 else 12
        first, second = make_text(chance, 3, pieces), make_text(chance, 3, pieces)
        if chance.random() < 0.3:
            first, second = chance.choice("가a1" if pieces is CP949 else "가a1@😀"), chance.choice("나b2#")
        before, between, after = (make_text(chance, length, pieces) if chance.random() < 0.7 else "" for _ in range(3))
        sentence = before + first + between + second + after
        spans = [(len(before), len(first)), (len(before + first + between), len(second))]
        if chance.random() < 0.2:  # the outer one from the beginning of the first to the end of the second, or less
            inner = chance.choice(spans)
            spans = [(len(before), len(first + between + second)), inner]
        words = [sentence[start : start + size] for start, size in spans]
        if all(map(shows, words)) and len({*spans}) == 2 and len(sentence) <= 20_000:
            break
    if chance.random() < 0.5:
        spans.reverse()
    entities = [
        {
            "word": sentence[start : start + size],
            "start_idx": start,
            "end_idx": start + size - 1,
            "type": chance.choice(TYPES),
        }
        for start, size in spans
    ]
    label = chance.choice([*KLUE, None])
    guid = chance.choice([f"made-{number}", f"made-{number // 3}", "가😀", "x" * 300, "<b>", "같은"])
    return {
        "guid": guid,
        "sentence": sentence,
        "subject_entity": entities[0],
        "object_entity": entities[1],
        "label": label,
        "source": chance.choice(["made", None, "위키"]),
    }


# ---- faults: they change a sound row in place; True: still to be accepted --------------------------------------------


def _entity(row: Row, chance: random.Random) -> Row:
    return row[chance.choice(("subject_entity", "object_entity"))]


def _in_entity(
    key: str, make: Callable[[Any, Row], Any], accepted: bool = False
) -> Callable[[Row, random.Random], bool]:
    def fault(row: Row, chance: random.Random) -> bool:
        entity = _entity(row, chance)
        entity[key] = make(entity[key], row)
        return accepted

    return fault


def _drop_key(row: Row, chance: random.Random) -> bool:
    del _entity(row, chance)[chance.choice(ENTITY_KEYS)]
    return False


def _same_entity(row: Row, chance: random.Random) -> bool:
    row["object_entity"] = dict(row["subject_entity"])
    return False


def _extra_key(row: Row, chance: random.Random) -> bool:
    _entity(row, chance)["note"] = [make_text(chance)]
    return True


ENTITY_FAULTS: list[Callable[[Row, random.Random], bool]] = [
    _in_entity("start_idx", lambda value, row: str(value)),
    _in_entity("start_idx", lambda value, row: float(value), accepted=True),
    _in_entity("end_idx", lambda value, row: value + 0.5),
    _in_entity("start_idx", lambda value, row: -1 - value),
    _in_entity("start_idx", lambda value, row: None),
    _in_entity("end_idx", lambda value, row: True),
    _in_entity("end_idx", lambda value, row: len(row["sentence"]) + 3),
    _in_entity("end_idx", lambda value, row: 10**300),
    _in_entity("end_idx", lambda value, row: -(10**300)),
    _in_entity("start_idx", lambda value, row: [value]),
    _in_entity("word", lambda value, row: value + "다"),
    _in_entity("word", lambda value, row: value[1:] or " "),
    _in_entity("word", lambda value, row: 5),
    _in_entity("word", lambda value, row: ""),
    _in_entity("type", lambda value, row: ""),
    _in_entity("type", lambda value, row: 3),
    _in_entity("type", lambda value, row: "\u200b \t"),
    _drop_key,
    _same_entity,
    _extra_key,
]


def _top(key: str, value: Any, accepted: bool = False) -> Callable[[Row, random.Random], bool]:
    def fault(row: Row, chance: random.Random) -> bool:
        row[key] = value(row) if callable(value) else value
        return accepted

    return fault


TOP_FAULTS: list[Callable[[Row, random.Random], bool]] = [
    *(_top("sentence", value) for value in (None, 7, [], {}, True, "", " \n\t\u3000", "가" * 20_001)),
    _top("sentence", lambda row: row["sentence"] + "\ud800"),
    _top("sentence", lambda row: "\udfff" + row["sentence"]),
    *(_top("subject_entity", value) for value in (None, [], 3, "", "[1, 2]", "{'word': 'x'", "print(1)")),
    _top("subject_entity", "[" * 3000),
    _top("subject_entity", lambda row: repr(row["subject_entity"]), accepted=True),
    *(_top("label", value) for value in ("per:friend", "17", 17.5, -1, 30, True, [], {"a": 1}, 1e300, "\ud800")),
    _top("label", 17, accepted=True),
    _top("label", 17.0, accepted=True),
    _top("label", 100.0, accepted=True),
    _top("label", 100, accepted=True),
    _top("label", "100", accepted=True),
    _top("label", float("nan"), accepted=True),
    _top("label", "", accepted=True),
    *(_top("guid", value) for value in ([1], {"a": 1}, 1.5, True, " ", "a\udfff")),
    _top("guid", 12, accepted=True),
    _top("guid", None, accepted=True),
    _top("guid", float("nan"), accepted=True),
    _top("source", 3),
    _top("source", " ", accepted=True),
    _top("source", float("nan"), accepted=True),
    _top("note", {"deep": [[[[[[]]]]]]}, accepted=True),
]
"""Faults that need JSON's types."""


@dataclass(frozen=True)
class Made:
    """A row as it will be written, and what must become of it."""

    row: Any
    accepted: bool


def make_row(chance: random.Random, number: int, typed: bool, pieces: list[str] = PIECES) -> Made:
    row = sound_row(chance, number, pieces)
    if chance.random() < 0.5:
        return Made(row, True)
    if typed and chance.random() < 0.02:
        return Made(chance.choice([3, "문장", [row], None, True, 1.5]), False)
    if typed and chance.random() < 0.002:
        return Made(row | {"sentence": "가" * 1_000_000}, False)
    fault = chance.choice(TOP_FAULTS if typed and chance.random() < 0.5 else ENTITY_FAULTS)
    return Made(row, fault(row, chance))


# ---- writers: rows → bytes of one file, and the number that each row has in it ------------------------------------


def write_json(rows: list[Made], chance: random.Random) -> tuple[bytes, list[int]]:
    texts = [_dumps(made.row, chance) for made in rows]
    gap = chance.choice([", ", ",\n", ",\r\n\t", ","])
    text = "[" + gap.join(texts) + "]"
    if isinstance(rows[0].row, dict) and chance.random() < 0.2:
        text = chance.choice(['{"data": %s}', '{"version": "1", "data":\n%s\n}']) % text
    text += chance.choice(["", "\n", "\r\n \n"])
    return _encoded(text, chance), list(range(1, len(rows) + 1))


def write_jsonl(rows: list[Made], chance: random.Random) -> tuple[bytes, list[int]]:
    lines, numbers, number = [], [], 0
    for made in rows:
        while chance.random() < 0.05:
            lines.append(chance.choice(["\n", " \n", "\r\n"]))
            number += 1
        number += 1
        numbers.append(number)
        lines.append(_dumps(made.row, chance) + chance.choice(["\n", "\n", "\r\n"]))
    return _encoded("".join(lines), chance), numbers


def _dumps(row: Any, chance: random.Random) -> str:
    plain = chance.random() < 0.5
    text = json.dumps(row, ensure_ascii=plain)
    return text if plain or text.isascii() or shows(text) else json.dumps(row)


def write_csv(rows: list[Made], chance: random.Random) -> tuple[bytes, list[int]]:
    columns = ["id", "sentence", "subject_entity", "object_entity", "label", "source"]
    comma = chance.choice([",", ",", "\t", ";"])
    lines = [comma.join(columns) + chance.choice(["\n", "\r\n"])]
    for made in rows:
        row = made.row | {"id": made.row["guid"]}
        cells = [row[name] if isinstance(row[name], str) else _cell(row[name]) for name in columns]
        quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
        lines.append(comma.join(quoted) + chance.choice(["\n", "\n", "\r\n"]) * chance.choice([1, 1, 2]))
    return _encoded("".join(lines), chance), list(range(1, len(rows) + 1))


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def write_parquet(rows: list[Made], chance: random.Random) -> tuple[bytes, list[int]]:
    """Entities as text, as the contest has them, or as structures where all rows of the file allow it."""
    import pyarrow
    from pyarrow import parquet

    columns: dict[str, list[Any]] = {
        name: [made.row[name] for made in rows] for name in ("sentence", "source", "label")
    }
    columns["guid"] = [made.row["guid"] for made in rows]
    kinds: dict[str, Any] = dict.fromkeys(columns, pyarrow.string())
    entities = {name: [made.row[name] for made in rows] for name in ("subject_entity", "object_entity")}
    structure = pyarrow.struct(
        [
            ("word", pyarrow.string()),
            ("start_idx", pyarrow.int64()),
            ("end_idx", pyarrow.int64()),
            ("type", pyarrow.string()),
        ]
    )
    structured = all(made.accepted and "note" not in str(made.row["subject_entity"]) for made in rows)
    for name, values in entities.items():
        columns[name] = values if structured else [repr(value) for value in values]
        kinds[name] = structure if structured else pyarrow.string()
    table = pyarrow.table({name: pyarrow.array(values, kinds[name]) for name, values in columns.items()})
    sink = io.BytesIO()
    parquet.write_table(table, sink, row_group_size=chance.choice([7, 100, 10_000]))
    return sink.getvalue(), list(range(1, len(rows) + 1))


def _encoded(text: str, chance: random.Random) -> bytes:
    """UTF-8 and UTF-16 with or without a mark, UTF-32, or CP949 where that knows every character."""
    foreign = [character for character in text if not character.isascii()]
    hangul = sum("가" <= character <= "힣" for character in foreign)
    with contextlib.suppress(UnicodeEncodeError):
        if hangul > 0.6 * len(foreign) and chance.random() < 0.7:
            return text.encode("cp949")
    encoding = chance.choice(["utf-8"] * 6 + ["utf-8-sig"] * 3 + ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
    signed = encoding == "utf-16-be" and chance.random() < 0.5
    return (codecs.BOM_UTF16_BE if signed else b"") + text.encode(encoding)


WRITERS = {".json": write_json, ".jsonl": write_jsonl, ".csv": write_csv, ".parquet": write_parquet}
TYPED = {".json", ".jsonl"}
"""Formats that keep JSON's types at the top of a row."""


def make_file(folder: Path, kind: str, size: int, chance: random.Random) -> tuple[Path, list[Made], list[int]]:
    pieces = CP949 if kind != ".parquet" and chance.random() < 0.15 else PIECES
    rows = [make_row(chance, number, kind in TYPED, pieces) for number in range(size)]
    if kind == ".parquet" and chance.random() < 0.3:
        rows = [Made(sound_row(chance, number), True) for number in range(size)]
    content, numbers = WRITERS[kind](rows, chance)
    zipped = chance.random() < 0.2
    path = folder / f"rows{kind}{'.gz' if zipped else ''}"
    path.write_bytes(gzip.compress(content, 1) if zipped else content)
    return path, rows, numbers


# ---- what must hold ------------------------------------------------------------------------------------------------


def check_file(path: Path, rows: list[Made], numbers: list[int]) -> list[Example]:
    """Read a file and hold every row against what must become of it; the accepted ones.

    Raises:
        AssertionError: a row was lost, wrongly accepted or refused, or came back changed.
    """
    read = list(parsed(str(path), TAXONOMY))
    assert [number for number, _ in read] == numbers, f"{len(read)} rows read of {len(numbers)}"
    good = []
    for (number, found), made in zip(read, rows, strict=True):
        if isinstance(found, BadRow):
            assert not made.accepted, f"refused: {found}; {made.row!r}"
            assert found.row == number, found
            assert found.field, found
            assert found.reason, found
            assert len(str(found).splitlines()) == 1, str(found)[:2000]
            assert len(str(found)) < 1000 + len(str(path)), str(found)[:2000]
            continue
        assert made.accepted, f"accepted: {made.row!r}"
        check_example(found, made.row, number)
        good.append(found)
    return good


def check_example(found: Example, row: Row, number: int) -> None:
    """Nothing of an accepted row was changed, and it survives being written and read."""
    assert found.sentence == row["sentence"]
    for entity, name in ((found.subject, "subject_entity"), (found.object, "object_entity")):
        given = row[name]
        if isinstance(given, dict):
            assert (entity.word, entity.start, entity.end) == (given["word"], given["start_idx"], given["end_idx"])
        assert found.sentence[entity.start : entity.end + 1] == entity.word
    label = row["label"]
    whole = isinstance(label, int | float) and label < 30
    wanted = label if label in KLUE else KLUE[int(label)] if whole else None
    assert found.label == wanted, (found.label, label)
    guid = row["guid"]
    assert found.id == (guid if isinstance(guid, str) else str(guid) if isinstance(guid, int) else str(number))
    assert parse_row(found.to_row(), TAXONOMY) == found


def check_marks(example: Example, scheme: str) -> None:
    """The words stand in the marked text as they are, between their own markers."""
    marked = markers.mark(example.sentence, example.subject, example.object, scheme)
    spans = [(entity.start, entity.end) for entity in (example.subject, example.object)]
    assert markers.unmark(marked) == (example.sentence, *spans), (marked, example)


class TokenCheck:
    """Featurizers by marker scheme and room; counts rows that were tokenised and rows refused by name."""

    def __init__(self, tokenizers: dict[str, Any]) -> None:
        self.made = {
            (scheme, room): Featurizer(
                tokenizer, TAXONOMY, scheme, room == 64 and scheme != markers.LEVITATED, room, TYPES
            )
            for scheme, tokenizer in tokenizers.items()
            for room in (256, 64, 32)
        }
        self.counts: Counter[str] = Counter()

    def __call__(self, examples: list[Example], number: int) -> None:
        scheme, room = list(self.made)[number % len(self.made)]
        featurizer, refused = self.made[scheme, room], []
        found = list(featurizer.stream(examples, lambda number, example, error: refused.append((example, error))))
        assert len(found) + len(refused) == len(examples), f"{scheme}: rows were lost"
        assert all(error.field for _, error in refused)
        for example, features in found:
            ids, places = features.input_ids, features.positions
            assert len(ids) <= featurizer.max_length
            assert 0 < places.min() <= places.max() < len(ids)
            levitated = scheme == markers.LEVITATED
            marks = np.arange(len(ids) - MARKS, len(ids)) if levitated else places  # where the markers stand
            for entity, role, column in ((example.subject, "subject", 0), (example.object, "object", 2)):
                start, end = places[column : column + 2]
                before, after = markers.MARKERS[scheme](role, entity.type)  # type: ignore[arg-type]
                pieces = featurizer.tokenizer.convert_ids_to_tokens(ids[marks[column : column + 2]].tolist())
                wanted = [before.split()[0], after.split()[-1]]
                assert [piece.strip("▁Ġ") for piece in pieces] == wanted, (pieces, wanted, example)
                assert start <= end < len(ids) - MARKS if levitated else start < end
        self.counts["tokenised"] += len(found)
        self.counts["refused by the tokenizer path"] += len(refused)


def scratch_tokenizers() -> dict[str, Any]:
    """A WordPiece tokenizer for every scheme, made from the embedded sample."""
    from conftest import sample_examples, scratch_tokenizer

    rows = sample_examples("train", 200)
    return {scheme: scratch_tokenizer(rows, scheme) for scheme in markers.MARKERS}


def real_tokenizers(folder: str) -> dict[str, Any]:
    """A pretrained encoder's tokenizer, with the tokens that each scheme adds."""
    from transformers import AutoTokenizer

    from mtl_re.features.featurizer import add_marker_tokens

    made = {scheme: AutoTokenizer.from_pretrained(folder) for scheme in markers.MARKERS}
    for scheme, tokenizer in made.items():
        add_marker_tokens(tokenizer, scheme, TYPES)
    return made


def structured(folder: Path, kind: str, rows: int, seed: int, tokens: TokenCheck, batch: int = 500) -> Counter[str]:
    """`rows` made rows through one reader, in files of `batch`, and the accepted ones through markers and tokenizer."""
    chance, counts = random.Random(f"{seed}{kind}"), Counter[str]()
    schemes = list(markers.MARKERS)
    for number in range(0, rows, batch):
        path, made, numbers = make_file(folder, kind, min(batch, rows - number), chance)
        try:
            good = check_file(path, made, numbers)
            for example in good:
                check_marks(example, schemes[number // batch % len(schemes)])
            tokens(good, number // batch)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {kind}, rows {number}..: {type(error).__name__}: {error}") from error
        counts["rows"] += len(made)
        counts["accepted"] += len(good)
        counts["refused"] += len(made) - len(good)
        path.unlink()
    return counts


def damaged(folder: Path, kind: str, files: int, seed: int) -> Counter[str]:
    """Files of five rows damaged at random: rows, bad rows, and at most one `MtlReError` in one line."""
    from disk_faults import CHANGES

    chance, counts = random.Random(f"{seed}{kind}damaged"), Counter[str]()
    for number in range(files):
        path, _, _ = make_file(folder, kind, 5, chance)
        content = bytearray(path.read_bytes())
        for _ in range(chance.choice((1, 1, 3))):
            if content:
                chance.choice(CHANGES)(content, chance)
        path.write_bytes(content)
        try:
            counts["rows of damaged files"] += sum(1 for _ in parsed(str(path), TAXONOMY))
            counts["damaged files read to their end"] += 1
        except MtlReError as error:
            refusal = str(error)
            if str(path) not in refusal or len(refusal.splitlines()) != 1:
                raise AssertionError(f"not one line that names the file: {refusal}") from error
            counts["damaged files refused"] += 1
        except Exception as error:
            kept = Path(tempfile.gettempdir()) / f"damaged-{seed}-{number}-{path.name}"
            kept.write_bytes(content)
            raise AssertionError(f"{kept}: {type(error).__name__}: {error}") from error
        finally:
            path.unlink()
    return counts
