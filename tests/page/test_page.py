"""The demo page: its pure functions, its answers, and (slow) the whole page in a headless browser."""

import csv
import json
import re
import signal
import socket
import string
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from browsing import demo_server, missing, open_tab, pages_of

from mtl_re.config import DemoConfig
from mtl_re.data.validation import Entity, Example
from mtl_re.errors import MtlReError
from mtl_re.page import backend as page_backend
from mtl_re.page import rendering
from mtl_re.page import server as page_server
from mtl_re.page.backend import PageBackend, answer, mark_selection, submission
from mtl_re.page.draft import Draft, python_span
from mtl_re.page.rendering import escaped, marked_html, result_html, view_of
from mtl_re.page.translations import GLOSSES, TEXTS, TYPES
from mtl_re.predict.predictor import Predictor
from mtl_re.scoring.composed import ComposedModel
from mtl_re.scoring.writers import Prediction
from mtl_re.taxonomy import KLUE, LABEL_ORDERS, Taxonomy

HOSTILE = "<script>window.hit=1</script> <img src=x onerror=window.hit=1> ${window.hit=1} {{value}} `a` \"q\" 'p' &amp;"
KINDS = {"subject": "PER", "object": "ORG"}


@pytest.fixture(scope="module")
def backend(tiny, tmp_path_factory) -> PageBackend:
    return PageBackend(
        Predictor([ComposedModel.of(*tiny)]), DemoConfig(max_rows=40, max_megabytes=1), tmp_path_factory.mktemp("demo")
    )


# ---- the question --------------------------------------------------------------------------------------------------


def units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


@pytest.mark.parametrize("before", ["", "가나 ", "😀 ", "👨‍👩‍👧 é ", "\U0001f1f0\U0001f1f7", "\n\t"])
@pytest.mark.parametrize("word", ["왕", "세종대왕", "😀", "a😀b", "한"])
def test_a_selection_becomes_python_characters(before, word):
    text = f"{before}{word} 뒤 😀"
    start = units(before)
    assert python_span(text, start, start + units(word)) == (len(before), len(before) + len(word) - 1)


@pytest.mark.parametrize(
    ("text", "start", "stop", "expected"),
    [
        ("가 나", 0, 2, (0, 0)),  # a double click takes the blank behind the word
        ("가 나", 1, 3, (2, 2)),
        ("가 나", 1, 2, None),
        ("가 나", 1, 1, None),
        ("", 0, 0, None),
        ("a😀b", 2, 3, (1, 1)),  # half of the emoji
        ("a😀b", 0, 2, (0, 1)),
        ("가", 0, 99, (0, 0)),
    ],
)
def test_a_selection_at_an_edge(text, start, stop, expected):
    assert python_span(text, start, stop) == expected


@pytest.mark.parametrize(
    ("after", "subject", "object"),
    [
        ("나는 A 와 B 를", (3, 3), (7, 7)),
        ("나는 A 와 B", (3, 3), (7, 7)),
        ("그래 나는 A 와 B 를", (6, 6), (10, 10)),
        ("나는 A 말고 B 를", (3, 3), (8, 8)),
        ("나는 X 와 B 를", None, (7, 7)),
        ("A 와 B 를", (0, 0), (4, 4)),
        ("", None, None),
        ("전혀 다른 말", None, None),
    ],
)
def test_marks_follow_their_words(after, subject, object):
    assert Draft("나는 A 와 B 를", (3, 3), (7, 7)).edited(after) == Draft(after, subject, object)


def test_a_new_mark_replaces_what_it_overlaps():
    draft = Draft("가나 다라", (0, 1), (3, 4))
    assert draft.marked("subject", (1, 3)) == Draft("가나 다라", (1, 3), None)
    assert draft.marked("object", (0, 1)) == Draft("가나 다라", None, (0, 1))
    assert draft.marked("object", (1, 1)) == Draft("가나 다라", (0, 1), (1, 1))  # one inside the other
    assert draft.marked("subject", (0, 4)) == Draft("가나 다라", (0, 4), (3, 4))
    assert draft.marked("object", (3, 3)) == Draft("가나 다라", (0, 1), (3, 3))
    assert mark_selection(draft, "object", "가나 다라", 2, 3) is None
    assert mark_selection(Draft(), "object", "가 😀", 2, 4) == Draft("가 😀", None, (2, 2))


