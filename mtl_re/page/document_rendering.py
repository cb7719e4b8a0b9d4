"""What the page shows of a text and its triples, as pure functions: marked sentences, a summary, a picture, a table.

Enters: markups and rows. Leaves: HTML in which every character of a user's text is escaped. The files to download
stand in the page itself, as `data:` addresses: nothing is written on the server. Colours of entity types are always
accompanied by the type in words.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from functools import lru_cache

from mtl_re.data.validation import Entity
from mtl_re.page.document import Scored
from mtl_re.page.draft import Markup
from mtl_re.page.graph import COLOURS, Graph, graph_of, svg_of
from mtl_re.page.rendering import breaking, escaped, gloss, hint_html, with_particle
from mtl_re.page.translations import TEXTS, TYPES, Language
from mtl_re.predict.document_triples import Row
from mtl_re.predict.extract import table_bytes
from mtl_re.predict.sentences import sentence_ranges
from mtl_re.predict.triples import subject_types
from mtl_re.taxonomy import Taxonomy

PICTURES = {"wide": (560, 20), "narrow": (330, 12)}
"""Two pictures of one graph: width in pixels, and most arrows, for more could not be told apart there. The stylesheet
shows the one that fits the screen."""
COLUMNS_SHOWN = ("sentence", "subject", "relation", "object", "score", "coarse")
DOWNLOADS = {"CSV": (".csv", "text/csv"), "JSONL": (".jsonl", "application/jsonl")}


def colours(types: Sequence[str]) -> dict[str, int]:
    """Return the number of each entity type's colour."""
    return {kind: number % COLOURS for number, kind in enumerate(types)}


# ---- the text ------------------------------------------------------------------------------------------------------


def markup_html(markup: Markup, types: Sequence[str], language: Language) -> str:
    """Return the sentences of a text as a numbered list, each marked entity in a box that names its type."""
    if not markup.text.strip():
        return hint_html(TEXTS[language]["document_empty"])
    kinds, items = colours(types), []
    for start, stop in sentence_ranges(markup.text, [(one.start, one.end) for one in markup.entities]):
        inside = [one for one in markup.entities if start <= one.start < stop]
        items.append(f"<li>{_boxed(markup.text, start, stop, inside, kinds, language)}</li>")
    words = TEXTS[language]
    count = words["marked_count"].format(entities=len(markup.entities), sentences=len(items))
    head = f'<h3 class="re-marked">{words["marked_title"]} <small class="re-gloss">{count}</small></h3>'
    return f'{head}<ol class="re-sentences">{"".join(items)}</ol>'


def _boxed(
    text: str, start: int, stop: int, entities: Sequence[Entity], kinds: Mapping[str, int], language: Language
) -> str:
    """Return text[start:stop] with its entities in boxes; those that lie inside another come inside its box."""
    parts, place, rest = [], start, list(entities)
    while rest:
        outer = rest.pop(0)
        inner = [one for one in rest if one.end <= outer.end]
        rest = rest[len(inner) :]
        tag = escaped(TYPES[language].get(outer.type, outer.type))
        inside = _boxed(text, outer.start, outer.end + 1, inner, kinds, language)
        box = f'<span class="re-tag">{tag}</span><span class="re-word">{inside}</span>'
        mark = f'<mark class="re-entity re-kind-{kinds.get(outer.type, 0)}">{box}</mark>'
        glued, behind = with_particle(mark, text[:stop], outer.end + 1, [one.start for one in entities])
        parts += [escaped(text[place : outer.start]), glued]
        place = behind
    return "".join(parts) + escaped(text[place:stop])


# ---- the triples ---------------------------------------------------------------------------------------------------


def triples_html(
    scored: Scored, rows: Sequence[Row], threshold: float, types: Sequence[str], taxonomy: Taxonomy, language: Language
) -> str:
    """Return the picture, the table and the files of the triples that reach the threshold; or why there is none.

    Args:
        rows: Those of `scored` that are kept.
    """
    words = TEXTS[language]
    notes = []
    if scored.left_out:
        notes.append(words["pairs_left_out"].format(pairs=scored.left_out))
    if not rows:
        why = _why_none(scored, threshold, taxonomy, language)
        return f'<div class="re-verdict" id="re-none"><p>{why}</p></div>{"".join(map(hint_html, notes))}'
    said = words["triples_count"].format(triples=len(rows), pairs=scored.pairs, sentences=len(scored.sentences))
    figure = "".join(_figure(rows, types, language, name) for name in PICTURES)
    return (
        f'<p class="re-summary" id="re-summary">{said}</p>{"".join(map(hint_html, notes))}'
        f'<div class="re-both"><figure class="re-figure"><h3>{words["graph_title"]}</h3>'
        f'<p class="re-help">{words["graph_help"]}</p>{figure}</figure>'
        f'<section class="re-rows"><h3>{words["table_title"]}</h3><p class="re-help">{words["table_help"]}</p>'
        f"{_table(rows, scored.sentences, language)}{_downloads(rows, words)}</section></div>"
    )


