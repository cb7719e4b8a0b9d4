"""A CKPT of a stranger: no code runs, nothing is unpickled, sizes are looked at first; secrets and HTML stay put."""

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_worker import make_config, rows_file, shrink
from test_run_report import log_lines, make_run, result_of

import mtl_re
from mtl_re.analysis import explore
from mtl_re.config import ExportConfig
from mtl_re.errors import MtlReError
from mtl_re.export.export import export
from mtl_re.model import network as model
from mtl_re.model.encoders import load_encoder, load_masked_lm
from mtl_re.taxonomy import Taxonomy
from mtl_re.training import run_report
from mtl_re.training.train import train

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def copied(saved, tmp_path):
    """A CKPT directory to be damaged, and a function that changes its config.json."""
    folder = tmp_path / "ckpt"
    shutil.copytree(saved, folder)

    def change(edit, name="config.json"):
        config = json.loads((folder / name).read_text(encoding="utf-8"))
        edit(config)
        (folder / name).write_text(json.dumps(config), encoding="utf-8")

    return folder, change


# ---- code ----------------------------------------------------------------------------------------------------------


class Bomb:
    """Unpickling it leaves a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.fixture
def armed(copied, tmp_path):
    """A CKPT that carries pickles and code, all of which leave `mark` when they run."""
    folder, change = copied
    mark = tmp_path / "executed"
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "model.pt", "vocab.pkl"):
        (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    code = f"open({str(mark)!r}, 'w').close()\n\nclass Evil:\n    pass\n"
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "__init__.py"):
        (folder / name).write_text(code)
    parts = {"AutoConfig": "configuration_evil.Evil", "AutoModel": "modeling_evil.Evil"}
    change(lambda config: config.update(auto_map=parts))
    tokens = {"AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"]}
    change(lambda config: config.update(auto_map=tokens), "tokenizer_config.json")
    return folder, mark


def test_the_bomb_works(tmp_path):
    """Or the tests below would pass on anything."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_loading_runs_no_code_and_unpickles_nothing(armed, tiny, monkeypatch):
    folder, mark = armed
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("asked whether to run code"))
    loaded, tokenizer = model.load(str(folder))
    assert not mark.exists()
    assert type(loaded) is model.MtlReModel
    assert tokenizer("서울") == tiny[1]("서울")
    for name, tensor in tiny[0].state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_pickled_weights_do_not_stand_in_for_missing_ones(armed):
    folder, mark = armed
    (folder / "model.safetensors").unlink()
    with pytest.raises(MtlReError, match=r"no model\.safetensors"):
        model.load(str(folder))
    assert not mark.exists()


def test_pickled_weights_under_the_right_name_are_no_weights(armed):
    folder, mark = armed
    shutil.copyfile(folder / "pytorch_model.bin", folder / "model.safetensors")
    with pytest.raises(MtlReError, match="not loadable as an mtl-re checkpoint"):
        model.load(str(folder))
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["bert", "evilnet"])
@pytest.mark.parametrize(
    "load", [lambda path: load_encoder(path, "punct", [], 64, 0), lambda path: load_masked_lm(path, 64)]
)
def test_a_strangers_encoder_runs_no_code_either(armed, monkeypatch, kind, load):
    """`model.encoder` too: a pickle is no weights, and code of a family unknown to transformers stays unread."""
    folder, mark = armed
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("asked whether to run code"))
    (folder / "model.safetensors").unlink()
    torch.save({"x": Bomb(mark)}, folder / "pytorch_model.bin")
    parts = {"AutoConfig": "configuration_evil.Evil", "AutoModel": "modeling_evil.Evil"}
    parts["AutoModelForMaskedLM"] = "modeling_evil.Evil"
    config = {"model_type": kind, "auto_map": parts, "hidden_size": 16, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "intermediate_size": 16}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(MtlReError, match=r"model\.encoder: .* cannot be loaded") as caught:
        load(str(folder))
    assert len(str(caught.value).splitlines()) == 1
    assert not mark.exists()


def test_the_source_unpickles_nothing_and_trusts_no_code():
    """What the shipped source may not even call."""
    paths = sorted(Path(mtl_re.__file__).parent.rglob("*.py"))
    assert len(paths) > 20
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in {"torch.load", "eval", "exec", "pickle.load", "pickle.loads", "yaml.load"}, path
                for keyword in node.keywords:
                    trusting = keyword.arg in {"trust_remote_code", "allow_pickle"}
                    assert not (trusting and ast.unparse(keyword.value) == "True"), path


# ---- configs -------------------------------------------------------------------------------------------------------


