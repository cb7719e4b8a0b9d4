"""A folder in, a folder out, without Ray: which file becomes which, what is refused, and how cores are divided."""

import json
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
from conftest import WordFinder

from mtl_re import cli, outputs
from mtl_re.config import ExtractConfig, PredictConfig, RayConfig
from mtl_re.errors import MtlReError
from mtl_re.files import protect
from mtl_re.predict import extract as extract_run
from mtl_re.predict import folders, ray_cluster, ray_engine
from mtl_re.predict import predict as predict_run
from mtl_re.predict.folders import units_of


@pytest.fixture(autouse=True)
def nothing_protected():
    yield
    protect([])


@pytest.fixture
def files(tmp_path):
    """Make files in `tmp_path/in`; gives the options that read them."""

    def call(*names, **options):
        for name in names:
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}\n")
        given = {"data": str(tmp_path / "in"), "output": str(tmp_path / "out"), "engine": "ray"}
        return PredictConfig(**given | options)

    return call


def pairs(options):
    return [(Path(unit.data).name, unit.name) for unit in units_of(options)]


def test_an_output_has_the_name_of_its_input(files):
    options = files("b.jsonl", "a.json.gz", "c.parquet", "deep/a.csv")
    expected = [("a.json.gz", "a.jsonl"), ("b.jsonl", "b.jsonl"), ("c.parquet", "c.parquet"), ("a.csv", "deep/a.jsonl")]
    assert pairs(options) == expected
    named = {name for _, name in pairs(files(ray=RayConfig(format="csv")))}
    assert named == {"a.csv", "b.csv", "c.csv", "deep/a.csv"}


def test_what_is_no_rows_is_passed_over_and_told(files, capsys):
    options = files("a.jsonl", "_SUCCESS.json", ".b.jsonl", "_temporary/c.jsonl", "notes.md", "d.txt", "e.txt.gz")
    assert pairs(options) == [("a.jsonl", "a.jsonl")]
    assert "3 files that are no rows are passed over" in capsys.readouterr().err
    texts = ExtractConfig(data=options.data, output=options.output, engine="ray")
    assert pairs(texts) == [("a.jsonl", "a.jsonl"), ("d.txt", "d.jsonl")]


def test_a_single_file_is_a_unit_too(files, tmp_path):
    files("a.jsonl")
    assert pairs(files(data=str(tmp_path / "in" / "a.jsonl"))) == [("a.jsonl", "a.jsonl")]


def test_paths_are_absolute(files, tmp_path, monkeypatch):
    files("a.jsonl")
    monkeypatch.chdir(tmp_path)
    unit = units_of(files(data="in", output="out"))[0]
    assert (unit.data, unit.output) == (str(tmp_path / "in" / "a.jsonl"), tmp_path / "out" / "a.jsonl")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"output": "{}/out.jsonl"}, "name a folder"),
        ({"output": "{}/in/a.jsonl"}, "name a folder"),
        ({"output": "{}/in"}, "lies in the input folder"),
        ({"output": "{}/in/out"}, "lies in the input folder"),
        ({"output": "{}"}, "or holds it"),
        ({"data": "hub:klue/re:train"}, "reads a folder or a file"),
    ],
)
def test_places_that_are_refused(files, tmp_path, options, named):
    with pytest.raises(MtlReError, match=named):
        units_of(files("a.jsonl", **{name: value.format(tmp_path) for name, value in options.items()}))


def test_two_inputs_with_one_output_are_refused(files):
    with pytest.raises(MtlReError, match=r"a\.json and .*a\.jsonl would both be"):
        units_of(files("a.json", "a.jsonl"))


def test_a_folder_without_rows_is_refused(files):
    with pytest.raises(MtlReError, match="holds no file of rows"):
        units_of(files("notes.md"))


def test_only_the_ray_engine_takes_rays_options():
    with pytest.raises(MtlReError, match="give --engine ray"):
        PredictConfig("x", "y", ray=RayConfig(workers=2))
    with pytest.raises(MtlReError, match="is for --data"):
        ExtractConfig(sentence="x", entity=["x:PER"], engine="ray")


def test_without_ray_the_message_says_what_to_install(files, saved, monkeypatch, capsys):
    options = files("a.jsonl")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["predict", str(saved), "--data", options.data, "--output", options.output, "--engine", "ray"]) == 1
    assert "pip install -e '.[ray]'" in capsys.readouterr().err


def test_a_launcher_is_refused(monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MtlReError, match="starts its own workers"):
        ray_cluster.check_launch()


