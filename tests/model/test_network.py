"""Logits that do not depend on company, a directory that holds everything, and no parameter without a use."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENCODERS, MAX_LENGTH, SCHEME, TAXONOMIES, TYPES, small_config, small_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from mtl_re.errors import MtlReError
from mtl_re.features import featurizer as features
from mtl_re.features.collate import Collator
from mtl_re.model import encoders
from mtl_re.model.network import MtlReConfig, MtlReModel, from_encoder, load, split_heads, takes_token_types
from mtl_re.model.pooling import POOLINGS
from mtl_re.scoring import composed, inference
from mtl_re.scoring.decoding import Decoding, decode
from mtl_re.taxonomy import Taxonomy

REPOSITORY = Path(__file__).resolve().parents[2]
each_encoder = pytest.mark.parametrize("kind", ENCODERS)
each_taxonomy = pytest.mark.parametrize("taxonomy", TAXONOMIES.values(), ids=TAXONOMIES)


def inputs(rows: int = 3, length: int = 9, vocabulary: int = 50, seed: int = 0):
    """Made-up rows of different lengths, with positions inside the shortest."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.arange(length, length - rows, -1)
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids = torch.randint(5, vocabulary, (rows, length), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "positions": torch.tensor([[1, 2, 4, 5]] * rows)}


# ---- law 8: company does not matter --------------------------------------------------------------------------------


def probabilities(model, table, batch_size):
    logits = inference.all_logits(model, table, 0, batch_size)
    return decode(split_heads(logits, model.taxonomy), model.taxonomy, Decoding()).probs.numpy()


def rows_of(table, order) -> features.FeatureTable:
    return features.FeatureTable.from_rows([table[row] for row in order], table.targets.shape[1])


def check_company(model, table) -> None:
    alone = probabilities(model, table, 1)
    assert np.ptp(alone, axis=0).max() > 0.01, "the case is one where rows differ"
    for batch_size in (7, len(table)):
        np.testing.assert_allclose(probabilities(model, table, batch_size), alone, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(table))
    np.testing.assert_allclose(probabilities(model, rows_of(table, order), 16), alone[order], atol=1e-5)
    longest = rows_of(table, [*range(len(table)), int(table.lengths.argmax())])
    np.testing.assert_allclose(probabilities(model, longest, 64)[:-1], alone, atol=1e-5)


def test_row_order_batch_size_and_padding_do_not_change_probabilities(tiny, table):
    check_company(tiny[0], table)


def test_company_with_a_real_encoder(ko_mini, examples):
    encoder, tokenizer = encoders.load_encoder(ko_mini, SCHEME, TYPES, MAX_LENGTH, 0)
    torch.manual_seed(0)
    model = from_encoder(encoder, MtlReConfig(markers=SCHEME, entity_types=TYPES, max_input_length=MAX_LENGTH)).eval()
    with torch.no_grad():
        for head in model.heads.values():
            head.weight.mul_(20)
    check_company(model, composed.featurizer_of(model, tokenizer).table(examples[:10]))


@each_encoder
@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_does_not_change_logits(kind, pooling):
    model = small_model(kind, pooling=pooling)
    batch = inputs()
    longer = {
        name: torch.nn.functional.pad(tensor, (0, 5)) if name != "positions" else tensor
        for name, tensor in batch.items()
    }
    with torch.no_grad():
        short, long = model(**batch), model(**longer)
    assert short["per"].std() > 0.1
    for name in short:
        torch.testing.assert_close(short[name], long[name], atol=1e-5, rtol=1e-5)


def test_evaluation_leaves_the_mode_of_the_model_as_it_was(tiny, table):
    model = tiny[0]
    for mode in (True, False):
        model.train(mode)
        inference.all_logits(model, rows_of(table, range(4)), 0, 2)
        assert model.training is mode


# ---- logits --------------------------------------------------------------------------------------------------------


@each_taxonomy
def test_logits_by_head_in_taxonomy_order(taxonomy):
    model = small_model("bert", taxonomy=taxonomy.to_dict())
    logits = model(**inputs())
    assert [(name, tuple(scores.shape)) for name, scores in logits.items()] == [
        (head.name, (3, len(head.classes))) for head in taxonomy.heads
    ]
    assert {scores.dtype for scores in logits.values()} == {torch.float32}


def test_logits_are_fp32_under_autocast():
    model = small_model("bert")
    with torch.autocast("cpu", torch.bfloat16):
        assert {scores.dtype for scores in model(**inputs()).values()} == {torch.float32}


@each_encoder
@pytest.mark.parametrize("pooling", POOLINGS)
def test_no_parameter_is_unused(kind, pooling):
    """BertModel and RobertaModel carry a pooler that nothing reads; DDP stops at a parameter without a gradient."""
    model = small_model(kind, pooling=pooling)
    sum(scores.square().sum() for scores in model(**inputs()).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} is unused"
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0 or name.endswith("key.bias"), f"{name} has a zero gradient"


