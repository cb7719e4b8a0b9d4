"""`mtl-re extract --data`: documents → a checked file of triples, through bad rows, kills and several processes."""

import csv
import json
import os
import shutil
import unicodedata
from functools import partial
from pathlib import Path

import pytest

from mtl_re import cli
from mtl_re.config import ExtractConfig
from mtl_re.data.documents import Document
from mtl_re.data.validation import Entity
from mtl_re.errors import MtlReError
from mtl_re.predict import document_triples, windows
from mtl_re.predict import extract as extract_run
from mtl_re.predict.document_triples import COLUMNS, DocumentExtractor, cut
from mtl_re.predict.extract import extract, read_triples
from mtl_re.predict.parts import PartFiles
from mtl_re.predict.predictor import Predictor
from mtl_re.scoring.composed import ComposedModel
from mtl_re.taxonomy import KLUE
from tests.conftest import WordFinder, scratch_tokenizer, tiny_model


def document(id: str, examples: list) -> dict:
    """The rows' sentences as one text, with the entities of each."""
    text, entities = "", []
    for row in examples:
        start = len(text)
        for entity in (row.subject, row.object):
            entities.append({"start": start + entity.start, "end": start + entity.end, "type": entity.type})
        text += row.sentence + " "
    return {"id": id, "text": text.rstrip(), "entities": entities}


