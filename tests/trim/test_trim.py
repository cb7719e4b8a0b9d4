"""`mtl-re trim` as a command: what is kept, written, reported and refused, and what is done with its result."""

import gzip
import json
import unicodedata
from pathlib import Path

import pytest
import torch
from conftest import TYPES, sample_examples
from families import COMMON, LENGTH, ROWS, make_family, slow_but
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from mtl_re import cli
from mtl_re.config import TrimConfig
from mtl_re.data.lost_pieces import BEFORE, TrimmedTokenizers
from mtl_re.errors import MtlReError
from mtl_re.features import markers
from mtl_re.features.featurizer import check_known
from mtl_re.features.markers import MARKERS
from mtl_re.model import encoders
from mtl_re.trim.choice import kept_scripts, script_of, set_apart
from mtl_re.trim.network import load_source, narrowest
from mtl_re.trim.trim import trim

FILES = {
    *("config.json", "model.safetensors", "model.safetensors.sha256", "tokenizer.json", "tokenizer_config.json"),
    *("trim.json", "trim.md", BEFORE),
}


def write_rows(path, rows) -> str:
    lines = [json.dumps(row.to_row(), ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def call(*arguments) -> int:
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as error:
        return int(error.code or 0)


@pytest.fixture(scope="module", params=slow_but(COMMON, ["xlm-roberta"]))
def family(request, tmp_path_factory) -> str:
    return make_family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> str:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", ROWS)


# ---- what is kept ------------------------------------------------------------------------------------------------


def test_every_marker_is_known_whatever_the_text(family, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(["plain English", "nothing else"] * 20), encoding="utf-8")
    assert call("trim", family, tmp_path / "out", "--text", text) == 0
    for scheme in MARKERS:
        _, tokenizer = encoders.load_encoder(str(tmp_path / "out"), scheme, TYPES, 64, 0)
        check_known(tokenizer, scheme, TYPES)
        if scheme not in markers.ADDS_TOKENS:
            written = " ".join(markers.pieces(scheme, TYPES))
            assert tokenizer.tokenize(written) == AutoTokenizer.from_pretrained(family).tokenize(written)


def test_particles_behind_an_entity_keep_their_pieces(family, tmp_path):
    """Markers set a blank before the particle, which makes other pieces of it."""
    given = write_rows(tmp_path / "rows.jsonl", ROWS[:12])
    assert call("trim", family, tmp_path / "out", "--text", given, "--held_out", "0") == 0
    full, cut = AutoTokenizer.from_pretrained(family), AutoTokenizer.from_pretrained(tmp_path / "out")
    for row in ROWS[:12]:
        text = markers.mark(row.sentence, row.subject, row.object, "typed_punct_ko").text
        assert cut.tokenize(text) == full.tokenize(text)


def test_set_apart():
    assert set_apart("세종대왕은 왕이다.", [(0, 4), (6, 7)]) == "세종대왕 은 왕 이다."
    assert set_apart("a b", [(0, 1), (2, 3)]) == "a b"
    assert set_apart("ab", []) == "ab"


def test_scripts_are_those_with_a_share_of_the_letters():
    assert [script_of(character) for character in "가漢é1.の"] == ["HANGUL", "CJK", "LATIN", "", "", "HIRAGANA"]
    assert kept_scripts({"가": 99_900, "a": 101, "漢": 99, "1": 10**6}) == ["HANGUL", "LATIN"]


def test_single_characters_of_the_language_stay(family, tmp_path):
    """Characters that the text never uses: those of its script stay, those of another one go."""
    korean = [
        row.sentence
        for row in ROWS
        if not any(character.isascii() and character.isalpha() for character in row.sentence)
    ]
    text = tmp_path / "text.txt"
    text.write_text("\n".join(korean[:3]), encoding="utf-8")
    report = trim(family, str(tmp_path / "out"), TrimConfig(text=[str(text)], held_out=0.0, min_count=1000))
    assert report["scripts"]["kept"] == ["HANGUL"]
    full, cut = (AutoTokenizer.from_pretrained(path).get_vocab() for path in (family, tmp_path / "out"))
    single = {piece for piece in full if len(piece.removeprefix("##")) == 1}
    hangul = {piece for piece in single if unicodedata.name(piece[-1], "").startswith("HANGUL")}
    assert hangul <= cut.keys()
    assert not any(character in cut for character in "QZ" if character in full) or "modernbert" in family  # bytes there


def test_keep_takes_files_and_pieces(tmp_path):
    source = make_family("xlm-roberta", tmp_path / "source")
    tokenizer = AutoTokenizer.from_pretrained(source)
    text, more = tmp_path / "text.txt", tmp_path / "more.txt"
    text.write_text("가\n", encoding="utf-8")
    more.write_text(ROWS[0].sentence, encoding="utf-8")
    needed = set(tokenizer.tokenize(ROWS[0].sentence))
    word = next(
        piece for piece in tokenizer.get_vocab() if piece.startswith("▁") and len(piece) == 4 and piece not in needed
    )
    assert call("trim", source, tmp_path / "out", "--text", text, "--keep", more, word.lstrip("▁")) == 0
    assert needed | {word} <= AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab().keys()


# ---- what is written and reported --------------------------------------------------------------------------------


def test_the_directory_and_its_report(family, rows, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("trim", family, out, "--text", rows, "--min_count", "2", "--held_out", "0.3") == 0
    printed = capsys.readouterr().out
    assert {file.name for file in out.iterdir()} == FILES
    report = json.loads((out / "trim.json").read_text(encoding="utf-8"))
    full, cut = AutoTokenizer.from_pretrained(family), AutoTokenizer.from_pretrained(out)
    assert report["pieces"] == {"before": len(full), "after": len(cut)}
    fewer = len(full) - len(cut)
    width = AutoModel.from_pretrained(out).get_input_embeddings().weight.shape[1]
    gone = report["parameters"]["before"] - report["parameters"]["after"]
    assert gone == fewer * (width + 1)  # an embedding, which the decoder shares, and the decoder's bias
    assert report["saved"]["adamw_mb"] == round(16 * gone / 1e6, 1)
    assert report["lost"]["pieces"] == fewer == sum(report["lost"]["by_script"].values())
    before = gzip.decompress((out / BEFORE).read_bytes()).decode()
    assert json.loads(before) == json.loads(full.backend_tokenizer.to_str())
    assert f"pieces: {len(full):,} → {len(cut):,}" in printed
    assert printed.splitlines()[-1] == str(out)
    assert f"{len(full):,}" in (out / "trim.md").read_text(encoding="utf-8")


def test_held_out_text_is_measured_and_not_counted(family, rows, tmp_path):
    """The share that changes is what tokenising once more finds, for a share of the text and for a file."""
    full = AutoTokenizer.from_pretrained(family)
    shared = trim(family, str(tmp_path / "share"), TrimConfig(text=[rows], held_out=0.4))
    assert shared["held_out"]["texts"] + sum(source["texts"] for source in shared["texts"]) == len(ROWS)
    other = sample_examples("valid", 40, seed=3)
    file = write_rows(tmp_path / "valid.jsonl", other)
    report = trim(family, str(tmp_path / "file"), TrimConfig(text=[rows], held_out=file, min_count=3))
    cut = AutoTokenizer.from_pretrained(tmp_path / "file")
    pairs = [(full.tokenize(row.sentence), cut.tokenize(row.sentence)) for row in other]
    names = [(full.convert_tokens_to_ids(a), cut.convert_tokens_to_ids(b)) for a, b in pairs]
    changed = [(a, b) for a, b in names if full.convert_ids_to_tokens(a) != cut.convert_ids_to_tokens(b)]
    assert 0 < report["held_out"]["changed"] == len(changed)
    assert report["held_out"]["tokens_of_changed"]["after"] == sum(len(b) for _, b in changed)
    assert report["texts"][0]["texts"] == len(ROWS)


def test_two_runs_write_the_same_bytes(family, rows, tmp_path):
    for name in ("one", "two"):
        trim(family, str(tmp_path / name), TrimConfig(text=[rows]))
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_a_bare_encoder_in_bf16_stays_one(tmp_path, rows):
    """As e5-ko: no head, no pooler, half-precision weights."""
    make_family("bert", tmp_path / "source")
    bare = AutoModel.from_pretrained(tmp_path / "source", add_pooling_layer=False)
    bare.bfloat16().save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "sentencepiece.bpe.model").write_bytes(b"stale")
    trim(str(tmp_path / "source"), str(tmp_path / "out"), TrimConfig(text=[rows], min_count=3))
    given, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("source", "out"))
    assert given.keys() == cut.keys()
    assert {tensor.dtype for tensor in cut.values()} == {torch.bfloat16}
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES
    assert narrowest(load_source(str(tmp_path / "out"))[0]) is torch.bfloat16


# ---- what is done with it ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_adapt_train_and_export(family, rows, tmp_path):
    trimmed, adapted, run, out = (str(tmp_path / name) for name in ("trimmed", "adapted", "run", "out"))
    assert call("trim", family, trimmed, "--text", rows, "--min_count", "2") == 0
    common = [f"--data.max_length={LENGTH}", "--train.batch_size=16", "--train.max_steps=2", "--train.epochs=1"]
    common += ["--train.precision=no", f"--data.train={rows}"]
    assert call("adapt", *common, "--data.held_out=0", f"--model.encoder={trimmed}", "--train.run_dir", adapted) == 0
    before, after = (load_file(f"{path}/model.safetensors") for path in (trimmed, f"{adapted}/model"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    scheme = "--data.markers=typed_punct_ko"
    assert call("train", *common, scheme, f"--model.encoder={adapted}/model", "--train.run_dir", run) == 0
    assert call("export", run, out, "--onnx", "--check_data", rows) == 0
    assert len(AutoTokenizer.from_pretrained(out)) == len(AutoTokenizer.from_pretrained(trimmed))
    assert call("check", rows, "--encoder", run) == 0  # a run leads to the encoder that it began with


def test_check_warns_where_sentences_need_lost_pieces(family, rows, tmp_path, capsys):
    out = tmp_path / "out"
    few = write_rows(tmp_path / "few.jsonl", ROWS[:6])
    assert call("trim", family, out, "--text", few, "--held_out", "0") == 0
    capsys.readouterr()
    assert call("check", few, "--encoder", out) == 0
    assert "the encoder's trimmed vocabulary has all pieces that its sentences need" in capsys.readouterr().out
    assert call("check", rows, "--encoder", out) == 0
    warned = next(line for line in capsys.readouterr().out.splitlines() if "need pieces" in line)
    full, cut = AutoTokenizer.from_pretrained(family), AutoTokenizer.from_pretrained(out)
    sentences = {row.sentence for row in ROWS}
    ids = {sentence: (full(sentence)["input_ids"], cut(sentence)["input_ids"]) for sentence in sentences}
    changed = [
        sentence for sentence, (a, b) in ids.items() if full.convert_ids_to_tokens(a) != cut.convert_ids_to_tokens(b)
    ]
    assert warned.startswith(f"warning: {rows}: {len(changed)} of {len(sentences)} distinct sentences need pieces")
    frame = len(full("")["input_ids"])
    tokens = [sum(len(ids[sentence][side]) - frame for sentence in changed) for side in (0, 1)]
    assert f"{tokens[1]:,} tokens instead of {tokens[0]:,}" in warned


def test_an_unknown_character_counts_as_a_loss(tmp_path):
    """`tokenizers` names an unknown piece by its text: names alone would not tell it from a known one."""
    source = make_family("xlm-roberta", tmp_path / "source")
    (tmp_path / "text.txt").write_text("조선의 왕\n", encoding="utf-8")
    trim(source, str(tmp_path / "out"), TrimConfig(text=[str(tmp_path / "text.txt")], held_out=0.0))
    full, kept = (set(AutoTokenizer.from_pretrained(folder).get_vocab()) for folder in (source, tmp_path / "out"))
    letter = min(piece for piece in full - kept if len(piece) == 1 and piece.isascii() and piece.isalpha())
    lost = TrimmedTokenizers(str(tmp_path / "out")).lost([letter * 2, "왕"])
    assert (lost.sentences, lost.changed) == (2, 1)
    assert lost.unknown[1] > lost.unknown[0] == 0


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    return make_family("bert", tmp_path_factory.mktemp("bert"))


def test_faults_are_one_line(bert, rows, saved, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text('{"other": 1}\n', encoding="utf-8")
    out = tmp_path / "out"
    cases = [
        ((bert, tmp_path / "full", "--text", rows), "is not empty; give another directory"),
        ((bert, tmp_path / "full", "--text", rows, "--overwrite"), "is not a result of mtl-re trim"),
        ((bert, bert, "--text", rows, "--overwrite"), "holds the encoder that is trimmed"),
        ((bert, rows, "--text", rows), "is a file; give a directory"),
        ((saved, out, "--text", rows), "is a trained relation model"),
        ((tmp_path / "full", out, "--text", rows), "has no config.json"),
        ((bert, out, "--text", tmp_path / "empty.txt"), "there is no text to count pieces of"),
        ((bert, out, "--text", tmp_path / "none.txt"), "cannot be read"),
        ((bert, out, "--text", tmp_path / "bad.jsonl"), "(--on_bad_row skip leaves such rows out)"),
        ((bert, out, "--text", rows, "--keep", "nosuchpiece"), "is neither a file nor a piece of this vocabulary"),
    ]
    for arguments, message in cases:
        assert call("trim", *arguments) == 1, message
        said = capsys.readouterr().err.strip()
        assert message in said
        assert "\n" not in said
        assert not out.exists()
    assert call("check", rows, "--encoder", bert) == 1
    assert "is neither an encoder that mtl-re trim wrote nor a run" in capsys.readouterr().err
    assert call("trim", bert, out) == 2  # --text is needed


def test_overwrite_replaces_a_result_of_its_own(bert, rows, tmp_path):
    out = tmp_path / "out"
    assert call("trim", bert, out, "--text", rows) == 0
    assert call("trim", bert, out, "--text", rows) == 1
    assert call("trim", bert, out, "--text", rows, "--min_count", "5", "--overwrite") == 0
    assert json.loads((out / "trim.json").read_text(encoding="utf-8"))["min_count"] == 5


@pytest.mark.parametrize("words", [("--keep", "out/words.txt"), ("--held_out", "out/texts")])
def test_an_input_in_the_directory_is_not_lost(bert, rows, tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert call("trim", bert, "out", "--text", rows) == 0
    (tmp_path / "out" / "texts").mkdir()
    for name in ("words.txt", "texts/a.txt"):
        (tmp_path / "out" / name).write_text("세종대왕은 조선의 왕이다.", encoding="utf-8")
    assert call("trim", bert, "out", "--text", rows, *words, "--overwrite") == 1
    assert "is an input of this command" in capsys.readouterr().err
    assert (tmp_path / "out" / "words.txt").is_file()
    assert (tmp_path / "out" / "texts" / "a.txt").is_file()


def test_nothing_is_written_when_hidden_states_differ(bert, rows, tmp_path, monkeypatch):
    """The check at the end looks at what was written: here one weight is changed on the way."""
    from mtl_re.trim import trim as command

    def damaged(network):
        network.get_input_embeddings().weight.data += 1e-3
        return torch.float32

    monkeypatch.setattr(command, "narrowest", damaged)
    with pytest.raises(MtlReError, match="hidden states differ from those of the whole one; nothing was written"):
        trim(bert, str(tmp_path / "out"), TrimConfig(text=[rows]))
    assert not (tmp_path / "out").exists()


def test_bad_rows_are_left_out_and_counted(bert, rows, tmp_path):
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text('{"other": 1}\n' + Path(rows).read_text(encoding="utf-8"), encoding="utf-8")
    options = TrimConfig(text=[str(mixed)], on_bad_row="skip", held_out=0.0)
    report = trim(bert, str(tmp_path / "out"), options)
    assert (report["rejected_rows"], report["texts"][0]["texts"]) == (1, len(ROWS))


# ---- the public encoder of this workplace ------------------------------------------------------------------------


@pytest.mark.slow
def test_e5_cut_to_the_sample_keeps_the_law(shared, tmp_path):
    source = str(shared / "encoders" / "e5-ko")
    report = trim(source, str(tmp_path / "out"), TrimConfig(text=["sample:train"], held_out="sample:valid"))
    assert report["pieces"]["before"] == 55_784
    assert report["compared_hidden_states"] == 8
    encoder, tokenizer = encoders.load_encoder(str(tmp_path / "out"), "typed_punct_ko", TYPES, 256, 0)
    assert encoder.config.vocab_size == len(tokenizer) == report["pieces"]["after"] < 20_000
