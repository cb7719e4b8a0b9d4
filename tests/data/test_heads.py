"""The map that `mtl-re heads` writes: every label once, a taxonomy that trains, doubtful labels marked."""

import json

import pytest
import yaml

from mtl_re.data import heads
from mtl_re.errors import MtlReError
from mtl_re.taxonomy import Taxonomy


def write(path, labels, subject="PER"):
    rows = [{"guid": str(n), "sentence": "가 나", "subject_entity": {"type": subject}, "label": label}
            for n, label in enumerate(labels)]  # fmt: skip
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def test_prefixes_become_classes(tmp_path):
    labels = ["genre:artist"] * 12 + ["genre:origin"] * 3 + ["NA"] * 20 + ["동의어"] * 11 + ["people/born"] * 30
    text = heads.heads_yaml(write(tmp_path / "rows.jsonl", labels))
    made = Taxonomy.from_dict(yaml.safe_load(text))
    assert made.no_relation == "NA"
    assert dict(made.groups) == {
        "NA": ("NA",), "people": ("people/born",), "genre": ("genre:artist", "genre:origin"), "동의어": ("동의어",)
    }  # fmt: skip
    assert [head.name for head in made.heads] == ["coarse", "genre"]
    assert made.subject_types == {"people": ("PER",), "genre": ("PER",), "동의어": ("PER",)}
    assert '"genre:origin"   # 3 rows; rare' in text


def test_a_csv_says_the_same_as_json_lines(tmp_path):
    """Entities are cells of text there; 100 is the contest's withheld label."""
    labels = ["org:founded"] * 12 + ["org:members"] * 12 + ["no_relation"] * 20
    lines = ["id,sentence,subject_entity,label"]
    lines += [f"{n},가 나,\"{{'word': '가', 'type': 'ORG'}}\",{label}" for n, label in enumerate([*labels, 100])]
    (tmp_path / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    made = heads.heads_yaml(str(tmp_path / "rows.csv"))
    other = heads.heads_yaml(write(tmp_path / "rows.jsonl", labels, subject="ORG"))
    assert yaml.safe_load(made) == yaml.safe_load(other)
    assert Taxonomy.from_dict(yaml.safe_load(made)).subject_types == {"org": ("ORG",)}


@pytest.mark.parametrize("odd", ["Genre:Artist", "genre:artsit", "genre: artist", "genre:artists"])
def test_a_spelling_that_resembles_a_frequent_label_is_marked(tmp_path, odd):
    text = heads.heads_yaml(write(tmp_path / "rows.jsonl", ["genre:artist"] * 50 + [odd] + ["genre:other"] * 9))
    assert f'"{odd}"   # 1 rows; SPELLING? resembles genre:artist (50 rows)' in text
    assert '"genre:other"   # 9 rows; rare' in text


def test_names_that_a_head_cannot_have(tmp_path):
    labels = ["a.b:c", "a.b:d", "coarse:x", "coarse:y", "yes", "null", "1e3"]
    made = Taxonomy.from_dict(yaml.safe_load(heads.heads_yaml(write(tmp_path / "rows.jsonl", labels * 20))))
    assert {head.name for head in made.heads} == {"coarse", "a_b", "coarse_"}
    assert set(made.labels) == set(labels)


def test_labels_are_kept_as_rows_have_them(tmp_path):
    """`check` compares them letter by letter."""
    labels = ["org:founded "] * 12 + ["org:members", " "] * 12 + ["no_relation"] * 20
    path = write(tmp_path / "rows.jsonl", labels)
    made = Taxonomy.from_dict(yaml.safe_load(heads.heads_yaml(path)))
    assert set(made.labels) == {"org:founded ", "org:members", "no_relation"}


def test_classes_of_labels_that_begin_with_a_slash(tmp_path):
    labels = ["NA", "/people/person/born", "/people/person/lived", "/location/contains"] * 5
    made = Taxonomy.from_dict(yaml.safe_load(heads.heads_yaml(write(tmp_path / "rows.jsonl", labels))))
    assert set(made.groups) == {"NA", "people", "location"}


def test_no_relation_stays_alone_beside_labels_with_its_prefix(tmp_path):
    labels = ["Other", "Other:thing", "Cause:Effect"] * 5
    made = Taxonomy.from_dict(yaml.safe_load(heads.heads_yaml(write(tmp_path / "rows.jsonl", labels))))
    assert (made.no_relation, made.groups["Other_"]) == ("Other", ("Other:thing",))


@pytest.mark.parametrize(
    ("labels", "fault"), [([None, ""], "no row has a label"), ([3], "is a number"), (["x"], "at least two")]
)
def test_labels_that_make_no_map(tmp_path, labels, fault):
    with pytest.raises(MtlReError, match=fault):
        heads.heads_yaml(write(tmp_path / "rows.jsonl", labels))
