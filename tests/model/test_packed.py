"""A packed sequence gives what a padded batch gives: values, gradients, and every position in its own row."""

import pytest
import torch
from conftest import tiny_model
from transformers import AutoConfig, AutoModel

from mtl_re.model.cpu import packed as packing
from mtl_re.model.cpu import speed_up
from mtl_re.model.network import split_heads
from mtl_re.scoring import inference
from mtl_re.scoring.decoding import Decoding, decode

SIZE = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
KINDS = {
    "bert": {"type_vocab_size": 2},
    "electra": {"type_vocab_size": 2, "embedding_size": 16},
    "roberta": {"type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 40},
    "xlm-roberta": {"type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 40},
    "modernbert": {
        "pad_token_id": 3,
        "global_attn_every_n_layers": 2,
        "local_attention": 8,
        "reference_compile": False,
    },
}
LENGTHS = [3, 30, 7, 8, 30, 12, 1]


def tiny_encoder(kind):
    torch.manual_seed(0)
    encoder = AutoModel.from_config(AutoConfig.for_model(kind, **SIZE | KINDS[kind])).eval()
    for parameter in encoder.parameters():  # at their small first values, rows would hardly differ
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    return encoder


def rows(kind, lengths=LENGTHS):
    torch.manual_seed(1)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 50, mask.shape)
    ids[mask == 0] = KINDS[kind].get("pad_token_id", 0)
    return ids, mask


def packed(encoder, ids, mask, types=None):
    before = encoder.config._attn_implementation
    assert packing.use_packed_attention(encoder)
    hidden = packing.packed_states(encoder, ids, mask, types)
    encoder.set_attn_implementation(before)
    return hidden


def padded(encoder, ids, mask, **types):
    return encoder(input_ids=ids, attention_mask=mask, **types).last_hidden_state


def test_every_supported_kind_is_tested():
    assert set(KINDS) == set(packing.FAMILIES)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_padded(kind):
    encoder = tiny_encoder(kind)
    ids, mask = rows(kind)
    found, expected = packed(encoder, ids, mask), padded(encoder, ids, mask)
    assert found.shape == expected.shape
    real = mask.bool()
    assert (found - expected)[real].abs().max() < 1e-5
    assert expected[real].std() > 0.1
    alone = padded(encoder, ids[2:3, :7], mask[2:3, :7])
    assert (found[2, :7] - alone[0]).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_same(kind):
    encoder = tiny_encoder(kind)
    ids, mask = rows(kind)
    target = torch.randn(*mask.shape, SIZE["hidden_size"]) * mask[..., None]
    gradients = []
    for encode in (packed, padded):
        encoder.zero_grad()
        (encode(encoder, ids, mask) * target).sum().backward()
        gradients.append(
            {name: value.grad.clone() for name, value in encoder.named_parameters() if value.grad is not None}
        )
    one, other = gradients
    assert set(one) == set(other)
    largest = max(value.abs().max() for value in other.values())
    for name in one:
        assert (one[name] - other[name]).abs().max() < 1e-5 * largest, name


@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_segments_go_along(kind):
    encoder = tiny_encoder(kind)
    ids, mask = rows(kind)
    types = ((torch.arange(ids.shape[1]) > 2) & mask.bool()).long()
    found = packed(encoder, ids, mask, types)
    assert (found - padded(encoder, ids, mask, token_type_ids=types))[mask.bool()].abs().max() < 1e-5
    assert (found - packed(encoder, ids, mask))[mask.bool()].abs().max() > 1e-2


@pytest.mark.parametrize("lengths", [[1], [5], [64], [9] * 6, list(range(1, 30))], ids=str)
def test_any_lengths(lengths):
    encoder = tiny_encoder("bert")
    ids, mask = rows("bert", lengths)
    found, expected = packed(encoder, ids, mask), padded(encoder, ids, mask)
    assert (found - expected)[mask.bool()].abs().max() < 1e-5


def test_batch_may_be_wider_than_its_longest_row():
    encoder = tiny_encoder("bert")
    ids, mask = rows("bert")
    wide = [torch.nn.functional.pad(tensor, (0, 5)) for tensor in (ids, mask)]
    found = packed(encoder, *wide)
    assert found.shape[1] == ids.shape[1] + 5
    assert torch.equal(found[:, : ids.shape[1]][mask.bool()], packed(encoder, ids, mask)[mask.bool()])


def test_little_padding_is_left():
    torch.manual_seed(0)
    lengths = torch.randint(20, 200, (32,)).numpy()
    tokens = packing.packed_tokens(lengths)
    assert tokens % packing.PACKED_STEP == 0
    assert lengths.sum() <= tokens < lengths.sum() + packing.PACKED_STEP
    blocks = packing.Layout(lengths, 200).blocks
    assert sum(block.rows for block in blocks) == len(lengths)
    assert 1 < len(blocks) < len(lengths)
    assert sum(block.rows * block.length for block in blocks) < 1.3 * lengths.sum()


def test_moves_lead_there_and_back():
    lengths = torch.tensor(LENGTHS).numpy()
    layout = packing.Layout(lengths, 33)
    states = torch.arange(1.0, 1 + layout.tokens * 2 * 3).unflatten(0, (-1, 3)).requires_grad_()  # two heads
    there, back = layout.moves(2)
    blocks = packing._Move.apply(states, there, back)
    assert len(blocks) == sum(block.rows * 2 * block.length for block in layout.blocks)
    returned = packing._Move.apply(blocks, back, there)
    real = torch.arange(layout.tokens * 2) < 2 * sum(LENGTHS)
    assert torch.equal(returned[real], states[real])
    assert not returned[~real].any()
    returned.sum().backward()
    assert torch.equal(states.grad, real[:, None].expand(-1, 3).float())  # nothing comes back to the fill


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_products_are_attention(dropout):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 4, 2, 9, 8, dtype=torch.double).requires_grad_()
    allowed = torch.rand(4, 1, 1, 9) > 0.3
    allowed[..., 0] = True
    torch.manual_seed(1)
    found = packing._products(query, key, value, allowed, dropout, None)
    if dropout:  # what is dropped differs by kernel: only that something is, and what is left is scaled up
        assert (found - packing._products(query, key, value, allowed, 0.0, None)).abs().max() > 1e-3
        return
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    assert torch.allclose(found, expected, atol=1e-12)