@pytest.mark.parametrize("name", ["type", "org.sub", "children", "keys", "items", "train", "forward"])
def test_a_coarse_class_may_have_any_name(name):
    """Head names come from a user's file; those that torch cannot use must be refused by us, or carried."""
    taxonomy = {"groups": {name: ["x", "y"], "other": ["u", "v"]}}
    try:
        model = small_model("bert", taxonomy=Taxonomy.from_dict(taxonomy).to_dict())
    except MtlReError as error:
        assert repr(name) in str(error)  # noqa: PT017 - either is right
    else:
        assert list(model(**inputs())) == ["coarse", name, "other"]


# ---- segments ------------------------------------------------------------------------------------------------------


def test_segments_are_dropped_where_the_table_has_one_row():
    """klue/roberta: its tokenizer gives `token_type_ids` with ones, its table has one row: an index error, or worse."""
    model = small_model("roberta")
    assert not model.takes_types
    ones = torch.ones_like(inputs()["input_ids"])
    for name, scores in model(**inputs(), token_type_ids=ones).items():
        torch.testing.assert_close(scores, model(**inputs())[name])


def test_segments_are_used_where_there_are_two():
    model = small_model("bert")
    assert model.takes_types
    zeros, ones = (torch.full_like(inputs()["input_ids"], value) for value in (0, 1))
    plain, first, second = (
        model(**inputs(), **types)["coarse"] for types in ({}, {"token_type_ids": zeros}, {"token_type_ids": ones})
    )
    torch.testing.assert_close(plain, first)
    assert (first - second).abs().max() > 1e-4


@pytest.mark.parametrize(("kind", "size", "expected"), [
    ("bert", 2, True), ("bert", 1, False), ("roberta", 1, False), ("roberta", 2, True), ("electra", 2, True),
    ("deberta-v2", 0, False), ("deberta-v2", 2, True),
])  # fmt: skip
def test_takes_token_types(kind, size, expected):
    assert takes_token_types(AutoModel.from_config(small_config(kind, type_vocab_size=size))) is expected


def test_the_collator_gives_segments_where_the_model_reads_them(tokenizer, examples):
    taxonomy = TAXONOMIES["klue-hierarchical"]
    table = features.Featurizer(tokenizer, taxonomy, SCHEME, True, 160, TYPES).table(examples[:4])
    for kind in ("bert", "roberta"):
        config = small_config(kind, vocab_size=len(tokenizer), max_position_embeddings=200)
        torch.manual_seed(0)
        model = from_encoder(AutoModel.from_config(config), MtlReConfig(query=True)).eval()
        batch = Collator(table, 0, model.takes_types)([0, 1, 2, 3])
        assert ("token_type_ids" in batch) == (kind == "bert")
        del batch["targets"]
        assert torch.isfinite(model(**batch)["coarse"]).all()


# ---- around a pretrained encoder -----------------------------------------------------------------------------------


@each_encoder
def test_the_weights_of_the_encoder_are_kept(kind):
    torch.manual_seed(3)
    encoder = AutoModel.from_config(small_config(kind)).eval()
    batch = inputs()
    plain = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = encoder(**plain).last_hidden_state
        model = from_encoder(encoder, MtlReConfig()).eval()
        found = model.encoder(**plain).last_hidden_state
    known = batch["attention_mask"].bool()
    torch.testing.assert_close(found[known], expected[known])


def test_heads_start_alike_from_a_seed_and_differ_between_seeds():
    def heads(seed):
        torch.manual_seed(seed)
        return from_encoder(AutoModel.from_config(small_config("bert")), MtlReConfig()).heads["org"].weight

    assert torch.equal(heads(1), heads(1))
    assert not torch.equal(heads(1), heads(2))


def test_an_unknown_pooling_lists_the_known_ones():
    with pytest.raises(MtlReError, match=r"model\.pooling: 'max'; expected one of cls, markers"):
        small_model("bert", pooling="max")


# ---- law 7: save and load ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_new_process_loads_the_same_model(elsewhere, tiny, table):
    here = inference.all_logits(tiny[0], table, tiny[1].pad_token_id, 8)
    for seed in (1, 2):
        np.testing.assert_array_equal(np.load(elsewhere / f"logits{seed}.npy"), here)


def test_loading_draws_nothing_at_random(saved, tiny):
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model, _ = load(str(saved))
        assert not model.training
        states.append(model.state_dict())
    original = tiny[0].state_dict()
    assert states[0].keys() == states[1].keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(tensor, states[0][name]), name
        assert torch.equal(tensor, states[1][name]), name


