"""The page's tab of a whole text: marks, triples that are the command's, and (slow) the tab in a headless browser."""

import base64
import csv
import html
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from browsing import demo_server, open_tab, pages_of
from conftest import WordFinder
from transformers import BertConfig, BertForTokenClassification

from mtl_re.config import DemoConfig, ExtractConfig
from mtl_re.errors import MtlReError
from mtl_re.page import document_rendering
from mtl_re.page.backend import PageBackend
from mtl_re.page.document import DocumentBackend, example_markup
from mtl_re.page.document_rendering import markup_html, triples_html
from mtl_re.page.draft import Markup
from mtl_re.page.translations import TEXTS
from mtl_re.predict.document_triples import COLUMNS
from mtl_re.predict.extract import extract, read_triples
from mtl_re.predict.ner import EntityFinder
from mtl_re.predict.predictor import Predictor
from mtl_re.taxonomy import KLUE, Taxonomy
from tests.conftest import TYPES, scratch_tokenizer, tiny_model

HOSTILE = "<img src=x onerror=window.hit=1>${window.hit=1}"
NEVER = "per:title"
LIMITS = {"max_characters": 400, "max_pairs": 60, "batch_size": 128}
"""Of the page in these tests; the batch is the command's, so that scores agree in every bit."""


@pytest.fixture(scope="module")
def calibrated(saved, tmp_path_factory) -> Path:
    """The tiny model with stored thresholds: one relation is never given, all others always."""
    folder = tmp_path_factory.mktemp("calibrated") / "ckpt"
    shutil.copytree(saved, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    limits = {label: 0.0 for label in KLUE if label != "no_relation"} | {NEVER: None}
    config |= {"relation_thresholds": limits, "precision_target": 0.9, "relation_thresholds_prior": []}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def backend_of(ckpt: Path, folder: Path, finder=None) -> DocumentBackend:
    predictor = Predictor.from_pretrained(str(ckpt), batch_size=128)
    return DocumentBackend(PageBackend(predictor, DemoConfig(**LIMITS), folder), finder)


@pytest.fixture(scope="module")
def backend(calibrated, tmp_path_factory) -> DocumentBackend:
    return backend_of(calibrated, tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def finding(calibrated, tmp_path_factory) -> DocumentBackend:
    """A backend with a finder."""
    return backend_of(calibrated, tmp_path_factory.mktemp("demo"), WordFinder())


@pytest.fixture(scope="module")
def example() -> Markup:
    """The text that the page offers."""
    return example_markup(TYPES)


def from_command(ckpt: Path, markup: Markup, folder: Path, suffix: str = ".jsonl", **options) -> Path:
    """What `mtl-re extract` writes of the same text."""
    entities = [{"start": one.start, "end": one.end, "type": one.type} for one in markup.entities]
    data, output = folder / "doc.json", folder / f"out{suffix}"
    data.write_text(json.dumps([{"text": markup.text, "entities": entities}]), encoding="utf-8")
    extract(str(ckpt), ExtractConfig(data=str(data), output=str(output), **options))
    return output


# ---- marks ---------------------------------------------------------------------------------------------------------


def spans(markup: Markup) -> list[tuple[int, int, str]]:
    return [(one.start, one.end, one.type) for one in markup.entities]


def test_marks_are_added_moved_and_removed():
    text = "서울대학교병원은 서울에 있다."
    made = Markup(text).marked((0, 6), "ORG").marked((9, 10), "LOC").marked((0, 1), "LOC")
    assert spans(made) == [(0, 6, "ORG"), (0, 1, "LOC"), (9, 10, "LOC")]  # one may lie inside another
    assert all(one.word == text[one.start : one.end + 1] for one in made.entities)
    assert spans(made.marked((5, 9), "PER")) == [(0, 1, "LOC"), (5, 9, "PER")]  # but not cross it
    assert spans(made.marked((0, 6), "POH")) == [(0, 6, "POH"), (0, 1, "LOC"), (9, 10, "LOC")]
    assert spans(made.edited("새 " + text)) == [(2, 8, "ORG"), (2, 3, "LOC"), (11, 12, "LOC")]
    assert spans(made.edited(text.replace("병원", "병동"))) == [(0, 1, "LOC"), (9, 10, "LOC")]
    assert spans(made.unmarked((3, 9))) == [(0, 1, "LOC")]


def test_a_word_is_marked_wherever_a_word_begins_with_it():
    text = "왕은 세종대왕을 만난 왕이다. (왕)"
    assert [one.start for one in Markup(text).marked_everywhere((0, 0), "PER").entities] == [0, 12, 18]
    taken = Markup(text).marked((12, 14), "POH").marked_everywhere((0, 0), "PER")
    assert spans(taken) == [(0, 0, "PER"), (12, 14, "POH"), (18, 18, "PER")]
    dots = Markup("A.B A+B A.B").marked_everywhere((0, 2), "ORG")
    assert [one.start for one in dots.entities] == [0, 8]


def test_the_marked_text_is_shown_by_sentences():
    made = Markup("왕 만세. 서울대 병원이다.").marked((0, 0), "PER").marked((6, 11), "ORG").marked((6, 7), "LOC")
    shown = markup_html(made, ["PER", "ORG", "LOC"], "en")
    assert shown.count("<li>") == 2
    assert [re.sub("<[^>]*>", "", line) for line in re.findall("<li>(.*?)</li>", shown)] == [
        "person왕 만세.",
        "organisationplace서울대 병원이다.",
    ]
    assert re.search(r"re-kind-1.*re-kind-2", shown)  # the place lies inside the organisation
    assert "Entities: 3 · sentences: 2" in shown
    assert TEXTS["ko"]["document_empty"] in markup_html(Markup(" "), [], "ko")


def test_strangers_text_is_escaped(backend):
    text = f"누리전자 {HOSTILE} 한라희"
    made = Markup(text).marked((0, 3), "ORG").marked((5, 5 + len(HOSTILE) - 1), "PER")
    scored = backend.scored(made, False, "en")
    for shown in (
        markup_html(made, ["<b>"], "en"),
        triples_html(scored, backend.kept(scored, 0), 0, backend.types, backend.taxonomy, "en"),
        triples_html(scored, [], 1, backend.types, backend.taxonomy, "en"),
    ):
        assert "<img" not in shown
        assert "${" not in shown
        assert "&lt;img" in shown


def test_the_example_is_four_sentences_of_eight_entities_or_more(example):
    assert markup_html(example, TYPES, "ko").count("<li>") == 4
    assert len({(one.word, one.type) for one in example.entities}) >= 8
    assert all(example.text[one.start : one.end + 1] == one.word for one in example.entities)
    assert not set("[]|") & set(example.text)
    assert example_markup(["PER", "ORG"]) is None


# ---- triples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5])
def test_the_rows_are_the_commands(backend, calibrated, example, tmp_path, threshold):
    scored = backend.scored(example, False, "en")
    expected = from_command(calibrated, example, tmp_path, threshold=threshold)
    rows = backend.kept(scored, threshold)
    assert rows == list(read_triples(expected))
    assert len(rows) > 0
    assert list(rows[0]) == list(COLUMNS)
    assert len(scored.rows) == scored.pairs > len(backend.kept(scored, 0.5))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_the_files_are_the_commands(backend, calibrated, example, tmp_path, suffix):
    scored = backend.scored(example, False, "ko")
    shown = triples_html(scored, backend.kept(scored, 0.2), 0.2, backend.types, backend.taxonomy, "ko")
    address = re.search(rf'download="triples{suffix}" href="data:[^,]*,([^"]*)"', shown)[1]
    expected = from_command(calibrated, example, tmp_path, suffix, threshold=0.2)
    assert base64.b64decode(html.unescape(address)) == expected.read_bytes()


def test_stored_thresholds(backend, saved, calibrated, example, tmp_path):
    scored = backend.scored(example, True, "en")
    rows = backend.kept(scored, 0.99)  # the slider says nothing then
    assert rows == list(read_triples(from_command(calibrated, example, tmp_path, threshold="stored")))
    every = backend.kept(backend.scored(example, False, "en"), 0)
    assert rows == [row for row in every if row["relation"] != NEVER]
    assert 0 < len(rows) < len(every)
    assert backend_of(saved, tmp_path).stored_thresholds is None


def test_entities_are_found_where_none_is_marked(finding):
    text = "강릉이다.\n한라희는 무엇 누리전자 대표이다."
    found = finding.found(Markup(text), "en")
    assert spans(found) == [(6, 8, "PER"), (14, 17, "ORG")]
    scored = finding.scored(Markup(text), False, "en")
    assert scored.markup == found
    assert [(row["subject"], row["object"]) for row in scored.rows].count(("한라희", "누리전자")) == 1
    by_hand = Markup(text).marked((0, 1), "LOC").marked((6, 8), "PER")
    assert finding.scored(by_hand, False, "en").markup == by_hand  # what is marked is left as it is
    with pytest.raises(MtlReError, match="No entity was found"):
        finding.scored(Markup("여기에는 없다."), False, "en")


def test_what_is_found_leaves_the_marks_as_they_are(finding):
    """One mark overlaps what is found there, one has its very span, one is elsewhere."""
    text = "강릉에 사는 한라희는 누리전자 대표이다. 한라희는 왕이다."
    marked = Markup(text).marked((0, 1), "LOC").marked((7, 10), "POH").marked((12, 15), "PER")
    expected = [*spans(marked), (23, 25, "PER")]
    assert [text[start : end + 1] for start, end, _ in expected] == ["강릉", "한라희는", "누리전자", "한라희"]
    assert spans(finding.found(marked, "en")) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  ", "The text is empty"),
        ("가" * 401, "more than 400 characters.*mtl-re extract CKPT --data"),
        ("누리전자 한라희", "No entity is marked"),
    ],
)
def test_texts_that_are_refused(backend, text, message):
    with pytest.raises(MtlReError, match=message):
        backend.scored(Markup(text), False, "en")


