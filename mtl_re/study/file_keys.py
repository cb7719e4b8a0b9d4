"""Keys of a study file, checked one by one: a fault names the key, what it holds and what was expected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mtl_re.errors import MtlReError

_MISSING = object()


def number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def typed(raw: Mapping[str, Any], key: str, kind: type, default: Any = _MISSING) -> Any:
    """Return the value of a key if it is of a type (a bool is no int); without the key, the default."""
    if key not in raw or (raw[key] is None and default is not _MISSING):
        if default is _MISSING:
            raise MtlReError(f"{key}: is missing")
        return default
    if not isinstance(raw[key], kind) or isinstance(raw[key], bool):
        raise MtlReError(f"{key}: {raw[key]!r}; expected a {kind.__name__}")
    return raw[key]


def choice(raw: Mapping[str, Any], key: str, choices: tuple[str, ...], default: str, where: str = "") -> Any:
    """Return the value of a key if it is one of the choices; without the key, the default."""
    value = raw.get(key, default) or default
    if value not in choices:
        raise MtlReError(f"{where}{': ' if where else ''}{key}: {value!r}; expected one of {', '.join(choices)}")
    return value


def some(key: str, value: dict[str, Any]) -> dict[str, Any]:
    """Return a map if something is in it."""
    if not value:
        raise MtlReError(f"{key}: is empty")
    return value


def known(raw: Mapping[str, Any], keys: Any, where: str) -> None:
    """Raise an error if a map has another key than those given."""
    if unknown := [str(key) for key in raw if key not in keys]:
        raise MtlReError(f"{where}: unknown key {unknown[0]!r}; the keys are {', '.join(keys)}")
