"""`adapt` on encoders that ship without a masked-LM head: a new one, tied to the embeddings; damage stays an error."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TYPES, sample_examples
from families import COMMON, FAMILIES, LENGTH, make_family, slow_but
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer

from mtl_re import cli
from mtl_re.errors import MtlReError
from mtl_re.model import encoders

WEIGHTS = "model.safetensors"


@pytest.fixture(params=slow_but(FAMILIES, COMMON), scope="module")
def headless(request, tmp_path_factory) -> Path:
    """A family's encoder as e5 and sentence-transformers ship theirs: no head."""
    folder = tmp_path_factory.mktemp(request.param)
    make_family(request.param, folder)
    encoder = AutoModel.from_pretrained(folder)
    encoder.save_pretrained(folder)
    return folder


def test_a_new_head_is_tied_and_a_function_of_its_seed(headless, capsys):
    first, again, other = (encoders.load_masked_lm(str(headless), LENGTH, seed)[0] for seed in (1, 1, 2))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert "has no masked-LM head: it gets a new one, tied to its embeddings" in said[0]
    assert first.get_output_embeddings().weight is first.get_input_embeddings().weight
    given = AutoModel.from_pretrained(headless).state_dict()
    kept = first.base_model.state_dict()
    assert all(torch.equal(given[name], kept[name]) for name in kept)
    states = [network.state_dict() for network in (first, again, other)]
    assert all(torch.isfinite(tensor).all() for tensor in states[0].values() if tensor.is_floating_point())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_a_config_that_unties_is_overruled_for_a_new_head(headless, tmp_path):
    shutil.copytree(headless, tmp_path, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(headless)
    config.tie_word_embeddings = False
    config.save_pretrained(tmp_path)
    network, _ = encoders.load_masked_lm(str(tmp_path), LENGTH)
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight
    assert network.config.tie_word_embeddings


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_adapting_leaves_an_encoder_with_the_adapted_weights(family, tmp_path, capsys):
    source = tmp_path / "source"
    make_family(family, source)
    AutoModel.from_pretrained(source).save_pretrained(source)
    rows = tmp_path / "rows.jsonl"
    lines = [json.dumps(row.to_row(), ensure_ascii=False) for row in sample_examples("train", 48)]
    rows.write_text("\n".join(lines), encoding="utf-8")
    options = ["--data.max_length", "64", "--train.max_steps", "4", "--train.batch_size", "8", "--optim.lr", "1e-3"]
    options += ["--data.held_out", "0", "--train.precision", "no", "--train.run_dir", str(tmp_path / "run")]
    assert cli.main(["adapt", "--data.train", str(rows), "--model.encoder", str(source), *options]) == 0
    assert "has no masked-LM head: it gets a new one" in capsys.readouterr().err
    adapted = str(tmp_path / "run" / "model")
    again, _ = encoders.load_masked_lm(adapted, LENGTH)  # the head is kept now
    assert "masked-LM head" not in capsys.readouterr().err
    encoder, tokenizer = encoders.load_encoder(adapted, "typed_punct_ko", TYPES, LENGTH, 0)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(source).get_vocab()
    before, after = AutoModel.from_pretrained(source).state_dict(), encoder.state_dict()
    stored = again.base_model.state_dict()
    assert all(torch.equal(stored[name], after[name]) for name in stored)
    moved = [name for name in stored if name.endswith("weight") and not torch.equal(before[name], after[name])]
    assert len(moved) == len([name for name in stored if name.endswith("weight")])


DAMAGE = {
    "a weight of the encoder": lambda name: "layer.1." in name and name.endswith("dense.weight"),
    "the embeddings": lambda name: name.endswith("word_embeddings.weight"),
    "one weight of the head": lambda name: name.endswith("transform.dense.weight"),
    "the head's bias alone": lambda name: name.startswith("cls.") and name.endswith("predictions.bias"),
    "head and encoder": lambda name: name.startswith("cls.") or "layer.0." in name,
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_file_with_other_missing_weights_stays_an_error(what, tmp_path):
    make_family("bert", tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    kept = {name: tensor for name, tensor in weights.items() if not DAMAGE[what](name)}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(MtlReError, match=r"weights do not fit its config \(missing "):
        encoders.load_masked_lm(str(tmp_path), LENGTH)
