"""What a cut has kept, saved and lost: trim.json, the same as markdown, and the lines that the command prints.

MB are 10^6 bytes. AdamW in fp32 takes 16 bytes a parameter in training: the weight, its gradient and two moments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtl_re import __version__
from mtl_re.config import TrimConfig
from mtl_re.data.lost_pieces import LostPieces
from mtl_re.data.validation import shown
from mtl_re.markdown import escape, table
from mtl_re.model.network import parameter_count
from mtl_re.trim.choice import SCRIPT_SHARE, kept_scripts, script_of, scripts_of
from mtl_re.trim.network import narrowest
from mtl_re.trim.text import Read
from mtl_re.trim.vocabulary import Vocabulary, gaps

ADAMW_BYTES = 16
"""Bytes of a parameter that AdamW trains in fp32."""
_LISTED = 200  # lost characters that are listed one by one
REASONS = {
    "text": "used by the text",
    "characters": "single characters",
    "markers": "written by the marker schemes",
    "special": "special and added tokens",
    "keep": "asked for by --keep",
    "config": "named by the config",
    "positions": "ids up to the padding's, from which positions count",
}


@dataclass(frozen=True)
class Sizes:
    """Of a network: rows of its embeddings, parameters, and bytes of one parameter as stored."""

    rows: int
    parameters: int
    stored_bytes: int

    @classmethod
    def of(cls, network: Any) -> Sizes:
        """Measure a network."""
        rows = network.get_input_embeddings().num_embeddings
        return cls(rows, parameter_count(network), narrowest(network).itemsize)


def describe(
    encoder: str,
    options: TrimConfig,
    vocabulary: Vocabulary,
    kept: Mapping[int, int],
    reasons: Mapping[str, set[int]],
    read: Read,
    lost: LostPieces,
    sizes: tuple[Sizes, Sizes],
) -> dict[str, Any]:
    """Return the content of trim.json."""
    before, after = sizes
    fewer = before.parameters - after.parameters
    chosen = set().union(*reasons.values())
    return {
        "mtl_re": __version__,
        "encoder": encoder,
        "model": vocabulary.kind,
        "texts": read.sources,
        "rejected_rows": len(read.bad),
        "min_count": options.min_count,
        "keep": options.keep,
        "pieces": {"before": len(vocabulary.ids), "after": len(kept)},
        "embedding_rows": {"before": before.rows, "after": after.rows},
        "parameters": {"before": before.parameters, "after": after.parameters},
        "kept": {reason: len(reasons[reason]) for reason in REASONS} | {"by_the_law_alone": len(kept.keys() - chosen)},
        "saved": {
            "weights_mb": round(fewer * before.stored_bytes / 1e6, 1),
            "adamw_mb": round(fewer * ADAMW_BYTES / 1e6, 1),
        },
        "held_out": {
            "source": options.held_out,
            "texts": lost.sentences,
            "changed": lost.changed,
            "tokens_of_changed": dict(zip(("before", "after"), lost.tokens, strict=True)),
            "unknown_of_changed": dict(zip(("before", "after"), lost.unknown, strict=True)),
        },
        "scripts": {"of_the_text": scripts_of(read.use.characters), "kept": kept_scripts(read.use.characters)},
        "lost": lost_pieces(vocabulary, kept),
        "may_spell_unknown_words": gaps(vocabulary, kept),
    }


def lost_pieces(vocabulary: Vocabulary, kept: Mapping[int, int]) -> dict[str, Any]:
    """Return how many pieces are gone, by the script of their first letter, and the single characters among them."""
    scripts: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    for piece, index in vocabulary.of_model.items():
        if index in kept:
            continue
        text = vocabulary.surface(piece)
        letters = [] if text is None else [script for character in text if (script := script_of(character))]
        scripts[letters[0] if letters else "none" if text is not None else "part of a character"] += 1
        if text is not None and len(text) == 1:
            characters[text] += 1
    return {
        "pieces": scripts.total(),
        "by_script": dict(scripts.most_common()),
        "characters": "".join(sorted(characters)),
    }


def markdown(report: Mapping[str, Any]) -> list[str]:
    """Return trim.md's lines."""
    pieces, parameters, saved = report["pieces"], report["parameters"], report["saved"]
    scripts, lost, held_out = report["scripts"], report["lost"], report["held_out"]
    first = list(lost["characters"][:_LISTED])
    more = len(lost["characters"]) - len(first)
    sources = [[source["text"], f"{source['texts']:,}", source["sha256"] or "–"] for source in report["texts"]]
    kept = [[REASONS.get(reason, "needed by other pieces"), f"{count:,}"] for reason, count in report["kept"].items()]
    return [
        f"# {escape(report['encoder'])} with {pieces['after']:,} of {pieces['before']:,} pieces",
        "",
        *table(
            ["", "before", "after"],
            [
                ["pieces", f"{pieces['before']:,}", f"{pieces['after']:,}"],
                ["parameters", f"{parameters['before']:,}", f"{parameters['after']:,}"],
            ],
        ),
        f"Saved: {saved['weights_mb']:,} MB of weights as stored, {saved['adamw_mb']:,} MB while AdamW trains in fp32.",
        "",
        f"Held out ({escape(str(held_out['source']))}): {_changed(held_out)}.",
        "",
        *_caveat(report["may_spell_unknown_words"]),
        "## Why pieces are kept",
        "",
        f"A piece counts under every reason that it has. min_count {report['min_count']}; all single characters of "
        f"scripts with at least {100 * SCRIPT_SHARE:g} % of the text's letters: {', '.join(scripts['kept'])}.",
        "",
        *table(["reason", "pieces"], kept),
        "## What is lost",
        "",
        f"{lost['pieces']:,} pieces, by the script of their first letter:",
        "",
        *table(["script", "pieces"], [[script, f"{count:,}"] for script, count in lost["by_script"].items()]),
        f"{len(lost['characters']):,} single characters"
        + (f": {escape(' '.join(first))}{f' and {more:,} more (trim.json)' if more else ''}." if first else "."),
        "",
        "## The text",
        "",
        *table(["text", "texts counted", "SHA-256"], sources),
    ]


