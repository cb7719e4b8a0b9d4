"""Levitated markers: pairs scored together are the pairs scored one by one, in every family, padded and packed."""

import json
from itertools import permutations

import numpy as np
import pytest
import torch
from conftest import TYPES, enliven, sample_examples, scratch_tokenizer
from transformers import AutoConfig, AutoModel

from experiments import pairs_speed
from mtl_re.data.validation import Entity, Example
from mtl_re.errors import MtlReError, RowError
from mtl_re.export import onnx_graph
from mtl_re.export.remote import modeling_mtl_re as remote
from mtl_re.features import levitated, markers
from mtl_re.features.collate import Collator, text_batches
from mtl_re.features.featurizer import Featurizer
from mtl_re.model.cpu import speed_up
from mtl_re.model.levitated import FAMILIES
from mtl_re.model.network import MtlReConfig, MtlReModel, join_heads, split_heads
from mtl_re.model.onnx_model import OnnxModel
from mtl_re.model.pooling import POOLINGS
from mtl_re.scoring.composed import featurizer_of
from mtl_re.scoring.decoding import Decoding, decode
from mtl_re.scoring.inference import all_logits
from mtl_re.taxonomy import Taxonomy

TAXONOMY = Taxonomy.from_prefixes()
SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
KINDS = {
    "bert": {"type_vocab_size": 2},
    "electra": {"type_vocab_size": 2, "embedding_size": 16},
    "roberta": {"type_vocab_size": 1, "pad_token_id": 1},
    "xlm-roberta": {"type_vocab_size": 1, "pad_token_id": 1},
    "modernbert": {"pad_token_id": 0, "global_attn_every_n_layers": 2, "local_attention": 8},
}
SENTENCES = {
    "서울대학교병원은 어제 김민아 교수를 병원장으로 임명하였다고 밝혔다.": [
        (0, 6, "ORG"), (2, 4, "ORG"), (12, 14, "PER"), (16, 17, "POH"), (20, 22, "POH"),
    ],
    "가나전자 대표는 한라희이다.": [(0, 3, "ORG"), (5, 6, "POH"), (9, 11, "PER")],
    "누리는 1998년 부산에서 태어났다.": [(0, 1, "PER"), (4, 8, "DAT"), (10, 11, "LOC")],
}  # fmt: skip


def pairs_of(sentence, entities):
    spans = [Entity(sentence[start : end + 1], start, end, kind) for start, end, kind in entities]
    return [Example(f"{a.start}-{b.start}", sentence, a, b, "no_relation") for a, b in permutations(spans, 2)]


ROWS = [row for sentence, entities in SENTENCES.items() for row in pairs_of(sentence, entities)]


@pytest.fixture(scope="module")
def tokenizer():
    return scratch_tokenizer(ROWS, "levitated")


@pytest.fixture(scope="module")
def table(tokenizer):
    return Featurizer(tokenizer, TAXONOMY, "levitated", False, 128, TYPES).table(ROWS)


def network(kind, tokenizer, pooling="cls_markers_both", **settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **SIZE | KINDS[kind])
    encoder = {**config.to_dict(), "model_type": kind}
    return enliven(MtlReModel(MtlReConfig(encoder=encoder, markers="levitated", pooling=pooling, **settings))).eval()


def one_by_one(model, table):
    collate = Collator(table, 0, model.takes_types, levitated=True)
    with torch.inference_mode():
        parts = []
        for row in range(len(table)):
            batch = {name: part for name, part in collate([row]).items() if name != "targets"}
            parts.append(join_heads(model(**batch), model.taxonomy))
    return torch.cat(parts)


def scores(logits):
    """Probabilities, by the soft gate."""
    return decode(split_heads(logits, TAXONOMY), TAXONOMY, Decoding("soft")).probs


