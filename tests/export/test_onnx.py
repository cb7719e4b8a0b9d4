"""One graph from token ids to label: the same as PyTorch in every reading, and refused where it is not."""

import json
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENCODERS, MAX_LENGTH, SCHEME, TAXONOMIES, TYPES, enliven, sample_examples, small_config, tiny_model
from test_export import SECRETS, elsewhere

from mtl_re import cli
from mtl_re.config import ExportConfig
from mtl_re.errors import MtlReError
from mtl_re.export import export, onnx_graph, quantisation
from mtl_re.export.quantisation import Bounds
from mtl_re.model import network as model
from mtl_re.model.onnx_model import load_onnx
from mtl_re.predict.predictor import Predictor
from mtl_re.scoring import composed
from mtl_re.scoring.composed import ComposedModel
from mtl_re.scoring.decoding import Decoding

PRIOR = "0.6,0.17,0.23"


# ---- without a graph ---------------------------------------------------------------------------------------------


def changed(labels: list[int], drift: float = 0.0) -> dict[str, np.ndarray]:
    """Outputs for rows of the three labels of a taxonomy."""
    probs = np.full((len(labels), 3), 0.1)
    probs[np.arange(len(labels)), labels] = 0.8
    probs[0] += [drift, -drift, 0]
    return {"label": np.array(labels), "probabilities": probs}


def test_the_cost_is_paired_and_bounded():
    taxonomy = TAXONOMIES["tacred-flat"].from_prefixes(("no_relation", "per:a", "per:b"))
    gold = np.array([1, 1, 2, 2, 0] * 20)
    before, after = changed(gold.tolist()), changed([0, *gold.tolist()[1:]], drift=0.25)
    after["probabilities"][0] = before["probabilities"][0] + [0.25, -0.25, 0]
    found = quantisation.quantisation_cost(gold, before, after, taxonomy)
    assert found["micro_f1"]["before"] == 100
    assert found["micro_f1"]["difference"] == pytest.approx(200 * 79 / 159 - 100)
    assert found["micro_f1"]["ci"][0] <= found["micro_f1"]["difference"] <= found["micro_f1"]["ci"][1]
    assert (found["changed_labels"], found["largest_drift"]) == (1.0, 0.25)
    assert Bounds(1.0, 2.0).broken(found) == []
    assert Bounds(0.5, 2.0).broken(found)[0].startswith("micro_f1 0.63 points lower")
    assert Bounds(1.0, 0.5).broken(found) == ["1.00 % of the labels changed"]
    better = quantisation.quantisation_cost(gold, after, before, taxonomy)
    assert Bounds(0.0, 2.0).broken(better) == []  # a gain is no loss


@pytest.mark.parametrize(
    ("largest", "equal", "rows", "fine"),
    [
        (1e-6, 1.0, 100, True),
        (1e-6, 0.99, 100, True),
        (1e-6, 0.98, 100, False),
        (2e-4, 1.0, 100, False),
        (float("nan"), 1.0, 100, False),
        (1e-6, 0.9992, 10_000, True),
        (1e-6, 0.9985, 10_000, False),
    ],
)
def test_a_graph_that_differs_is_refused(largest, equal, rows, fine):
    report = {"largest_probability_difference": largest, "equal_labels": equal}
    if fine:
        onnx_graph.refuse_difference(report, rows)
    else:
        with pytest.raises(MtlReError, match="the graph differs from PyTorch"):
            onnx_graph.refuse_difference(report, rows)