def _changed(held_out: Mapping[str, Any]) -> str:
    texts, changed = held_out["texts"], held_out["changed"]
    if not texts:
        return "no text"
    tokens, unknown = held_out["tokens_of_changed"], held_out["unknown_of_changed"]
    cost = f"{tokens['after']:,} tokens instead of {tokens['before']:,} and {unknown['after']:,} unknown instead of "
    share = f"{changed:,} of {texts:,} texts ({100 * changed / texts:.2f} %) have other tokens"
    return share + (f": {cost}{unknown['before']:,}" if changed else "")


def _caveat(found: list[str]) -> list[str]:
    if not found:
        return []
    what = (
        f"{len(found):,} kept pieces, {escape(shown(found[0]))} first, hold a character that is no piece inside a word"
    )
    return [f"{what}: a word that was unknown as a whole may be spelled with them now.", ""]


def render_trim(report: Mapping[str, Any]) -> str:
    """Return what the command prints."""
    pieces, parameters, saved = report["pieces"], report["parameters"], report["saved"]
    checked = report["compared_hidden_states"]
    return "\n".join(
        [
            f"pieces: {pieces['before']:,} → {pieces['after']:,}",
            f"parameters: {parameters['before']:,} → {parameters['after']:,}",
            f"saved: {saved['weights_mb']:,} MB of weights, {saved['adamw_mb']:,} MB while AdamW trains in fp32",
            f"held out: {_changed(report['held_out'])}",
            f"hidden states of {checked} text(s) whose pieces were all kept: the same bits",
            f"scripts whose single characters were all kept: {', '.join(report['scripts']['kept'])}",
            str(report["directory"]),
        ]
    )
