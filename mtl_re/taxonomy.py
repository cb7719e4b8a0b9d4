"""Labels and heads: the target of each head for a label, and the label that the heads compose.

A taxonomy groups the final labels into coarse classes. `hierarchical` gives it a root head over the coarse classes
(`coarse`) and one fine head for every coarse class with two labels or more, named like its class; a coarse class
with a single label is decided by the root alone. `flat` gives it one root head (`label`) over all labels; the
groups stay known, because reports and target priors are about coarse classes either way.

This file alone sets `IGNORE`, the target of a head that has no label in a row. Pure Python.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from mtl_re.encodings import file_encoding
from mtl_re.errors import MtlReError

IGNORE = -100
"""Target of a head that has no label in a row; torch's cross entropy skips it."""

NO_RELATION = "no_relation"

Layout = Literal["hierarchical", "flat"]
ROOT_NAMES: dict[Layout, str] = {"hierarchical": "coarse", "flat": "label"}

KLUE: tuple[str, ...] = tuple(
    """
    no_relation org:dissolved org:founded org:place_of_headquarters org:alternate_names org:member_of
    org:members org:political/religious_affiliation org:product org:founded_by org:top_members/employees
    org:number_of_employees/members per:date_of_birth per:date_of_death per:place_of_birth per:place_of_death
    per:place_of_residence per:origin per:employee_of per:schools_attended per:alternate_names per:parents
    per:children per:siblings per:spouse per:other_family per:colleagues per:product per:religion per:title
    """.split()  # noqa: SIM905 - thirty lines less
)
"""Label order of KLUE-RE's `relation_list.json`."""

BOOSTCAMP: tuple[str, ...] = tuple(
    """
    no_relation org:top_members/employees org:members org:product per:title org:alternate_names
    per:employee_of org:place_of_headquarters per:product org:number_of_employees/members per:children
    per:place_of_residence per:alternate_names per:other_family per:colleagues per:origin per:siblings
    per:spouse org:founded org:political/religious_affiliation org:member_of per:parents org:dissolved
    per:schools_attended per:date_of_death per:date_of_birth per:place_of_birth per:place_of_death
    org:founded_by per:religion
    """.split()  # noqa: SIM905 - thirty lines less
)
"""Label order of the Boostcamp contest's `dict_label_to_num.pkl`, in which submissions list their probabilities."""

LABEL_ORDERS: dict[str, tuple[str, ...]] = {"klue": KLUE, "boostcamp": BOOSTCAMP}


