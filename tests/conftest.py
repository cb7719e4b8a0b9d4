"""What the tests share: the workplace's data where it is present, sample rows, and one tiny model made from them."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig

from mtl_re.data import sample
from mtl_re.data.validation import Entity, Example, parse_row
from mtl_re.features import featurizer as features
from mtl_re.features import markers
from mtl_re.model import encoders
from mtl_re.model import network as model
from mtl_re.taxonomy import LABEL_ORDERS, Taxonomy

SHARED = Path(__file__).resolve().parents[2] / "shared"
SCHEME = "typed_punct_ko"
TYPES = list(markers.TYPE_WORDS)
MAX_LENGTH = 128

TACRED = ("no_relation", "per:title", "org:founded", "per:age", "org:members", "org:shareholders", "per:charges")
YAML_MAP = """
groups:
  treats: [cures, relieves, prevents]
  none: [no_relation]
  harms: [causes, worsens]
  located: [in_organ]
labels: [causes, no_relation, cures, in_organ, relieves, worsens, prevents]
subject_types: {treats: [DRUG], harms: [DRUG, GENE]}
"""
"""Four coarse classes, two of them with a single label, neither order that of the labels."""
NO_NONE = {"groups": {"up": ["rise", "jump"], "down": ["fall", "drop", "sink"]}}


def _taxonomies() -> dict[str, Taxonomy]:
    """Label sets of every kind, each with a root and fine heads and with one flat head."""
    layouts = ("hierarchical", "flat")
    made = {
        f"{name}-{layout}": Taxonomy.from_prefixes(labels, layout)
        for name, labels in {**LABEL_ORDERS, "tacred": TACRED}.items()
        for layout in layouts
    }
    for name, data in (("yaml", yaml.safe_load(YAML_MAP)), ("no-none", NO_NONE)):
        made |= {f"{name}-{layout}": Taxonomy.from_dict({**data, "layout": layout}) for layout in layouts}
    return made


TAXONOMIES = _taxonomies()

torch.set_num_threads(1)


def room_in_memory(folder: str = "/dev/shm") -> bool:
    """Whether the tests' files, programs among them, may lie in memory: fsync of a file costs 3 ms on a disk."""
    if not os.access(folder, os.W_OK):
        return False
    place = os.statvfs(folder)
    return place.f_bavail * place.f_frsize > 4e9 and not place.f_flag & os.ST_NOEXEC


IN_MEMORY = room_in_memory()
if IN_MEMORY:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")


def sample_examples(split: str, size: int, seed: int = 0) -> list[Example]:
    taxonomy = Taxonomy.from_prefixes()
    return [parse_row(row, taxonomy) for row in sample.rows(split, size, seed)]


def scratch_tokenizer(examples: list[Example], scheme: str):
    """A tokenizer trained on the examples marked by `scheme`; it knows the markers of every type, seen or not."""
    texts = [markers.mark(row.sentence, row.subject, row.object, scheme).text for row in examples]
    texts += [" ".join(markers.pieces(scheme, TYPES))] * 2
    return encoders.scratch_tokenizer(texts, scheme, TYPES)


def tiny_model(tokenizer, seed: int = 0, **options):
    """A new scratch:tiny model for a tokenizer; `options` go to `MtlReConfig`."""
    encoder = encoders.scratch_encoder("scratch:tiny", tokenizer, MAX_LENGTH, seed)
    settings = {"markers": SCHEME, "entity_types": TYPES, "max_input_length": MAX_LENGTH} | options
    return enliven(model.from_encoder(encoder, model.MtlReConfig(**settings)), seed)


def enliven(made: model.MtlReModel, seed: int = 0) -> model.MtlReModel:
    """Weights so large that rows get different probabilities: fresh ones make every comparison pass."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 2 / parameter.shape[-1] ** 0.5, generator=generator)
    return made.eval()


@pytest.fixture(scope="session", autouse=True)
def quick():
    """What is imported is never garbage; and where files lie on a disk, no test waits for it (none pulls its plug)."""
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        if not IN_MEMORY:
            patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures are put together but not rendered, which takes most of the time."""

    def write(figure, path, **options):
        path.write_bytes(b"\x89PNG\r\n\x1a\n")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", write)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The workplace's `shared` directory (data, encoders), which lies beside the checkout and not in it."""
    if not (SHARED / "DESIGN.md").is_file():
        pytest.skip(f"{SHARED} is not here")
    return SHARED