def test_gradients_in_bf16_are_finite_and_near():
    """Under a window, a padded place far behind its row has nothing real to see: 0 / 0 would reach every weight."""
    encoder = tiny_encoder("modernbert")
    ids, mask = rows("modernbert")
    target = torch.randn(*mask.shape, SIZE["hidden_size"]) * mask[..., None]
    gradients = []
    for autocast in (True, False):
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            hidden = packed(encoder, ids, mask)
        (hidden.float() * target).sum().backward()
        gradients.append(torch.cat([value.grad.flatten() for value in encoder.parameters() if value.grad is not None]))
    half, plain = gradients
    assert half.isfinite().all()
    assert torch.nn.functional.cosine_similarity(half, plain, dim=0) > 0.9


def test_bf16_stays_near_fp32(tokenizer, table):
    """Attention of bf16 (two matrix products) against fp32's fused kernel, over a whole model."""
    model = tiny_model(tokenizer)
    speed_up(model)
    plain, half = (inference.all_logits(model, table, tokenizer.pad_token_id, 16, name) for name in ("no", "bf16"))
    assert 0 < abs(half - plain).max() < 0.15 * abs(plain).max()


def test_other_encoders_stay_padded(tokenizer):
    config = AutoConfig.for_model("deberta-v2", **SIZE)
    assert not packing.use_packed_attention(AutoModel.from_config(config))
    model = tiny_model(tokenizer)
    model.encoder.compile(dynamic=True)
    speed_up(model)
    assert not model.packed


def test_model_gives_the_same_logits_either_way(tokenizer, table):
    model = tiny_model(tokenizer)
    plain = inference.all_logits(model, table, tokenizer.pad_token_id, 16)
    speed_up(model)
    assert model.packed
    found = inference.all_logits(model, table, tokenizer.pad_token_id, 16)
    assert abs(found - plain).max() < 1e-5 * abs(plain).max()
    taxonomy = model.taxonomy
    first, second = (decode(split_heads(one, taxonomy), taxonomy, Decoding()).probs for one in (found, plain))
    assert abs(first - second).max() < 1e-5