def test_too_many_pairs_are_refused(backend):
    made = Markup(" ".join(["왕"] * 9)).marked_everywhere((0, 0), "PER")
    with pytest.raises(MtlReError, match=r"72 pairs of entities; this page takes 60.*mtl-re extract"):
        backend.scored(made, False, "en")


def test_pairs_that_do_not_fit_are_counted(backend):
    name = "가나다 " * 50 + "끝"
    made = Markup(f"왕은 {name}에서 온 신하").marked((3, 2 + len(name)), "LOC").marked((0, 0), "PER")
    made = made.marked((len(made.text) - 2, len(made.text) - 1), "PER")
    scored = backend.scored(made, False, "en")
    assert (scored.left_out, scored.pairs) == (2, 2)  # a place is no subject
    shown = triples_html(scored, backend.kept(scored, 0), 0, backend.types, backend.taxonomy, "en")
    assert TEXTS["en"]["pairs_left_out"].format(pairs=2) in shown


def said(backend, markup: Markup, threshold: float = 1.0, stored: bool = False, language: str = "en") -> str:
    scored = backend.scored(markup, stored, language)
    rows = backend.kept(scored, threshold)
    return triples_html(scored, rows, threshold, backend.types, backend.taxonomy, language)


def test_why_there_is_no_triple(backend, example):
    """Each reason, in the order in which a user would mend it."""
    apart = Markup("왕이다. 신하이다.").marked((0, 0), "PER").marked((5, 6), "PER")
    assert TEXTS["en"]["none_together"] in said(backend, apart)
    places = Markup("서울 부산").marked((0, 1), "LOC").marked((3, 4), "LOC")
    assert "Types that can: organisation, person" in said(backend, places)
    best = max(backend.scored(example, False, "en").rows, key=lambda row: row["score"])
    shown = said(backend, example)
    assert "score of 1.00 or more" in shown
    assert f"{best['subject']} → {best['object']}" in shown
    assert f"(score {best['score']:.3f})" in shown
    assert "<svg" not in shown
    assert "저장된 관계별 기준을 넘는 관계가 없습니다" in triples_html(
        backend.scored(example, True, "ko"), [], 0.5, backend.types, backend.taxonomy, "ko"
    )


