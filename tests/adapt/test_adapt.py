"""Masked-LM adaptation: nothing lost, nothing leaked, the same masks always, and a run that goes on exactly."""

import json
import math
import os
import signal
import subprocess
import time
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from conftest import SCHEME, TYPES, sample_examples
from distributed_worker import launch_environment, launcher
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoConfig, ModernBertForMaskedLM

from mtl_re import cli, config
from mtl_re.adapt import adapt
from mtl_re.adapt import setup as adapt_run
from mtl_re.adapt import text as adapt_data
from mtl_re.adapt.masking import MaskRule, Units, mask_tokens, text_units, word_numbers
from mtl_re.adapt.text import LeakGuard, Text, hold_out, merged, pack, read_texts, words_of
from mtl_re.config import AdaptConfig, AdaptDataConfig, AdaptModelConfig, AdaptTrainConfig, MaskConfig, OptimConfig
from mtl_re.errors import MtlReError
from mtl_re.features import featurizer as features
from mtl_re.model import encoders
from mtl_re.model import network as model
from mtl_re.taxonomy import IGNORE
from mtl_re.training import checkpoint

# ---- masks ---------------------------------------------------------------------------------------------------------

RULE = MaskRule(probability=0.15, entities=0.5, mask_id=4, ordinary=np.arange(5, 300))


@st.composite
def units_of(draw):
    number = np.array(draw(st.lists(st.integers(-1, 30), max_size=80)), np.int32)
    chosen = draw(st.sets(st.integers(0, 30)))
    return Units(number, np.isin(number, list(chosen)))


@settings(max_examples=60, deadline=None)
@given(units_of(), st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1))
def test_masks_hide_whole_units_and_no_special_token(units, seed, probability, entities):
    ids = np.arange(len(units.number)) + 5
    rule = MaskRule(probability, entities, RULE.mask_id, RULE.ordinary)
    inputs, targets = mask_tokens(ids, units, rule, np.random.default_rng(seed))
    hidden = targets != IGNORE
    assert (targets[hidden] == ids[hidden]).all()
    assert (inputs[~hidden] == ids[~hidden]).all()
    assert not hidden[units.number < 0].any()
    for number in set(units.number[units.number >= 0]):
        assert len(set(hidden[units.number == number])) == 1
    changed = hidden & (inputs != ids)
    assert np.isin(inputs[changed], [RULE.mask_id, *RULE.ordinary]).all()
    again = mask_tokens(ids, units, rule, np.random.default_rng(seed))
    assert (again[0] == inputs).all()
    assert (again[1] == targets).all()


def test_shares_are_those_of_the_paper():
    count = 60_000
    entity = np.arange(count) % 4 == 0
    ids = np.full(count, 299)
    inputs, targets = mask_tokens(ids, Units(np.arange(count, dtype=np.int32), entity), RULE, np.random.default_rng(0))
    hidden = targets != IGNORE
    assert hidden[~entity].mean() == pytest.approx(0.15, abs=0.01)
    assert hidden[entity].mean() == pytest.approx(0.5, abs=0.02)
    shown = inputs[hidden]
    assert (shown == RULE.mask_id).mean() == pytest.approx(0.8, abs=0.015)
    assert (shown == 299).mean() == pytest.approx(0.1, abs=0.015)
    assert len(set(shown)) > 250


def offsets_of(text: str, width: int) -> list[tuple[int, int]]:
    """Tokens of at most `width` characters, none over a space."""
    spans, start = [], 0
    for word in text.split(" "):
        spans += [(start + cut, start + min(cut + width, len(word))) for cut in range(0, len(word), width)]
        start += len(word) + 1
    return spans


def test_words_are_runs_of_letters_or_single_signs():
    assert word_numbers("가나, 다1 !?").tolist() == [0, 0, 1, -1, 2, 2, -1, 3, 4]


def test_a_word_is_one_unit_and_so_is_an_entity():
    text = "세종대왕은 조선의 왕이다."
    offsets = offsets_of(text, 2)
    assert text_units(text, offsets, "token", []).number.tolist() == list(range(len(offsets)))
    whole = text_units(text, offsets, "whole_word", [])
    assert whole.number.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert not whole.entity.any()
    marked = text_units(text, offsets, "whole_word", [(0, 4)])
    assert marked.entity.tolist() == [True, True] + [False] * 5
    assert len({*marked.number[:2]}) == 1
    assert marked.number[0] not in marked.number[2:], "the particle is not the entity's"