def written(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def docs(examples, tmp_path) -> Path:
    """Nine documents of three sentences."""
    made = [document(f"d{start}", examples[start : start + 3]) for start in range(0, 27, 3)]
    (tmp_path / "in").mkdir()
    return written(tmp_path / "in" / "docs.jsonl", made)


@pytest.fixture
def run(saved, docs, tmp_path):
    """Runs the command; returns the output's path."""

    def call(**options) -> Path:
        settings = {"data": str(docs), "output": str(tmp_path / "out.jsonl"), "threshold": 0.0, "window": 2}
        settings |= options
        extract(settings.pop("ckpt", str(saved)), ExtractConfig(**settings))
        return Path(settings["output"])

    return call


def test_triples_are_those_of_the_sentences(run, examples, tiny, docs):
    """Every sentence of a document gives what `Predictor.extract` gives, its spans moved into the document."""
    predictor = Predictor([ComposedModel.of(*tiny)])
    rows = list(read_triples(run()))
    assert {row["document"] for row in rows} == {f"d{start}" for start in range(0, 27, 3)}
    texts = {row["id"]: row["text"] for row in map(json.loads, docs.read_text(encoding="utf-8").splitlines())}
    place = 0
    for start in range(0, 27, 3):
        moved = 0
        for row in examples[start : start + 3]:
            for triple in predictor.extract(row.sentence, [row.subject, row.object], 0):
                found, place = rows[place], place + 1
                assert list(found) == list(COLUMNS)
                assert found["document"] == f"d{start}"
                assert (found["subject"], found["relation"], found["object"]) == (
                    triple.subject.word,
                    triple.relation,
                    triple.object.word,
                )
                assert found["score"] == pytest.approx(triple.score, abs=1e-5)
                assert found["score"] <= found["coarse"] + 1e-9
                assert found["coarse"] == pytest.approx(triple.coarse, abs=1e-5)
                text = texts[found["document"]]
                assert text[found["object_start"] : found["object_end"] + 1] == found["object"]
                assert text[found["sentence_start"] : found["sentence_end"] + 1] == row.sentence
                assert found["sentence_start"] == moved
            moved += len(row.sentence) + 1
    assert place == len(rows)


def test_a_window_is_scored_in_groups_of_pairs(run, tmp_path, monkeypatch):
    """Memory follows the pairs that are laid out together, whatever the length of the documents."""
    monkeypatch.setattr(windows, "tqdm", partial(windows.tqdm, mininterval=0))  # shares of a row may not pass the end
    whole = list(read_triples(run()))
    monkeypatch.setattr(document_triples, "PAIRS", 2)
    sizes, real = [], DocumentExtractor.rows
    monkeypatch.setattr(
        DocumentExtractor,
        "rows",
        lambda self, documents, group, pairs, *rest: (
            sizes.append(sum(map(len, pairs))) or real(self, documents, group, pairs, *rest)
        ),
    )
    parts = list(read_triples(run(output=str(tmp_path / "parts.jsonl"))))
    assert max(sizes) <= 2 < len(sizes)
    assert [{**row, "score": 0, "coarse": 0} for row in parts] == [{**row, "score": 0, "coarse": 0} for row in whole]
    assert [row["score"] for row in parts] == pytest.approx([row["score"] for row in whole], abs=1e-5)


def test_entities_of_a_sentence_may_stand_in_a_config_file(saved, tmp_path, capsys):
    words = {"sentence": "한라희는 누리전자 대표이다.", "threshold": 0.0, "entity": ["한라희:PER", "누리전자:ORG"]}
    (tmp_path / "extract.yaml").write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
    assert cli.main(["extract", str(saved), "--config", str(tmp_path / "extract.yaml")]) == 0
    from_file = capsys.readouterr().out
    given = ["--entity", "한라희:PER", "--entity", "누리전자:ORG"]
    assert cli.main(["extract", *given, str(saved), "--sentence", words["sentence"], "--threshold", "0"]) == 0
    assert capsys.readouterr().out == from_file != ""


def test_spans_are_the_users_own_where_the_text_was_composed(run, monkeypatch, tmp_path):
    """Entities given and found, in a document that macOS wrote."""
    monkeypatch.setattr(extract_run, "load_finder", lambda *given: WordFinder())
    text = unicodedata.normalize("NFD", "강릉이다. 한라희는 누리전자 대표이다.")
    given = [unicodedata.normalize("NFD", word) for word in ("한라희", "누리전자")]
    spans = [(text.index(word), text.index(word) + len(word) - 1) for word in given]
    entities = [[*span, kind] for span, kind in zip(spans, ("PER", "ORG"), strict=True)]
    for fields, options in (({"entities": entities}, {}), ({}, {"entities": "ner:x"})):
        data = written(tmp_path / "in" / "apart.jsonl", [{"id": "d", "text": text, **fields}])
        rows = list(read_triples(run(data=str(data), normalise="nfc", **options)))
        assert {(row["subject"], row["subject_start"], row["subject_end"]) for row in rows} == {
            ("한라희", *spans[0]),
            ("누리전자", *spans[1]),
        }
        assert {(row["object_start"], row["object_end"]) for row in rows} == set(spans)
        (sentence,) = {(row["sentence_start"], row["sentence_end"]) for row in rows}
        assert text[sentence[0] : sentence[1] + 1] == unicodedata.normalize("NFD", "한라희는 누리전자 대표이다.")


def test_the_formats_hold_the_same(run, tmp_path):
    expected = list(read_triples(run()))
    for suffix in (".csv", ".parquet"):
        assert list(read_triples(run(output=str(tmp_path / f"out{suffix}")))) == expected
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.reader(file)) == list(COLUMNS)


def test_the_threshold(run):
    every = list(read_triples(run()))
    scores = sorted(float(row["score"]) for row in every)
    middle = scores[len(scores) // 2]
    assert list(read_triples(run(threshold=middle))) == [row for row in every if row["score"] >= middle]
    assert run(threshold=1.0).read_bytes() == b""


def test_stored_thresholds(run, saved, tmp_path, examples):
    """Each relation has its own; `Predictor.extract` keeps the same triples."""
    every = list(read_triples(run()))
    relations = sorted({row["relation"] for row in every})
    never = relations[0]
    limits = {label: 0.0 for label in KLUE if label != "no_relation"} | {never: None}
    with pytest.raises(MtlReError, match="calibrate"):
        run(threshold="stored")
    folder = tmp_path / "calibrated"
    shutil.copytree(saved, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"relation_thresholds": limits, "precision_target": 0.9, "relation_thresholds_prior": []}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    kept = list(read_triples(run(ckpt=str(folder), threshold="stored")))
    assert kept == [row for row in every if row["relation"] != never]
    assert 0 < len(kept) < len(every)


@pytest.mark.parametrize("window", [1, 4, 100])
def test_another_window_changes_no_triple(run, tmp_path, window):
    expected, found = list(read_triples(run())), list(read_triples(run(window=window)))
    assert [{**row, "score": 0, "coarse": 0} for row in found] == [{**row, "score": 0, "coarse": 0} for row in expected]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-5)