@pytest.fixture(scope="session")
def ko_mini(shared: Path) -> str:
    """A small real Korean encoder's directory."""
    path = shared / "encoders" / "ko-mini"
    if not (path / "tokenizer.json").is_file():
        pytest.skip(f"{path} is not here")
    return str(path)


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    """Sixty rows of the sample's training split."""
    return sample_examples("train", 60)


@pytest.fixture(scope="session")
def tokenizer(examples):
    """A WordPiece tokenizer made from `examples`; shared, so do not add tokens to it."""
    return scratch_tokenizer(examples, SCHEME)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What commands keep between runs stays out of the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTL_RE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny(tokenizer):
    """(model in eval mode, tokenizer) with random weights; shared, so do not train it or change its config."""
    return tiny_model(tokenizer), tokenizer


@pytest.fixture(scope="session")
def table(tokenizer, examples) -> features.FeatureTable:
    """Features of `examples`, in order."""
    return features.Featurizer(tokenizer, Taxonomy.from_prefixes(), SCHEME, False, MAX_LENGTH, TYPES).table(examples)


@pytest.fixture(scope="session")
def saved(tiny, tmp_path_factory) -> Path:
    """The tiny model as a CKPT directory; read only."""
    folder = tmp_path_factory.mktemp("ckpt")
    for part in tiny:
        part.save_pretrained(folder)
    return folder


ELSEWHERE = """
import json, sys
import numpy as np, torch
torch.set_num_threads(1)
from mtl_re.model import encoders, network as model
from mtl_re.scoring import inference, composed
from mtl_re.data.validation import parse_row
given = json.load(sys.stdin)
for seed in (1, 2):
    torch.manual_seed(seed)
    found, tokenizer = model.load(given["ckpt"])
    examples = [parse_row(row, found.taxonomy) for row in given["rows"]]
    table = composed.featurizer_of(found, tokenizer).table(examples)
    np.save(f"logits{seed}.npy", inference.all_logits(found, table, tokenizer.pad_token_id, 8))
made = encoders.scratch_tokenizer(*given["tokenizer"])
with open("tokenizer.json", "w") as file:
    json.dump([sorted(made.get_vocab().items()), made(given["tokenizer"][0])["input_ids"]], file)
"""


@pytest.fixture(scope="session")
def elsewhere(saved, examples, tmp_path_factory) -> Path:
    """What one other process makes of the saved model, loaded under two seeds (`logits1.npy`, `logits2.npy`), and of
    the texts of `vocabulary_texts` (`tokenizer.json`)."""
    folder = tmp_path_factory.mktemp("elsewhere")
    rows = [example.to_row() for example in examples]
    given = {"ckpt": str(saved), "rows": rows, "tokenizer": [vocabulary_texts(), SCHEME, TYPES, 1000]}
    environment = os.environ | {"PYTHONHASHSEED": "77", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    call = [sys.executable, "-c", ELSEWHERE]
    done = subprocess.run(call, input=json.dumps(given), capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def vocabulary_texts() -> list[str]:
    """Marked sentences with many ties of frequency."""
    rows = sample_examples("train", 150)
    return [markers.mark(row.sentence, row.subject, row.object, SCHEME).text for row in rows]


ENCODERS = {
    "bert": {},
    "roberta": {"type_vocab_size": 1},
    "electra": {"embedding_size": 8},
    "modernbert": {"pad_token_id": 0, "global_attn_every_n_layers": 1},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
}
"""Families a user may name, each with its own way of calling layers, norms and segments."""


def small_config(kind: str, **options):
    """The config of a three-layer encoder of a family."""
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    return AutoConfig.for_model(kind, **{"vocab_size": 50, **size, **ENCODERS.get(kind, {}), **options})


def small_model(kind: str, **options) -> model.MtlReModel:
    """A model around such an encoder, always with the same weights; `options` go to `MtlReConfig`."""
    values = {**small_config(kind).to_dict(), "model_type": kind}
    return enliven(model.MtlReModel(model.MtlReConfig(encoder=values, **options)))


class WordFinder:
    """Stands in for an `EntityFinder`: finds given words."""

    def find(self, texts):
        words = {"누리전자": "ORG", "한라희": "PER", "무엇": "WORK_OF_ART"}
        hits = [[(text.find(word), word, kind) for word, kind in words.items() if word in text] for text in texts]
        return [[Entity(w, at, at + len(w) - 1, kind) for at, w, kind in sorted(found)] for found in hits]

    digest = "words"
