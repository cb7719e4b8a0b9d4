"""The Gradio page: its components, and the function that handles each event.

Enters: a `PageBackend`. Leaves: the page. The browser reads the selection at the moment a button is pressed
(`READ_SELECTION`), together with the text it belongs to, so no event can arrive late or out of order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mtl_re.data.validation import Example
from mtl_re.features.markers import ROLES, Role
from mtl_re.page.backend import UPLOAD_SUFFIXES, PageBackend, answer, example_rows, mark_selection, submission
from mtl_re.page.document import DocumentBackend
from mtl_re.page.document_tab import DocumentTab
from mtl_re.page.draft import Draft
from mtl_re.page.rendering import hint_html, type_choices
from mtl_re.page.translations import TEXTS, Language

READ_SELECTION = """(text, start, stop, ...rest) => {
  const area = document.querySelector("#sentence textarea");
  return [area.value, area.selectionStart, area.selectionEnd, ...rest];
}"""
READ_TEXT = """(text, ...rest) => [document.querySelector("#sentence textarea").value, ...rest]"""
READ_LANGUAGE = """(draft, subject, object, language, ...rest) =>
  [draft, subject, object, navigator.language.toLowerCase().startsWith("ko") ? "ko" : "en", ...rest]"""
LABELLED = ("example", "sentence", "type_subject", "type_object", "file", "submission", "tab_one", "tab_file")
BUTTONS = ("mark_subject", "mark_object", "predict", "file_run")
ONE_AT_A_TIME = {"concurrency_id": "one", "api_visibility": "private", "show_progress": "hidden"}
"""Events of the first tab run one at a time, because each continues from the draft that the one before it left."""

Parts = dict[str, Any]


def build_page(backend: PageBackend, documents: DocumentBackend) -> Any:
    """Build the page of a checkpoint, not launched yet."""
    import gradio as gr

    words, picks = TEXTS["ko"], example_rows(backend.taxonomy)
    part: Parts = {}
    with gr.Blocks(title="mtl-re", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        part["draft"] = gr.State(Draft())
        part["start"], part["stop"] = (gr.Number(visible=False, precision=0) for _ in range(2))
        with gr.Row(elem_id="header"):
            part["title"] = gr.HTML(_title("ko"), elem_classes="re-title")
            languages = [("한국어", "ko"), ("English", "en")]
            part["language"] = gr.Radio(
                languages, value="ko", show_label=False, container=False, scale=0, min_width=220, elem_id="language"
            )
        with gr.Tabs():
            with gr.Tab(words["tab_one"]) as part["tab_one"], gr.Row():
                with gr.Column(scale=5, min_width=320):
                    _question(gr, part, backend.types, picks)
                with gr.Column(scale=6, min_width=320):
                    waiting = hint_html(words["waiting"])
                    part["result"] = gr.HTML(waiting, elem_classes="re-page", elem_id="result")
            whole = DocumentTab(gr, documents, part["start"], part["stop"], part["language"])
            with gr.Tab(words["tab_file"]) as part["tab_file"]:
                _file(gr, part)
        show = _connect(gr, part, backend, picks)
        _translate(gr, blocks, part, backend, show, whole)
    return blocks


def _question(gr: Any, part: Parts, types: list[str], picks: list[Example]) -> None:
    """Add the left column: the sentence, and the buttons that mark its entities."""
    words, closed = TEXTS["ko"], {"filterable": False}
    sentences = [(row.sentence, number) for number, row in enumerate(picks)]
    shown = {"label": words["example"], "visible": bool(picks), **closed}
    part["example"] = gr.Dropdown(sentences, value=None, elem_id="example", **shown)
    texts = {"label": words["sentence"], "info": words["steps"], "placeholder": words["placeholder"]}
    part["sentence"] = gr.Textbox(lines=3, max_lines=8, max_length=2000, elem_id="sentence", **texts)
    for role, kind in zip(ROLES, ("PER", "ORG"), strict=True):
        default = kind if kind in types else types[0]
        with gr.Row(equal_height=True):
            part[f"mark_{role}"] = gr.Button(words[f"mark_{role}"], elem_id=f"mark-{role}", min_width=200)
            box = {"label": words[f"type_{role}"], "elem_id": f"type-{role}", "min_width": 200, **closed}
            part[f"type_{role}"] = gr.Dropdown(type_choices(types, "ko"), value=default, **box)
    part["preview"] = gr.HTML(hint_html(words["empty"]), elem_classes="re-page", elem_id="preview")
    part["predict"] = gr.Button(words["predict"], variant="primary", elem_id="predict")


def _file(gr: Any, part: Parts) -> None:
    """Add the second tab: upload a file, download its submission."""
    words = TEXTS["ko"]
    part["file_help"] = gr.HTML(elem_classes="re-page")
    part["file"] = gr.File(label=words["file"], file_types=list(UPLOAD_SUFFIXES), type="filepath", elem_id="file")
    part["file_run"] = gr.Button(words["file_run"], variant="primary", elem_id="file-run")
    part["file_message"] = gr.HTML(elem_classes="re-page", elem_id="file-message")
    part["submission"] = gr.File(interactive=False, visible=False, elem_id="submission")


def _connect(gr: Any, part: Parts, backend: PageBackend, picks: list[Example]) -> Callable[..., tuple[Any, ...]]:
    """Connect the components to their event handlers, and return the handler that shows a draft."""

    def show(draft: Draft, subject: str, object: str, language: Language) -> tuple[Any, ...]:
        return draft, *answer(backend, draft, {"subject": subject, "object": object}, language)

    def edit(text: str, draft: Draft, *rest: Any) -> tuple[Any, ...]:
        return show(draft.edited(text), *rest)

    def marker(role: Role) -> Callable[..., tuple[Any, ...]]:
        def press(text: str, start: int, stop: int, draft: Draft, *rest: Any) -> tuple[Any, ...]:
            edited = mark_selection(draft, role, text, start, stop)
            if edited is None:
                gr.Warning(TEXTS[rest[-1]]["nothing"])
            return show(edited or draft.edited(text), *rest)

        return press

    def pick(number: int, language: Language) -> tuple[Any, ...]:
        row = picks[number]
        marked = Draft(row.sentence, (row.subject.start, row.subject.end), (row.object.start, row.object.end))
        types = (row.subject.type, row.object.type)
        return row.sentence, *types, *show(marked, *types, language)

    def run(path: str | None, language: Language) -> tuple[str, Any]:
        message, output = submission(backend, path, language)
        return message, gr.update(value=output, visible=output is not None)

    settings, shown = _settings(part), _shown(part)
    edits = [part["sentence"], *settings]
    # Not `input`: Gradio 6.31 does not raise it for text from an input method, and Korean is typed with one.
    part["sentence"].change(edit, edits, shown, trigger_mode="always_last", **ONE_AT_A_TIME)
    part["predict"].click(edit, edits, shown, js=READ_TEXT, **ONE_AT_A_TIME)
    for role in ROLES:
        selection = [part["sentence"], part["start"], part["stop"], *settings]
        part[f"mark_{role}"].click(marker(role), selection, shown, js=READ_SELECTION, **ONE_AT_A_TIME)
        part[f"type_{role}"].input(show, settings, shown, **ONE_AT_A_TIME)
    filled = [part["sentence"], part["type_subject"], part["type_object"], *shown]
    part["example"].select(pick, [part["example"], part["language"]], filled, **ONE_AT_A_TIME)
    files = [part["file_message"], part["submission"]]
    part["file_run"].click(run, [part["file"], part["language"]], files, api_visibility="private")
    return show


def _translate(
    gr: Any, blocks: Any, part: Parts, backend: PageBackend, show: Callable[..., tuple[Any, ...]], whole: DocumentTab
) -> None:
    """Show the page in a language: first the browser's own, later the one that the user chooses."""

    def translated(language: Language) -> list[Any]:
        words, options = TEXTS[language], backend.options
        updates: dict[str, dict[str, Any]] = {name: {"label": words[name]} for name in LABELLED}
        updates["sentence"] |= {"placeholder": words["placeholder"], "info": words["steps"]}
        for role in ROLES:
            updates[f"type_{role}"]["choices"] = type_choices(backend.types, language)
        limits = words["file_help"].format(rows=f"{options.max_rows:,}", megabytes=options.max_megabytes)
        texts = [*(words[name] for name in BUTTONS), _title(language), hint_html(limits), ""]
        return [*(gr.update(**update) for update in updates.values()), *texts]

    def change(draft: Draft, subject: str, object: str, language: Language, *settings: Any) -> list[Any]:
        return [*translated(language), *show(draft, subject, object, language), *whole.translated(language, *settings)]

    def load(draft: Draft, subject: str, object: str, language: Language, *settings: Any) -> list[Any]:
        return [language, *change(draft, subject, object, language, *settings)]

    named = [part[name] for name in (*LABELLED, *BUTTONS, "title", "file_help", "file_message")]
    outputs, settings = [*named, *_shown(part), *whole.outputs()], [*_settings(part), *whole.settings()]
    part["language"].input(change, settings, outputs, **ONE_AT_A_TIME)
    blocks.load(load, settings, [part["language"], *outputs], js=READ_LANGUAGE, **ONE_AT_A_TIME)


def _title(language: Language) -> str:
    return f"<h1>mtl-re</h1><p>{TEXTS[language]['subtitle']}</p>"


def _settings(part: Parts) -> list[Any]:
    return [part["draft"], part["type_subject"], part["type_object"], part["language"]]


def _shown(part: Parts) -> list[Any]:
    return [part["draft"], part["preview"], part["result"]]
