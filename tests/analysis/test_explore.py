"""Counts of the embedded corpus and of small files, and what `explore` writes about them."""

import json
import re
from collections import Counter
from statistics import mean, median_low

import pytest
from conftest import sample_examples

from mtl_re.analysis.explore import Counts, count, explore, short_names
from mtl_re.config import ReadingConfig
from mtl_re.data.loading import load_examples
from mtl_re.errors import MtlReError
from mtl_re.taxonomy import Taxonomy

TAXONOMY = Taxonomy.from_prefixes()
PNG = b"\x89PNG\r\n\x1a\n"
PICTURES = {"labels.png", "coarse.png", "labels_org.png", "labels_per.png", "lengths.png", "pairs.png"}


def row(label="per:title", sentence="가나다 라마", types=("PER", "POH")):
    spans = [
        {"word": w, "start_idx": s, "end_idx": s + len(w) - 1, "type": t}
        for w, s, t in zip(("가나", "라마"), (0, 4), types, strict=True)
    ]
    return {
        "guid": "g",
        "sentence": sentence,
        "subject_entity": spans[0],
        "object_entity": spans[1],
        "label": label,
        "source": "x",
    }


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return str(path)


def cells(markdown, first, after=""):
    """The cells of the first table row that begins with `first`, behind the heading `after`."""
    text = markdown[markdown.index(after) :]
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def pictures(folder):
    found = {path.name for path in folder.glob("*.png")}
    assert all((folder / name).read_bytes().startswith(PNG) for name in found)
    return found


@pytest.fixture(scope="module")
def sample():
    return load_examples("sample:valid", TAXONOMY)[0]


def test_counts_are_those_of_the_rows(sample):
    counts = count("sample:valid", TAXONOMY)
    lengths = [len(example.sentence) for example in sample]
    assert counts.rows == counts.labelled == len(sample)
    assert counts.labels == Counter(example.label for example in sample)
    assert counts.lengths == Counter(lengths)
    assert counts.pairs == Counter((f"{e.subject.type}→{e.object.type}", e.label) for e in sample)
    assert counts.mean_length == pytest.approx(mean(lengths))
    assert counts.length_at(0.5) == median_low(lengths)
    assert counts.length_at(1.0) == max(lengths)


def test_one_file(tmp_path, sample):
    path = explore(["sample:valid"], tmp_path / "out", TAXONOMY)
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "out" / "explore.md"
    assert pictures(path.parent) == PICTURES == set(re.findall(r"\]\((.*?\.png)\)", text))
    labels = Counter(example.label for example in sample)
    related = sum(rows for label, rows in labels.items() if label.startswith("org:"))
    assert cells(text, "per:title") == [
        "per:title",
        str(labels["per:title"]),
        f"{100 * labels['per:title'] / len(sample):.2f}",
    ]
    assert cells(text, "org") == ["org", str(related), f"{100 * related / len(sample):.2f}"]
    founded = labels["org:founded"]
    assert cells(text, "org:founded", "## Labels of org") == [
        "org:founded",
        str(founded),
        f"{100 * founded / related:.2f}",
    ]
    assert cells(text, "all", "## Entity types")[0] == "all"
    sums = cells(text, "all", "## Entity types")[1:]
    assert sum(int(cell.replace(",", "")) for cell in sums) == len(sample)
    assert not any(example.sentence in text for example in sample)


@pytest.mark.usefixtures("undrawn")
def test_two_files_side_by_side_show_the_shift(tmp_path):
    first = write(tmp_path / "a.json", [row("no_relation")] + [row()] * 3)
    second = write(tmp_path / "b.json", [row("no_relation")] * 3 + [row()] + [row(None)] * 2)
    path = explore([first, second], tmp_path / "out", TAXONOMY)
    text = path.read_text(encoding="utf-8")
    assert pictures(path.parent) == PICTURES
    assert cells(text, "label") == ["label", "a: rows", "%", "b: rows", "%"]
    assert cells(text, "no_relation") == ["no_relation", "1", "25.00", "3", "75.00"]
    assert cells(text, "org") == ["org", "0", "0.00", "0", "0.00"]
    assert cells(text, "b")[:6] == ["b", "6", "4", "2", "0", "2"]
    assert cells(text, "b", "## Sentence length") == ["b", "6", "6.0", "6", "6", "6", "6"]


@pytest.mark.slow
def test_same_input_same_bytes(tmp_path):
    small = Taxonomy.from_prefixes(["no_relation", "per:title", "per:origin"])
    specs = [write(tmp_path / "x.json", [row(), row("no_relation")]), write(tmp_path / "y.json", [row("per:origin")])]
    first, second = (explore(specs, tmp_path / name, small).parent for name in "ab")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