# ---- what is shown -------------------------------------------------------------------------------------------------


def test_strangers_text_is_escaped():
    assert not set("<>\"'`${}") & set(escaped(HOSTILE))
    draft = Draft(HOSTILE, (0, 7), (30, 40))
    shown = marked_html(draft, {"subject": "<b>", "object": "{{x}}"}, "en")
    tags = {"p", "/p", "mark", "/mark", "span", "/span"}
    assert {tag.split()[0] for tag in re.findall(r"<([^>]*)>", shown)} == tags
    assert "${" not in shown
    assert "{{" not in shown
    problem = rendering.problem_html(HOSTILE, "ko")
    assert "<script" not in problem
    assert "${" not in rendering.file_html("${1}<i>", {"per:title": 3}, "en")


@pytest.mark.parametrize(
    ("subject", "object", "shown"),
    [
        ((0, 6), (2, 4), "S서울O대학교/O병원/S은"),
        ((0, 1), (0, 6), "OS서울/S대학교병원/O은"),
        ((5, 6), (0, 6), "O서울대학교S병원/S/O은"),
    ],
)
def test_nested_entities_are_nested_boxes(subject, object, shown):
    html = marked_html(Draft("서울대학교병원은 크다.", subject, object), KINDS, "en")
    boxes = re.sub(r'<span class="re-tag">.*?</span>|<span class="re-(word|glued)">|</span>|</?p[^>]*>', "", html)
    for role in ("subject", "object"):
        boxes = boxes.replace(f'<mark class="re-{role}">', role[0].upper())
    closing = iter(["/O", "/S"] if shown.index("S") < shown.index("O") else ["/S", "/O"])
    assert re.sub("</mark>", lambda _: next(closing), boxes).startswith(shown)


def test_the_preview_names_the_roles_and_what_is_missing():
    shown = marked_html(Draft("가 나", (0, 0), None), KINDS, "en")
    assert "Subject · PER" in shown
    assert TEXTS["en"]["no_object"] in shown
    assert TEXTS["en"]["no_subject"] not in shown
    assert TEXTS["ko"]["empty"] in marked_html(Draft("  "), KINDS, "ko")


@pytest.mark.parametrize(
    ("text", "glued"),
    [
        ("왕은 신이다.", ["은", "이다."]),
        ("왕 신", []),
        ("왕과신", []),  # the other entity begins there
        ("왕은 신" + "가" * 9, ["은"]),  # no particle is so long, and the line must break somewhere
    ],
)
def test_a_particle_stays_with_its_marked_word(text, glued):
    place = text.index("신")
    shown = marked_html(Draft(text, (0, 0), (place, place)), KINDS, "ko")
    assert re.findall(r'<span class="re-glued"><mark.*?</mark>(.*?)</span>', shown) == glued
    words = re.sub(r'<span class="re-tag">.*?</span>|<[^>]*>', "", shown)
    assert words == text


def prediction(**probs: float) -> Prediction:
    """Product probabilities with the given ones; the rest goes to no_relation."""
    import numpy as np

    given = {name.replace("__", ":"): value for name, value in probs.items()}
    row = np.array([given.get(label, 0.0) for label in KLUE])
    row[0] = 1 - row.sum()
    return Prediction.of("1", row, int(row.argmax()), Taxonomy.from_prefixes(), None)