def test_a_lone_space_mark_goes_with_its_word():
    text = " 가나 다"
    units = text_units(text, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)], "whole_word", [])
    assert units.number.tolist() == [0, 0, 0, 1, 1]


# ---- blocks --------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 25), max_size=30),
    st.integers(1, 20),
    st.integers(0, 3),
    st.sampled_from(["greedy", "none"]),
)
@example([5, 5], 10, 1, "greedy")  # as many tokens as a block, but for the gap
@example([5, 4, 1], 10, 1, "greedy")
def test_packing_keeps_every_token_once_and_in_order(lengths, capacity, gap, mode):
    blocks = pack(lengths, capacity, gap, mode)
    flat = [(text, token) for block in blocks for text, start, stop in block for token in range(start, stop)]
    assert flat == [(text, token) for text, length in enumerate(lengths) for token in range(length)]
    for block in blocks:
        assert block
        assert sum(stop - start for _, start, stop in block) + gap * (len(block) - 1) <= capacity
        assert mode == "greedy" or len(block) == 1
    if mode == "greedy":  # no text waits for a block of its own while it fits
        for block, after in pairwise(blocks):
            used = sum(stop - start for _, start, stop in block) + gap * len(block)
            text, start, _ = after[0]
            assert used + lengths[text] - start > capacity


def options(**groups) -> AdaptConfig:
    made = {"data": AdaptDataConfig, "model": AdaptModelConfig, "mask": MaskConfig, "optim": OptimConfig}
    made["train"] = AdaptTrainConfig
    return AdaptConfig(
        exclude=groups.pop("exclude", []), **{name: made[name](**values) for name, values in groups.items()}
    )


def test_blocks_hold_the_texts_between_the_tokenizers_own_signs(tokenizer, examples):
    texts = merged(Text(row.sentence, ((row.subject.start, row.subject.end + 1),)) for row in examples[:12])
    settings = options(data={"max_length": 48}, mask={"entities": True})
    blocks = adapt_data.make_blocks(texts, tokenizer, settings)
    assert 1 < len(blocks) < len(texts)
    assert blocks.lengths.max() <= 48
    special = set(tokenizer.all_special_ids)
    for block in range(len(blocks)):
        ids, units = blocks[block]
        assert ids[0] == tokenizer.cls_token_id
        assert ids[-1] == tokenizer.sep_token_id
        assert ((units.number < 0) == np.isin(ids, list(special))).all()
        assert sorted({*units.number} - {-1}) == list(range(units.number.max() + 1))
    inner = [id for id in blocks.ids if id not in special]
    assert inner == [id for text in texts for id in tokenizer(text.text, add_special_tokens=False)["input_ids"]]
    words = tokenizer.convert_ids_to_tokens(blocks.ids[blocks.units.entity])
    assert "".join(words).replace("##", "").startswith(examples[0].subject.word.replace(" ", "")[:2])


# ---- evaluation text -----------------------------------------------------------------------------------------------

WORDS = st.lists(st.sampled_from(["가", "나", "다", "라", "마", "Bar", "바"]), min_size=1, max_size=14)


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, max_size=4), WORDS, st.integers(1, 9))
def test_the_guard_finds_what_a_plain_search_finds(sentences, text, size):
    guard = LeakGuard([" ".join(words) for words in sentences], size)

    def runs(words, length):
        return {tuple(word.casefold() for word in words[at : at + length]) for at in range(len(words) - length + 1)}

    expected = any(
        runs(words, length) & runs(text, length)
        for words in sentences
        for length in [min(size, len(words), len(text))]  # of a short text its whole, for lines are wrapped
    )
    assert guard.leaks(" ".join(text)) == expected


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=40).filter(str.strip), st.integers(1, 9))
def test_an_evaluation_sentence_never_passes(sentence, size):
    assert LeakGuard([sentence], size).leaks(sentence)
    assert LeakGuard([sentence], size).leaks(f"앞 문장. {sentence} 뒤 문장.") or not any(map(str.isalnum, sentence))


def test_a_hard_wrapped_evaluation_sentence_does_not_pass_line_by_line():
    sentence = " ".join(f"단어{number}" for number in range(18))
    guard, words = LeakGuard([sentence], 8), sentence.split()
    assert all(guard.leaks(" ".join(words[at : at + 6])) for at in (0, 6, 12))
    assert not guard.leaks("단어1 단어3")