def test_a_kill_and_resume_give_the_same_bytes(run, monkeypatch, tmp_path, capsys):
    whole = run().read_bytes()
    (tmp_path / "out.jsonl").unlink()
    real, done = extract_run.ExtractionJob.answer, []

    def answer(job, rows, tick):
        if len(done) in (2, 3):
            done.append("killed")
            raise KeyboardInterrupt
        done.append("answered")
        return real(job, rows, tick)

    monkeypatch.setattr(extract_run.ExtractionJob, "answer", answer)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(resume=True)
    assert "4 finished rows are kept" in capsys.readouterr().err
    assert run(resume=True).read_bytes() == whole
    assert done.count("answered") == 5  # no window twice
    assert set(os.listdir(tmp_path)) == {"in", "out.jsonl"}


def test_resume_with_other_options_is_refused(run, monkeypatch, tmp_path):
    monkeypatch.setattr(PartFiles, "remove", lambda parts: None)
    run()
    with pytest.raises(MtlReError, match=r"least score was 0.0, is 0.5"):
        run(resume=True, threshold=0.5)
    with pytest.raises(MtlReError, match=r"sentences was split, is whole"):
        run(resume=True, sentences="whole")


def test_bad_rows(run, docs, tmp_path, capsys):
    rows = list(map(json.loads, docs.read_text(encoding="utf-8").splitlines()))
    rows[2]["entities"][1]["end"] = 10_000
    rows[5]["entities"][0]["type"] = "ORGN"
    del rows[7]["entities"]
    moved = written(tmp_path / "in" / "bad.jsonl", rows)
    with pytest.raises(MtlReError, match=rf"{moved}:3: entities\[1\]: span .* does not lie"):
        run(data=str(moved))
    found = run(data=str(moved), on_bad_row="skip")
    rejected = [json.loads(line) for line in (tmp_path / "out.jsonl.rejected.jsonl").read_text().splitlines()]
    assert [(row["row"], row["field"]) for row in rejected] == [
        (3, "entities[1]"),
        (6, "entities[0].type"),
        (8, "entities"),
    ]
    assert "did you mean ORG" in rejected[1]["reason"]
    assert "--entities ner:MODEL" in rejected[2]["reason"]
    assert {row["document"] for row in read_triples(found)} == {"d0", "d3", "d9", "d12", "d18", "d24"}
    written(moved, [rows[7]])
    with pytest.raises(MtlReError, match="none of the 1 rows can be used"):
        run(data=str(moved), on_bad_row="skip")


def test_a_document_without_entities_is_told_before_the_work(run, docs, tmp_path, monkeypatch):
    """And one whose type the model does not know, both by their number."""
    rows = list(map(json.loads, docs.read_text(encoding="utf-8").splitlines()))
    monkeypatch.setattr(extract_run.ExtractionJob, "answer", None)
    del rows[7]["entities"]
    data = written(tmp_path / "in" / "late.jsonl", rows)
    with pytest.raises(MtlReError, match=rf"{data}:8: entities: missing; .*--entities ner:MODEL.*on_bad_row skip"):
        run(data=str(data))
    rows[6]["entities"][0]["type"] = "ORGN"
    with pytest.raises(MtlReError, match=r":7: entities\[0\]\.type: .*did you mean ORG"):
        run(data=str(written(data, rows)))