def test_a_model_whose_taxonomy_restricts_no_subject(tmp_path, examples):
    """Any type may be a subject, and the example, whose types it does not know, is not offered."""
    taxonomy = Taxonomy.from_dict({"groups": {"none": ["no_relation"], "some": ["likes", "owns"]}})
    tokenizer = scratch_tokenizer(examples, "typed_punct_ko")
    model = tiny_model(tokenizer, taxonomy=taxonomy.to_dict(), entity_types=["PER", "LOC"])
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "ckpt")
    backend = backend_of(tmp_path / "ckpt", tmp_path)
    made = Markup("왕의 옷").marked((0, 0), "PER").marked((3, 3), "LOC")
    scored = backend.scored(made, False, "ko")
    assert {(row["subject"], row["object"]) for row in scored.rows} == {("왕", "옷"), ("옷", "왕")}
    assert "<svg" in triples_html(scored, scored.rows, 0, backend.types, backend.taxonomy, "ko")
    assert example_markup(backend.types) is None


def test_the_table_and_the_pictures(backend, example):
    shown = said(backend, example, 0.0)
    rows = backend.scored(example, False, "en").rows
    table = shown[shown.index("<tbody>") : shown.index("</tbody>")]
    assert table.count("<tr>") == len(rows) == backend.scored(example, False, "en").pairs
    numbers = [int(number) for number in re.findall(r'<tr><td class="re-number">(\d+)</td>', table)]
    assert numbers == sorted(numbers)
    assert set(numbers) <= {1, 2, 3, 4}
    for name, (_, most) in document_rendering.PICTURES.items():
        part = shown[shown.index(f'class="re-{name}"') :].split("</svg>")[0]
        assert part.count('class="re-arrow"') <= most
        assert f"The picture shows the {most} arrows" in part