@dataclass(frozen=True)
class Head:
    """A classification head: its name and its classes in the order of its logits."""

    name: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Taxonomy:
    """A two-level map of labels, and the heads that follow from it.

    Attributes:
        labels: the final labels, in the order of every probability vector.
        groups: coarse class → its labels; together they hold each label once.
        layout: `hierarchical` or `flat`.
        no_relation: the label that means "no relation", left out of micro-F1; None if the label set has none.
        subject_types: coarse class → entity types its subject may have (empty: any).

    Raises:
        MtlReError: a label stands in no group or in two, a name is empty or repeated.
    """

    labels: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    layout: Layout = "hierarchical"
    no_relation: str | None = NO_RELATION
    subject_types: Mapping[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise MtlReError(f"taxonomy: {len(self.labels)} label(s); at least two are needed")
        _reject_repeats("label", self.labels)
        grouped = [label for group in self.groups.values() for label in group]
        _reject_repeats("label in the groups", grouped)
        if empty := [name for name, group in self.groups.items() if not group]:
            raise MtlReError(f"taxonomy: coarse class {empty[0]!r} has no labels; remove it or give it one")
        if odd := set(self.labels) ^ set(grouped):
            raise MtlReError(f"taxonomy: labels and groups differ in {sorted(odd)}; each label belongs to one group")
        if self.layout not in ROOT_NAMES:
            raise MtlReError(f"taxonomy: layout {self.layout!r}; expected one of {list(ROOT_NAMES)}")
        if self.no_relation is not None and self.groups.get(self.coarse_of(self.no_relation)) != (self.no_relation,):
            raise MtlReError(f"taxonomy: {self.no_relation!r} must be a coarse class of its own, with no other label")
        if self.layout == "hierarchical" and (clash := ROOT_NAMES["hierarchical"]) in self.groups:
            raise MtlReError(f"taxonomy: a coarse class may not be called {clash!r}; that is the root head's name")
        if self.layout == "hierarchical" and (named := [name for name in self.groups if "." in name or name == ""]):
            what = f"coarse class {named[0]!r} has {'a dot' if named[0] else 'no name'}, and a head is called like it"
            raise MtlReError(f"taxonomy: {what}; write it otherwise: {named[0].replace('.', '_') or 'other'!r}")
        if unknown := set(self.subject_types or {}) - set(self.groups):
            raise MtlReError(f"taxonomy: subject_types names {sorted(unknown)}; coarse classes are {list(self.groups)}")

    # ---- heads -----------------------------------------------------------------------------------------------

    @cached_property
    def root(self) -> Head:
        """Return the head that every labelled row trains: over the coarse classes, or over all labels when flat."""
        classes = tuple(self.groups) if self.layout == "hierarchical" else self.labels
        return Head(ROOT_NAMES[self.layout], classes)

    @cached_property
    def fine(self) -> tuple[Head, ...]:
        """Return one head for each coarse class with two labels or more (none when flat)."""
        if self.layout == "flat":
            return ()
        return tuple(Head(name, labels) for name, labels in self.groups.items() if len(labels) > 1)

    @cached_property
    def heads(self) -> tuple[Head, ...]:
        """Return all heads, the root first; their order is the column order of target tensors."""
        return (self.root, *self.fine)

    @cached_property
    def branches(self) -> tuple[tuple[int, ...], ...]:
        """Return for each root class the indices into `labels` of the labels under it."""
        index = {label: position for position, label in enumerate(self.labels)}
        if self.layout == "flat":
            return tuple((index[label],) for label in self.root.classes)
        return tuple(tuple(index[label] for label in self.groups[name]) for name in self.root.classes)

    # ---- label <-> targets -----------------------------------------------------------------------------------

    def targets(self, label: str | None) -> dict[str, int]:
        """Return the target of every head for a gold label: `IGNORE` for a head that the label does not fall under.

        Args:
            label: one of `labels`, or None for an unlabelled row, which trains no head.

        Raises:
            MtlReError: the label is not in the taxonomy.
        """
        targets = {head.name: IGNORE for head in self.heads}
        if label is None:
            return targets
        coarse = self.coarse_of(label)
        targets[self.root.name] = self.root.classes.index(label if self.layout == "flat" else coarse)
        for head in self.fine:
            if head.name == coarse:
                targets[head.name] = head.classes.index(label)
        return targets

    def compose(self, targets: Mapping[str, int]) -> str:
        """Return the label that the heads' classes stand for: the inverse of `targets`.

        Only the root's class and, where that class has a head, that head's class are used. The classes of the other
        heads do not matter, so predictions can be composed as well as targets.
        """
        name = self.root.classes[targets[self.root.name]]
        if self.layout == "flat":
            return name
        labels = self.groups[name]
        return labels[targets[name]] if len(labels) > 1 else labels[0]

    # ---- coarse classes --------------------------------------------------------------------------------------

    @cached_property
    def _coarse(self) -> dict[str, str]:
        return {label: name for name, labels in self.groups.items() for label in labels}

    @cached_property
    def group_of_label(self) -> tuple[int, ...]:
        """Return for each label the index of its coarse class in `groups`, by which probabilities are summed."""
        names = list(self.groups)
        return tuple(names.index(self._coarse[label]) for label in self.labels)

    def coarse_of(self, label: str) -> str:
        """Return the coarse class of a label.

        Raises:
            MtlReError: the label is not in the taxonomy.
        """
        if label not in self._coarse:
            raise MtlReError(f"label {label!r} is not one of the {len(self.labels)} labels of this taxonomy")
        return self._coarse[label]

    # ---- making one ------------------------------------------------------------------------------------------

    @classmethod
    def from_prefixes(cls, labels: Sequence[str] = KLUE, layout: Layout = "hierarchical") -> Taxonomy:
        """Group labels by their prefix before the colon (`org:founded` → `org`); a label without one is alone.

        The subject of a group is expected to be of the type that the prefix names (`org` → `ORG`). That holds on
        KLUE-RE (13 exceptions in dev) and on TACRED-like label sets.
        """
        groups: dict[str, list[str]] = {}
        for label in labels:
            groups.setdefault(label.split(":")[0], []).append(label)
        types = {name: (name.upper(),) for name, group in groups.items() if group != [name]}
        none = NO_RELATION if NO_RELATION in labels else None
        return cls(tuple(labels), {k: tuple(v) for k, v in groups.items()}, layout, none, types)

    @classmethod
    def from_option(cls, option: str) -> Taxonomy:
        """Return the taxonomy of `model.heads`: `hierarchical` or `flat` (over KLUE's labels), or a YAML file.

        The YAML file holds `groups: {coarse: [labels]}`, and optionally `labels: [order]`, `layout`, `no_relation`,
        `subject_types: {coarse: [types]}`.

        Raises:
            MtlReError: the option is none of these, or the file does not hold such a map.
        """
        if option == "hierarchical":
            return cls.from_prefixes()
        if option == "flat":
            return cls.from_prefixes(layout="flat")
        path = Path(option)
        if path.suffix not in {".yaml", ".yml"} or not path.is_file():
            raise MtlReError(f"model.heads: {option!r} is not 'hierarchical', 'flat' or an existing .yaml file")
        import yaml

        try:
            return cls.from_dict(yaml.safe_load(path.read_text(encoding=file_encoding(path))))
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            raise MtlReError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
        except MtlReError as error:
            raise MtlReError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON form in which every order is a list, so that it survives writers that sort keys."""
        types = self.subject_types
        return {
            "labels": list(self.labels),
            "groups": [[name, list(labels)] for name, labels in self.groups.items()],
            "layout": self.layout,
            "no_relation": self.no_relation,
            "subject_types": None if types is None else [[name, list(kinds)] for name, kinds in types.items()],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Taxonomy:
        """Return the taxonomy of `to_dict`'s form, or of plain mappings as people write them in YAML.

        Raises:
            MtlReError: a key is unknown, missing or of the wrong type.
        """
        if not isinstance(data, Mapping):
            raise MtlReError(f"taxonomy: expected a map with the key 'groups', found {type(data).__name__}")
        known = {"labels", "groups", "layout", "no_relation", "subject_types"}
        if unknown := set(data) - known:
            raise MtlReError(f"taxonomy: unknown key(s) {sorted(map(str, unknown))}; known are {sorted(known)}")
        if "groups" not in data:
            raise MtlReError("taxonomy: the key 'groups' (coarse class → list of labels) is missing")
        groups = _named_lists("groups", data["groups"])
        labels = data.get("labels")
        if labels is None:
            labels = [label for group in groups.values() for label in group]
        elif not _is_names(labels):
            raise MtlReError("taxonomy: 'labels' must be a list of non-empty strings")
        for key in ("layout", "no_relation"):
            if not isinstance(data.get(key), str | None):
                raise MtlReError(f"taxonomy: {key!r} must be a string, found {data[key]!r}")
        default = NO_RELATION if NO_RELATION in labels else None
        types = data.get("subject_types")
        return cls(
            labels=tuple(labels),
            groups=groups,
            layout=data.get("layout", "hierarchical"),
            no_relation=data.get("no_relation", default),
            subject_types=None if types is None else _named_lists("subject_types", types),
        )


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) and name for name in value)


def _named_lists(key: str, value: Any) -> dict[str, tuple[str, ...]]:
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise MtlReError(f"taxonomy: {key!r} must map names to lists of names")
    _reject_repeats(f"name in {key!r}", [name for name, _ in pairs])
    for name, members in pairs:
        if not _is_names([name]) or not _is_names(members):
            raise MtlReError(f"taxonomy: {key!r}: {name!r} must map a name to a list of non-empty strings")
    return {name: tuple(members) for name, members in pairs}


def _reject_repeats(what: str, names: Sequence[Any]) -> None:
    if repeated := sorted(str(name) for name, count in Counter(names).items() if count > 1):
        raise MtlReError(f"taxonomy: repeated {what}: {', '.join(repeated)}")