def test_a_directory_without_a_graph_says_how_to_make_one(saved):
    with pytest.raises(MtlReError, match=r"no model\.onnx there; make one with .* --onnx"):
        Predictor.from_pretrained(str(saved), backend="onnx")
    with pytest.raises(MtlReError, match="--int8"):
        Predictor.from_pretrained(str(saved), backend="onnx-int8")
    with pytest.raises(MtlReError, match="expected one of onnx, onnx-int8"):
        load_onnx(str(saved), "tensorrt")
    with pytest.raises(MtlReError, match="runs on the cpu"):
        ComposedModel.load(str(saved), "cuda", "onnx")
    with pytest.raises(MtlReError, match="precision bf16"):
        Predictor.from_pretrained(str(saved), backend="onnx", precision="bf16")


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_packages_are_named(tmp_path, saved, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MtlReError, match=r"pip install -e '\.\[onnx\]'"):
        export.export(str(saved), str(tmp_path / "out"), ExportConfig(onnx=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_missing_or_damaged_graph_is_named(tmp_path, saved, monkeypatch):
    shutil.copytree(saved, tmp_path / "ckpt")
    (tmp_path / "ckpt" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(MtlReError, match=r"model\.onnx: onnxruntime cannot run it"):
        load_onnx(str(tmp_path / "ckpt"), "onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MtlReError, match="onnxruntime is not installed"):
        load_onnx(str(tmp_path / "ckpt"), "onnx")


def test_options_that_a_graph_cannot_take(tmp_path, saved):
    for options, message in (
        (ExportConfig(onnx=True, prior="em"), "needs the rows"),
        (ExportConfig(onnx=True, threshold="stored"), "holds none"),
        (ExportConfig(onnx=True, prior=PRIOR), "does not record the prior"),
        (ExportConfig(onnx=True, check_data=str(tmp_path / "none.json")), "--check_data: .*none.json"),
    ):
        with pytest.raises(MtlReError, match=message):
            export.export(str(saved), str(tmp_path / "out"), options)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_graph_of_a_gate_that_reads_the_fine_heads_takes_any_number_of_rows(tmp_path, tokenizer):
    """A class with one label has no fine head, and nothing to add: not even the number of rows of the traced batch."""
    tiny_model(tokenizer, gate_evidence="fine", head_layers=1).save_pretrained(tmp_path / "ckpt")
    tokenizer.save_pretrained(tmp_path / "ckpt")
    options = ExportConfig(onnx=True, check_data="sample:valid")
    found = export.export(str(tmp_path / "ckpt"), str(tmp_path / "out"), options)
    assert found["onnx"]["check"]["equal_labels"] > 0.99


@pytest.mark.parametrize("force", [True, False])
def test_the_bounds_and_force_reach_the_quantiser(tmp_path, saved, monkeypatch, force):
    passed = []

    def quantiser(*given):
        passed.append(given[-2:])
        raise MtlReError("stopped by the test")

    monkeypatch.setattr(onnx_graph, "write_graph", lambda *given: {})
    monkeypatch.setattr(onnx_graph, "check_graph", lambda *given: ({}, {}))
    monkeypatch.setattr(quantisation, "write_int8", quantiser)
    options = ExportConfig(int8=True, int8_bound=1.5, int8_changed=3.0, force=force)
    with pytest.raises(MtlReError, match="stopped by the test"):
        export.export(str(saved), str(tmp_path / "out"), options)
    assert passed == [(Bounds(1.5, 3.0), force)]


# ---- one exported directory ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ckpt(tiny, tmp_path_factory) -> Path:
    """The tiny model with everything a graph may hold: temperatures, a training prior, a threshold."""
    folder = tmp_path_factory.mktemp("ckpt")
    for part in tiny:
        part.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {
        "training_prior": [0.3, 0.3, 0.4],
        "temperatures": {"coarse": 1.7, "per": 0.8},
        "relation_threshold": 0.7,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def exported(ckpt, tmp_path_factory) -> Path:
    """Exported with both graphs; random weights may change under int8 as they like, so it is forced. Read only."""
    folder = tmp_path_factory.mktemp("onnx") / "out"
    options = ["--int8", "--force", "--prior", PRIOR, "--threshold", "stored"]
    assert cli.main(["export", str(ckpt), str(folder), *options]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["hard", "soft"])
@pytest.mark.parametrize("prior", ["none", "0.2,0.3,0.5"])
@pytest.mark.parametrize("restrict", ["none", "subject_type"])
def test_the_predictor_reads_a_graph_as_it_reads_the_model(exported, examples, gate, prior, restrict):
    reading = {"gate": gate, "prior": prior, "restrict": restrict, "device": "cpu"}
    expected = Predictor.from_pretrained(str(exported), **reading).predict(examples)
    found = Predictor.from_pretrained(str(exported), backend="onnx", **reading).predict(examples)
    assert [one.label for one in found] == [one.label for one in expected]
    for ours, theirs in zip(expected, found, strict=True):
        assert theirs.probs == pytest.approx(ours.probs, abs=1e-5)
        assert theirs.coarse == pytest.approx(ours.coarse, abs=1e-5)


@pytest.mark.slow
def test_the_graphs_own_reading(exported, examples):
    """What was baked in is the scorer's reading of the same options."""
    graph, tokenizer = load_onnx(str(exported), "onnx")
    ours, _ = model.load(str(exported))
    reading = Decoding("hard", PRIOR, "none", 0.7)
    reference = ComposedModel.of(ours, tokenizer)
    scored = reference.decode(reference.logits(examples, 16), examples, reading)
    table = composed.featurizer_of(ours, tokenizer).table(examples)
    found = onnx_graph.graph_outputs(graph, table, tokenizer.pad_token_id, 7, "graph")
    np.testing.assert_allclose(found["probabilities"], scored.probs, rtol=0, atol=1e-5)
    assert np.array_equal(found["label"], scored.labels)
    plain = reference.decode(reference.logits(examples, 16), examples, Decoding("hard"))
    assert not np.array_equal(plain.labels, scored.labels)  # the options do something on these rows
    np.testing.assert_allclose(found["coarse"].sum(1), 1, atol=1e-5)


@pytest.mark.slow
def test_the_report_and_the_card_tell_what_was_checked(exported):
    report = json.loads((exported / "export.json").read_text(encoding="utf-8"))
    check = report["onnx"]["check"]
    assert check["rows"] == 300
    assert check["equal_labels"] > 0.99
    assert check["largest_probability_difference"] < 1e-4
    assert [1, MAX_LENGTH] in check["random_shapes"]
    expected = {"gate": "hard", "prior": PRIOR, "threshold": 0.7, "temperatures": {"coarse": 1.7, "per": 0.8}}
    assert report["reading"] == expected
    int8 = report["int8"]["tried"][report["int8"]["recipe"]]
    assert {"micro_f1", "auprc", "largest_drift", "changed_labels"} <= set(int8)
    assert int8["largest_drift"] > 0
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert "`model.onnx` compared with PyTorch on 300 rows of sample:valid" in card
    assert "`model.int8.onnx`" in card
    assert (exported / "model.int8.onnx").stat().st_size < 0.6 * (exported / "model.onnx").stat().st_size


@pytest.mark.slow
def test_a_graph_names_its_labels_and_no_path(exported, tiny):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported / "model.onnx"), providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["labels"]) == list(tiny[0].taxonomy.labels)
    assert json.loads(facts["reading"])["prior"] == PRIOR
    for name in ("model.onnx", "model.int8.onnx"):
        assert not SECRETS.search((exported / name).read_bytes()), name


@pytest.mark.slow
def test_int8_answers_through_the_predictor(exported, examples):
    found = Predictor.from_pretrained(str(exported), backend="onnx-int8").predict(examples)
    exact = Predictor.from_pretrained(str(exported), backend="onnx").predict(examples)
    assert any(one.probs != other.probs for one, other in zip(found, exact, strict=True))
    assert sum(one.label == other.label for one, other in zip(found, exact, strict=True)) > 0.7 * len(examples)


@pytest.mark.slow
def test_int8_over_its_bounds_is_refused(exported, tmp_path, monkeypatch):
    """Every recipe is tried; then nothing is exported, or the last one by force."""
    monkeypatch.setattr(Bounds, "broken", lambda self, cost: ["micro_f1 9.00 points lower"])
    ours, tokenizer = model.load(str(exported))
    rows = sample_examples("valid", 40)
    graph, _ = load_onnx(str(exported), "onnx")
    table = composed.featurizer_of(ours, tokenizer).table(rows)
    outputs = onnx_graph.graph_outputs(graph, table, tokenizer.pad_token_id, 32, "graph")
    given = (exported / "model.onnx", tmp_path / "small.onnx", ours, tokenizer, rows, outputs, Bounds(1, 2))
    with pytest.raises(MtlReError, match=r"against fp32 on 40 rows, micro_f1 9\.00 points lower.*--force keeps it"):
        quantisation.write_int8(*given, force=False)
    report = quantisation.write_int8(*given, force=True)
    assert list(report["tried"]) == list(quantisation.RECIPES)
    assert (report["recipe"], report["over"]) == ("weights", ["micro_f1 9.00 points lower"])
    with pytest.raises(MtlReError, match="has no label"):
        quantisation.write_int8(*given[:4], [replace(row, label=None) for row in rows], *given[5:], force=True)


@pytest.mark.slow
def test_a_program_with_onnxruntime_alone_gives_the_same(exported, tmp_path):
    rows = sample_examples("test", 40)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row.to_row() for row in rows], ensure_ascii=False), encoding="utf-8")
    code = f"sys.argv = ['predict_onnx.py', {str(path)!r}, '--batch-size', '7']\nimport runpy\n"
    code += f"runpy.run_path({str(exported / 'predict_onnx.py')!r}, run_name='__main__')\n"
    done = elsewhere(code, tmp_path, "torch", "transformers", "einops", "jsonargparse")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    ours = ComposedModel.load(str(exported), "cpu")
    scored = ours.decode(ours.logits(rows, 16), rows, Decoding("hard", PRIOR, "none", 0.7))
    assert [one["id"] for one in found] == [row.id for row in rows]
    assert [one["label"] for one in found] == [ours.taxonomy.labels[label] for label in scored.labels]
    probs = np.array([[one["probs"][label] for label in ours.taxonomy.labels] for one in found])
    np.testing.assert_allclose(probs, scored.probs, rtol=0, atol=1e-5)
    path.write_text("[{}]", encoding="utf-8")
    done = elsewhere(code, tmp_path, "torch", "transformers")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("predict_onnx: error: ")