def test_relations_of_one_name_are_only_in_the_table(backend):
    made = Markup("왕과 왕").marked_everywhere((0, 0), "PER")
    shown = said(backend, made, 0.0)
    assert TEXTS["en"]["no_arrows"] in shown
    assert shown.count("<tr>") == 3


# ---- the tab in a browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tagger(examples, tmp_path_factory) -> Path:
    """A token-classification model of random weights, so large that it finds something."""
    folder, tokenizer = tmp_path_factory.mktemp("tagger"), scratch_tokenizer(examples, "typed_punct_ko")
    labels = {"id2label": {0: "O", 1: "B-PS", 2: "I-PS", 3: "B-OG"}, "num_labels": 4}
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    model = BertForTokenClassification(BertConfig(vocab_size=len(tokenizer), initializer_range=0.5, **sizes, **labels))
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(calibrated, tagger, tmp_path_factory):
    options = [text for name, value in LIMITS.items() for text in (f"--{name}", str(value))]
    with demo_server(tmp_path_factory.mktemp("served"), calibrated, "--entities", f"ner:{tagger}", *options) as served:
        yield served


@pytest.fixture
def browser(server, tmp_path):
    with pages_of(server[0], tmp_path) as opened:
        yield opened


def opened_tab(browser, language: str = "en-US", width: int = 1280):
    page = browser(language, width)
    open_tab(page, TEXTS[language[:2]]["tab_document"], "#document textarea")
    page.wait_for_selector("#document textarea", state="visible")
    return page


def mark(page, word: str, kind: str) -> None:
    """Select the first such word as a user's mouse would, and press the button of a type."""
    page.focus("#document textarea")
    page.evaluate(
        """word => { const area = document.querySelector("#document textarea"), start = area.value.indexOf(word);
                     area.setSelectionRange(start, start + word.length); }""",
        word,
    )
    page.locator("#kinds button", has_text=kind).click()
    page.wait_for_selector(f"#marks mark:has-text('{word}')")


def table(page) -> list[list[str]]:
    """The cells of the table, the first line of each."""
    rows = page.locator("#triples tbody tr")
    return [
        [cell.split("\n")[0].strip() for cell in rows.nth(number).locator("td").all_inner_texts()]
        for number in range(rows.count())
    ]


def set_threshold(page, value: float) -> None:
    page.fill("#threshold input[type=number]", str(value))
    page.keyboard.press("Enter")


TEXT = "누리전자의 대표는 한라희이다. 한라희는 서울에서 태어났다. 누리전자도 서울에 있다."