def test_a_pair_that_does_not_fit_is_named(examples, tokenizer, tmp_path, run):
    """The others of its document are kept."""
    folder = tmp_path / "ckpt"
    for part in (tiny_model(tokenizer, max_input_length=32), tokenizer):
        part.save_pretrained(folder)
    row = examples[0]
    text = row.sentence + " 그리고 가나다" * 40 + " 누리전자"
    entities = [
        [row.subject.start, row.subject.end, row.subject.type],
        [row.object.start, row.object.end, row.object.type],
    ]
    entities += [[0, len(text) - 6, "ORG"]]
    data = written(tmp_path / "in" / "long.jsonl", [{"id": "long", "text": text, "entities": entities}])
    with pytest.raises(MtlReError, match=r"long: "):
        run(ckpt=str(folder), data=str(data))
    found = list(read_triples(run(ckpt=str(folder), data=str(data), on_bad_row="skip")))
    assert found
    assert all(row["subject_end"] < 100 and row["object_end"] < 100 for row in found)
    rejected = (tmp_path / "out.jsonl.rejected.jsonl").read_text(encoding="utf-8")
    assert "long: '" in json.loads(rejected.splitlines()[0])["reason"]


def test_a_sentence_that_no_row_could_hold_is_left_out_or_named(run, examples, tmp_path):
    long = document("long", examples[:1])
    long["text"] += " 가" * 12_000
    data = written(tmp_path / "in" / "long.jsonl", [document("d0", examples[:3]), long])
    with pytest.raises(MtlReError, match=r"document long: sentence: 2\d,\d{3} characters"):
        run(data=str(data), sentences="whole")
    found = run(data=str(data), sentences="whole", on_bad_row="skip")
    assert {row["document"] for row in read_triples(found)} == {"d0"}
    (bad,) = map(json.loads, Path(f"{found}.rejected.jsonl").read_text(encoding="utf-8").splitlines())
    assert (bad["row"], bad["field"]) == (2, "sentence")
    assert bad["reason"].startswith("long: sentence 0..")


def test_an_entity_without_width_is_blank(run, examples, tmp_path):
    row = document("d0", examples[:1]) | {"text": "\u200b" + examples[0].sentence}
    row["entities"] = [{"start": 0, "end": 0, "type": "PER"}]
    data = written(tmp_path / "in" / "blank.jsonl", [document("d1", examples[:3]), row])
    found = run(data=str(data), on_bad_row="skip")
    assert "are blank" in Path(f"{found}.rejected.jsonl").read_text(encoding="utf-8")


def test_a_carriage_return_in_an_id_breaks_no_row(run, examples, tmp_path):
    data = written(
        tmp_path / "in" / "return.jsonl", [document("a\rb", examples[:3]), document("c\r\nd", examples[3:6])]
    )
    rows = list(read_triples(run(data=str(data), output=str(tmp_path / "out.csv"))))
    assert {row["document"] for row in rows} == {"a\rb", "c\r\nd"}


def test_triples_of_another_tool_and_corrected_copies_are_kept(run, docs, saved, tmp_path, capsys):
    other = tmp_path / "other.jsonl"
    other.write_text('{"subject": "A", "relation": "r", "object": "B", "score": 0.3}\n', encoding="utf-8")
    copy = shutil.copy(run(), tmp_path / "corrected.jsonl")
    for path in (other, Path(copy)):
        before = path.read_bytes()
        assert cli.main(["extract", str(saved), "--data", str(docs), "--output", str(path)]) == 1
        assert "--overwrite" in capsys.readouterr().err
        assert path.read_bytes() == before