def test_every_family_is_tested():
    assert set(KINDS) == set(FAMILIES)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_together_are_the_pairs_one_by_one(kind, attention, tokenizer, table):
    model = network(kind, tokenizer)
    if attention == "eager":
        model.encoder.set_attn_implementation("eager")
    alone = one_by_one(model, table)
    assert alone.std(0).min() > 0.05  # pairs differ
    if attention == "packed":
        speed_up(model)
        assert model.packed
    for batch_size in (1, 4, 7, 64):
        together = all_logits(model, table, 0, batch_size)
        assert (scores(together) - scores(alone)).abs().max() < 1e-5


def test_order_and_grouping_do_not_matter(tokenizer, table):
    model = network("bert", tokenizer)
    alone, collate = one_by_one(model, table), Collator(table, 0, True, 8, levitated=True)
    order = np.random.default_rng(0).permutation(len(table))
    batch = {name: part for name, part in collate(order).items() if name != "targets"}
    assert len(batch["input_ids"]) == len(SENTENCES)
    with torch.inference_mode():
        found = join_heads(model(**batch), model.taxonomy)
    assert (found - alone[order]).abs().max() < 1e-5


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_of_packed_and_padded_passes_are_the_same(pooling, tokenizer, table):
    gradients = []
    batch = Collator(table, 0, True, 8, levitated=True)(np.arange(len(table)))
    batch.pop("targets")
    for packed in (False, True):
        model = network("bert", tokenizer, pooling)
        if packed:
            speed_up(model)
        join_heads(model(**batch), model.taxonomy).square().sum().backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    largest = max(value.abs().max() for value in gradients[0].values())
    for name, value in gradients[0].items():
        assert (value - gradients[1][name]).abs().max() < 1e-5 * largest, name


def test_the_text_does_not_see_the_markers(tokenizer, table):
    model = network("bert", tokenizer)
    states = []
    for row in (0, 1):
        batch = Collator(table, 0, False, levitated=True)([row])
        with torch.inference_mode():
            options = {name: batch[name] for name in ("position_ids", "pairs")}
            states.append(model.encode(model.encoder, batch["input_ids"], batch["attention_mask"], **options)[0])
    text = len(states[0]) - levitated.MARKS
    assert torch.equal(states[0][:text], states[1][:text])
    assert (states[0][text:] - states[1][text:]).abs().max() > 1e-2


def test_markers_stand_at_the_tokens_they_mark(tokenizer, table):
    featurizer = Featurizer(tokenizer, TAXONOMY, "levitated", False, 128, TYPES)
    for row, features in featurizer.stream(ROWS):
        pieces = tokenizer.convert_ids_to_tokens(features.input_ids.tolist())
        assert pieces[-4:] == [f"<S:{row.subject.type}>", f"</S:{row.subject.type}>", f"<O:{row.object.type}>",
                               f"</O:{row.object.type}>"]  # fmt: skip
        for entity, (first, last) in zip((row.subject, row.object), features.positions.reshape(2, 2), strict=True):
            word = tokenizer.decode(features.input_ids[first : last + 1]).replace(" ", "")
            assert entity.word in word
    (grouped,) = text_batches(table, 64)
    batch = Collator(table, 0, True, levitated=True)(grouped)
    for place, row in enumerate(grouped):
        sequence, *marks = batch["positions"][place].tolist()
        assert batch["position_ids"][sequence, marks].tolist() == table.positions[row].tolist()
        assert batch["input_ids"][sequence, marks].tolist() == table[row].input_ids[-4:].tolist()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 64])
