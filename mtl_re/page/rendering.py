"""What the page shows, as pure functions: the HTML of a draft, of a prediction and of an uploaded file.

Enters: drafts and predictions. Leaves: HTML in which every character of a user's text is escaped, template signs
(`${`, `{{`) included. No Gradio and no torch: all of it is tested without a browser. Nothing is shown by colour alone:
roles, the gate's choice and open or closed heads are also given in words.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mtl_re.config import Gate
from mtl_re.features.markers import ROLES, Role
from mtl_re.page.draft import Draft
from mtl_re.page.translations import GLOSSES, TEXTS, TYPES, Language
from mtl_re.scoring.writers import Prediction
from mtl_re.taxonomy import Taxonomy

BARS_SHOWN = 5
"""Labels that have a bar, in each head and in the list of all labels."""
PARTICLE = re.compile(r"\S{1,8}(?!\S)")
"""What follows a marked word without a space and must stay on its line: a particle, a full stop."""
TEMPLATE_SIGNS = str.maketrans({"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;"})


def escaped(text: str) -> str:
    """Escape text for HTML and for the page's template engine."""
    return html.escape(text).translate(TEMPLATE_SIGNS)


# ---- the question --------------------------------------------------------------------------------------------------


def marked_html(draft: Draft, types: Mapping[Role, str], language: Language) -> str:
    """Return the sentence with each marked entity in a box that names its role and type; boxes may be nested."""
    words, text, end = TEXTS[language], draft.sentence, 0
    if not text.strip():
        return f'<p class="re-hint">{words["empty"]}</p>'
    spans = [(span, role) for role in ROLES if (span := draft.span(role)) is not None]
    spans.sort(key=lambda marked: (marked[0][0], -marked[0][1]))  # the outer one first
    nested = len(spans) == 2 and spans[1][0][1] <= spans[0][0][1]

    def boxed(role: Role, inside: str) -> str:
        tag = f'<span class="re-tag">{words[role]} · {escaped(types[role])}</span>'
        return f'<mark class="re-{role}">{tag}<span class="re-word">{inside}</span></mark>'

    parts = []
    for (start, last), role in spans[:1] if nested else spans:
        inside = escaped(text[start : last + 1])
        if nested:
            (inner_start, inner_last), inner_role = spans[1]
            inner = boxed(inner_role, escaped(text[inner_start : inner_last + 1]))
            inside = escaped(text[start:inner_start]) + inner + escaped(text[inner_last + 1 : last + 1])
        marked = boxed(role, inside)
        glued, stop = with_particle(marked, text, last + 1, [other[0] for other, _ in spans])
        parts += [escaped(text[end:start]), glued]
        end = stop
    missing = [words[f"no_{role}"] for role in ROLES if draft.span(role) is None]
    hint = f'<p class="re-hint">{" ".join(missing)}</p>' if missing else ""
    return f'<p class="re-sentence">{"".join(parts)}{escaped(text[end:])}</p>{hint}'


def with_particle(marked: str, text: str, end: int, starts: Sequence[int]) -> tuple[str, int]:
    """Return a marked word together with what must stay on its line, and where the text goes on.

    Args:
        marked: HTML of the word, which ends before text[end]. starts: Of all marked words.
    """
    behind = PARTICLE.match(text, end)
    if behind is None or any(end <= start < behind.end() for start in starts):
        return marked, end
    return f'<span class="re-glued">{marked}{escaped(behind[0])}</span>', behind.end()


# ---- the answer ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """One bar: a probability, whether a gate chose it, and the gates that chose it as the label."""

    name: str
    value: float
    chosen: bool = False
    notes: tuple[Gate, ...] = ()


@dataclass(frozen=True)
class Branch:
    """A fine head: p(label | coarse class), the most probable first; `open` if the hard gate chose its class."""

    name: str
    open: bool
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class View:
    """One prediction as the page shows it.

    Attributes:
        label, score: as the checkpoint's own settings decode it. hard, soft: the labels of the two gates.
        gate: the coarse probabilities. branches: the fine heads. top: the most probable of all labels.
    """

    label: str
    score: float
    hard: str
    soft: str
    gate: tuple[Bar, ...]
    branches: tuple[Branch, ...]
    top: tuple[Bar, ...]


