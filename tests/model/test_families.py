"""Every encoder family with its real tokenizer class, a vocabulary trained here and random weights: rows are read
right, every parameter learns, and what is saved, adapted or exported is the same network."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import TYPES
from families import COMMON, FAMILIES, LENGTH, ROWS, make_family, slow_but, texts
from transformers import AutoModel, AutoTokenizer

from mtl_re import cli
from mtl_re.adapt import setup as adapt_run
from mtl_re.config import LossConfig
from mtl_re.features import markers
from mtl_re.features.collate import Collator
from mtl_re.features.featurizer import FeatureTable, Featurizer, check_known
from mtl_re.features.markers import MARKERS
from mtl_re.model import device, encoders
from mtl_re.model import network as model
from mtl_re.model.encoders import load_encoder
from mtl_re.scoring import inference
from mtl_re.taxonomy import IGNORE, Taxonomy
from mtl_re.training.losses import combine, head_losses

SCHEMES = ("typed_punct_ko", "typed_special")
TAXONOMY = Taxonomy.from_prefixes()


@pytest.fixture(scope="module", params=slow_but(FAMILIES, COMMON))
def family(request, tmp_path_factory) -> str:
    return make_family(request.param, tmp_path_factory.mktemp(request.param))


def built(family: str, scheme: str, **options) -> tuple[model.MtlReModel, object, FeatureTable]:
    """A new relation model on the family's encoder, its tokenizer, and the rows as it reads them."""
    encoder, tokenizer = load_encoder(family, scheme, TYPES, LENGTH, 0)
    settings = {"markers": scheme, "entity_types": TYPES, "max_input_length": LENGTH, "dropout": 0.0} | options
    torch.manual_seed(0)
    made = model.from_encoder(encoder, model.MtlReConfig(**settings))
    return made, tokenizer, Featurizer(tokenizer, TAXONOMY, scheme, False, LENGTH, TYPES).table(ROWS)


def bare(piece: str) -> str:
    """A piece without what its tokenizer writes for a space or a word's inside."""
    return piece.removeprefix("##").strip("▁Ġ")


# ---- reading rows --------------------------------------------------------------------------------------------------


