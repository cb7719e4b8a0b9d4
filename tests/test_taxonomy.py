"""Label ↔ targets for every label of every taxonomy, and maps that must be refused."""

import hashlib
import json

import pytest
import yaml
from conftest import TAXONOMIES, YAML_MAP

from mtl_re.errors import MtlReError
from mtl_re.taxonomy import BOOSTCAMP, IGNORE, KLUE, LABEL_ORDERS, ROOT_NAMES, Taxonomy

each_taxonomy = pytest.mark.parametrize("taxonomy", TAXONOMIES.values(), ids=TAXONOMIES)


# ---- law 1: targets and compose ------------------------------------------------------------------------------------


@each_taxonomy
def test_compose_inverts_targets(taxonomy):
    for label in taxonomy.labels:
        assert taxonomy.compose(taxonomy.targets(label)) == label


@each_taxonomy
def test_a_label_falls_under_the_root_and_at_most_one_fine_head(taxonomy):
    for label in taxonomy.labels:
        targets = taxonomy.targets(label)
        assert list(targets) == [head.name for head in taxonomy.heads]
        assert targets[taxonomy.root.name] != IGNORE
        trained = [head.name for head in taxonomy.fine if targets[head.name] != IGNORE]
        fine = [head.name for head in taxonomy.fine if label in head.classes]
        assert trained == fine
        assert len(trained) <= 1


@each_taxonomy
def test_targets_are_different_for_different_labels_and_in_range(taxonomy):
    seen = {tuple(taxonomy.targets(label).values()) for label in taxonomy.labels}
    assert len(seen) == len(taxonomy.labels)
    for head in taxonomy.heads:
        column = {taxonomy.targets(label)[head.name] for label in taxonomy.labels} - {IGNORE}
        assert column == set(range(len(head.classes)))


@each_taxonomy
def test_compose_does_not_read_heads_outside_the_branch(taxonomy):
    for label in taxonomy.labels:
        targets = {name: 0 if target == IGNORE else target for name, target in taxonomy.targets(label).items()}
        assert taxonomy.compose(targets) == label


@each_taxonomy
def test_an_unlabelled_row_trains_nothing(taxonomy):
    assert set(taxonomy.targets(None).values()) == {IGNORE}


@each_taxonomy
def test_an_unknown_label_is_named(taxonomy):
    with pytest.raises(MtlReError, match="'per:nothing' is not one of the"):
        taxonomy.targets("per:nothing")


@each_taxonomy
def test_branches_and_groups_cover_every_label_once(taxonomy):
    assert sorted(index for branch in taxonomy.branches for index in branch) == list(range(len(taxonomy.labels)))
    for name, branch in zip(taxonomy.root.classes, taxonomy.branches, strict=True):
        expected = (name,) if taxonomy.layout == "flat" else taxonomy.groups[name]
        assert tuple(taxonomy.labels[index] for index in branch) == expected
    names = list(taxonomy.groups)
    for label, group in zip(taxonomy.labels, taxonomy.group_of_label, strict=True):
        assert names[group] == taxonomy.coarse_of(label)


# ---- heads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", LABEL_ORDERS)
def test_klue_heads(order):
    taxonomy = Taxonomy.from_prefixes(LABEL_ORDERS[order])
    assert [(head.name, len(head.classes)) for head in taxonomy.heads] == [("coarse", 3), ("org", 11), ("per", 18)]
    assert taxonomy.root.classes == ("no_relation", "org", "per")
    assert taxonomy.no_relation == "no_relation"
    assert taxonomy.subject_types == {"org": ("ORG",), "per": ("PER",)}
    assert [head.name for head in Taxonomy.from_prefixes(LABEL_ORDERS[order], "flat").heads] == ["label"]


def test_both_orders_hold_the_same_thirty_labels():
    assert len(KLUE) == len(BOOSTCAMP) == 30
    assert set(KLUE) == set(BOOSTCAMP)
    assert KLUE != BOOSTCAMP


@pytest.mark.parametrize(
    ("order", "digest"),
    [
        (KLUE, "352668993ae90d8a851a98a1636bf043465881a1fa345ec61d4a80feb9f7aecf"),
        (BOOSTCAMP, "59b0dbac4916f0cdb8d44a972d59a0445b2c594c37ef03de7ccfbc2fb4e41153"),
    ],
    ids=["klue", "boostcamp"],
)
def test_the_orders_are_those_of_the_data_sets(order, digest):
    """By their sums, which were taken where the official lists lie: one swapped pair makes every file wrong."""
    assert hashlib.sha256(" ".join(order).encode()).hexdigest() == digest


def test_the_contest_s_order_is_that_of_the_independent_scorer():
    from experiments.score_submission import ORDER

    assert list(BOOSTCAMP) == list(ORDER)


def test_klue_order_is_the_official_one(shared):
    official = json.loads((shared / "klue-re" / "relation_list.json").read_text(encoding="utf-8"))
    assert list(KLUE) == official["relations"]