def test_case_spacing_punctuation_and_composition_do_not_hide_a_leak():
    import unicodedata

    guard = LeakGuard(["NASA는 1958년 미국에서 설립되었다."], 8)
    assert guard.leaks("‘nasa는’   1958년, 미국에서 설립되었다!")
    assert guard.leaks(unicodedata.normalize("NFD", "NASA는 1958년 미국에서 설립되었다"))
    assert not guard.leaks("NASA는 1958년 미국에서 생겼다.")
    assert words_of("…") == ["..."]


# ---- reading -------------------------------------------------------------------------------------------------------


def test_every_form_of_text_is_read(tmp_path, capsys):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("둘째 줄\n\n  셋째 줄 \n", encoding="utf-8")
    (tmp_path / "deep" / "a.txt").write_text("\ufeff첫 줄\n둘째 줄\n", encoding="utf-8")
    assert [text.text for text in read_texts(str(tmp_path / "b.txt"))] == ["둘째 줄", "셋째 줄"]
    (tmp_path / ".b.txt").write_text("an editor's copy", encoding="utf-8")
    (tmp_path / "notes.md").write_text("something else", encoding="utf-8")
    assert [text.text for text in merged(read_texts(str(tmp_path)))] == ["둘째 줄", "셋째 줄", "첫 줄"]
    assert "an editor's copy" in [text.text for text in read_texts(str(tmp_path), hidden=True)]
    assert "1 files that are no .txt are passed over, such as" in capsys.readouterr().err
    lines = [{"text": "하나\n둘"}, {"sentence": "셋"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert [text.text for text in read_texts(str(tmp_path / "rows.jsonl"))] == ["하나", "둘", "셋"]


def test_rows_of_one_sentence_are_one_text_with_all_their_spans(tmp_path):
    row = sample_examples("train", 1)[0].to_row()
    other = {**row, "subject_entity": row["object_entity"], "object_entity": row["subject_entity"], "label": "no label"}
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [row, other])), encoding="utf-8")
    [text] = merged(read_texts(str(tmp_path / "rows.jsonl")))
    assert {text.text[start:stop] for start, stop in text.spans} == {
        row["subject_entity"]["word"],
        row["object_entity"]["word"],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"a": 1}', r"rows.jsonl:1: text: missing"), ('{"text": 3}', "expected text, found 3")],
)
def test_a_row_without_text_is_named_or_counted(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(content + '\n{"text": "가나 다라"}\n', encoding="utf-8")
    with pytest.raises(MtlReError, match=message):
        list(read_texts(str(path)))
    found = adapt_data.select_texts(options(data={"train": str(path), "held_out": 0, "on_bad_row": "skip"}))
    assert (len(found.train), len(found.bad)) == (1, 1)


def test_what_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(MtlReError, match=r"holds no \.txt file"):
        list(read_texts(str(tmp_path)))
    (tmp_path / "latin.txt").write_bytes(b"\xb0\xa1\xff\n")
    with pytest.raises(MtlReError, match=r"latin\.txt: cannot be read \(not UTF-8"):
        list(read_texts(str(tmp_path)))
    with pytest.raises(MtlReError, match=r"data\.train is not set"):
        adapt_data.select_texts(options())


def test_text_in_korean_windows_is_read_with_a_note(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes("가나다라 마바사\n".encode("cp949"))
    assert [text.text for text in read_texts(str(tmp_path))] == ["가나다라 마바사"]
    assert "is CP949" in capsys.readouterr().err


def test_a_texts_side_does_not_depend_on_the_others():
    texts = [Text(f"글 {number}") for number in range(400)]
    train, held_out = hold_out(texts, 0.1, 7)
    assert len(train) + len(held_out) == 400
    assert 20 < len(held_out) < 65
    assert hold_out(texts[::2], 0.1, 7)[1] == [text for text in held_out if text in texts[::2]]
    assert hold_out(texts, 0.1, 8)[1] != held_out
    assert hold_out(texts, 0, 7) == (texts, [])


# ---- runs ----------------------------------------------------------------------------------------------------------

SIZE = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Options of a run of a few seconds: 120 texts, some of them evaluation sentences."""
    monkeypatch.setitem(encoders.SCRATCH_SIZES, "tiny", encoders.SCRATCH_SIZES["tiny"] | SIZE)
    rows = sample_examples("train", 120)
    for name, part in (("rows", rows), ("evaluation", rows[:5])):
        text = "\n".join(json.dumps(row.to_row(), ensure_ascii=False) for row in part)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")

    def made(run: str, train: dict | None = None, **groups) -> AdaptConfig:
        data = {"train": str(tmp_path / "rows.jsonl"), "held_out": 0.1, "max_length": 64} | groups.pop("data", {})
        options_of = {"batch_size": 8, "epochs": 2, "precision": "no", "run_dir": str(tmp_path / run)} | (train or {})
        encoder = {"encoder": "scratch:tiny", "vocabulary": 600} | groups.pop("model", {})
        evaluation = [str(tmp_path / "evaluation.jsonl")]
        exclude = groups.pop("exclude", evaluation)
        return options(
            data=data,
            model=encoder,
            optim={"lr": 5e-3},
            train=options_of,
            exclude=exclude,
            mask={"entities": 0.5} | groups.pop("mask", {}),
        )

    return made


def lines(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_drops_leaks_and_leaves_an_encoder(small, tmp_path, capsys):
    run = adapt.adapt(small("run"))
    found = json.loads((run / "manifest.json").read_text())["data"]
    assert found["distinct_texts"] == 120
    assert found["dropped_as_evaluation_text"] >= 5
    scores = json.loads((run / "valid_metrics.json").read_text())
    assert scores["best"]["loss"] < scores["before"]["loss"]
    assert scores["best"]["perplexity"] == pytest.approx(math.exp(scores["best"]["loss"]))
    kinds = [line["kind"] for line in lines(run)]
    assert kinds[0] == "valid"
    assert {"train", "valid"} == set(kinds)
    # the encoder is a whole one: with its head, and as model.encoder
    encoder, tokenizer = encoders.load_encoder(str(run / "model"), SCHEME, TYPES, 128, 0)
    features.check_known(tokenizer, SCHEME, TYPES)
    network, _ = encoders.load_masked_lm(str(run / "model"), 64)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(network.base_model.state_dict()[name], tensor), name
    assert AutoConfig.from_pretrained(run / "model").architectures == ["ModernBertForMaskedLM"]
    # nothing of the evaluation sentences' own is in the vocabulary or the blocks
    again = adapt_run.select_texts(small("run"))
    assert not {text.text for text in again.train + again.held_out} & {
        row.sentence for row in sample_examples("train", 5)
    }
    # the run goes on as an encoder of the next one
    more = adapt.adapt(small("more", model={"encoder": str(run / "model")}, train={"epochs": 1}))
    first = json.loads((more / "valid_metrics.json").read_text())["before"]["loss"]
    assert first == pytest.approx(scores["best"]["loss"], abs=1e-5), "the same held-out texts under the same masks"


def test_an_evaluation_sentence_is_known_whatever_its_spans(small, tmp_path):
    """Read as KLUE's, an exclusive end is a bad row; its sentence must not be trained on for that."""
    made = [row.to_row() for row in sample_examples("train", 5)]
    for row in made:
        row["subject_entity"] = row["subject_entity"] | {"end_idx": row["subject_entity"]["end_idx"] + 1}
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in made)
    (tmp_path / "evaluation.jsonl").write_text(text, encoding="utf-8")
    found = adapt_run.select_texts(small("run", data={"on_bad_row": "skip"}))
    assert not found.bad
    assert not {text.text for text in found.train + found.held_out} & {row["sentence"] for row in made}


def test_masks_are_new_each_epoch_and_the_same_each_time(tokenizer, examples):
    settings = options(data={"max_length": 64})
    blocks = adapt_data.make_blocks([Text(row.sentence) for row in examples[:8]], tokenizer, settings)
    rule = adapt_run.mask_rule(settings, tokenizer)
    assert not set(rule.ordinary) & set(tokenizer.all_special_ids)

    def hidden(seed, stream, epoch):
        masker = adapt_run.Masker(blocks, rule, tokenizer.pad_token_id, seed, stream)
        assert (
            masker.masked_tokens(np.array([0, 1]), epoch)
            == (masker.batch(np.array([0, 1]), epoch)["targets"] >= 0).sum()
        )
        return masker.masked(0, epoch)[1].tolist()

    assert hidden(1, 0, 0) == hidden(1, 0, 0)
    assert len({tuple(hidden(*key)) for key in ((1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0))}) == 4


class KilledError(Exception): ...


@pytest.mark.parametrize("at", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_killed_run_goes_on_bit_for_bit(small, monkeypatch, at):
    settings = {"train": {"save_every": 1, "accumulate": 2, "max_steps": 6}}
    whole = adapt.adapt(small("whole", **settings))
    step, taken = adapt._step, []

    def dying(*arguments):
        if len(taken) == at:
            raise KilledError
        taken.append(step(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr(adapt, "_step", dying)
        with pytest.raises(KilledError):
            adapt.adapt(small("cut", **settings))
    settings["train"] |= {"resume": "auto"}
    cut = adapt.adapt(small("cut", **settings))
    one, other = (checkpoint.newest(run / "checkpoints")[0] for run in (whole, cut))
    assert one.path.name == other.path.name == "step-000006"
    for group in ("model", "optimizer", "random"):
        assert one.tensors[group].keys() == other.tensors[group].keys()
        assert all(torch.equal(tensor, other.tensors[group][name]) for name, tensor in one.tensors[group].items()), (
            group
        )
    assert one.state == other.state

    def exact(run):
        return [{k: v for k, v in line.items() if k != "tokens_per_s"} for line in lines(run)]

    assert exact(whole) == exact(cut)
    weights = [load_file(run / "model" / "model.safetensors") for run in (whole, cut)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_resumed_run_says_what_it_passed_over_and_what_is_not_exact(small, capsys):
    settings = {"train": {"save_every": 1, "max_steps": 2, "keep": 3}}
    folder = adapt.adapt(small("run", **settings)) / "checkpoints"
    kept = checkpoint.read_checkpoint(folder / "step-000002")
    (folder / "step-000002" / "state.json").unlink()
    settings["train"] |= {"resume": "auto"}
    adapt.adapt(small("run", **settings))
    said = capsys.readouterr().err
    assert "passed over: " in said
    assert "step-000002: state.json is missing" in said
    assert "going on from " in said
    assert "step-000001" in said
    checkpoint.save(folder, 2, kept.tensors, kept.state | {"processes": 3}, 3)
    adapt.adapt(small("run", **settings))
    assert "this run had 3 processes: going on, but not bit for bit" in capsys.readouterr().err
    checkpoint.save(folder, 2, kept.tensors, {"step": 2}, 3)
    with pytest.raises(MtlReError, match=r"is no checkpoint of such a run \(KeyError: 'identity'\)"):
        adapt.adapt(small("run", **settings))


@pytest.mark.slow
def test_rates_after_a_resume_leave_out_what_was_counted_before(small, monkeypatch):
    settings = {"train": {"save_every": 1, "max_steps": 6}, "data": {"held_out": 0}}
    step, tokens = adapt._step, []

    def watched(run, state, *rest):
        if len(tokens) == 5:
            tokens.append(0)
            raise KilledError
        before = state.tokens
        time.sleep(0.1)
        step(run, state, *rest)
        tokens.append(state.tokens - before)

    monkeypatch.setattr(adapt, "_step", watched)
    with pytest.raises(KilledError):
        adapt.adapt(small("run", **settings))
    settings["train"] |= {"resume": "auto"}
    (line,) = [line for line in lines(adapt.adapt(small("run", **settings))) if line["kind"] == "train"]
    assert line["step"] == 6
    assert line["tokens_per_s"] <= tokens[-1] / 0.1 < sum(tokens) / 0.1


@pytest.mark.slow
def test_processes_that_read_other_text_are_told_apart(small, tmp_path):
    """Each computes the order of blocks and their masks from its own copy."""
    script = tmp_path / "each.py"
    script.write_text(
        "import os, sys\n"
        "from mtl_re.cli import main\n"
        "sys.exit(main(['adapt', '--config', sys.argv[1], '--data.split_seed', os.environ['RANK']]))\n"
    )
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(asdict(small("two"))), encoding="utf-8")
    command = [*launcher(), str(script), str(path)]
    done = subprocess.run(command, env=launch_environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode != 0
    assert "process 1 of 2 has other " in done.stderr, done.stderr[-3000:]
    assert "than process 0; give every node the same files and options" in done.stderr
    assert not (tmp_path / "two" / "metrics.jsonl").exists()


def test_a_finished_adaptation_can_be_lengthened(small, capsys):
    adapt.adapt(small("run", train={"max_steps": 1}))
    run_dir = adapt.adapt(small("run", train={"max_steps": 3, "resume": "auto"}))
    assert "finished at step 1 and is lengthened to 3 steps" in capsys.readouterr().err
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir())[-1] == "step-000003"


def test_a_resumed_run_must_be_the_same_run(small):
    adapt.adapt(small("run", train={"max_steps": 1}))
    changed = small("run", train={"max_steps": 1, "resume": "auto"}, mask={"probability": 0.3})
    with pytest.raises(MtlReError, match=r"have changed since: options mask\.probability \(0\.15 then, 0\.3 now\)$"):
        adapt.adapt(changed)
    text = small("run", train={"max_steps": 1, "resume": "auto"}, exclude=[])
    with pytest.raises(MtlReError, match=r"training text \(data\.train: .*, exclude: none\)"):
        adapt.adapt(text)


def test_sigterm_saves_and_leaves(small, monkeypatch, capsys):
    step = adapt._step

    def interrupted(*arguments):
        step(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(adapt, "_step", interrupted)
        run = adapt.adapt(small("run"))
    assert checkpoint.newest(run / "checkpoints")[0].state["state"]["step"] == 1
    assert "stopped by a signal after step 1" in capsys.readouterr().err
    assert not (run / "valid_metrics.json").exists()


def test_accumulation_does_not_change_the_gradient(small, monkeypatch):
    """A step's loss is divided by the masked tokens of the whole step, whatever passes it is cut into."""
    quiet = dict.fromkeys(("attention_dropout", "mlp_dropout", "embedding_dropout"), 0.0)
    monkeypatch.setitem(encoders.SCRATCH_SIZES, "tiny", encoders.SCRATCH_SIZES["tiny"] | quiet)
    found = []
    for size, passes in ((8, 1), (2, 4)):
        train = {"batch_size": size, "accumulate": passes, "max_steps": 1}
        run = adapt.adapt(small(f"run{passes}", train=train, data={"held_out": 0}))
        found.append(checkpoint.newest(run / "checkpoints")[0].tensors["optimizer"])
    moments = [name for name in found[0] if name.endswith("exp_avg")]
    assert moments
    for name in moments:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_two_processes_adapt_as_one_does(small, monkeypatch, tmp_path):
    """Under torchrun, the last step smaller than the others; without dropout, which processes draw apart."""
    quiet = dict.fromkeys(("attention_dropout", "mlp_dropout", "embedding_dropout"), 0.0)
    monkeypatch.setitem(encoders.SCRATCH_SIZES, "tiny", encoders.SCRATCH_SIZES["tiny"] | quiet)
    encoder = {"model": {"encoder": str(adapt.adapt(small("first", train={"max_steps": 1})) / "model")}}
    one = adapt.adapt(small("one", **encoder))
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(asdict(small("two", train={"batch_size": 4}, **encoder))), encoding="utf-8")
    command = [*launcher(), "-m", "mtl_re", "adapt", "--config", str(path)]
    done = subprocess.run(command, env=launch_environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    two = tmp_path / "two"
    assert json.loads((two / "manifest.json").read_text())["hardware"]["processes"] == 2
    hidden = [line["hidden_tokens"] for line in lines(one) if line["kind"] == "train"]
    assert hidden == [line["hidden_tokens"] for line in lines(two) if line["kind"] == "train"]
    for a, b in zip(lines(one), lines(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    scores = [json.loads((run / "valid_metrics.json").read_text())["best"]["loss"] for run in (one, two)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


@pytest.mark.parametrize("limit", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_fp16_that_only_overflows_ends_with_a_word(small, monkeypatch, limit):
    """The scaler skips a step that overflows; where it skips them all, nothing is learnt and someone must say so."""

    def overflowing(accelerator, parameters, norm):
        return torch.tensor(math.inf)

    def prepared(*arguments):
        run = real(*arguments)
        run.accelerator.scaler = torch.amp.GradScaler("cpu", enabled=False)
        return run

    real = adapt.prepare_adaptation
    monkeypatch.setattr(adapt, "prepare_adaptation", prepared)
    monkeypatch.setattr("accelerate.Accelerator.clip_grad_norm_", overflowing)
    monkeypatch.setattr(adapt, "MAX_SKIPPED", limit)
    settings = small("run", train={"max_steps": 4}, data={"held_out": 0})
    if limit > 4:
        run = adapt.adapt(settings)
        assert lines(run)[-1]["skipped_steps"] == 4
        return
    with pytest.raises(MtlReError, match="step 3: the loss or its gradient is not finite"):
        adapt.adapt(settings)


def test_a_first_evaluation_that_is_not_finite_is_no_record(small, monkeypatch):
    left, real = [math.nan], adapt.held_out_loss
    monkeypatch.setattr(adapt, "held_out_loss", lambda run: left.pop() if left else real(run))
    run = adapt.adapt(small("run", train={"max_steps": 2}))
    assert json.loads((run / "valid_metrics.json").read_text())["step"] == 2


def test_the_loss_is_that_of_the_whole_network(tiny, tokenizer):
    """The head sees masked tokens only: the same sum as over all tokens."""
    torch.manual_seed(3)
    network = encoders.scratch_encoder("scratch:tiny", tokenizer, 64, 0, ModernBertForMaskedLM).eval()
    wrapped = adapt_run.MaskedLanguageModel(network)
    ids = torch.randint(5, len(tokenizer), (3, 12))
    attention = torch.ones_like(ids)
    attention[1, 8:] = 0
    targets = torch.where(torch.rand(3, 12) < 0.3, ids, IGNORE)
    logits = network(input_ids=ids, attention_mask=attention).logits
    whole = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    assert wrapped(ids, attention, targets).item() == pytest.approx(whole.item(), rel=1e-5)
    assert network(input_ids=ids, attention_mask=attention).logits.shape == logits.shape, "the hook is gone"
    nothing = wrapped(ids, attention, torch.full_like(ids, IGNORE))
    nothing.backward()
    assert nothing.item() == 0
    assert all(parameter.grad is None or torch.isfinite(parameter.grad).all() for parameter in network.parameters())


def test_logits_come_in_few_sizes(tokenizer):
    """An allocator that keeps its pages would keep those of every size."""
    network = encoders.scratch_encoder("scratch:tiny", tokenizer, 64, 0, ModernBertForMaskedLM).eval()
    sizes = set()
    network.get_output_embeddings().register_forward_hook(lambda module, given, logits: sizes.add(logits.shape[-2]))
    wrapped, ids = adapt_run.MaskedLanguageModel(network), torch.full((3, 32), 7)
    for hidden in (1, 5, 63, 64, 65, 96):
        targets = torch.full((96,), IGNORE)
        targets[:hidden] = 7
        assert wrapped(ids, torch.ones_like(ids), targets.view(3, 32)).item() > 0
    assert sizes == {adapt_run.MASKED_STEP, 2 * adapt_run.MASKED_STEP}


def test_a_relation_model_is_no_encoder(saved):
    with pytest.raises(MtlReError, match="is a trained relation model, which has no masked-LM head"):
        encoders.load_masked_lm(str(saved), 64)


# ---- command line --------------------------------------------------------------------------------------------------


def test_the_command_takes_options_from_a_file_and_the_line(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(adapt, "adapt", lambda made, name: taken.append((made, name)))
    path = tmp_path / "tapt.yaml"
    path.write_text("data: {train: x.json}\nmask: {entities: true}\nexclude: [dev.json]\n", encoding="utf-8")
    assert cli.main(["adapt", "--config", str(path), "--mask.probability", "0.2"]) == 0
    assert cli.main(["adapt", "--data.train", "y", "--exclude", "a.json", "b.txt", "--mask.entities", "0.5"]) == 0
    (first, name), (second, _) = taken
    assert (name, first.exclude, first.mask.entities, first.mask.probability) == ("tapt", ["dev.json"], True, 0.2)
    assert (second.exclude, second.mask.entities) == (["a.json", "b.txt"], 0.5)
    assert second.to_dict() == asdict(second)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (config.AdaptDataConfig, "held_out", 1),
        (config.AdaptDataConfig, "exclude_words", 0),
        (config.MaskConfig, "probability", 0),
        (config.MaskConfig, "entities", 1.5),
        (config.AdaptTrainConfig, "save_every", 0),
    ],
)
def test_out_of_range_is_named(kind, name, value):
    with pytest.raises(MtlReError, match=rf"{name}: .* is out of range"):
        kind(**{name: value})


def test_ko_mini_has_a_head(ko_mini):
    network, _ = encoders.load_masked_lm(ko_mini, 256)
    assert model.parameter_count(network) > 10e6