@pytest.mark.usefixtures("undrawn")
def test_unlabelled_rows_have_lengths_only(tmp_path):
    path = explore([write(tmp_path / "a.json", [row(None)])], tmp_path / "out", TAXONOMY)
    assert pictures(path.parent) == {"lengths.png"}
    assert cells(path.read_text(encoding="utf-8"), "a")[:4] == ["a", "1", "0", "1"]


@pytest.mark.usefixtures("undrawn")
def test_bad_rows_are_counted_and_their_text_kept_back(tmp_path):
    bad = row()
    bad["subject_entity"]["word"] = "비밀"
    path = explore([write(tmp_path / "a.json", [row(), bad, row("nonsense")])], tmp_path / "out", TAXONOMY)
    text = path.read_text(encoding="utf-8")
    assert "a: 2 bad row(s) left out, the first is row 2 (its subject_entity.word)" in text
    assert "비밀" not in text
    assert cells(text, "a")[1:5] == ["1", "1", "0", "2"]


def test_no_usable_row_is_an_error(tmp_path):
    with pytest.raises(MtlReError, match=r"a.json:1: label: .*no row can be used"):
        explore([write(tmp_path / "a.json", [row("nonsense")])], tmp_path / "out", TAXONOMY)


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(MtlReError, match=r"out.*cannot be written"):
        explore(["sample:valid"], tmp_path / "out", TAXONOMY)


@pytest.mark.slow
def test_many_types_share_a_column_and_odd_names_are_drawn(tmp_path):
    rows = [row(types=(f"T{number:02}|", "인물")) for number in range(30)] + [row(types=("T00|", "인물"))]
    path = explore([write(tmp_path / "한글.json", rows)], tmp_path / "out", TAXONOMY)
    text = path.read_text(encoding="utf-8")
    header = cells(text, "label", "## Entity types")
    assert len(header) == 1 + 20
    assert header[1] == r"T00\|→인물"
    assert cells(text, "per:title", "## Entity types")[1:] == ["2", *["1"] * 18, "11"]


@pytest.mark.usefixtures("undrawn")
def test_flat_taxonomy_shows_the_same_groups(tmp_path):
    flat = Taxonomy.from_prefixes(layout="flat")
    assert pictures(explore(["sample:valid"], tmp_path, flat).parent) == PICTURES


@pytest.mark.usefixtures("undrawn")
def test_classes_with_korean_names_have_a_picture_each(tmp_path):
    groups = {"없음": ["없음"], "가족": ["부모", "자녀"], "직업": ["직함", "소속"], "etc": ["a", "b"]}
    taxonomy = Taxonomy.from_dict({"no_relation": "없음", "groups": groups})
    path = explore([write(tmp_path / "학습.json", [row("부모"), row("직함")])], tmp_path / "out", taxonomy)
    made = {"labels_class_2.png", "labels_class_3.png", "labels_etc.png"}
    assert pictures(path.parent) == made | {"labels.png", "coarse.png", "lengths.png", "pairs.png"}
    assert all(path.read_text(encoding="utf-8").count(f"]({name})") == 1 for name in made)


@pytest.mark.parametrize(
    ("specs", "names"),
    [
        (["x/a.json.gz", "b.csv"], ["a", "b"]),
        (["sample:train", "hub:klue/re:train"], ["sample:train", "hub:klue/re:train"]),
        (["x/a.json", "y/a.jsonl"], ["1: a", "2: a"]),
        (["klue-re-v1.1_train.json"], ["klue-re-v1.1_train"]),
    ],
)
def test_short_names(specs, names):
    assert short_names(specs) == names


def test_length_at_counts_rows_not_lengths():
    counts = Counts(rows=100, lengths=Counter({5: 99, 50: 1}))
    assert [counts.length_at(share) for share in (0.5, 0.99, 0.995, 1.0)] == [5, 5, 50, 50]


def test_rows_that_are_written_otherwise_are_read_with_the_option_that_reads_them(tmp_path):
    rows = []
    for example in sample_examples("valid", 20):
        made = example.to_row()
        for name in ("subject_entity", "object_entity"):
            made[name]["end_idx"] += 1
        rows.append(made)
    path = write(tmp_path / "rows.json", rows)
    with pytest.raises(MtlReError, match="--span_ends exclusive"):
        explore([path], tmp_path / "out", TAXONOMY)
    made = explore([path], tmp_path / "out", TAXONOMY, ReadingConfig(span_ends="exclusive"))
    assert "20" in made.read_text()