def test_the_directory_names_no_place_of_this_machine(tmp_path, tokenizer):
    place = tmp_path / "encoder"
    AutoModel.from_config(small_config("bert", vocab_size=len(tokenizer))).save_pretrained(place)
    tokenizer.save_pretrained(place)
    encoder, own = encoders.load_encoder(str(place), SCHEME, TYPES, 64, 0)
    folder = tmp_path / "ckpt"
    from_encoder(encoder, MtlReConfig()).save_pretrained(folder)
    own.save_pretrained(folder)
    texts = {
        path.name: path.read_text(encoding="utf-8") for path in folder.iterdir() if path.suffix in {".json", ".txt"}
    }
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= set(texts)
    for name, text in texts.items():
        for root in (tmp_path, REPOSITORY, Path.home(), Path.cwd()):
            assert str(root) not in text.replace("//", "/") or str(root) == "/", f"{name} names {root}"


def test_the_config_holds_all_that_prediction_needs(saved, tiny):
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    taxonomy = tiny[0].taxonomy
    assert config["taxonomy"]["labels"] == list(taxonomy.labels)
    assert config["taxonomy"]["groups"] == [[name, list(labels)] for name, labels in taxonomy.groups.items()]
    assert [config["id2label"][str(index)] for index in range(30)] == list(taxonomy.labels)
    for key in ("markers", "query", "entity_types", "max_input_length", "pooling", "gate", "temperatures"):
        assert key in config, key
    assert config["encoder"]["model_type"]
    assert not [path.name for path in saved.iterdir() if path.suffix in {".bin", ".pt", ".pkl", ".pickle"}]


@pytest.mark.parametrize("name", ["yaml-hierarchical", "boostcamp-hierarchical", "tacred-flat"])
def test_the_order_of_keys_in_the_config_does_not_matter(tmp_path, name):
    taxonomy = TAXONOMIES[name]
    temperatures = {head.name: 1.0 + number for number, head in enumerate(taxonomy.heads)}
    model = small_model("bert", taxonomy=taxonomy.to_dict(), temperatures=temperatures, training_prior=[0.5, 0.5])
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"

    def reverse(value):
        if isinstance(value, dict):
            return {key: reverse(value[key]) for key in sorted(value, reverse=True)}
        return [reverse(item) for item in value] if isinstance(value, list) else value

    path.write_text(json.dumps(reverse(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    again = MtlReModel.from_pretrained(tmp_path).eval()
    assert again.taxonomy == taxonomy
    assert again.taxonomy.heads == taxonomy.heads
    assert again.config.temperatures == temperatures
    expected, found = model(**inputs()), again(**inputs())
    assert list(found) == list(expected)
    for head, scores in expected.items():
        torch.testing.assert_close(found[head], scores, atol=0, rtol=0)


def test_every_option_survives(tmp_path):
    options = {
        "markers": "special", "query": True, "entity_types": ["ORG", "PER"], "max_input_length": 99, "pooling": "mean",
        "dropout": 0.3, "gate": "soft", "temperatures": {"coarse": 1.5}, "training_prior": [0.2, 0.3, 0.5],
    }  # fmt: skip
    small_model("bert", **options).save_pretrained(tmp_path)
    config = MtlReModel.from_pretrained(tmp_path).config
    assert {name: getattr(config, name) for name in options} == options
    assert config.id2label == dict(enumerate(TAXONOMIES["klue-hierarchical"].labels))


# ---- directories that are not checkpoints --------------------------------------------------------------------------


@pytest.fixture
def copied(saved, tmp_path) -> Path:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_a_missing_file_is_named(copied, name):
    (copied / name).unlink()
    with pytest.raises(MtlReError, match=rf"no {name} there"):
        load(str(copied))


def change_weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_missing_weight_is_an_error_and_not_a_random_one(copied):
    change_weights(copied, lambda tensors: tensors.pop("heads.org.weight"))
    with pytest.raises(MtlReError, match=r"heads\.org\.weight"):
        load(str(copied))


def test_a_weight_of_another_shape_is_an_error(copied):
    change_weights(copied, lambda tensors: tensors.update({"heads.org.weight": torch.zeros(7, 3)}))
    with pytest.raises(MtlReError, match="not loadable"):
        load(str(copied))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_cut_off_weights_are_an_error(copied, share):
    path = copied / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(MtlReError, match="not loadable as an mtl-re checkpoint"):
        load(str(copied))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "bert"}', '{"model_type": "mtl_re"}'])
def test_a_damaged_config_is_an_error(copied, text):
    (copied / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(MtlReError) as refused:
        load(str(copied))
    assert "\n" not in str(refused.value)


def test_no_such_directory():
    with pytest.raises(MtlReError, match="no such checkpoint directory"):
        load("./nowhere")
