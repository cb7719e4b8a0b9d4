"""The page's tab for a whole text: its components, and the function that handles each event.

Enters: a `DocumentBackend`. Leaves: the tab. As in the tab of one sentence, the browser reads the selection at the
moment a button is pressed. What was scored belongs to one marked text: an edit or another mark takes it away.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtl_re.errors import MtlReError
from mtl_re.page.document import DocumentBackend, Scored, example_markup
from mtl_re.page.document_rendering import colours, markup_html, triples_html
from mtl_re.page.draft import Markup, Span, python_span
from mtl_re.page.rendering import hint_html, problem_html, type_choices
from mtl_re.page.translations import TEXTS, Language

READ_SELECTION = """(text, start, stop, ...rest) => {
  const area = document.querySelector("#document textarea");
  return [area.value, area.selectionStart, area.selectionEnd, ...rest];
}"""
READ_TEXT = """(text, ...rest) => [document.querySelector("#document textarea").value, ...rest]"""
SORTING = Path(__file__).with_name("sorting.js").read_text(encoding="utf-8")
ONE_AT_A_TIME = {"concurrency_id": "document", "api_visibility": "private", "show_progress": "hidden"}
LABELLED = ("tab_document", "document", "everywhere", "threshold", "stored")
BUTTONS = ("document_example", "unmark", "unmark_all", "find", "extract")

Parts = dict[str, Any]


class DocumentTab:
    """The tab of one page.

    Args:
        gr: The module gradio. backend: Answers. start, stop: Invisible numbers that carry a selection.
        language: The page's choice of a language.
    """

    def __init__(self, gr: Any, backend: DocumentBackend, start: Any, stop: Any, language: Any) -> None:
        self.gr, self.backend, self.selection = gr, backend, [start, stop]
        self.part: Parts = {"language": language}
        self.example = example_markup(backend.types)
        with gr.Tab(TEXTS["ko"]["tab_document"]) as self.part["tab_document"]:
            self._build()
        self._connect()

    # ---- components

    def _build(self) -> None:
        gr, part, words = self.gr, self.part, TEXTS["ko"]
        part["markup"], part["scored"] = gr.State(Markup()), gr.State(None)
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                self._question()
            with gr.Column(scale=1, min_width=320):
                part["marks"] = gr.HTML(hint_html(words["document_empty"]), elem_classes="re-page", elem_id="marks")
        with gr.Row():
            stored = self.backend.stored_thresholds is not None
            slider = {"label": words["threshold"], "info": words["threshold_info"], "elem_id": "threshold"}
            part["threshold"] = gr.Slider(0, 1, 0.5, step=0.01, buttons=[], min_width=320, scale=2, **slider)
            shown = {"visible": stored, "elem_id": "stored", "min_width": 320}
            part["stored"] = gr.Checkbox(False, label=words["stored"], **shown)
        part["triples"] = gr.HTML(
            self._waiting("ko"),
            elem_classes="re-page",
            elem_id="triples",
            js_on_load=SORTING,
            apply_default_css=False,
            min_height=80,
        )

    def _question(self) -> None:
        """Add the text, and the buttons that mark its entities."""
        gr, part, words, backend = self.gr, self.part, TEXTS["ko"], self.backend
        texts = {"label": words["document"], "info": words["document_steps"], "elem_id": "document"}
        # A text that the browser cuts here is still too long, which is then said: a character has two units at most.
        longest = 2 * backend.options.max_characters + 2
        texts |= {"placeholder": words["document_placeholder"]}
        part["document"] = gr.Textbox(lines=6, max_lines=12, max_length=longest, **texts)
        with gr.Row(elem_id="kinds"):
            for number, (name, kind) in enumerate(type_choices(backend.types, "ko")):
                classes = ["re-mark-as", f"re-kind-{colours(backend.types)[kind]}"]
                part[f"kind_{number}"] = gr.Button(name, size="sm", min_width=60, elem_classes=classes)
        part["everywhere"] = gr.Checkbox(True, label=words["everywhere"], elem_id="everywhere", container=False)
        shown = {"document_example": self.example is not None, "find": backend.finder is not None}
        with gr.Row(elem_id="tools"):
            for name in ("document_example", "find", "unmark", "unmark_all"):
                place = {"elem_id": name.replace("_", "-"), "size": "sm", "min_width": 100}
                part[name] = gr.Button(words[name], visible=shown.get(name, True), **place)
        part["extract"] = gr.Button(words["extract"], variant="primary", elem_id="extract")

    def _waiting(self, language: Language) -> str:
        return hint_html(
            TEXTS[language]["document_waiting" if self.backend.finder is None else "document_waiting_finder"]
        )

    # ---- events

    def _connect(self) -> None:
        part = self.part
        settings = [part[name] for name in ("markup", "scored", "threshold", "stored", "language")]
        shown = [part[name] for name in ("markup", "scored", "marks", "triples")]
        text, selected = part["document"], [part["document"], *self.selection]
        slow = {**ONE_AT_A_TIME, "show_progress": "minimal", "show_progress_on": part["triples"]}
        text.change(self._edit, [text, *settings], shown, trigger_mode="always_last", **ONE_AT_A_TIME)
        for number, kind in enumerate(self.backend.types):
            marking = [*selected, part["everywhere"], *settings]
            part[f"kind_{number}"].click(self._marker(kind), marking, shown, js=READ_SELECTION, **ONE_AT_A_TIME)
        part["unmark"].click(self._unmark, [*selected, *settings], shown, js=READ_SELECTION, **ONE_AT_A_TIME)
        part["unmark_all"].click(self._unmark_all, settings, shown, **ONE_AT_A_TIME)
        part["find"].click(self._find, [text, *settings], shown, js=READ_TEXT, **slow)
        part["extract"].click(self._extract, [text, *settings], shown, js=READ_TEXT, **slow)
        part["threshold"].change(self.show, settings, shown, trigger_mode="always_last", **ONE_AT_A_TIME)
        part["stored"].change(self._score_again, settings, [*shown, part["threshold"]], **slow)
        part["document_example"].click(self._insert, settings, [text, *shown], **ONE_AT_A_TIME)

    def show(
        self, markup: Markup, scored: Scored | None, threshold: float, stored: bool, language: Language
    ) -> tuple[Any, ...]:
        """Return what the tab shows of a marked text: the states, the marks and, if it was scored, the triples."""
        marks = markup_html(markup, self.backend.types, language)
        if scored is None or scored.markup != markup or scored.stored != stored:
            return markup, None, marks, self._waiting(language)
        rows = self.backend.kept(scored, threshold)
        backend = self.backend
        return (
            markup,
            scored,
            marks,
            triples_html(scored, rows, threshold, backend.types, backend.taxonomy, language),
        )

    def _edit(self, text: str, markup: Markup, *rest: Any) -> tuple[Any, ...]:
        return self.show(markup.edited(text), *rest)

    def _marker(self, kind: str) -> Callable[..., tuple[Any, ...]]:
        def press(text: str, start: int, stop: int, everywhere: bool, markup: Markup, *rest: Any) -> tuple[Any, ...]:
            edited = markup.edited(text)
            if (span := self._selected(text, start, stop, rest[-1])) is None:
                return self.show(edited, *rest)
            return self.show((edited.marked_everywhere if everywhere else edited.marked)(span, kind), *rest)

        return press

    def _unmark(self, text: str, start: int, stop: int, markup: Markup, *rest: Any) -> tuple[Any, ...]:
        span, edited = self._selected(text, start, stop, rest[-1]), markup.edited(text)
        return self.show(edited if span is None else edited.unmarked(span), *rest)

    def _unmark_all(self, markup: Markup, *rest: Any) -> tuple[Any, ...]:
        return self.show(markup.holding([]), *rest)

    def _selected(self, text: str, start: int, stop: int, language: Language) -> Span | None:
        span = python_span(text, start, stop)
        if span is None:
            self.gr.Warning(TEXTS[language]["nothing"])
        return span

    def _find(self, text: str, markup: Markup, *rest: Any) -> tuple[Any, ...]:
        edited = markup.edited(text)
        try:
            found = self.backend.found(edited, rest[-1])
        except MtlReError as error:
            return self._problem(edited, error, rest[-1])
        if found == edited:
            self.gr.Warning(TEXTS[rest[-1]]["nothing_more" if edited.entities else "nothing_found"])
        return self.show(found, *rest)

    def _extract(self, text: str, markup: Markup, scored: Any, threshold: float, *rest: Any) -> tuple[Any, ...]:
        stored, language = rest
        markup = markup.edited(text)
        try:
            scored = self.backend.scored(markup, stored, language)
        except MtlReError as error:
            return self._problem(markup, error, language)
        return self.show(scored.markup, scored, threshold, stored, language)

    def _score_again(self, markup: Markup, scored: Scored | None, threshold: float, *rest: Any) -> tuple[Any, ...]:
        """Show the triples under stored thresholds, or without; they may have been fitted under another prior."""
        made = self.show(markup, None, threshold, *rest)
        if scored is not None:
            made = self._extract(markup.text, markup, scored, threshold, *rest)
        return *made, self.gr.update(interactive=not rest[0])

    def _problem(self, markup: Markup, error: MtlReError, language: Language) -> tuple[Any, ...]:
        marks = markup_html(markup, self.backend.types, language)
        return markup, None, marks, problem_html(str(error), language)

    def _insert(self, markup: Markup, *rest: Any) -> tuple[Any, ...]:
        example = self.example or markup
        return example.text, *self.show(example, *rest)

    # ---- languages

    def settings(self) -> list[Any]:
        """Components that `translated` reads."""
        return [self.part[name] for name in ("markup", "scored", "threshold", "stored")]

    def outputs(self) -> list[Any]:
        """Components that `translated` writes."""
        kinds = [f"kind_{number}" for number in range(len(self.backend.types))]
        return [self.part[name] for name in (*LABELLED, *BUTTONS, *kinds, "markup", "scored", "marks", "triples")]

    def translated(
        self, language: Language, markup: Markup, scored: Scored | None, threshold: float, stored: bool
    ) -> list[Any]:
        """Return the tab in a language."""
        words, gr = TEXTS[language], self.gr
        updates: dict[str, dict[str, Any]] = {name: {"label": words[name]} for name in LABELLED}
        updates["document"] |= {"placeholder": words["document_placeholder"], "info": words["document_steps"]}
        updates["threshold"]["info"] = words["threshold_info"]
        kinds = [name for name, _ in type_choices(self.backend.types, language)]
        texts = [*(words[name] for name in BUTTONS), *kinds]
        shown = self.show(markup, scored, threshold, stored, language)
        return [*(gr.update(**update) for update in updates.values()), *texts, *shown]