def test_the_view_when_the_gates_differ():
    taxonomy = Taxonomy.from_prefixes()
    made = prediction(per__title=0.3, per__spouse=0.25, org__members=0.05)
    view = view_of(made, "per:title", "no_relation", taxonomy)
    assert [(bar.name, round(bar.value, 2), bar.chosen) for bar in view.gate] == [
        ("no_relation", 0.4, False),
        ("org", 0.05, False),
        ("per", 0.55, True),
    ]
    heads = {branch.name: branch for branch in view.branches}
    assert (heads["per"].open, heads["org"].open) == (True, False)
    assert heads["per"].bars[0] == rendering.Bar("per:title", pytest.approx(0.3 / 0.55), True)
    assert heads["org"].bars[0] == rendering.Bar("org:members", pytest.approx(1.0), False)
    assert [(bar.name, bar.notes) for bar in view.top[:3]] == [
        ("no_relation", ("soft",)),
        ("per:title", ("hard",)),
        ("per:spouse", ()),
    ]
    shown = result_html(view, Draft("가 나", (0, 0), (2, 2)), "en")
    assert shown.index("re-open") < shown.index("re-closed")
    assert "The gates differ" in shown
    assert "width:30.00%" in shown


@pytest.mark.parametrize("layout", ["hierarchical", "flat"])
def test_the_view_when_nothing_is_related(layout):
    view = view_of(prediction(), "no_relation", "no_relation", Taxonomy.from_prefixes(layout=layout))
    assert not any(branch.open for branch in view.branches)
    assert all(bar.value == 0 for branch in view.branches for bar in branch.bars)
    assert view.top[0].notes == ("hard", "soft")
    assert TEXTS["ko"]["gates_agree"] in result_html(view, Draft("가 나", (0, 0), (2, 2)), "ko")


def test_both_languages_say_the_same():
    for key, text in TEXTS["ko"].items():
        fields = [
            sorted(name for _, name, _, _ in string.Formatter().parse(words) if name)
            for words in (text, TEXTS["en"][key])
        ]
        assert fields[0] == fields[1], key
    assert TEXTS["ko"].keys() == TEXTS["en"].keys()
    assert TYPES["ko"].keys() == TYPES["en"].keys()
    assert set(GLOSSES["ko"]) == {*KLUE, "org", "per"}
    assert not re.search(r"https?:|url\(|@import", Path(page_server.__file__).with_name("stylesheet.css").read_text())


# ---- what is answered ----------------------------------------------------------------------------------------------


def test_the_view_is_the_predictors(backend, examples):
    for row in examples[:5]:
        draft = Draft(row.sentence, (row.subject.start, row.subject.end), (row.object.start, row.object.end))
        view = backend.view(draft, {"subject": row.subject.type, "object": row.object.type})
        expected = backend.predictor.predict([row])[0]
        assert (view.label, view.score) == (expected.label, expected.score)
        assert view.hard == expected.label  # the tiny model's own gate is the hard one
        assert view.soft == max(expected.probs, key=expected.probs.__getitem__)


def test_a_fault_is_shown_and_not_raised(backend):
    draft = Draft("가 나", (0, 0), (2, 2))
    assert "unknown to this model" in answer(backend, draft, {"subject": "<i>", "object": "PER"}, "en")[1]
    assert TEXTS["en"]["waiting"] in answer(backend, Draft("가 나", (0, 0)), KINDS, "en")[1]


def test_the_examples_are_ours_and_marked(backend):
    rows = page_backend.example_rows(backend.taxonomy)
    assert [row.label for row in rows] == list(page_backend.EXAMPLE_LABELS)
    assert {row.source for row in rows} == {"mtl-re-sample"}
    assert page_backend.example_rows(Taxonomy.from_dict({"groups": {"a": ["x", "y"], "b": ["z"]}})) == []


def upload(folder: Path, rows, name: str = "rows.json") -> str:
    path = folder / name
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return str(path)