def test_a_kill_before_the_output_stands_leaves_the_list_of_bad_rows_ours(docs, saved, tmp_path, monkeypatch):
    data = tmp_path / "in" / "bad.jsonl"
    data.write_text(docs.read_text(encoding="utf-8") + '{"id": "x", "text": ""}\n', encoding="utf-8")
    words = ["extract", str(saved), "--data", str(data), "--output", str(tmp_path / "o.jsonl"), "--on_bad_row", "skip"]
    whole = extract_run.ExtractionJob.publish

    def interrupted(*given) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(extract_run.ExtractionJob, "publish", interrupted)
    assert cli.main(words) == 1
    assert (tmp_path / "o.jsonl.rejected.jsonl").is_file()
    monkeypatch.setattr(extract_run.ExtractionJob, "publish", whole)
    assert cli.main([*words, "--resume"]) == 0


def test_a_kill_when_the_output_stands_leaves_it_ours(docs, saved, tmp_path, monkeypatch):
    words = ["extract", str(saved), "--data", str(docs), "--output", str(tmp_path / "o.csv"), "--threshold", "0"]

    remove = PartFiles.remove

    def interrupted(parts) -> None:
        if parts.output.is_file():
            raise KeyboardInterrupt
        remove(parts)

    with monkeypatch.context() as patch:
        patch.setattr(PartFiles, "remove", interrupted)
        assert cli.main(words) == 1
    assert (tmp_path / "o.csv").is_file()
    assert cli.main([*words, "--resume"]) == 0


def test_an_entity_that_is_given_and_found_counts_once(saved, monkeypatch, capsys):
    monkeypatch.setattr(extract_run, "load_finder", lambda *given: WordFinder())
    words = ["extract", str(saved), "--sentence", "한라희는 누리전자에 다닌다.", "--entity", "한라희:PER"]
    assert cli.main([*words, "--entities", "ner:x", "--threshold", "0"]) == 0, capsys.readouterr().err
    assert len(capsys.readouterr().out.splitlines()) == 2  # two entities, both ways round


def test_a_sentence_is_composed_and_its_spans_are_its_own(saved, capsys):
    words = ["extract", str(saved), "--threshold", "0", "--format", "json", "--entity", "한라희:PER"]
    words += ["--entity", "누리전자:ORG", "--sentence"]
    sentence = "한라희는 누리전자에 다닌다."
    apart = unicodedata.normalize("NFD", sentence)
    assert cli.main([*words, sentence]) == 0, capsys.readouterr().err
    expected = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert cli.main([*words, apart, "--normalise", "nfc"]) == 0
    found = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [row["score"] for row in found] == [row["score"] for row in expected]
    for row in found:
        for side in ("subject", "object"):
            held = apart[row[side]["start"] : row[side]["end"] + 1]
            assert unicodedata.normalize("NFC", held) == row[side]["word"]


def test_entities_behind_an_emoji_without_a_word_are_told_once(run, examples, tmp_path, capsys):
    made = [document(f"d{n}", examples[n : n + 3]) for n in range(3)]
    for row in made[:2]:
        row["text"] = "😀 " + row["text"]
        row["entities"] = [entity | {key: entity[key] + 2 for key in ("start", "end")} for entity in row["entities"]]
    run(data=str(written(tmp_path / "in" / "emoji.jsonl", made)))
    assert capsys.readouterr().err.count("2 of 3 documents have entities without a word behind an emoji") == 1


def test_ids_that_documents_share_are_told(run, examples, tmp_path, capsys):
    made = [document(id, examples[:3]) for id in ("a", "b", "a", "a")]
    run(data=str(written(tmp_path / "in" / "ids.jsonl", made[:2])))
    assert "the id of" not in capsys.readouterr().err
    run(data=str(written(tmp_path / "in" / "ids.jsonl", made)))
    assert "2 of 4 documents have the id of an earlier one" in capsys.readouterr().err