def test_a_text_is_in_several_batches_only_where_one_cannot_hold_it(table, batch_size):
    batches = text_batches(table, batch_size)
    assert sorted(row for batch in batches for row in batch) == list(range(len(table)))
    assert max(map(len, batches)) <= batch_size
    texts = [{table[row].input_ids[: -levitated.MARKS].tobytes() for row in batch} for batch in batches]
    for text in set().union(*texts):
        rows = sum(table[row].input_ids[: -levitated.MARKS].tobytes() == text for row in range(len(table)))
        assert sum(text in held for held in texts) == -(-rows // batch_size)


@pytest.mark.parametrize("room", [20, 26, 40])
def test_truncation_keeps_both_spans_or_names_the_row(room, tokenizer):
    sentence = "가나 " * 20 + "서울 병원 " + "다라 " * 20 + "김민아"
    row = Example(
        "a", sentence, Entity("서울", 60, 61, "LOC"), Entity("김민아", len(sentence) - 3, len(sentence) - 1, "PER")
    )
    featurizer = Featurizer(tokenizer, TAXONOMY, "levitated", False, room, TYPES)
    features = featurizer.table([row])[0]
    assert len(features.input_ids) <= room
    kept = tokenizer.decode(features.input_ids[features.positions[0] : features.positions[1] + 1])
    assert kept.replace(" ", "") == "서울"
    refused = []
    tight = Featurizer(tokenizer, TAXONOMY, "levitated", False, 7, TYPES)
    tight.table([row], lambda number, example, error: refused.append(error))
    assert isinstance(refused[0], RowError)
    assert refused[0].field == "sentence"


def test_deberta_is_refused_with_the_reason(tokenizer):
    values = {**AutoConfig.for_model("deberta-v2", vocab_size=len(tokenizer), **SIZE).to_dict()}
    with pytest.raises(MtlReError, match="DeBERTa's relative positions come from where tokens stand"):
        MtlReModel(MtlReConfig(encoder={**values, "model_type": "deberta-v2"}, markers="levitated"))


def test_unmark_is_the_inverse():
    for row in ROWS:
        marked = markers.mark(row.sentence, row.subject, row.object, "levitated")
        spans = [(entity.start, entity.end) for entity in (row.subject, row.object)]
        assert markers.unmark(marked) == (row.sentence, *spans)


@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_network_gives_the_same(kind, tokenizer, table):
    ours = network(kind, tokenizer)
    theirs = remote.MtlReModel(remote.MtlReConfig(**ours.config.to_dict()))
    theirs.load_state_dict(ours.state_dict())
    batch = Collator(table, 0, ours.takes_types, levitated=True)(np.arange(len(table)))
    batch.pop("targets")
    with torch.inference_mode():
        expected, found = ours(**batch), theirs.eval()(**batch)
    for name, logits in expected.items():
        assert (logits - found[name]).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_gives_the_same(kind, tokenizer, tmp_path):
    model, path = network(kind, tokenizer, entity_types=TYPES, max_input_length=128), tmp_path / "model.onnx"
    about = onnx_graph.write_graph(model, Decoding(), path)
    assert {"pairs", "position_ids"} <= set(about["inputs"])
    report, outputs = onnx_graph.check_graph(path, model, tokenizer, ROWS, Decoding())
    assert report["equal_labels"] == 1
    graph = OnnxModel(path, model.config)
    for row in (0, 5, 21):
        alone = onnx_graph.graph_outputs(graph, featurizer_of(model, tokenizer).table([ROWS[row]]), 0, 1, "one")
        assert np.abs(alone["probabilities"][0] - outputs["probabilities"][row]).max() < 1e-5


@pytest.mark.slow
def test_the_speed_of_pairs_is_measured_in_turns(tmp_path, monkeypatch, capsys):
    tokenizer = scratch_tokenizer(sample_examples("train", 100), "typed_punct_ko")
    encoder = AutoModel.from_config(AutoConfig.for_model("bert", vocab_size=len(tokenizer), **SIZE | KINDS["bert"]))
    for part in (encoder, tokenizer):
        part.save_pretrained(tmp_path / "encoder")
    rows = [row.to_row() for row in sample_examples("valid", 60)]
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    words = [str(tmp_path / "encoder"), str(tmp_path / "rows.json"), "--entities", "3", "--sentences", "4"]
    output = tmp_path / "speed.json"
    monkeypatch.setattr("sys.argv", ["pairs_speed.py", *words, "--repeats", "2", "--output", str(output)])
    assert pairs_speed.main() == 0
    figures = json.loads(output.read_text(encoding="utf-8"))["counts"]["3"]
    assert figures["sentences"] == 4
    assert len(figures["ratios"]) == 2
    assert set(figures["sentences_per_s"]) == {"default", "levitated"}
