"""Every encoder family with its real tokenizer class, a vocabulary trained here and random weights: rows are read
right, every parameter learns, and what is saved, adapted or exported is the same network."""

import json
import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import TYPES, sample_examples, small_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertTokenizer,
    DebertaV2Tokenizer,
    ElectraTokenizer,
    PreTrainedTokenizerFast,
    XLMRobertaTokenizer,
)

from mtl_re import adapt_run, cli, encoders, inference, markers, model
from mtl_re.collate import Collator
from mtl_re.config import LossConfig
from mtl_re.encoders import load_encoder
from mtl_re.features import FeatureTable, Featurizer, check_known
from mtl_re.losses import combine, head_losses
from mtl_re.markers import ADDS_TOKENS, MARKERS
from mtl_re.taxonomy import IGNORE, Taxonomy

ROWS = sample_examples("train", 48)
SCHEMES = ("typed_punct_ko", "typed_special")
LENGTH = 96
TAXONOMY = Taxonomy.from_prefixes()


# ---- tokenizers, as the families ship them -------------------------------------------------------------------------


def texts() -> list[str]:
    """Sentences, and every marker that is no token of its own."""
    written = [" ".join(markers.pieces(scheme, TYPES)) for scheme in MARKERS if scheme not in ADDS_TOKENS]
    return [row.sentence for row in ROWS] + 3 * written


def word_piece(kind):
    words = Counter(word for text in texts() for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text))
    return kind(vocab=encoders.scratch_vocabulary(words, 800), do_lower_case=False)


def unigram(specials: list[str]) -> list[tuple[str, float]]:
    """Pieces and log shares for SentencePiece's unigram model, special tokens first. (The `tokenizers` trainer gives
    another vocabulary each time.) No piece joins a space and a sign, so that a lone `▁` is tested too."""
    words = [f"▁{word}" for text in texts() for word in text.split()]
    counts = Counter(
        word[start:stop]
        for word in words
        for start in range(len(word))
        for stop in range(start + 1, min(start + 5, len(word) + 1))
        if word[start:stop] == "▁" or not word[start : start + 2].startswith("▁") or word[start + 1].isalnum()
    )
    single = sorted(piece for piece in counts if len(piece) == 1)
    longer = sorted((piece for piece in counts if len(piece) > 1), key=lambda piece: (-counts[piece], piece))
    total = sum(counts.values())
    return [(piece, 0.0) for piece in specials] + [
        (piece, math.log(counts[piece] / total)) for piece in [*single, *longer[:400]]
    ]


def xlm_roberta():
    return XLMRobertaTokenizer(vocab=[*unigram(["<s>", "<pad>", "</s>", "<unk>"]), ("<mask>", 0.0)])


def deberta_v2():
    return DebertaV2Tokenizer(vocab=unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]), unk_id=3)


def byte_level():
    """As ModernBERT ships it: no class of its own, BERT's special tokens around byte-level pieces."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=names, initial_alphabet=sorted(alphabet), show_progress=False
    )
    core.train_from_iterator(texts(), trainer)
    ends = [(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=core, **dict(zip(roles, names, strict=True)))


FAMILIES = {
    "bert": ("bert", {}, lambda: word_piece(BertTokenizer)),
    "klue-roberta": ("roberta", {"max_position_embeddings": LENGTH + 2}, lambda: word_piece(BertTokenizer)),
    "xlm-roberta": ("xlm-roberta", {"max_position_embeddings": LENGTH + 2, "type_vocab_size": 1}, xlm_roberta),
    "electra": ("electra", {}, lambda: word_piece(ElectraTokenizer)),
    "deberta-v2": ("deberta-v2", {"type_vocab_size": 0}, deberta_v2),
    "modernbert": ("modernbert", {"global_attn_every_n_layers": 2, "local_attention": 16}, byte_level),
}
"""Name → model type, its options, tokenizer. kf-deberta is a deberta-v2."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory, monkeypatch_module) -> str:
    """An encoder's directory with its masked-LM head, as the hub would give it."""
    kind, options, make = FAMILIES[request.param]
    folder, tokenizer = tmp_path_factory.mktemp(request.param), make()
    if kind == "xlm-roberta":
        monkeypatch_module.setitem(small_config.__globals__["ENCODERS"], kind, {})
    config = small_config(kind, **options, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    torch.manual_seed(1)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


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


# ---- learning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_every_parameter_learns(family, precision):
    made, tokenizer, table = built(family, "typed_special", pooling="cls_markers")
    rows = np.arange(0, len(ROWS), 4)
    batch = dict(Collator(table, tokenizer.pad_token_id, made.takes_types, [IGNORE] * 3)(rows))
    targets = batch.pop("targets")
    counts = {head.name: int((targets[:, at] != IGNORE).sum()) for at, head in enumerate(TAXONOMY.heads)}
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    losses = []
    made.train()
    for _ in range(3):
        with inference.autocast(torch.device("cpu"), precision):
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
        batch = dict(Collator(table, tokenizer.pad_token_id, made.takes_types, [IGNORE] * 3)(np.arange(6)))
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
from mtl_re import inference, model, scorer
from mtl_re.data import parse_row
given = json.load(open("rows.json"))
made, tokenizer = model.load(sys.argv[1])
rows = [parse_row(row, made.taxonomy) for row in given]
table = scorer.featurizer_of(made, tokenizer).table(rows)
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
