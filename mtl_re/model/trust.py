"""A CKPT directory is a stranger's until its config was read: what may be built from it, and what is refused.

Enters: a folder. Leaves: what it holds, or one line that names the key at fault. Looked at before a tensor is allocated
or a layer is made: types and ranges of our own keys, keys that would make transformers run or fetch code, and sizes,
which must be those of the tensors that `model.safetensors` lists in its header (a config cannot ask for more than the
file holds). Code is never loaded from a checkpoint: `auto_map` stays unread, because classes are named, not looked up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError, safe_open

from mtl_re.config import Evidence, Gate
from mtl_re.errors import MtlReError, first_line
from mtl_re.features.markers import MARKERS
from mtl_re.files import WEIGHTS
from mtl_re.model.pooling import POOLINGS
from mtl_re.taxonomy import Taxonomy

MAX_CONFIG = 16 << 20
"""Bytes of a config.json; a large one of ours has some kilobytes."""
MAX_NAMES = 10_000
"""Names of labels, coarse classes and types in a taxonomy, each as often as it stands there."""
MAX_COUNT, MAX_SIZE = 10_000, 100_000_000
"""Largest count (of layers, heads, labels) and largest other whole number in an encoder's config."""
CODE_KEYS = frozenset(
    {"auto_map", "attn_implementation", "_attn_implementation", "quantization_config", "custom_pipelines"}
)
"""Keys of an encoder's config that make transformers look for code or kernels elsewhere."""


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and 0 < len(name) <= 200 for name in value)


def _factors(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_number(1e-6, 1e6)(factor) for factor in value.values())


def _thresholds(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping) and all(map(_share_or_none, value.values())))


def _shares(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(_number(0, 1)(share) for share in value))


_share_or_none: Callable[[Any], bool] = lambda value: value is None or _number(0, 1)(value)  # noqa: E731
KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "markers": (lambda value: isinstance(value, str) and value in MARKERS, f"one of {', '.join(MARKERS)}"),
    "pooling": (lambda value: isinstance(value, str) and value in POOLINGS, f"one of {', '.join(POOLINGS)}"),
    "gate": (lambda value: isinstance(value, str) and value in get_args(Gate), f"one of {', '.join(get_args(Gate))}"),
    "query": (lambda value: isinstance(value, bool), "true or false"),
    "entity_types": (_names, "a list of names"),
    "max_input_length": (_whole(8, 65536), "a whole number from 8 to 65536"),
    "dropout": (_number(0, 0.9), "a number from 0 to 0.9"),
    "temperatures": (_factors, "a map of positive numbers"),
    "training_prior": (_shares, "a list of shares, or null"),
    "relation_threshold": (_share_or_none, "a share, or null"),
    "relation_threshold_prior": (_shares, "a list of shares, or null"),
    "head_layers": (_whole(0, 8), "a whole number from 0 to 8"),
    "gate_evidence": (
        lambda value: isinstance(value, str) and value in get_args(Evidence),
        f"one of {', '.join(get_args(Evidence))}",
    ),
    "relation_thresholds": (_thresholds, "a map from relation to a share or null, or null"),
    "relation_thresholds_prior": (_shares, "a list of shares, or null"),
    "precision_target": (_share_or_none, "a share, or null"),
    "encoder": (lambda value: isinstance(value, Mapping), "a map"),
    "taxonomy": (lambda value: isinstance(value, Mapping), "a map"),
}
"""Our keys of config.json: what each may hold, and how that is said."""


Shapes = dict[str, tuple[int, ...]]


def checked(folder: Path) -> tuple[dict[str, Any], Shapes]:
    """The config of a folder from which a model may be built, and the shapes of its tensors by name.

    Raises:
        MtlReError: naming file, key and what was expected.
    """
    place = folder / "config.json"
    config = _read(place)
    for key, (allowed, expected) in KEYS.items():
        if key in config and not allowed(config[key]):
            raise MtlReError(f"{place}: {key} is {_shown(config[key])}; expected {expected}")
    if (names := _names_in(config.get("taxonomy"))) > MAX_NAMES:
        raise MtlReError(f"{place}: taxonomy holds {names:,} names; at most {MAX_NAMES:,} are read")
    try:
        if "taxonomy" in config:
            Taxonomy.from_dict(config["taxonomy"])
    except MtlReError as error:
        raise MtlReError(f"{place}: {error}") from error
    stored = _stored(folder / WEIGHTS)
    _check_encoder(place, config.get("encoder", {}), len(stored))
    return config, stored


def check_shapes(folder: Path, asked: Shapes, stored: Shapes) -> None:
    """Raise unless the tensors that a config asks for are those of the weights.

    Raises:
        MtlReError: naming the first that differs.
    """
    for name in sorted(asked.keys() | stored.keys()):
        if asked.get(name) != stored.get(name):
            what = f"config.json asks for {name} of shape {asked.get(name)}, model.safetensors has {stored.get(name)}"
            raise MtlReError(f"{folder}: not loadable as an mtl-re checkpoint: {what}")


def _read(place: Path) -> dict[str, Any]:
    try:
        if (size := place.stat().st_size) > MAX_CONFIG:
            raise MtlReError(f"{place}: {size:,} bytes; a config has at most {MAX_CONFIG:,}")
        config = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MtlReError(f"{place}: not loadable as an mtl-re checkpoint ({type(error).__name__}: {error})") from error
    if not isinstance(config, dict) or config.get("model_type") != "mtl_re":
        found = _shown(config.get("model_type") if isinstance(config, dict) else config)
        raise MtlReError(f"{place}: model_type is {found}, not 'mtl_re'; not loadable as an mtl-re checkpoint")
    if "num_labels" in config:
        raise MtlReError(f"{place}: num_labels does not belong there; the taxonomy names the labels")
    return config


def _check_encoder(place: Path, encoder: Mapping[str, Any], tensors: int) -> None:
    kind = encoder.get("model_type")
    if kind is not None and not (isinstance(kind, str) and kind.replace("-", "").replace("_", "").isalnum()):
        raise MtlReError(f"{place}: encoder.model_type is {_shown(kind)}; expected the name of a model family")
    for key, value in _leaves(encoder):
        last = key.rpartition(".")[2]
        if value is not None and CODE_KEYS & set(key.split(".")):
            raise MtlReError(f"{place}: encoder.{key} is {_shown(value)}; a checkpoint may not choose code to run")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        limit = tensors if last.endswith("layers") else MAX_COUNT if last.startswith("num_") else MAX_SIZE
        if not math.isfinite(value) or abs(value) > limit:
            raise MtlReError(f"{place}: encoder.{key} is {_shown(value)}; at most {limit:,} is read")


def _names_in(value: Any) -> int:
    parts = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else None
    return 1 if parts is None else sum(_names_in(part) for part in parts)


def _leaves(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted names and values of a nested map; lists count as values of their items."""
    found: list[tuple[str, Any]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            found += _leaves(item, f"{name}.")
        else:
            found += [(name, part) for part in (item if isinstance(item, list) else [item])]
    return found


def _stored(weights: Path) -> Shapes:
    """What the header of a safetensors file lists; the tensors themselves are not read."""
    try:
        with safe_open(weights, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise MtlReError(f"{weights}: not loadable as an mtl-re checkpoint ({first_line(error)})") from error


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "an enormous number"
    return text if len(text) <= 80 else text[:80] + "..."
