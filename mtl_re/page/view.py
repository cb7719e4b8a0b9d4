"""What the demo page shows, as pure functions: a draft of one question, and HTML for a prediction.

Enters: text and selections as a browser counts them (UTF-16 units), predictions. Leaves: Python spans and HTML in which
every stranger's character is escaped, template signs (`${`, `{{`) as well. No gradio, no torch: all of it is tested
without a browser. Nothing is told by colour alone: roles, the gate's choice and open or closed heads are also words.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mtl_re.config import Gate
from mtl_re.page.texts import GLOSSES, TEXTS, TYPES, Language
from mtl_re.scoring.writers import Prediction
from mtl_re.taxonomy import Taxonomy

Role = Literal["subject", "object"]
Span = tuple[int, int]
ROLES: tuple[Role, Role] = ("subject", "object")
SHOWN = 5
"""Labels with a bar of their own, of a head and of all."""
PARTICLE = re.compile(r"\S{1,8}(?!\S)")
"""What stands behind a marked word without a blank, and stays on its line: a particle, a full stop."""
TEMPLATE_SIGNS = str.maketrans({"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;"})


def escaped(text: str) -> str:
    """Text that HTML and the page's template engine both leave alone."""
    return html.escape(text).translate(TEMPLATE_SIGNS)


# ---- the question --------------------------------------------------------------------------------------------------


def python_span(text: str, start: int, stop: int) -> Span | None:
    """A browser's selection → inclusive Python characters.

    A browser counts UTF-16 units, two for an emoji; half a pair counts as the whole. Blanks at the ends are dropped (a
    double click often takes the one behind the word); None if nothing is left.

    Args:
        start, stop: the selection [start, stop) in UTF-16 units.
    """
    first, last, units = len(text), -1, 0
    for place, character in enumerate(text):
        width = 2 if ord(character) > 0xFFFF else 1
        if units < stop and units + width > start and not character.isspace():
            first, last = min(first, place), place
        units += width
    return None if last < 0 else (first, last)


@dataclass(frozen=True)
class Draft:
    """A sentence and what is marked in it so far."""

    sentence: str = ""
    subject: Span | None = None
    object: Span | None = None

    def span(self, role: Role) -> Span | None:
        """Where the role's entity stands."""
        return self.subject if role == "subject" else self.object

    def edited(self, sentence: str) -> Draft:
        """The draft after its sentence was changed: a mark stays with its word if the change lies beside it."""
        before = self.sentence
        if sentence == before:
            return self
        same = min(len(before), len(sentence))
        head = next((place for place in range(same) if before[place] != sentence[place]), same)
        tail = next((place for place in range(same - head) if before[-1 - place] != sentence[-1 - place]), same - head)
        moved = len(sentence) - len(before)

        def carried(span: Span | None) -> Span | None:
            if span is None or span[1] < head:
                return span
            return (span[0] + moved, span[1] + moved) if span[0] >= len(before) - tail else None

        return Draft(sentence, carried(self.subject), carried(self.object))

    def marked(self, role: Role, span: Span) -> Draft:
        """The draft with one more mark; the other one goes if they overlap."""

        def kept(other: Span | None) -> Span | None:
            return None if other is not None and other[0] <= span[1] and span[0] <= other[1] else other

        if role == "subject":
            return Draft(self.sentence, span, kept(self.object))
        return Draft(self.sentence, kept(self.subject), span)


def marked_html(draft: Draft, types: Mapping[Role, str], language: Language) -> str:
    """The sentence with both entities boxed, each with its role and type in words."""
    words, text, end = TEXTS[language], draft.sentence, 0
    if not text.strip():
        return f'<p class="re-hint">{words["empty"]}</p>'
    spans = sorted((span, role) for role in ROLES if (span := draft.span(role)) is not None)
    parts = []
    for span, role in spans:
        kind = escaped(types[role])
        tag = f'<span class="re-tag">{words[role]} · {kind}</span>'
        inside = f'<span class="re-word">{escaped(text[span[0] : span[1] + 1])}</span>'
        marked = f'<mark class="re-{role}">{tag}{inside}</mark>'
        parts += [escaped(text[end : span[0]]), marked]
        end = span[1] + 1
        if (behind := PARTICLE.match(text, end)) and not any(end <= other[0] < behind.end() for other, _ in spans):
            parts[-1] = f'<span class="re-glued">{marked}{escaped(behind[0])}</span>'
            end = behind.end()
    missing = [words[f"no_{role}"] for role in ROLES if draft.span(role) is None]
    hint = f'<p class="re-hint">{" ".join(missing)}</p>' if missing else ""
    return f'<p class="re-sentence">{"".join(parts)}{escaped(text[end:])}</p>{hint}'


# ---- the answer ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """One line of a bar chart: a probability, whether it was chosen, and the gates whose label it is."""

    name: str
    value: float
    chosen: bool = False
    notes: tuple[Gate, ...] = ()


@dataclass(frozen=True)
class Branch:
    """A fine head: p(label | coarse class), the most probable first; `open` if the hard gate let it speak."""

    name: str
    open: bool
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class View:
    """One prediction as the page shows it.

    Attributes:
        label, score: by the checkpoint's own way of reading. hard, soft: the label of either gate.
        gate: the coarse probabilities. branches: the fine heads. top: the most probable labels of all.
    """

    label: str
    score: float
    hard: str
    soft: str
    gate: tuple[Bar, ...]
    branches: tuple[Branch, ...]
    top: tuple[Bar, ...]


