"""Pictures and markdown: no name breaks a table or is drawn as empty boxes, and drawing leaves no state behind."""

import subprocess
import sys

import pytest

from mtl_re import figures, markdown

PNG = b"\x89PNG\r\n\x1a\n"


def write_font(path, family):
    """A font with one syllable."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.ttLib.tables._g_l_y_f import Glyph

    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "ga"])
    builder.setupCharacterMap({ord("가"): "ga"})
    builder.setupGlyf({".notdef": Glyph(), "ga": Glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "ga": (500, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def no_hangul_font(monkeypatch):
    """A machine without a Korean font, of the system or of a package."""
    from matplotlib import font_manager

    fonts = [font for font in font_manager.fontManager.ttflist if font.name not in figures.HANGUL_FONTS]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    monkeypatch.setattr(figures, "FONT_PACKAGE", "no_such_package")
    figures._fonts.cache_clear()
    yield
    figures._fonts.cache_clear()


@pytest.fixture(params=["system", "package"])
def hangul_font(request, no_hangul_font, tmp_path, monkeypatch):
    """A font with one syllable: of the system, or brought by a package that must not be imported."""
    from matplotlib import font_manager

    if request.param == "system":
        write_font(tmp_path / "font.ttf", figures.HANGUL_FONTS[0])
        font_manager.fontManager.addfont(tmp_path / "font.ttf")
        return
    folder = tmp_path / "font_package"
    (folder / "fonts").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    write_font(folder / "fonts" / "NanumGothic.ttf", "NanumGothic")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(figures, "FONT_PACKAGE", folder.name)


def test_hangul_is_drawn_where_a_font_has_it(tmp_path, hangul_font):
    assert figures.drawable(["가", "나", "org"]) == ["가", "#2", "org"]
    assert markdown.undrawn("labels", ["가", "나", "org"])[0].endswith("#2 = 나.")
    with figures.picture(tmp_path / "a.png", 3, 2) as figure:
        figures.bars(figure.add_subplot(), ["가", "나"], {"가": [1, 2]}, {"가": ["", ""]})
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_without_such_a_font_hangul_is_numbered(no_hangul_font):
    assert figures.drawable(["per:title", "설립", "a\nb"]) == ["per:title", "#2", "#3"]
    assert markdown.undrawn("labels", ["per:title"]) == []


def test_the_font_that_is_installed_with_mtl_re_has_hangul(no_hangul_font, monkeypatch):
    monkeypatch.setattr(figures, "FONT_PACKAGE", "koreanize_matplotlib")
    if figures._bundled_font() is None:
        pytest.skip("koreanize-matplotlib is not installed here")
    assert figures.drawable(["학습", "세종대왕", "뷁"]) == ["학습", "세종대왕", "뷁"]


def test_names_are_shortened():
    (name,) = figures.drawable(["x" * 300])
    assert len(name) == figures.LONGEST
    assert name.endswith("…")


def test_drawing_leaves_no_state(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    with figures.picture(tmp_path / "a.png", 2, 2) as figure:
        figure.add_subplot()
    assert dict(matplotlib.rcParams) == before


def test_drawing_needs_no_pyplot(tmp_path):
    code = f"""
import pathlib, sys
from mtl_re import figures
with figures.picture(pathlib.Path({str(tmp_path / "a.png")!r}), 2, 2) as figure:
    figures.bars(figure.add_subplot(), ["a"], {{"x": [1]}}, {{"x": ["1"]}})
sys.exit("matplotlib.pyplot" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- markdown ----------------------------------------------------------------------------------------------------


def test_table_aligns_numbers_and_escapes():
    lines = markdown.table(["name", "rows"], [["a|b\nc", "1,234"], ["d\\", "–"]])
    assert lines == ["| name | rows |", "| :-- | --: |", r"| a\|b c | 1,234 |", r"| d\\ | – |", ""]