def test_pairs_that_cross_are_counted_over_all_windows_and_a_resume(run, examples, tmp_path, capsys, monkeypatch):
    made = [document(f"d{n}", examples[3 * n : 3 * n + 3]) for n in range(3)]
    for row in made:
        first = row["entities"][0]
        row["entities"].append(first | {"type": "ORG" if first["type"] == "PER" else "PER"})
    data = str(written(tmp_path / "in" / "cross.jsonl", made))
    real, done = extract_run.ExtractionJob.answer, []

    def answer(job, rows, tick):
        if len(done) == 1:
            done.append("killed")
            raise KeyboardInterrupt
        done.append("answered")
        return real(job, rows, tick)

    monkeypatch.setattr(extract_run.ExtractionJob, "answer", answer)
    with pytest.raises(KeyboardInterrupt):
        run(data=data, window=1)
    assert "not scored" not in capsys.readouterr().err
    run(data=data, window=1, resume=True)
    said = "6 ordered pairs of entities were not scored: their spans cross or are the same"
    assert capsys.readouterr().err.count(said) == 1


def test_levitated_markers_give_the_same_triples_in_any_window(examples, tmp_path, run):
    tokenizer = scratch_tokenizer(examples, "levitated")
    folder = tmp_path / "ckpt"
    for part in (tiny_model(tokenizer, markers="levitated", pooling="cls_markers_both"), tokenizer):
        part.save_pretrained(folder)
    one, all_ = (list(read_triples(run(ckpt=str(folder), window=window))) for window in (1, 100))
    assert [row["relation"] for row in one] == [row["relation"] for row in all_]
    assert [row["score"] for row in one] == pytest.approx([row["score"] for row in all_], abs=1e-5)


def test_hard_wrapped_documents_are_told_and_joined(run, tmp_path, capsys):
    lines = [
        "한라희는 강릉에서 태어나 자랐고 지금은 원주에 있는",
        "누리전자의 대표이다. 그 회사는 지난 2001년 봄에 세워진",
    ]
    lines += [
        "회사로 본사는 원주에 있다. 그 회사의 첫 사장이었던",
        "한가람은 2010년에 자리에서 물러나 고향 강릉에 가서",
    ]
    text = "\n".join(
        [*lines, "작은 서점을 하면서 글을 쓰고 책도 내었으며, 지금은", "여러 나라의 말로도 읽히는 작가라고 한다."]
    )
    word = text.index("누리전자")
    spans = [{"start": 0, "end": 2, "type": "PER"}, {"start": word, "end": word + 3, "type": "ORG"}]
    data = written(tmp_path / "in" / "wrapped.jsonl", [{"id": "w", "text": text, "entities": spans}])
    assert not list(read_triples(run(data=str(data), threshold=0.0)))  # the entities stand in different lines
    assert "--sentences joined" in capsys.readouterr().err
    assert list(read_triples(run(data=str(data), sentences="joined", threshold=0.0)))
    assert "--sentences joined" not in capsys.readouterr().err


