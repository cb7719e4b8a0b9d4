"""The cache gives what tokenising gives, notices every change, and is never needed."""

import shutil
from copy import deepcopy
from dataclasses import fields, replace

import numpy as np
import pytest

from mtl_re.errors import MtlReError
from mtl_re.features import feature_cache
from mtl_re.features.featurizer import FeatureTable, Featurizer
from mtl_re.taxonomy import Taxonomy

TYPES = ["PER", "ORG", "LOC", "DAT", "POH", "NOH"]


@pytest.fixture
def featurizer(tokenizer):
    return Featurizer(tokenizer, Taxonomy.from_prefixes(), "typed_punct_ko", False, 128, TYPES)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_RE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(feature_cache, "SMALL", 1)


def assert_equal(one: FeatureTable, other: FeatureTable) -> None:
    for field in fields(FeatureTable):
        left, right = getattr(one, field.name), getattr(other, field.name)
        assert left.dtype == right.dtype
        assert np.array_equal(left, right)


def test_the_second_time_nothing_is_tokenised(featurizer, examples, monkeypatch):
    first = feature_cache.cached_table(featurizer, examples)
    assert_equal(first, featurizer.table(examples))
    monkeypatch.setattr(featurizer, "stream", lambda *rest: pytest.fail("tokenised again"))
    assert_equal(feature_cache.cached_table(featurizer, examples), first)
    key = feature_cache.table_key(featurizer, examples)
    assert [path.name for path in feature_cache.tables_dir().iterdir()] == [key]


def test_the_key_notices_rows_and_settings(featurizer, examples, tokenizer):
    first, rest = examples[0], examples[1:]
    subject, apart = first.subject, deepcopy(tokenizer)
    apart.add_tokens("쀍")
    rows = [
        examples,
        examples[::-1],
        [replace(first, label=None), *rest],
        [replace(first, subject=replace(subject, type="LOC")), *rest],
        [replace(first, subject=replace(subject, start=subject.start + 1, word=subject.word[1:])), *rest],
        [replace(first, subject=replace(subject, end=subject.end - 1, word=subject.word[:-1])), *rest],
    ]
    keys = [feature_cache.table_key(featurizer, changed) for changed in rows]
    plain = (tokenizer, featurizer.taxonomy, "typed_punct_ko", False, 128, TYPES)
    for place, other in enumerate(
        (apart, Taxonomy.from_prefixes(layout="flat"), "entity_punct", True, 127, TYPES[:-1])
    ):
        changed = Featurizer(*plain[:place], other, *plain[place + 1 :])
        keys.append(feature_cache.table_key(changed, examples))
    assert len({*keys}) == len(keys) == 12


@pytest.mark.parametrize("name", ["ids.npy", "starts.npy", "sha256.json"])
@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not it", b"{}", "cut", "gone"])
def test_a_damaged_table_is_made_again(featurizer, examples, name, damage):
    expected = featurizer.table(examples)  # a mapped file must not be cut short under its reader
    feature_cache.cached_table(featurizer, examples)
    path = next(feature_cache.tables_dir().iterdir()) / name
    good = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(good[:-20] if damage == "cut" else damage)
    assert feature_cache._read(path.parent) is None
    for _ in range(2):
        assert_equal(feature_cache.cached_table(featurizer, examples), expected)
    assert feature_cache._read(path.parent) is not None


def test_a_flipped_bit_anywhere_is_no_fault(featurizer, examples):
    """Each column's header and first values, and the sums themselves."""
    expected = featurizer.table(examples)
    feature_cache.cached_table(featurizer, examples)
    for path in next(feature_cache.tables_dir().iterdir()).iterdir():
        good = path.read_bytes()
        for bit in range(0, 8 * min(len(good), 160), 3):
            flipped = bytearray(good)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            table = feature_cache._read(path.parent)
            assert table is None or assert_equal(table, expected) is None
        path.write_bytes(good)
    assert_equal(feature_cache._read(path.parent), expected)


def test_two_processes_at_once_do_no_harm(featurizer, examples):
    """Whoever comes second replaces a table that the first has already mapped."""
    first = feature_cache.cached_table(featurizer, examples)
    feature_cache._write(feature_cache.tables_dir() / feature_cache.table_key(featurizer, examples), first)
    assert_equal(first, featurizer.table(examples))
    assert_equal(feature_cache.cached_table(featurizer, examples), first)
    assert len(list(feature_cache.tables_dir().iterdir())) == 1


def test_a_place_that_cannot_be_written_is_no_fault(featurizer, examples, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MTL_RE_CACHE", str(tmp_path / "file" / "cache"))
    assert_equal(feature_cache.cached_table(featurizer, examples), featurizer.table(examples))


def test_tables_with_rejected_rows_are_not_kept(featurizer, examples):
    odd = replace(examples[0], subject=replace(examples[0].subject, type="ZZZ"))
    lost = []
    for _ in range(2):
        table = feature_cache.cached_table(featurizer, [odd, *examples], lambda number, row, error: lost.append(row))
        assert len(table) == len(examples)
    assert len(lost) == 2


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
def test_chunks_on_the_disk_are_the_whole_table(featurizer, examples, monkeypatch, chunk):
    monkeypatch.setattr(feature_cache, "CHUNK", chunk)
    laid = feature_cache._tokenise(featurizer, examples, None)
    assert_equal(laid, featurizer.table(examples))
    assert isinstance(laid.ids, np.memmap) == (chunk < len(examples))
    monkeypatch.setenv("MTL_RE_CACHE", "/proc/cannot/be/written")
    assert_equal(feature_cache.cached_table(featurizer, examples), featurizer.table(examples))


def test_a_table_from_the_cache_is_mapped_and_cannot_be_changed(featurizer, examples):
    for _ in range(2):
        table = feature_cache.cached_table(featurizer, examples)
        assert isinstance(table.ids, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            table.ids[0] = 1
    shutil.rmtree(feature_cache.tables_dir())  # mapped files may be removed
    assert_equal(table, featurizer.table(examples))


def test_a_full_disk_is_named(featurizer, examples, monkeypatch):
    def full(**named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache, "CHUNK", 2)
    monkeypatch.setattr(feature_cache, "TemporaryFile", full)
    with pytest.raises(MtlReError, match=r"No space left on device.*TMPDIR"):
        feature_cache.cached_table(featurizer, examples)