def _why_none(scored: Scored, threshold: float, taxonomy: Taxonomy, language: Language) -> str:
    """Return in words what is missing where no triple is left."""
    words = TEXTS[language]
    if not scored.together:
        return words["none_together"]
    if not scored.rows:
        kinds = subject_types(taxonomy)
        if kinds is not None and not any(one.type in kinds for one in scored.markup.entities):
            named = ", ".join(escaped(TYPES[language].get(kind, kind)) for kind in sorted(kinds))
            return words["none_subject"].format(types=named)
        return words["none_pairs"]
    best = max(scored.rows, key=lambda row: float(row["score"]))
    pair = f"{escaped(str(best['subject']))} → {escaped(str(best['object']))}"
    relation = f"{breaking(str(best['relation']))}{gloss(str(best['relation']), language)}"
    key = "none_stored" if scored.stored else "none_above"
    found = {"pairs": scored.pairs, "threshold": f"{threshold:.2f}", "pair": pair, "relation": relation}
    return words[key].format(**found, score=f"{float(best['score']):.3f}")


def _figure(rows: Sequence[Row], types: Sequence[str], language: Language, name: str) -> str:
    """Return one of the `PICTURES`, and what it leaves out."""
    words, most = TEXTS[language], PICTURES[name][1]
    arrows = len(graph_of(rows).arrows)
    if not arrows:
        return f'<div class="re-{name}">{hint_html(words["no_arrows"])}</div>'
    said = words["arrows_left_out"].format(most=most, arrows=arrows) if arrows > most else ""
    picture = _picture(graph_of(rows, most), tuple(colours(types).items()), language, name)
    return f'<div class="re-{name}">{hint_html(said) if said else ""}{picture}</div>'


@lru_cache(maxsize=256)
def _picture(graph: Graph, kinds: tuple[tuple[str, int], ...], language: Language, name: str) -> str:
    """Draw a graph, or remember it: moving the threshold often leaves the same."""
    return svg_of(graph, dict(kinds), PICTURES[name][0], language, name)


def _table(rows: Sequence[Row], sentences: Sequence[int], language: Language) -> str:
    """Return the rows as a table whose columns can be sorted (`sorting.js`)."""
    words = TEXTS[language]
    heads = "".join(
        f'<th scope="col"{" aria-sort=ascending" if name == "sentence" else ""}>'
        f'<button type="button">{words[f"column_{name}"]}</button></th>'
        for name in COLUMNS_SHOWN
    )
    body = "".join(_table_row(row, sentences.index(int(row["sentence_start"])) + 1, language) for row in rows)
    table = f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="re-scroll"><table class="re-table">{table}</table></div>'


def _table_row(row: Row, sentence: int, language: Language) -> str:
    def entity(side: str) -> str:
        kind = str(row[f"{side}_type"])
        small = f' <small class="re-gloss">{escaped(TYPES[language].get(kind, kind))}</small>'
        return f'<td><span class="re-word">{escaped(str(row[side]))}</span>{small}</td>'

    relation = str(row["relation"])
    numbers = "".join(f'<td class="re-number">{float(row[name]):.3f}</td>' for name in ("score", "coarse"))
    return (
        f'<tr><td class="re-number">{sentence}</td>{entity("subject")}'
        f"<td>{breaking(relation)}{gloss(relation, language)}</td>{entity('object')}{numbers}</tr>"
    )


def _downloads(rows: Sequence[Row], words: Mapping[str, str]) -> str:
    links = []
    for name, (suffix, kind) in DOWNLOADS.items():
        content = base64.b64encode(table_bytes(rows, suffix)).decode()
        address = html.escape(f"data:{kind};charset=utf-8;base64,{content}")
        links.append(f'<a class="re-download" download="triples{suffix}" href="{address}">{name}</a>')
    return f'<p class="re-downloads">{words["download"]} {"".join(links)}</p>'