@pytest.mark.parametrize("name", ["a.jsonl", "_rejected/a.jsonl.rejected.jsonl"])
def test_a_strangers_file_is_not_replaced(files, saved, capsys, name):
    """Before Ray starts, and whatever else lies in the folder."""
    options = files("a.jsonl")
    path = Path(options.output, name)
    path.parent.mkdir(parents=True)
    path.write_text("mine, and of no form\n")
    words = ["predict", str(saved), "--data", options.data, "--output", options.output, "--engine", "ray"]
    assert cli.main(words) == 1
    assert f"{path} exists, and this command did not write it" in capsys.readouterr().err
    assert path.read_text() == "mine, and of no form\n"


def test_a_signed_file_is_ours_until_it_changes(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1,2\n")
    assert not outputs.is_ours(path)
    outputs.sign(path)
    assert outputs.is_ours(path)
    path.write_text("1,3\n")
    assert not outputs.is_ours(path)


def test_a_changed_file_of_our_form_is_not_ours(tmp_path):
    path = tmp_path / "a.jsonl"
    row = dict.fromkeys(outputs.PREDICTION_KEYS, 1)
    path.write_text(json.dumps(row) + "\n")
    assert outputs.is_ours(path), "by its form"
    outputs.sign(path)
    path.write_text(json.dumps(row) + "\n\n")
    assert not outputs.is_ours(path), "somebody has changed it"


def test_half_a_note_is_none(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1,2\n")
    for text in ("", "{", "[]", '{"sha256": 1}'):
        outputs.signature_path(path).write_text(text)
        assert outputs.signature(path) is None


MADE = {"checkpoint 1": "abc", "precision": "no", "window": 5}


@pytest.fixture
def finished(files):
    """A unit whose output is finished."""
    unit = units_of(files("a.jsonl"))[0]
    unit.output.parent.mkdir()
    unit.output.write_text("rows\n")
    folders.note_finished(unit, MADE | {"data": "1"}, rows=1, read=2, left_out=1)
    return unit


def test_finished_is_what_was_made_of_the_same_and_stands_as_it_was(finished):
    made = MADE | {"data": "1"}
    assert folders.counts_of(finished, made) == {"rows": 1, "read": 2, "left_out": 1}
    assert folders.counts_of(finished, made | {"data": "2"}) is None
    assert folders.counts_of(finished, made | {"window": 6}) is None
    finished.output.write_text("other\n")
    assert folders.counts_of(finished, made) is None
    finished.output.unlink()
    assert folders.counts_of(finished, made) is None


def test_forgotten_is_ours_but_not_finished(finished):
    folders.forget(finished)
    assert folders.counts_of(finished, MADE | {"data": "1"}) is None
    assert outputs._noted(finished.output)
    assert outputs.is_ours(finished.output)


def test_going_on_with_others_is_refused_and_a_changed_input_is_not(finished):
    folders.check_begun(finished, MADE)
    with pytest.raises(MtlReError, match=r"--resume: .*checkpoint 1 was abc, is xyz"):
        folders.check_begun(finished, MADE | {"checkpoint 1": "xyz"})
    Path(finished.data).write_text('{"other": 1}\n')
    folders.check_begun(finished, MADE)


@pytest.fixture
def work(saved):
    """Make the outputs of a folder by one worker in this process, without Ray; gives its answers by input."""

    def call(options):
        jobs, job = predict_run._jobs, predict_run.PredictionJob
        ckpt = [str(saved)]
        if isinstance(options, ExtractConfig):
            jobs, job, ckpt = extract_run._jobs, extract_run.ExtractionJob, str(saved)
        units, load = units_of(options), partial(jobs, ckpt, options)
        made = ray_engine._plan(job.command, load, options, units)
        worker = ray_engine.FileWorker(ray_engine.Assignment(load, options, made, [], units[0].folder, 1))
        return {unit.source: worker(asdict(unit)) for unit in units}

    return call


def entities_of(row):
    return [[entity.start, entity.end, entity.type] for entity in (row.subject, row.object)]


def test_text_files_of_one_name_are_two_documents(work, tmp_path, monkeypatch):
    monkeypatch.setattr(extract_run, "load_finder", lambda *given: WordFinder())
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.txt").write_text("한라희는 누리전자 대표이다.", encoding="utf-8")
    given = {"data": str(tmp_path / "in"), "output": str(tmp_path / "out"), "engine": "ray", "entities": "ner:x"}
    assert not [answer["fault"] for answer in work(ExtractConfig(**given, threshold=0.0)).values() if answer["fault"]]
    for name in ("a", "b"):
        rows = list(extract_run.read_triples(tmp_path / "out" / name / "1.jsonl"))
        assert {row["document"] for row in rows} == {f"{name}/1.txt"}


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_a_file_without_a_usable_row_does_not_end_the_others(work, examples, tmp_path, form):
    folder = tmp_path / "in"
    folder.mkdir()
    rows = {"a": [examples[0].to_row()], "b": [examples[1].to_row() | {"sentence": ""}], "c": []}
    for name, made in rows.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in made]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    given = {"data": str(folder), "output": str(tmp_path / "out"), "engine": "ray", "ray": RayConfig(format=form)}
    answers = work(PredictConfig(**given))
    assert [bool(answer["fault"]) for answer in answers.values()] == [False, True, True]
    answers = work(PredictConfig(**given, on_bad_row="skip"))
    counts = [(answer["fault"], answer["rows"], answer["left_out"]) for answer in answers.values()]
    assert counts == [("", 1, 0), ("", 0, 1), ("", 0, 1)]
    assert (tmp_path / "out" / f"b.{form}").is_file()
    listed = (tmp_path / "out" / "_rejected" / f"c.{form}.rejected.jsonl").read_text(encoding="utf-8")
    assert "the file holds no rows" in listed
    again = work(PredictConfig(**given, on_bad_row="skip", resume=True))
    assert not any(answer["fresh"] for answer in again.values()), "they are finished"


def test_texts_that_are_blank_do_not_end_the_others(work, tmp_path, monkeypatch):
    monkeypatch.setattr(extract_run, "load_finder", lambda *given: WordFinder())
    (tmp_path / "in").mkdir()
    for name, text in (("a", "한라희는 누리전자 대표이다."), ("b", " \n")):
        (tmp_path / "in" / f"{name}.txt").write_text(text, encoding="utf-8")
    given = {"data": str(tmp_path / "in"), "output": str(tmp_path / "out"), "engine": "ray", "entities": "ner:x"}
    answers = work(ExtractConfig(**given, threshold=0.0, on_bad_row="skip"))
    assert [(answer["fault"], answer["rows"], answer["left_out"]) for answer in answers.values()] == [
        ("", 2, 0),
        ("", 0, 1),
    ]


def test_outputs_whose_input_is_gone_are_told(work, files, examples, capsys):
    options = files("a.jsonl", "deep/b.jsonl")
    for path in Path(options.data).rglob("*.jsonl"):
        path.write_text(json.dumps(examples[0].to_row()) + "\n", encoding="utf-8")
    assert not any(answer["fault"] for answer in work(options).values())
    assert "any more" not in capsys.readouterr().err
    Path(options.data, "deep", "b.jsonl").rename(Path(options.data, "deep", "c.jsonl"))
    work(options)
    said = capsys.readouterr().err
    assert f"1 outputs are of no file in {options.data} any more" in said
    assert f"{options.output}/deep/b.jsonl" in said


def test_rows_that_are_thrown_away_are_told(work, files, examples, capsys, monkeypatch):
    options = files("a.jsonl", window=1)
    row = json.dumps(examples[0].to_row()) + "\n"
    Path(options.data, "a.jsonl").write_text(row + row, encoding="utf-8")
    publish = predict_run.PredictionJob.publish
    monkeypatch.setattr(predict_run.PredictionJob, "publish", None)
    work(options)
    monkeypatch.setattr(predict_run.PredictionJob, "publish", publish)
    capsys.readouterr()
    work(replace(options, resume=True))
    assert "thrown away" not in capsys.readouterr().err
    monkeypatch.setattr(predict_run.PredictionJob, "publish", None)
    work(options)
    work(options)
    assert "2 rows of an interrupted `mtl-re predict` are thrown away" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cores", "workers", "units", "expected"),
    [
        ([2], None, 8, (1, 2)),
        ([2], 2, 8, (2, 1)),
        ([16], None, 100, (4, 4)),
        ([16], None, 1, (1, 16)),
        ([16], 3, 100, (3, 5)),
        ([0, 8, 8], 3, 100, (3, 4)),
        ([16, 4], None, 100, (5, 4)),
        ([7, 3], 2, 100, (2, 3)),
    ],
)
def test_cores_are_divided_so_that_all_workers_fit(cores, workers, units, expected):
    number, each = ray_cluster.shares(cores, workers, units)
    assert (number, each) == expected
    assert sum(machine // each for machine in cores) >= number
    assert sum(machine // (each + 1) for machine in cores) < number or each == max(cores)


def test_more_workers_than_cores_are_refused():
    with pytest.raises(MtlReError, match=r"--ray\.workers 3: the cluster has 2 cores"):
        ray_cluster.shares([2], 3, 10)
    with pytest.raises(MtlReError, match="0 cores"):
        ray_cluster.shares([], None, 10)


def test_a_long_temporary_directory_is_not_rays(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert ray_cluster._short_directory() is None
    monkeypatch.setenv("TMPDIR", "/tmp/" + "d" * 60)
    assert ray_cluster._short_directory() == "/tmp/ray"
