"""The command line: exit codes, one line a fault, no traceback unless asked for, and help that loads no torch."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from importlib import import_module

import pytest
import yaml
from conftest import sample_examples, tiny_model
from distributed_worker import rows_file, shrink
from hostile import FILE_FAULTS, ROW_FAULTS, write_hostile

import mtl_re
from mtl_re import cli, commands
from mtl_re.cli import main
from mtl_re.model import network as model
from mtl_re.scoring import evaluation
from mtl_re.training import train as train_module

COMMANDS = ["sample", "check", "explore", "train", "evaluate", "predict", "calibrate", "errors", "compare"]
TINY = [
    *("--model.encoder", "scratch:tiny", "--data.max_length", "96", "--train.precision", "no"),
    *("--train.batch_size", "8", "--train.epochs", "1"),
]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    shrink(monkeypatch)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def ckpt(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("ckpt")
    tiny_model(tokenizer, training_prior=[0.3, 0.3, 0.4]).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(rows_file(tmp_path_factory.mktemp("data") / "data.json", 24))


def call(*arguments):
    """Exit code of a command; jsonargparse leaves by SystemExit."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as error:
        return error.code


def fault(capsys):
    """The one line on stderr that says what failed."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("mtl-re: error:")]
    assert len(lines) == 1, said
    assert said.rstrip("\n").endswith(lines[0]), said
    return lines[0]


# ---- usage ---------------------------------------------------------------------------------------------------------


def test_help_and_version(capsys):
    assert call("--help") == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert name in text
    assert call("--version") == 0
    assert capsys.readouterr().out == f"mtl-re {mtl_re.__version__}\n"


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_a_row_of_the_table_names_a_function_that_takes_its_arguments(name):
    command = commands.COMMANDS[name]
    module, _, function = command.run.partition(":")
    values = [*command.arguments, *([command.options] if command.options else [])]
    values += ["name"] if command.starts_run else []
    inspect.signature(getattr(import_module(module), function)).bind(*values)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(capsys, command):
    assert call(command, "--help") == 0
    text = capsys.readouterr().out
    assert f"mtl-re {command}" in text
    assert "--config" in text
    assert "--debug" in text


def test_help_of_train_names_every_option_with_its_text(capsys):
    from dataclasses import fields

    call("train", "--help")
    text = " ".join(capsys.readouterr().out.split())
    for name, group in commands.config.GROUPS.items():
        for field in fields(group):
            assert f"--{name}.{field.name}" in text
    assert "Gradients are clipped to this global norm" in text


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["train", "--print_config"], ["train", "--train.epochs", "0"]]
)
def test_help_and_usage_load_nothing_heavy(arguments):
    code = (
        "import sys\nfrom mtl_re.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'datasets', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "COMMAND"),
        (["nonsense"], "nonsense"),
        (["train", "--train.epoks", "3"], "epoks"),
        (["train", "--train.epochs", "three"], "epochs"),
        (["train", "--train.epochs", "1.5"], "epochs"),
        (["train", "--loss.weights.coarse", "much"], "loss.weights"),
        (["train", "--data.on_bad_row", "ignore"], "on_bad_row"),
        (["train", "--tracking.trackers", '["mlflow"]'], "trackers"),
        (["train", "--train.epochs", "0"], "train.epochs: 0 is out of range"),
        (["train", "--optim.lr", "nan"], "optim.lr"),
        (["train", "--data.max_length", "-3"], "data.max_length"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["evaluate"], "required"),
        (["evaluate", "x"], "data"),
        (["evaluate", "x", "--data", "d", "--gate", "firm"], "gate"),
        (["predict", "x", "--data", "d"], "output"),
        (["predict", "x", "--data", "d", "--output", "o.csv", "--window", "0"], "window"),
        (["predict", "x", "--data", "d", "--output", "o.csv", "--label_order", "alphabet"], "label_order"),
        (["sample"], "directory"),
        (["sample", "x", "--train", "0"], "train: 0"),
        (["check"], "data"),
        (["compare", "a.jsonl"], "b"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_faults_exit_with_2(capsys, arguments, named):
    assert call(*arguments) == 2
    captured = capsys.readouterr()
    assert named in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_options_may_be_written_with_hyphens(ckpt, data, tmp_path, capsys):
    """The contract writes `--label-order`."""
    out = tmp_path / "p.csv"
    assert call("predict", ckpt, "--data", data, "--output", out, "--label-order", "klue") == 0, capsys.readouterr().err


# ---- config files --------------------------------------------------------------------------------------------------


def resolved(capsys, *arguments):
    """What `train` would run with."""
    assert call("train", *arguments, "--print_config") == 0, capsys.readouterr().err
    return yaml.safe_load(capsys.readouterr().out)


def test_print_config_is_the_whole_tree_and_a_config_file(capsys, tmp_path):
    tree = resolved(capsys)
    assert set(commands.config.GROUPS) <= set(tree)
    assert tree["optim"]["lr"] == 2e-5
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert resolved(capsys, "--config", path) == tree


def test_file_and_command_line(capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "train: {epochs: 7, seed: 5}\noptim: {lr: 2e-5, head_lr: 1e-4}\nloss: {weights: {coarse: 3, org: 2}}\n"
    )
    tree = resolved(
        capsys, "--config", path, "--train.epochs", "9", "--loss.weights.coarse", "2", "--optim.warmup", "0"
    )
    assert (tree["train"]["epochs"], tree["train"]["seed"]) == (9, 5)
    assert tree["optim"]["lr"] == 2e-5
    assert tree["optim"]["head_lr"] == 1e-4
    assert tree["loss"]["weights"] == {"coarse": 2, "org": 2}


def test_weights_by_name(capsys):
    tree = resolved(capsys, "--loss.weights.coarse", "2", "--loss.weights.per", "0.5")
    assert tree["loss"]["weights"] == {"coarse": 2.0, "per": 0.5}
    assert resolved(capsys, "--loss.weights", '{"org": 4}')["loss"]["weights"] == {"org": 4}


def test_lists_and_unions(capsys):
    tree = resolved(
        capsys,
        *("--eval.target_prior", "[0.6, 0.17, 0.23]", "--eval.every", "50", "--train.save_every", "epoch"),
        *("--tracking.trackers", '["wandb", "tensorboard"]', "--train.early_stop", "null"),
    )
    assert tree["eval"]["target_prior"] == [0.6, 0.17, 0.23]
    assert (tree["eval"]["every"], tree["train"]["save_every"]) == (50, "epoch")
    assert tree["tracking"]["trackers"] == ["wandb", "tensorboard"]
    assert tree["train"]["early_stop"] is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("train: {epoks: 3}", "epoks"),
        ("trian: {epochs: 3}", "trian"),
        ("train: {epochs: many}", "epochs"),
        ("train: 3", "train"),
        ("train: [", ""),
        ("- a\n- b", ""),
        ("train: {epochs: 0}", "train.epochs: 0 is out of range"),
    ],
)
def test_faulty_config_file(capsys, tmp_path, text, named):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert call("train", "--config", path) == 2
    said = capsys.readouterr().err
    assert named in said
    assert "Traceback" not in said


def test_config_file_of_a_flat_command(capsys, tmp_path, ckpt, data):
    path = tmp_path / "predict.yaml"
    path.write_text(f"data: {data}\noutput: {tmp_path / 'p.jsonl'}\nbatch_size: 3\n")
    assert call("predict", ckpt, "--config", path) == 0, capsys.readouterr().err
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 24


# ---- commands ------------------------------------------------------------------------------------------------------


def test_sample_then_check(tmp_path, capsys):
    assert call("sample", tmp_path / "s", "--train", "60", "--valid", "30", "--test", "30") == 0
    written = capsys.readouterr().out.split()
    assert [os.path.basename(path) for path in written] == ["train.json", "valid.json", "test.json"]
    assert call("check", *written) == 0
    assert "60" in capsys.readouterr().out


def test_train_prints_the_run_directory_last(data, tmp_path, capsys):
    assert call("train", "--data.train", data, "--train.run_dir", tmp_path / "run", *TINY) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "run")]


def test_run_is_named_after_its_config(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(f"data: {{train: {data}}}\ntrain: {{max_steps: 1}}\n")
    assert call("train", "--config", "mine.yaml", *TINY) == 0
    assert capsys.readouterr().out.startswith("runs/mine-2")


def test_evaluate(ckpt, data, tmp_path, capsys):
    assert call("evaluate", ckpt, "--data", data, "--resamples", "20", "--output", tmp_path / "m.json") == 0
    first = capsys.readouterr().out
    result = json.loads((tmp_path / "m.json").read_text())
    assert f"{result['micro_f1']:.2f}" in first
    assert call("evaluate", ckpt, "--data", data, "--resamples", "20", "--gate", "soft", "--prior", "0.6,0.2,0.2") == 0
    text = capsys.readouterr().out
    printed = json.loads(text[text.index("{\n") :])
    assert (printed["gate_mode"], printed["prior"]) == ("soft", "0.6,0.2,0.2")


def test_evaluate_without_intervals(ckpt, data, capsys):
    assert call("evaluate", ckpt, "--data", data, "--resamples", "0") == 0, capsys.readouterr().err


def test_predict_then_compare(ckpt, data, tmp_path, capsys):
    for name in ("a.jsonl", "b.jsonl"):
        assert call("predict", ckpt, ckpt, "--data", data, "--output", tmp_path / name) == 0
        assert capsys.readouterr().out == f"24 predictions in {tmp_path / name}\n"
    assert call("compare", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--resamples", "50") == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train"], "data.train is not set"),
        (["train", "--data.train", "nowhere.json", *TINY], "nowhere.json: no such file"),
        (["train", "--data.train", "sample:tset", *TINY], "unknown split 'tset'"),
        (["train", "--data.train", "DATA", "--loss.kind", "hinge", *TINY], "loss.kind"),
        (["train", "--data.train", "DATA", "--loss.weights.kind", "1", *TINY], "no head is called 'kind'"),
        (["train", "--data.train", "DATA", "--data.valid", "DATA", *TINY], "training on the evaluation rows"),
        (["train", "--data.train", "DATA", "--train.resume", "auto", *TINY], "auto needs train.run_dir"),
        (["evaluate", "nowhere/at/all", "--data", "DATA"], "nowhere/at/all: no such checkpoint"),
        (["evaluate", ".", "--data", "DATA"], "no config.json there"),
        (["evaluate", "CKPT", "--data", "nowhere.json"], "nowhere.json: no such file"),
        (["evaluate", "CKPT", "--data", "DATA", "--prior", "half"], "--prior"),
        (["predict", "CKPT", "--data", "DATA", "--output", "o.txt"], "unknown kind of output '.txt'"),
        (["predict", "CKPT", "--data", "DATA", "--output", "o.csv", "--prior", "em"], "--prior em"),
        (["predict", "CKPT", "nowhere/at/all", "--data", "DATA", "--output", "o.csv"], "no such checkpoint"),
        (["predict", "CKPT", "--data", "DATA", "--output", "/proc/o.csv"], "cannot be written"),
        (["compare", "nowhere.jsonl", "nowhere.jsonl"], "nowhere.jsonl"),
        (["check", "nowhere.json"], "the data has errors"),
        (["sample", "/proc/sample"], "cannot be written"),
    ],
    ids=lambda value: " ".join(value[:7]) if isinstance(value, list) else "",
)
def test_faults_of_input_exit_with_1_in_one_line(ckpt, data, tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    places = {"DATA": data, "CKPT": ckpt}
    assert call(*(places.get(argument, argument) for argument in arguments)) == 1
    assert named in fault(capsys)


@pytest.mark.parametrize("damage", ["cut weights", "no weights", "config is a list", "config is cut", "no tokenizer"])
def test_damaged_checkpoint(ckpt, data, tmp_path, capsys, damage):
    folder = tmp_path / "ckpt"
    shutil.copytree(ckpt, folder)
    if damage == "cut weights":
        os.truncate(folder / "model.safetensors", 5000)
    elif damage == "no weights":
        (folder / "model.safetensors").unlink()
    elif damage == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "config.json").write_text("[]" if "list" in damage else '{"model_type": "mtl_re"')
    assert call("predict", folder, "--data", data, "--output", tmp_path / "o.csv") == 1
    assert str(folder) in fault(capsys)
    assert not (tmp_path / "o.csv").exists()


def test_debug_shows_the_traceback(capsys, data):
    with pytest.raises(cli.MtlReError, match="no such checkpoint"):
        main(["evaluate", "nowhere/at/all", "--data", data, "--debug"])


def test_unforeseen_fault_is_one_line_and_points_to_debug(ckpt, data, monkeypatch, capsys):
    def broken(*arguments):
        raise ZeroDivisionError("a bug\nin two lines")

    monkeypatch.setattr(evaluation, "evaluate", broken)
    assert call("evaluate", ckpt, "--data", data) == 1
    assert fault(capsys) == "mtl-re: error: ZeroDivisionError: a bug in two lines (--debug shows where)"
    with pytest.raises(ZeroDivisionError):
        main(["evaluate", ckpt, "--data", data, "--debug"])


def test_interrupt_is_one_line(ckpt, data, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate", interrupted)
    assert call("evaluate", ckpt, "--data", data) == 1
    assert "interrupted" in fault(capsys)


def test_under_a_launcher_one_process_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(train_module, "train", lambda *rest: (_ for _ in ()).throw(cli.MtlReError("x")))
    assert call("train") == 1
    assert capsys.readouterr().err == ""


# ---- as a process --------------------------------------------------------------------------------------------------


def process(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "mtl_re", *map(str, arguments)], capture_output=True, text=True, timeout=100, **options
    )


def test_exit_codes_reach_the_shell(tmp_path):
    assert process("sample", tmp_path, "--train", "30", "--valid", "30", "--test", "30").returncode == 0
    failed = process("check", tmp_path / "nowhere.json")
    assert failed.returncode == 1
    assert failed.stderr.startswith("mtl-re: error: ")
    assert failed.stderr.count("\n") == 1
    assert process("check").returncode == 2


def test_debug_prints_a_traceback(tmp_path):
    done = process("check", tmp_path / "nowhere.json", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_reader_that_leaves_early(tmp_path):
    """`mtl-re ... | head -1` is no fault worth a message."""
    child = subprocess.Popen(
        [sys.executable, "-m", "mtl_re", "check", "sample:train"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    child.stdout.close()
    said = child.stderr.read().decode()
    child.stderr.close()
    assert child.wait(60) in (0, 1)
    assert said == ""


CPU_SETTINGS = ("OMP_WAIT_POLICY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


@pytest.mark.parametrize(
    ("given", "expected"), [((), ["passive", cli.KERNELS, cli.KERNELS]), (("active", "7", "8"), ["active", "7", "8"])]
)
def test_settings_of_the_cpu_are_made_before_torch_reads_them(given, expected, tmp_path):
    """Waiting threads sleep, and few kernels are kept, unless the environment says otherwise."""
    program = (
        "import os, sys\nfrom mtl_re import cli, commands\n"
        f"commands.Command.call = lambda *_: print(*map(os.environ.get, {CPU_SETTINGS}), 'torch' in sys.modules)\n"
        "commands.Command.remember_files = lambda *_: None\n"
        f"sys.exit(cli.main(['heads', 'sample:train', '--output', {str(tmp_path / 'heads.yaml')!r}]))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in CPU_SETTINGS}
    environment |= dict(zip(CPU_SETTINGS, given, strict=False))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.split()[:4] == [*expected, "False"], done.stderr


# ---- hostile files -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    yield write_hostile(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def loaded(ckpt):
    return model.load(ckpt)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FILE_FAULTS, *ROW_FAULTS], ids=lambda name: name[:40].replace("\n", "~"))
def test_hostile_file(hostile, ckpt, loaded, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr("mtl_re.scoring.composed.load", lambda path: loaded)
    capsys.readouterr()
    path = hostile[name]
    shown = " ".join(str(path).splitlines())
    assert call("check", path) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "mtl-re: error: the data has errors (listed above)"
    assert shown in captured.out
    assert "Traceback" not in captured.out
    assert call("predict", ckpt, "--data", path, "--output", tmp_path / "out.csv") == 1
    line = fault(capsys)
    assert len(line) < 2000
    assert shown in line
    if name in ROW_FAULTS:
        row, field = ROW_FAULTS[name]
        assert f":{row}: {field}" in line
    elif name == "truncated.jsonl.gz":  # its first line is no row either, and a stream meets that first
        assert ":1: row" in line
    else:
        assert FILE_FAULTS[name] in line
    assert not list(tmp_path.iterdir())


def test_rows_left_out_by_predict_are_counted(ckpt, tmp_path, capsys):
    rows = [example.to_row() for example in sample_examples("valid", 5)]
    rows[1]["label"] = "per:friend"
    (tmp_path / "d.json").write_text(json.dumps(rows))
    arguments = ["predict", ckpt, "--data", tmp_path / "d.json", "--output", tmp_path / "o.csv"]
    assert call(*arguments) == 1
    assert "d.json:2: label" in fault(capsys)
    assert call(*arguments, "--on_bad_row", "skip") == 0
    assert "1 bad rows left out" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["cp949", "ascii"])
def test_a_console_of_another_encoding_ends_no_command(tmp_path, encoding):
    path = tmp_path / "rows.json"
    row = {"guid": "1", "sentence": "가 나 😀", "subject_entity": "–", "object_entity": {}, "label": None}
    path.write_text(json.dumps([row], ensure_ascii=False), encoding="utf-8")
    for command in (["check", str(path)], ["sample", "/proc/–😀"]):
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-m", "mtl_re", *command], capture_output=True, env=environment)
        assert done.returncode == 1
        assert b"Traceback" not in done.stderr
        assert b"UnicodeEncodeError" not in done.stderr