def test_the_tokenizers_class_survives_saving(family, request):
    tokenizer = AutoTokenizer.from_pretrained(family)
    made = FAMILIES[request.node.callspec.params["family"]][2]()
    assert tokenizer(texts())["input_ids"] == made(texts())["input_ids"]
    assert tokenizer.is_fast
    assert tokenizer.unk_token_id not in tokenizer(texts()[0])["input_ids"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_positions_point_at_the_markers_at_every_length(family, scheme):
    """Also where the sentence had to be cut: both entities and their markers are still there."""
    _, tokenizer = load_encoder(family, scheme, TYPES, LENGTH, 0)
    check_known(tokenizer, scheme, TYPES)
    cut, lost = 0, []
    for length in (28, 40, LENGTH):
        featurizer = Featurizer(tokenizer, TAXONOMY, scheme, False, length, TYPES)
        for row, found in featurizer.stream(ROWS, lambda number, row, error: lost.append(str(error))):
            pieces = [bare(piece) for piece in tokenizer.convert_ids_to_tokens(found.input_ids.tolist())]
            assert len(pieces) <= length
            for role, entity, columns in (("subject", row.subject, (0, 1)), ("object", row.object, (2, 3))):
                before, after = MARKERS[scheme](role, entity.type)
                start, end = (found.positions[column] for column in columns)
                assert (pieces[start], pieces[end]) == (before.split()[0], after)
                inside = tokenizer.decode(found.input_ids[start : end + 1]).replace(" ", "")
                assert entity.word.replace(" ", "") in inside
            cut += len(pieces) == length
    assert cut
    assert len(lost) < len(ROWS)
    assert all("the two marked entities take" in error for error in lost), lost[:1]


def test_special_markers_have_rows_of_their_own(family):
    plain, before = load_encoder(family, "typed_punct_ko", TYPES, LENGTH, 0)
    encoder, tokenizer = load_encoder(family, "typed_special", TYPES, LENGTH, 0)
    pieces = markers.pieces("typed_special", TYPES)
    table, old = encoder.get_input_embeddings().weight, plain.get_input_embeddings().weight
    assert len(table) == len(tokenizer) == len(before) + len(pieces)
    assert torch.equal(table[: len(old)], old)
    for piece in pieces:
        assert len(tokenizer(f"가 {piece} 나", add_special_tokens=False)["input_ids"]) >= 2
        assert tokenizer.convert_ids_to_tokens(tokenizer.convert_tokens_to_ids(piece)) == piece


def test_fused_attention_is_used_where_the_family_has_it_and_changes_nothing(family):
    encoder, _ = load_encoder(family, "typed_punct_ko", TYPES, LENGTH, 0)
    assert encoder.config._attn_implementation == ("eager" if "deberta" in encoder.config.model_type else "sdpa")
    plain = AutoModel.from_pretrained(family, attn_implementation="eager").eval()
    torch.manual_seed(2)
    ids, attention = torch.randint(5, 50, (3, 20)), torch.ones(3, 20, dtype=torch.long)
    attention[1, 12:] = attention[2, 5:] = 0
    with torch.no_grad():
        ours, theirs = (
            network.eval()(input_ids=ids, attention_mask=attention).last_hidden_state for network in (encoder, plain)
        )
    seen = attention.bool()
    torch.testing.assert_close(ours[seen], theirs[seen], rtol=1e-4, atol=1e-5)


# ---- learning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_every_parameter_learns(family, precision):
    made, tokenizer, table = built(family, "typed_special", pooling="cls_markers")
    rows = np.arange(0, len(ROWS), 4)
    batch = dict(Collator(table, tokenizer.pad_token_id, made.takes_types)(rows))
    targets = batch.pop("targets")
    counts = {head.name: int((targets[:, at] != IGNORE).sum()) for at, head in enumerate(TAXONOMY.heads)}
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    losses = []
    made.train()
    for _ in range(3):
        with device.autocast(torch.device("cpu"), precision):
            found = head_losses(made(**batch), targets, LossConfig())
        loss = combine(found, counts, len(rows), dict.fromkeys(counts, 1.0), "joint")
        loss.backward()
        without = [name for name, parameter in made.named_parameters() if parameter.grad is None]
        assert not without, without
        assert all(torch.isfinite(parameter.grad).all() for parameter in made.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_checkpointing_changes_no_gradient(family):
    gradients = []
    for checkpointing in (False, True):
        made, tokenizer, table = built(family, "typed_punct_ko")
        if checkpointing:
            made.encoder.gradient_checkpointing_enable({"use_reentrant": False})
            assert made.encoder.is_gradient_checkpointing
        batch = dict(Collator(table, tokenizer.pad_token_id, made.takes_types)(np.arange(6)))
        batch.pop("targets")
        torch.manual_seed(9)
        sum(logits.sum() for logits in made.train()(**batch).values()).backward()
        gradients.append({name: parameter.grad for name, parameter in made.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_what_is_saved_is_what_is_loaded(family, tmp_path):
    made, tokenizer, table = built(family, "typed_special")
    for part in (made.eval(), tokenizer):
        part.save_pretrained(tmp_path)
    expected = inference.all_logits(made, table, tokenizer.pad_token_id, 16)
    again, loaded = model.load(str(tmp_path))
    same = Featurizer(loaded, TAXONOMY, "typed_special", False, LENGTH, TYPES).table(ROWS)
    assert np.array_equal(same.ids, table.ids)
    assert np.array_equal(inference.all_logits(again, same, loaded.pad_token_id, 16), expected)
    packed = inference.all_logits(again, same, loaded.pad_token_id, len(ROWS))
    np.testing.assert_allclose(packed, expected, rtol=0, atol=1e-5)  # padding changes nothing


def test_the_masked_lm_head_sees_hidden_tokens_only(family):
    """The loss of `adapt` over the hidden tokens is that of the whole network."""
    network, tokenizer = encoders.load_masked_lm(family, LENGTH)
    coded = tokenizer([row.sentence for row in ROWS[:4]], padding=True, return_tensors="pt")
    ids, attention = coded["input_ids"], coded["attention_mask"]
    drawn = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    targets = torch.where(drawn & attention.bool(), ids, IGNORE)
    with torch.no_grad():
        logits = network.eval()(input_ids=ids, attention_mask=attention).logits
        found = adapt_run.MaskedLanguageModel(network)(ids, attention, targets)
    whole = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    assert found.item() == pytest.approx(whole.item(), rel=1e-4)


# ---- the commands --------------------------------------------------------------------------------------------------

LOGITS = """
import json, sys
import numpy as np, torch
torch.set_num_threads(1)
from mtl_re.model import network as model
from mtl_re.scoring import inference, composed
from mtl_re.data.validation import parse_row
given = json.load(open("rows.json"))
made, tokenizer = model.load(sys.argv[1])
rows = [parse_row(row, made.taxonomy) for row in given]
table = composed.featurizer_of(made, tokenizer).table(rows)
np.save("logits.npy", inference.all_logits(made, table, tokenizer.pad_token_id, 16))
"""


@pytest.mark.slow
def test_adapt_train_and_export(family, tmp_path):
    rows = tmp_path / "rows.jsonl"
    text = "\n".join(json.dumps(row.to_row(), ensure_ascii=False) for row in ROWS)
    rows.write_text(text, encoding="utf-8")
    adapted, run, out = (str(tmp_path / name) for name in ("adapted", "run", "out"))
    common = [f"--data.max_length={LENGTH}", "--train.batch_size=16", "--train.max_steps=3", "--train.epochs=1"]
    common += ["--train.precision=bf16", "--train.gradient_checkpointing=true", f"--data.train={rows}"]
    adapting = ["--data.held_out=0.2", "--mask.entities=true", f"--model.encoder={family}", "--train.run_dir", adapted]
    assert cli.main(["adapt", *common, *adapting]) == 0
    training = ["--data.markers=typed_special", f"--model.encoder={adapted}/model", "--train.run_dir", run]
    assert cli.main(["train", *common, *training]) == 0
    assert cli.main(["export", run, out, "--onnx", "--check_data", str(rows)]) == 0
    report = json.loads((tmp_path / "run" / "valid_metrics.json").read_text())
    assert report["n"] > 0
    (tmp_path / "rows.json").write_text(json.dumps([row.to_row() for row in ROWS]), encoding="utf-8")
    call = [sys.executable, "-c", LOGITS, run]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    made, tokenizer = model.load(run)
    table = Featurizer(tokenizer, TAXONOMY, "typed_special", False, LENGTH, made.config.entity_types).table(ROWS)
    here = inference.all_logits(made, table, tokenizer.pad_token_id, 16)
    assert np.array_equal(here, np.load(tmp_path / "logits.npy"))