def test_single_label_classes_have_no_head():
    taxonomy = TAXONOMIES["yaml-hierarchical"]
    assert taxonomy.root.classes == ("treats", "none", "harms", "located")
    assert [head.name for head in taxonomy.fine] == ["treats", "harms"]
    assert taxonomy.no_relation == "no_relation"


def test_a_set_without_no_relation():
    assert TAXONOMIES["no-none-hierarchical"].no_relation is None
    assert Taxonomy.from_prefixes(["per:a", "per:b", "org:c"]).no_relation is None


# ---- written and read ----------------------------------------------------------------------------------------------


@each_taxonomy
def test_json_with_sorted_keys_keeps_every_order(taxonomy):
    again = Taxonomy.from_dict(json.loads(json.dumps(taxonomy.to_dict(), sort_keys=True)))
    assert again == taxonomy
    assert list(again.groups.items()) == list(taxonomy.groups.items())  # == on dicts does not see order
    assert again.heads == taxonomy.heads
    assert again.branches == taxonomy.branches


def test_options():
    assert Taxonomy.from_option("hierarchical") == TAXONOMIES["klue-hierarchical"]
    assert Taxonomy.from_option("flat") == TAXONOMIES["klue-flat"]
    with pytest.raises(MtlReError, match=r"model\.heads: 'hierarchicle' is not"):
        Taxonomy.from_option("hierarchicle")


def test_a_yaml_file_is_read(tmp_path):
    path = tmp_path / "heads.yaml"
    path.write_text(YAML_MAP, encoding="utf-8")
    assert Taxonomy.from_option(str(path)) == TAXONOMIES["yaml-hierarchical"]


def test_labels_default_to_the_order_of_the_groups():
    taxonomy = Taxonomy.from_dict({"groups": {"b": ["z", "y"], "a": ["x"]}})
    assert taxonomy.labels == ("z", "y", "x")


BAD_MAPS = {
    "empty": ("", "expected a map with the key 'groups', found NoneType"),
    "a list": ("[a, b]", "expected a map with the key 'groups', found list"),
    "no groups": ("layout: flat", "'groups' .* is missing"),
    "unknown key": ("groups: {a: [x, y]}\nlabel: [x, y]", r"unknown key\(s\) \['label'\]"),
    "groups a list of names": ("groups: [a, b]", "'groups' must map names to lists"),
    "members not a list": ("groups: {a: x, b: [y]}", "'a' must map a name to a list"),
    "a number as label": ("groups: {a: [1, x]}", "'a' must map a name to a list"),
    "an empty label": ("groups: {a: ['', x]}", "'a' must map a name to a list"),
    "a number as group": ("groups: {1: [x, y]}", "1 must map a name to a list"),
    "an empty group": ("groups: {a: [x, y], b: []}", "'b' has no labels"),
    "label in two groups": ("groups: {a: [x, y], b: [y]}", "repeated label.*: y"),
    "label twice": ("groups: {a: [x, y]}\nlabels: [x, y, y]", "repeated label: y"),
    "label in no group": ("groups: {a: [x, y]}\nlabels: [x, y, z]", r"differ in \['z'\]"),
    "labels not a list": ("groups: {a: [x, y]}\nlabels: {x: 0}", "'labels' must be a list"),
    "one label": ("groups: {a: [x]}", "at least two"),
    "layout": ("groups: {a: [x, y]}\nlayout: deep", "layout 'deep'"),
    "layout a list": ("groups: {a: [x, y]}\nlayout: [flat]", "layout"),
    "no_relation unknown": ("groups: {a: [x, y]}\nno_relation: z", "label 'z' is not"),
    "no_relation a list": ("groups: {a: [x, y]}\nno_relation: [x]", "no_relation"),
    "no_relation in company": ("groups: {a: [x, y], b: [z]}\nno_relation: x", "'x' must be a coarse class of its own"),
    "root's name": ("groups: {coarse: [x, y], b: [z]}", "may not be called 'coarse'"),
    "types of no class": ("groups: {a: [x, y]}\nsubject_types: {c: [PER]}", r"subject_types names \['c'\]"),
    "types not a list": ("groups: {a: [x, y]}\nsubject_types: {a: PER}", "'a' must map a name to a list"),
    "not YAML": ("groups: {a: [x", "not readable as YAML"),
}


@pytest.mark.parametrize(("text", "reason"), BAD_MAPS.values(), ids=BAD_MAPS)
def test_a_bad_map_is_refused_with_its_file_and_reason(tmp_path, text, reason):
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MtlReError, match=reason) as refused:
        Taxonomy.from_option(str(path))
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_bytes_that_are_not_text(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"groups: {\xff}")
    with pytest.raises(MtlReError, match="not readable as YAML"):
        Taxonomy.from_option(str(path))


def test_root_name_is_free_where_there_is_no_root_of_classes():
    data = yaml.safe_load("groups: {coarse: [x, y], b: [z]}\nlayout: flat")
    assert Taxonomy.from_dict(data).root.name == ROOT_NAMES["flat"]