# ---- other encoders, other sizes -----------------------------------------------------------------------------------


def family(kind: str, tokenizer, **options) -> model.MtlReModel:
    """A small model of a family that knows a real tokenizer's ids."""
    values = small_config(kind, vocab_size=len(tokenizer), num_hidden_layers=2).to_dict()
    settings = {"markers": SCHEME, "entity_types": TYPES, "max_input_length": MAX_LENGTH} | options
    return enliven(model.MtlReModel(model.MtlReConfig(encoder={**values, "model_type": kind}, **settings)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted({*ENCODERS, "xlm-roberta", "modernbert local"} - {"modernbert"}))
def test_every_family_can_be_exported(kind, tokenizer, examples, tmp_path, monkeypatch):
    """ModernBERT with global attention is the tiny model above."""
    monkeypatch.setitem(ENCODERS, "xlm-roberta", {"type_vocab_size": 1})
    local = {"pad_token_id": 0, "global_attn_every_n_layers": 3, "local_attention": 8}
    monkeypatch.setitem(ENCODERS, "modernbert", local if kind.endswith("local") else ENCODERS["modernbert"])
    made = family(kind.split()[0], tokenizer, pooling="cls_mean")
    path = tmp_path / "model.onnx"
    about = onnx_graph.write_graph(made, Decoding(), path)
    assert ("token_type_ids" in about["inputs"]) == made.takes_types
    report, _ = onnx_graph.check_graph(path, made, tokenizer, examples, Decoding())
    assert report["equal_labels"] == 1


@pytest.mark.slow
def test_another_label_set_and_a_soft_gate(tokenizer, examples, tmp_path):
    made = family("bert", tokenizer, taxonomy=TAXONOMIES["no-none-hierarchical"].to_dict(), gate="soft")
    rows = [replace(row, label=None) for row in examples]
    path = tmp_path / "model.onnx"
    onnx_graph.write_graph(made, Decoding("soft"), path)
    report, outputs = onnx_graph.check_graph(path, made, tokenizer, rows, Decoding("soft"))
    assert report["equal_labels"] == 1
    assert outputs["probabilities"].shape == (len(rows), 5)
    # another model behind the same file is noticed
    with torch.no_grad():
        made.heads["coarse"].bias += torch.tensor([0.01, 0.0])
    with pytest.raises(MtlReError, match="differs from PyTorch"):
        onnx_graph.check_graph(path, made, tokenizer, rows, Decoding("soft"))


@pytest.mark.slow
def test_weights_too_large_for_one_file_lie_beside_it(tokenizer, examples, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "ONE_FILE", 1000)
    made = family("bert", tokenizer)
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    path = tmp_path / "here" / "model.onnx"
    onnx_graph.write_graph(made, Decoding(), path)
    quantisation.quantise(path, path.with_name("model.int8.onnx"), "weights")
    files = {file.name for file in path.parent.iterdir()}
    assert files == {"model.onnx", "model.onnx.data", "model.int8.onnx", "model.int8.onnx.data"}
    for file in path.parent.iterdir():  # they find each other by name, wherever they lie
        file.rename(tmp_path / "there" / file.name)
    report, _ = onnx_graph.check_graph(tmp_path / "there" / "model.onnx", made, tokenizer, examples, Decoding())
    assert report["equal_labels"] == 1


@pytest.mark.slow
def test_ko_mini_on_real_rows(shared, ko_mini, tmp_path):
    from mtl_re.data.loading import load_examples
    from mtl_re.model.encoders import load_encoder
    from mtl_re.taxonomy import Taxonomy

    data = shared / "klue-re" / "klue-re-v1.1_dev-open.json.gz"
    if not data.is_file():
        pytest.skip(f"{data} is not here")
    encoder, tokenizer = load_encoder(ko_mini, SCHEME, TYPES, 256, seed=0)
    torch.manual_seed(0)
    settings = {"markers": SCHEME, "entity_types": TYPES, "max_input_length": 256, "pooling": "cls_markers"}
    made = model.from_encoder(encoder, model.MtlReConfig(**settings))
    with torch.no_grad():
        for head in made.heads.values():  # untrained heads are sure of nothing, and sharper ones differ more
            head.weight.mul_(20)
    for part in (made.eval(), tokenizer):
        part.save_pretrained(tmp_path / "ckpt")
    rows = load_examples(str(data), Taxonomy.from_prefixes())[0][:150]
    subset = tmp_path / "rows.json"
    subset.write_text(json.dumps([row.to_row() for row in rows], ensure_ascii=False), encoding="utf-8")
    assert (
        cli.main(["export", str(tmp_path / "ckpt"), str(tmp_path / "out"), "--onnx", "--check_data", str(subset)]) == 0
    )
    environment = {"PATH": "/usr/bin", "PYTHONPATH": sysconfig.get_paths()["purelib"]}
    call = [sys.executable, str(tmp_path / "out" / "predict_onnx.py"), str(subset)]
    done = subprocess.run(call, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    expected = Predictor.from_pretrained(str(tmp_path / "ckpt"), device="cpu").predict(rows)
    assert len({one.label for one in expected}) > 3
    assert [one["label"] for one in found] == [one.label for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["probs"] == pytest.approx(other.probs, abs=1e-4)