@pytest.mark.slow
def test_mark_and_read(browser, calibrated, tmp_path):
    page = opened_tab(browser)
    page.fill("#document textarea", TEXT)
    for word, kind in (("누리전자", "ORG"), ("한라희", "PER"), ("서울", "LOC")):
        mark(page, word, kind)
    markup = Markup(TEXT)
    for word, kind in (("누리전자", "ORG"), ("한라희", "PER"), ("서울", "LOC")):
        markup = markup.marked_everywhere((TEXT.index(word), TEXT.index(word) + len(word) - 1), kind)
    assert page.locator("#marks mark").count() == len(markup.entities) == 6
    page.click("#extract")
    page.wait_for_selector("#re-summary, #re-none")
    set_threshold(page, 0)
    expected = list(read_triples(from_command(calibrated, markup, tmp_path, threshold=0.0)))
    page.wait_for_function(
        "count => document.querySelectorAll('#triples tbody tr').length === count", arg=len(expected)
    )
    shown = [[row["subject"], row["relation"], row["object"], f"{row['score']:.3f}"] for row in expected]
    assert [row[1:5] for row in table(page)] == shown
    assert [row[0] for row in table(page)] == ["1", "1", "2", "3"]
    page.locator("#triples th", has_text="Score").click()
    scores = [float(row[4]) for row in table(page)]
    assert scores == sorted(scores)
    page.locator("#triples th", has_text="Score").click()
    assert [float(row[4]) for row in table(page)] == sorted(scores, reverse=True)
    assert page.locator("#triples th[aria-sort]").inner_text().startswith("Score")
    words = set(page.locator("#triples .re-wide .re-node .re-word").all_text_contents())
    assert words == {"누리전자", "한라희", "서울"}
    with page.expect_download() as download:
        page.click("#triples a[download='triples.csv']")
    written = from_command(calibrated, markup, tmp_path, ".csv", threshold=0.0)
    assert Path(download.value.path()).read_bytes() == written.read_bytes()
    with written.open(encoding="utf-8", newline="") as file:
        assert next(csv.reader(file)) == list(COLUMNS)
    set_threshold(page, 1)
    page.wait_for_selector("#re-none >> text=lower the least score")
    page.get_by_label(TEXTS["en"]["stored"]).check()
    page.wait_for_selector("#triples .re-table")
    assert len(table(page)) == len([row for row in expected if row["relation"] != NEVER])
    page.fill("#document textarea", TEXT + " 또.")  # what was found belongs to the text as it was
    page.wait_for_selector("#triples >> text=the result appears here")
    assert page.locator("#marks mark").count() == 6


@pytest.mark.slow
def test_marks_are_removed_and_faults_told(browser):
    page = opened_tab(browser, "ko-KR")
    page.fill("#document textarea", f"{TEXT} {HOSTILE}")
    page.wait_for_selector("#marks li")
    page.click("#unmark")
    page.wait_for_selector(f"text={TEXTS['ko']['nothing'][:12]}")
    mark(page, "한라희", "PER")
    page.uncheck("#everywhere input")
    mark(page, "누리전자", "ORG")
    assert page.locator("#marks mark").count() == 3
    mark(page, "onerror", "POH")
    page.click("#unmark")
    page.wait_for_function("document.querySelectorAll('#marks mark').length === 3")
    assert HOSTILE in page.inner_text("#marks")
    assert page.evaluate("window.hit") is None
    page.click("#unmark-all")
    page.wait_for_function("document.querySelectorAll('#marks mark').length === 0")
    page.fill("#document textarea", "가나다라 " * 200)  # the browser cuts it at twice the limit
    page.click("#extract")
    page.wait_for_selector("#triples [role=alert] >> text=mtl-re extract CKPT")


@pytest.mark.slow
def test_entities_are_found(browser, tagger):
    found = EntityFinder.load(str(tagger)).find([TEXT.split(". ")[0] + "."])[0]
    assert found
    page = opened_tab(browser)
    page.fill("#document textarea", TEXT)
    page.click("#find")
    page.wait_for_selector("#marks mark")
    first = page.locator("#marks li").first.locator("mark .re-word").all_inner_texts()
    assert first == [one.word for one in found]


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_example_in_both_languages(browser, width):
    page = opened_tab(browser, "ko-KR", width)
    page.click("#document-example")
    page.wait_for_selector("#marks mark")
    assert page.input_value("#document textarea") == example_markup(TYPES).text
    page.click("#extract")
    page.wait_for_selector("#re-summary, #re-none")
    set_threshold(page, 0.1)
    page.wait_for_selector("#triples svg >> nth=0", state="attached")
    assert page.locator("#triples svg:visible").count() == 1  # the one that fits
    assert page.locator("#triples .re-narrow").is_visible() == (width < 600)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = """() => { const svg = [...document.querySelectorAll("#triples svg")].find((one) => one.clientWidth > 0);
      const frame = svg.getBoundingClientRect();
      return [...svg.querySelectorAll(".re-node, .re-relation")].filter((part) => {
        const box = part.getBoundingClientRect(); return box.left < frame.left - 1 || box.right > frame.right + 1 ||
          box.bottom > frame.bottom + 1; }).length; }"""
    assert page.evaluate(outside) == 0
    assert page.inner_text("#triples h3 >> nth=0") == TEXTS["ko"]["graph_title"]
    page.get_by_label("English").check()
    page.wait_for_selector(f"#triples >> text={TEXTS['en']['graph_help'][:30]}")
    assert page.inner_text("#extract") == TEXTS["en"]["extract"]
