"""mtl-re: relation extraction with one shared encoder, a coarse head that gates fine heads, and masked joint losses.

`import mtl_re` loads no torch; the names below are fetched when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "Config": "mtl_re.config",
    "Entity": "mtl_re.data.validation",
    "Example": "mtl_re.data.validation",
    "MtlReConfig": "mtl_re.model.network",
    "MtlReError": "mtl_re.errors",
    "MtlReModel": "mtl_re.model.network",
    "Prediction": "mtl_re.scoring.writers",
    "Predictor": "mtl_re.predict.predictor",
    "Taxonomy": "mtl_re.taxonomy",
    "train": "mtl_re.training.train",
}
__all__ = ["__version__", *sorted(_LAZY)]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mtl_re' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