def test_entities_are_found_where_none_are_given(run, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(extract_run, "load_finder", lambda *given: WordFinder())
    folder = tmp_path / "in" / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("강릉이다.\n한라희는 무엇 누리전자 대표이다.", encoding="utf-8")
    (folder / "b.txt").write_text("여기에는 없다.", encoding="utf-8")
    rows = list(read_triples(run(data=str(folder), entities="ner:x")))
    assert {(row["document"], row["subject"], row["object"]) for row in rows} == {
        ("a.txt", "한라희", "누리전자"),
        ("a.txt", "누리전자", "한라희"),
    }
    assert {(row["subject_start"], row["sentence_start"], row["sentence_end"]) for row in rows} == {
        (6, 6, 23),
        (14, 6, 23),
    }
    given = written(tmp_path / "in" / "given.jsonl", [{"text": "한라희 누리전자", "entities": []}])
    capsys.readouterr()
    assert run(data=str(given), entities="ner:x").read_bytes() == b""  # the row says that there are none
    assert "1 of 1 documents list no entities (an empty list) and are not searched" in capsys.readouterr().err


def test_types_that_the_relation_model_does_not_know_are_told(run, monkeypatch, capsys):
    loaded = []

    class Finder(WordFinder):
        def __init__(self, *types):
            self.types = dict(zip("abc", types, strict=False))

    def load(name, types, device, precision):
        loaded.append((name, precision))
        return finder

    monkeypatch.setattr("mtl_re.predict.ner.EntityFinder.load", load)
    finder = Finder("PER", "ORG", "WORK_OF_ART")
    run(entities="ner:FOUND", precision="bf16")
    assert loaded == [("FOUND", "bf16")]
    assert "ner:FOUND: the relation model was trained with no entity of type WORK_OF_ART" in capsys.readouterr().err
    finder = Finder("WORK_OF_ART")
    with pytest.raises(MtlReError, match=r"ner:FOUND: .* WORK_OF_ART; it knows .*ORG.*--ner_types"):
        run(entities="ner:FOUND")


def test_cut():
    text = "가 나. 다 라."
    entities = (Entity("다", 5, 5, "PER"), Entity("가", 0, 0, "PER"), Entity("가 나", 0, 2, "ORG"))
    made = cut(3, Document("1", text, entities), "split")
    assert [(one.row, one.start, one.text) for one in made] == [(3, 0, "가 나."), (3, 5, "다 라.")]
    assert [one.entities for one in made] == [entities[1:], (Entity("다", 0, 0, "PER"),)]
    (one,) = cut(0, Document("1", text, entities), "whole")
    assert (one.start, one.text, one.entities) == (0, text, entities)
    across = Entity("나. 다", 2, 5, "PER")
    assert [one.text for one in cut(0, Document("1", text, (across,)), "split")] == [text]


def test_the_command(saved, docs, tmp_path, capsys):
    out = tmp_path / "triples.csv"
    call = ["extract", str(saved), "--data", str(docs), "--output", str(out), "--threshold", "0"]
    assert cli.main(call) == 0
    rows = list(read_triples(out))
    assert capsys.readouterr().out == f"{len(rows)} triples in {out}\n"
    assert cli.main(call) == 0  # its own output may be replaced
    before = docs.read_bytes()
    assert cli.main([*call[:4], "--output", str(docs)]) == 1
    assert docs.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give one of --sentence TEXT and --data DOCUMENTS"),
        (["--sentence", "x", "--data", "y"], "give one of"),
        (["--data", "y"], "--data and --output go together"),
        (["--sentence", "x"], "give the sentence's entities"),
        (["--data", "y", "--output", "z.csv", "--entity", "a:PER"], "--entity is for --sentence"),
        (["--sentence", "x", "--entity", "x:PER", "--first_character", "1"], "are for the spans of --data"),
        (["--sentence", "x", "--entity", "x:PER", "--span_ends", "exclusive"], "are for the spans of --data"),
    ],
)
def test_usage(options, message, capsys):
    assert cli.main(["extract", "ckpt", *options]) == 2
    assert message in capsys.readouterr().err


def test_what_entities_names(run):
    with pytest.raises(MtlReError, match="--entities spacy:x: expected ner:MODEL"):
        run(entities="spacy:x")


def test_a_damaged_file_is_not_published(run, monkeypatch, tmp_path):
    run()
    before = (tmp_path / "out.jsonl").read_bytes()
    real = extract_run.write_table

    def write_table(chunks, *rest):
        real([chunk.replace(b"per:", b"pre:") for chunk in chunks], *rest)

    monkeypatch.setattr(extract_run, "write_table", write_table)
    with pytest.raises(MtlReError, match="was written; no such triple"):
        run()
    monkeypatch.setattr(extract_run, "write_table", lambda chunks, *rest: real(list(chunks)[1:], *rest))
    with pytest.raises(MtlReError, match="rows are missing, or their documents are out of order"):
        run()
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert windows.PartFiles(tmp_path / "out.jsonl").windows()  # --resume publishes them