def test_a_file_becomes_a_submission(backend, examples, tmp_path):
    path = upload(tmp_path, [row.to_row() for row in examples[:30]], "<b>.json")
    said, output = submission(backend, path, "en")
    assert "&lt;b&gt;.json: 30 rows predicted" in said
    with open(output, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [row.id for row in examples[:30]]
    expected = backend.predictor.predict(examples[:30])
    assert [row["pred_label"] for row in rows] == [row.label for row in expected]
    assert json.loads(rows[0]["probs"]) == pytest.approx(
        [expected[0].probs[label] for label in LABEL_ORDERS["boostcamp"]]
    )
    assert Path(output).is_relative_to(backend.directory)
    assert submission(backend, path, "en")[1] != output


def test_files_that_are_refused(backend, examples, tmp_path):
    rows = [row.to_row() for row in examples]
    faults = {
        upload(tmp_path, rows, "many.json"): "More than 40 rows",
        upload(tmp_path, ["x" * 1_000_001], "big.json"): "Larger than 1 MB",
        upload(tmp_path, rows, "rows.parquet"): "Only .csv, .json and .jsonl",
        upload(tmp_path, [rows[0] | {"sentence": ""}], "bad.json"): "bad.json:1: sentence",
    }
    for path, text in faults.items():
        said, output = submission(backend, path, "en")
        assert text in said
        assert output is None
        assert str(tmp_path) not in said
    assert TEXTS["ko"]["file_missing"] in submission(backend, None, "ko")[0]
    assert not list(backend.directory.glob("*/.partial*"))


def test_the_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(MtlReError, match=r"cannot listen on this address .*choose another --port"):
            page_server.free_port("127.0.0.1", taken.getsockname()[1])
    assert 0 < page_server.free_port("127.0.0.1", 0) < 65_536
    with pytest.raises(MtlReError, match="cannot listen on this address"):
        page_server.free_port("203.0.113.7", 0)


# ---- the whole page in a browser -----------------------------------------------------------------------------------

SENTENCE = "누리전자 대표 😀 한라희"


def test_a_browser_may_be_missing_but_not_where_it_is_required(monkeypatch):
    monkeypatch.delenv("MTL_RE_REQUIRE_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no browser"):
        missing("no browser")
    monkeypatch.setenv("MTL_RE_REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="no browser"):
        missing("no browser")


@pytest.fixture(scope="module")
def server(saved, tmp_path_factory):
    """(address, process, temporary folder) of `mtl-re demo` as a user starts it, with limits a test can reach."""
    limits = ("--max_rows", "100", "--max_megabytes", "0.5")
    with demo_server(tmp_path_factory.mktemp("served"), saved, *limits) as served:
        yield served


@pytest.fixture
def browser(server, tmp_path):
    """Opens the page: (language, width) → page."""
    with pages_of(server[0], tmp_path) as opened:
        yield opened


def write(page, text: str) -> None:
    page.fill("#sentence textarea", text)
    page.wait_for_function("text => document.querySelector('#preview').innerText.includes(text)", arg=text[:20])


def mark_both(page) -> None:
    """The last word is the subject, by keyboard; the first is the object, by a double click."""
    page.focus("#sentence textarea")
    page.keyboard.press("Control+End")
    for _ in "한라희":
        page.keyboard.press("Shift+ArrowLeft")
    page.click("#mark-subject")
    page.wait_for_selector("#preview .re-subject")
    page.dblclick("#sentence textarea", position={"x": 30, "y": 20})
    page.click("#mark-object")
    page.wait_for_selector("#preview .re-object")


@pytest.mark.slow
def test_mark_predict_and_read(browser, backend):
    page = browser()
    write(page, SENTENCE)
    mark_both(page)
    assert page.inner_text("#preview .re-subject .re-word") == "한라희"
    assert page.inner_text("#preview .re-object .re-word") == "누리전자"
    page.wait_for_selector("#re-label")  # without asking: both are marked
    page.click("#predict")
    row = Example("1", SENTENCE, Entity("한라희", 10, 12, "PER"), Entity("누리전자", 0, 3, "ORG"))
    expected = backend.predictor.predict([row])[0]
    assert page.inner_text("#re-label") == expected.label
    assert page.inner_text("#re-score") == f"{expected.score:.3f}"
    gate = [float(value) for value in page.locator(".re-gate .re-value").all_inner_texts()]
    assert gate == pytest.approx(list(expected.coarse.values()), abs=1e-3)
    write(page, SENTENCE.replace("한라희", "하라라"))  # the subject is gone, and the answer with it
    page.wait_for_selector("#re-label", state="detached")
    keyboard = page.context.new_cdp_session(page)  # as an input method writes: no key is pressed
    page.focus("#sentence textarea")
    keyboard.send("Input.imeSetComposition", {"text": "하", "selectionStart": 1, "selectionEnd": 1})
    keyboard.send("Input.insertText", {"text": "한글"})
    page.wait_for_selector("#preview >> text=한글")


@pytest.mark.slow
def test_nothing_selected_is_said(browser):
    page = browser("ko-KR")
    write(page, SENTENCE)
    page.click("#mark-subject")
    page.wait_for_selector(f"text={TEXTS['ko']['nothing'][:12]}")
    assert page.locator("#preview .re-subject").count() == 0


@pytest.mark.slow
def test_a_hostile_sentence_stays_text(browser):
    page = browser()
    text = f"누리전자 {HOSTILE} 한라희"
    write(page, text)
    mark_both(page)
    page.click("#predict")
    page.wait_for_selector("#re-label")
    assert HOSTILE in page.inner_text("#preview")
    assert page.evaluate("window.hit") is None
    assert page.locator("#preview script, #preview img, #result script, #result img").count() == 0


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_examples_and_languages(browser, backend, width):
    page = browser("ko-KR", width)
    page.click("#example input")
    row = page_backend.example_rows(backend.taxonomy)[0]
    page.get_by_role("option", name=row.sentence).click()
    page.wait_for_selector("#re-label")
    assert page.inner_text("#re-label") == backend.predictor.predict([row])[0].label
    write(page, "")
    page.wait_for_selector("#re-label", state="detached")
    page.click("#example input")
    page.get_by_role("option", name=row.sentence).click()  # the same one again
    page.wait_for_selector("#re-label")
    assert TEXTS["ko"]["gate_title"] in page.inner_text("#result")
    page.get_by_label("English").check()
    page.wait_for_selector(f"text={TEXTS['en']['gate_title']}")
    assert page.inner_text("#predict") == TEXTS["en"]["predict"]
    assert not re.search(
        "[가-힣]", page.inner_text("#result").replace(row.subject.word, "").replace(row.object.word, "")
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def choose_file(page, path: str) -> None:
    """Choose a file, and again on a page loaded anew if it does not appear: a busy machine has lost a choice before.

    Gradio takes the input away while a file goes up and when it has arrived, so only a new page surely has one.
    """
    timed_out = pytest.importorskip("playwright.sync_api").TimeoutError
    for patience in (30_000, 30_000, 60_000):
        open_tab(page, TEXTS["en"]["tab_file"], "#file input[type=file]")
        try:
            page.set_input_files("#file input[type=file]", path, timeout=patience)
            page.locator("#file >> text=" + Path(path).name).wait_for(timeout=patience)
            return
        except timed_out:
            page.reload()
    pytest.fail("the chosen file did not appear")


@pytest.mark.slow
def test_a_file_goes_up_and_a_submission_comes_down(browser, examples, tmp_path):
    page = browser()
    choose_file(page, upload(tmp_path, [row.to_row() for row in examples]))
    page.click("#file-run")
    page.wait_for_selector("#re-rows >> text=60 rows")
    with page.expect_download() as download:
        page.click("#submission a[download]")
    with open(download.value.path(), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [row.id for row in examples]
    assert all(abs(sum(json.loads(row["probs"])) - 1) < 1e-6 for row in rows)


def status(address: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.slow
def test_the_server_is_closed(server, saved):
    address, process, folder = server
    for path in ("/etc/passwd", saved / "config.json", Path.cwd() / "README.md", Path(page_server.__file__)):
        assert status(f"{address}/gradio_api/file={path}") == 403, path
    assert status(address) == 200
    assert status(address, Host="evil.example") == 400
    with urllib.request.urlopen(address, timeout=20) as reply:
        assert "connect-src 'self'" in reply.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
    body = (
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.json"\r\n\r\n'
        + b"x" * 600_000
        + b"\r\n--b--\r\n"
    )
    head = {"Content-Type": "multipart/form-data; boundary=b"}
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{address}/gradio_api/upload", body, head), timeout=20)
    with refused.value as reply:
        assert reply.code == 413
    assert list(folder.glob("mtl-re-demo-*"))
    process.send_signal(signal.SIGTERM)  # the last test of this server
    assert process.wait(60) == 0
    assert not list(folder.glob("mtl-re-demo-*"))