def view_of(prediction: Prediction, hard: str, soft: str, taxonomy: Taxonomy) -> View:
    """Arrange a prediction; everything follows from its product probabilities, so one flat head is shown alike."""
    passed = taxonomy.coarse_of(hard)
    gate = tuple(Bar(name, value, name == passed) for name, value in prediction.coarse.items())
    branches = []
    for name, labels in taxonomy.groups.items():
        if len(labels) > 1:
            whole = prediction.coarse[name] or 1.0
            bars = _ranked({label: prediction.probs[label] / whole for label in labels})
            best = name == passed
            shown = tuple(replace(bar, chosen=best and bar.name == hard) for bar in bars[:SHOWN])
            branches.append(Branch(name, best, shown))
    gates: tuple[tuple[Gate, str], ...] = (("hard", hard), ("soft", soft))
    top = []
    for bar in _ranked(prediction.probs)[:SHOWN]:
        notes = tuple(name for name, label in gates if label == bar.name)
        top.append(replace(bar, chosen=bool(notes), notes=notes))
    return View(prediction.label, prediction.score, hard, soft, gate, tuple(branches), tuple(top))


def _ranked(probs: Mapping[str, float]) -> list[Bar]:
    return [Bar(name, value) for name, value in sorted(probs.items(), key=lambda pair: -pair[1])]


def result_html(view: View, draft: Draft, language: Language) -> str:
    """The whole answer: verdict, gate, fine heads, top labels."""
    words = TEXTS[language]
    subject, object = (
        draft.sentence[span[0] : span[1] + 1] if (span := draft.span(role)) is not None else "" for role in ROLES
    )
    pair = f"{escaped(subject)} <span aria-hidden='true'>→</span> {escaped(object)}"
    gates = words["gates_agree"]
    if view.hard != view.soft:
        gates = words["gates_differ"].format(hard=_breaking(view.hard), soft=_breaking(view.soft))
    verdict = (
        f'<div class="re-verdict"><p class="re-pair">{pair}</p>'
        f'<p class="re-label"><strong id="re-label">{_breaking(view.label)}</strong>{_gloss(view.label, language)}'
        f' <span id="re-score">{view.score:.3f}</span></p><p class="re-gates">{gates}</p></div>'
    )
    gate = _section(words["gate_title"], words["gate_help"], _bars(view.gate, language, words["passed"]), "gate")
    opened = sorted(view.branches, key=lambda branch: not branch.open)
    heads = "".join(_branch(branch, language) for branch in opened)
    fine = _section(words["fine_title"], words["fine_help"], f'<div class="re-heads">{heads}</div>', "fine")
    top = _section(words["top_title"], words["top_help"], _bars(view.top, language), "top")
    return f'<div class="re-result">{verdict}{gate}{fine if heads else ""}{top}</div>'


def _section(title: str, help: str, body: str, name: str) -> str:
    return f'<section class="re-{name}"><h3>{title}</h3><p class="re-help">{help}</p>{body}</section>'


def _branch(branch: Branch, language: Language) -> str:
    state = "open" if branch.open else "closed"
    said = f'<span class="re-badge">{TEXTS[language][state]}</span>'
    return f'<div class="re-head re-{state}"><h4>{escaped(branch.name)} {said}</h4>{_bars(branch.bars, language)}</div>'


def _bars(bars: Sequence[Bar], language: Language, chosen: str = "") -> str:
    return f'<ul class="re-bars">{"".join(_bar(bar, language, chosen) for bar in bars)}</ul>'


def _bar(bar: Bar, language: Language, chosen: str) -> str:
    notes = [*(TEXTS[language][f"note_{note}"] for note in bar.notes), *([chosen] if chosen and bar.chosen else [])]
    badges = "".join(f' <span class="re-badge">{note}</span>' for note in notes)
    name = f'<span class="re-name">{_breaking(bar.name)}{_gloss(bar.name, language)}{badges}</span>'
    width = f"{100 * min(max(bar.value, 0.0), 1.0):.2f}"
    track = f'<span class="re-track" aria-hidden="true"><span class="re-fill" style="width:{width}%"></span></span>'
    kind = " re-chosen" if bar.chosen else ""
    return f'<li class="re-bar{kind}">{name}{track}<span class="re-value">{bar.value:.3f}</span></li>'


def _breaking(label: str) -> str:
    """A label that a narrow column may break behind its signs."""
    return "".join(f"{escaped(sign)}<wbr>" if sign in ":/_" else escaped(sign) for sign in label)


def _gloss(label: str, language: Language) -> str:
    gloss = GLOSSES[language].get(label)
    return "" if gloss is None else f' <small class="re-gloss">{gloss}</small>'


def problem_html(text: str, language: Language) -> str:
    """A fault of the input, in a box."""
    return f'<div class="re-problem" role="alert"><b>{TEXTS[language]["problem"]}</b> {escaped(text)}</div>'


def hint_html(text: str) -> str:
    """One of our own sentences."""
    return f'<p class="re-hint">{text}</p>'


def file_html(name: str, labels: Mapping[str, int], language: Language) -> str:
    """What was made of an uploaded file: rows, and the most frequent labels."""
    rows = sum(labels.values())
    ranked = sorted(labels.items(), key=lambda pair: (-pair[1], pair[0]))[:SHOWN]
    bars = _bars([Bar(label, count / rows) for label, count in ranked], language)
    said = TEXTS[language]["file_done"].format(name=escaped(name), rows=f"{rows:,}")
    return f'<div class="re-result"><p id="re-rows">{said}</p><h3>{TEXTS[language]["file_labels"]}</h3>{bars}</div>'


def type_choices(kinds: Sequence[str], language: Language) -> list[tuple[str, str]]:
    """(shown, value) of each entity type the model knows."""
    return [(f"{TYPES[language][kind]} · {kind}" if kind in TYPES[language] else kind, kind) for kind in kinds]