def view_of(prediction: Prediction, hard: str, soft: str, taxonomy: Taxonomy) -> View:
    """Arrange a prediction for the page.

    Everything is derived from the product probabilities, so a flat model is shown in the same way.

    Args:
        hard, soft: the labels that the two gates choose.
    """
    passed = taxonomy.coarse_of(hard)
    gate = tuple(Bar(name, value, name == passed) for name, value in prediction.coarse.items())
    branches = []
    for name, labels in taxonomy.groups.items():
        if len(labels) > 1:
            whole = prediction.coarse[name] or 1.0
            bars = _ranked({label: prediction.probs[label] / whole for label in labels})
            best = name == passed
            shown = tuple(replace(bar, chosen=best and bar.name == hard) for bar in bars[:BARS_SHOWN])
            branches.append(Branch(name, best, shown))
    gates: tuple[tuple[Gate, str], ...] = (("hard", hard), ("soft", soft))
    top = []
    for bar in _ranked(prediction.probs)[:BARS_SHOWN]:
        notes = tuple(name for name, label in gates if label == bar.name)
        top.append(replace(bar, chosen=bool(notes), notes=notes))
    return View(prediction.label, prediction.score, hard, soft, gate, tuple(branches), tuple(top))


def _ranked(probs: Mapping[str, float]) -> list[Bar]:
    return [Bar(name, value) for name, value in sorted(probs.items(), key=lambda pair: -pair[1])]


def result_html(view: View, draft: Draft, language: Language) -> str:
    """Return the whole answer: label, gate, fine heads, most probable labels."""
    words = TEXTS[language]
    subject, object = (
        draft.sentence[span[0] : span[1] + 1] if (span := draft.span(role)) is not None else "" for role in ROLES
    )
    pair = f"{escaped(subject)} <span aria-hidden='true'>→</span> {escaped(object)}"
    gates = words["gates_agree"]
    if view.hard != view.soft:
        gates = words["gates_differ"].format(hard=breaking(view.hard), soft=breaking(view.soft))
    verdict = (
        f'<div class="re-verdict"><p class="re-pair">{pair}</p>'
        f'<p class="re-label"><strong id="re-label">{breaking(view.label)}</strong>{gloss(view.label, language)}'
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
    name = f'<span class="re-name">{breaking(bar.name)}{gloss(bar.name, language)}{badges}</span>'
    width = f"{100 * min(max(bar.value, 0.0), 1.0):.2f}"
    track = f'<span class="re-track" aria-hidden="true"><span class="re-fill" style="width:{width}%"></span></span>'
    kind = " re-chosen" if bar.chosen else ""
    return f'<li class="re-bar{kind}">{name}{track}<span class="re-value">{bar.value:.3f}</span></li>'


def breaking(label: str) -> str:
    """Escape a label, with a possible line break after each of its punctuation marks."""
    return "".join(f"{escaped(sign)}<wbr>" if sign in ":/_" else escaped(sign) for sign in label)


def gloss(label: str, language: Language) -> str:
    """Return what a label means, in small letters; nothing where the label says it itself in the page's language."""
    meaning = GLOSSES[language].get(label)
    return "" if meaning is None else f' <small class="re-gloss">{meaning}</small>'


def problem_html(text: str, language: Language) -> str:
    """Return an error message in a box."""
    return f'<div class="re-problem" role="alert"><b>{TEXTS[language]["problem"]}</b> {escaped(text)}</div>'


def hint_html(text: str) -> str:
    """Return one of the page's own sentences, unescaped."""
    return f'<p class="re-hint">{text}</p>'


def file_html(name: str, labels: Mapping[str, int], language: Language) -> str:
    """Return the summary of an uploaded file: its number of rows, and the most frequent labels."""
    rows = sum(labels.values())
    ranked = sorted(labels.items(), key=lambda pair: (-pair[1], pair[0]))[:BARS_SHOWN]
    bars = _bars([Bar(label, count / rows) for label, count in ranked], language)
    said = TEXTS[language]["file_done"].format(name=escaped(name), rows=f"{rows:,}")
    return f'<div class="re-result"><p id="re-rows">{said}</p><h3>{TEXTS[language]["file_labels"]}</h3>{bars}</div>'


def type_choices(kinds: Sequence[str], language: Language) -> list[tuple[str, str]]:
    """Return (shown text, value) for each entity type of the model."""
    return [(f"{TYPES[language][kind]} · {kind}" if kind in TYPES[language] else kind, kind) for kind in kinds]