def encoder(**values):
    return lambda config: config["encoder"].update(values)


def top(**values):
    return lambda config: config.update(values)


HOSTILE = {
    "layers": (encoder(num_hidden_layers=10**9), "encoder.num_hidden_layers"),
    "layers as float": (encoder(num_hidden_layers=1e300), "encoder.num_hidden_layers"),
    "negative size": (encoder(hidden_size=-(10**12)), "encoder.hidden_size"),
    "hidden": (encoder(hidden_size=2**20), "shape|describe a model|not loadable"),
    "vocabulary": (encoder(vocab_size=90_000_000), "shape"),
    "vocabulary beyond": (encoder(vocab_size=10**12), "encoder.vocab_size"),
    "labels of the encoder": (encoder(num_labels=10**9), "encoder.num_labels"),
    "infinite": (encoder(norm_eps=float("inf")), "encoder.norm_eps"),
    "code": (encoder(auto_map={"AutoModel": "x.Y"}), "encoder.auto_map"),
    "kernel": (encoder(attn_implementation="evil/kernel"), "encoder.attn_implementation"),
    "quantised": (encoder(quantization_config={"quant_method": "gptq"}), "encoder.quantization_config"),
    "family as path": (encoder(model_type="../../etc"), "encoder.model_type"),
    "family unknown": (encoder(model_type="evilnet"), "evilnet"),
    "family as list": (encoder(model_type=["bert"]), "encoder.model_type"),
    "text as size": (encoder(hidden_size="many"), "shape|describe a model|not loadable"),
    "no encoder": (top(encoder=[1]), "encoder is"),
    "markers as path": (top(markers="../../etc/passwd"), "markers is"),
    "pooling as list": (top(pooling=["cls"]), "pooling is"),
    "gate": (top(gate="maybe"), "gate is"),
    "length": (top(max_input_length=10**12), "max_input_length is"),
    "length as text": (top(max_input_length="256"), "max_input_length is"),
    "dropout": (top(dropout=-1), "dropout is"),
    "query": (top(query="yes"), "query is"),
    "types": (top(entity_types=[1, 2]), "entity_types is"),
    "temperatures": (top(temperatures={"coarse": 0}), "temperatures is"),
    "prior": (top(training_prior=["x"]), "training_prior is"),
    "threshold": (top(relation_threshold=float("nan")), "relation_threshold is"),
    "prior of the threshold": (top(relation_threshold_prior="em"), "relation_threshold_prior is"),
    "relation's threshold": (top(relation_thresholds={"per:title": 1.5}), "relation_thresholds is"),
    "relations' thresholds as list": (top(relation_thresholds=[0.5]), "relation_thresholds is"),
    "prior of the thresholds": (top(relation_thresholds_prior="em"), "relation_thresholds_prior is"),
    "precision": (top(precision_target=float("inf")), "precision_target is"),
    "taxonomy as text": (top(taxonomy="klue"), "taxonomy is"),
    "taxonomy unknown": (
        top(taxonomy={"groups": [["a", ["x"]], ["b", ["y"]]], "layout": "sideways"}),
        "layout 'sideways'",
    ),
    "taxonomy without groups": (top(taxonomy={}), "'groups'"),
    "other labels": (top(taxonomy={"groups": [["a", ["x"]], ["b", ["y", "z"]]], "no_relation": None}), "shape"),
    "many labels": (top(taxonomy={"groups": [[f"g{n}", [f"l{n}"]] for n in range(10_001)]}), "20,002 names"),
    "label count": (top(num_labels=10**9), "num_labels"),
    "another model": (top(model_type="bert"), "model_type is 'bert'"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_config_is_refused_before_a_tensor_is_made(copied, monkeypatch, name):
    folder, change = copied
    edit, named = HOSTILE[name]
    change(edit)
    monkeypatch.setattr(model.MtlReModel, "from_pretrained", lambda *a, **k: pytest.fail("weights were allocated"))
    with pytest.raises(MtlReError, match=named) as caught:
        model.load(str(folder))
    message = str(caught.value)
    assert str(folder) in message
    assert len(message.splitlines()) == 1
    assert len(message) < 1000


def test_a_huge_config_is_not_read(copied):
    folder, _ = copied
    with (folder / "config.json").open("r+b") as file:
        file.truncate(17 << 20)
    with pytest.raises(MtlReError, match="a config has at most"):
        model.load(str(folder))


def test_a_tokenizer_beyond_the_embedding_is_refused(copied):
    """Its ids would read past the table."""
    folder, change = copied

    def grow(tokens):
        size = len(tokens["model"]["vocab"])
        tokens["model"]["vocab"] |= {f"new{number}": size + number for number in range(50)}

    change(grow, "tokenizer.json")
    with pytest.raises(MtlReError, match=r"the tokenizer has .* pieces, the encoder knows"):
        model.load(str(folder))


def test_a_hub_id_that_cannot_be_fetched_is_one_line():
    with pytest.raises(MtlReError, match="nobody/nothing: not loadable") as caught:
        model.load("nobody/nothing")
    assert len(str(caught.value).splitlines()) == 1


# ---- what is written ------------------------------------------------------------------------------------------------

SECRETS = {
    "WANDB_API_KEY": "wandb-key-0123456789",
    "HF_TOKEN": "hf_token-9876543210",
    "AWS_SECRET_ACCESS_KEY": "aws-55",
}


def test_secrets_reach_no_file_and_no_line(tmp_path, monkeypatch, capfd):
    shrink(monkeypatch)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    rows = rows_file(tmp_path / "rows.json")
    run_dir = train(make_config({"data.train": str(rows), "train.run_dir": str(tmp_path / "run"), "train.epochs": 1}))
    written = [path for path in run_dir.rglob("*") if path.is_file()]
    assert len(written) > 10
    said = "".join(capfd.readouterr()).encode()
    for secret in SECRETS.values():
        assert secret.encode() not in said
        for path in written:
            assert secret.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_secrets_reach_no_wandb_file_and_no_export(tmp_path):
    """A process of its own, since wandb reads the environment once; offline, as on a machine without network."""
    rows = rows_file(tmp_path / "rows.json")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")} | SECRETS
    environment |= {"WANDB_API_KEY": 40 * "9", "WANDB_MODE": "offline", "HOME": str(tmp_path / "home")}
    options = {"data.train": rows, "model.encoder": "scratch:tiny", "tracking.trackers": '["wandb"]'}
    options |= {"train.run_dir": tmp_path / "run", "train.max_steps": 2, "train.precision": "no"}
    call = [sys.executable, "-m", "mtl_re", "train", *(f"--{name}={value}" for name, value in options.items())]
    done = subprocess.run(call, env=environment, cwd=tmp_path, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    export(str(tmp_path / "run"), str(tmp_path / "out"), ExportConfig())
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.suffix == ".wandb" for path in written)
    for secret in (40 * "9", SECRETS["HF_TOKEN"], SECRETS["AWS_SECRET_ACCESS_KEY"]):
        assert secret.encode() not in done.stdout + done.stderr
        assert not [path for path, content in written.items() if secret.encode() in content]


def hostile_taxonomy():
    groups = {
        "no_relation": ["no_relation"],
        EVIL: [f"{EVIL}:a|b", f"{EVIL}:`c`"],
        "per": ["per:[x](javascript:1)", "per:y"],
    }
    return Taxonomy.from_dict({"groups": groups})


def unescaped(markdown):
    """Places where text could start a tag: a `<` that no backslash guards."""
    return re.findall(r"(?<!\\)(?:\\\\)*<", markdown)


@pytest.mark.usefixtures("undrawn")
def test_html_in_labels_is_escaped_in_a_runs_report(tmp_path):
    taxonomy = hostile_taxonomy()
    result = result_of(taxonomy)
    lines = log_lines(result, heads=[head.name for head in taxonomy.heads])
    path = run_report.write_run_report(make_run(tmp_path / "<b>run", result, lines, taxonomy))
    text = path.read_text(encoding="utf-8")
    assert "script" in text
    assert not unescaped(text)
    assert "](javascript" not in text.replace(r"\[x](javascript", "")


@pytest.mark.usefixtures("undrawn")
def test_html_in_rows_is_escaped_in_the_pictures_of_data(tmp_path):
    sentence = f"{EVIL} 서울"
    row = {
        "guid": EVIL,
        "sentence": sentence,
        "subject_entity": {"word": EVIL, "start_idx": 0, "end_idx": len(EVIL) - 1, "type": EVIL},
        "object_entity": {"word": "서울", "start_idx": len(EVIL) + 1, "end_idx": len(EVIL) + 2, "type": "<i>"},
        "label": f"{EVIL}:a|b",
        "source": EVIL,
    }
    path = tmp_path / "<img src=x>.json"
    path.write_text(json.dumps([row] * 3, ensure_ascii=False), encoding="utf-8")
    made = explore.explore([str(path)], tmp_path / "out", hostile_taxonomy())
    text = Path(made).read_text(encoding="utf-8")
    assert "script" in text
    assert not unescaped(text)
