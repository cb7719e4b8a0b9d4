"""A document → the character ranges of its sentences, without cutting an entity.

Enters: any text and the spans of its entities (inclusive Python characters). Leaves: half-open ranges of the same text,
which is never normalised. The rule needs no library: a sentence ends at a line break, or at a mark such as `.` before a
blank, but not inside quotation marks or brackets, behind an initial, a number or a common abbreviation, or before a
particle that goes on with a quotation. Where the blank is missing, the mark must follow a Korean final ending; in a
line without any mark, the commonest final endings do as marks. In hard-wrapped text a paragraph takes the place of a
line. It was measured beside pysbd, kss and kiwipiepy:
`experiments/results/2026-11-28_sentences/`.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from mtl_re.data.validation import MAX_SENTENCE
from mtl_re.errors import MtlReError

LONGEST_PAIR = 500
"""Quotation marks or brackets farther apart than this many characters do not hold a sentence together."""
BRACKETS = {"“": "”", "‘": "’", "「": "」", "『": "』", "《": "》", "〈": "〉", "(": ")", "[": "]", "（": "）"}
STRAIGHT = "\"'"
"""Quotation marks that open and close alike."""

_CLOSERS = re.escape("".join(BRACKETS.values()) + STRAIGHT)
_END = re.compile(rf"([.!?…。！？｡]++)([{_CLOSERS}]*+)")  # possessive: a long run of marks is read once
_BREAK = r"(?>\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])"
_LINE = re.compile(rf"{_BREAK}\s*+")
_PARAGRAPH = re.compile(rf"{_BREAK}(?:(?!{_BREAK})\s)*+{_BREAK}\s*+")

# What stands before and behind a place, in composed form.
_NO_END = re.compile(
    r"(?:(?<![^\W\d_])[A-Za-zÀ-Þ]"  # an initial: George W. Bush, B.B. King
    r"|(?<!\w)(?:Dr|Mr|Mrs|Ms|St|Jr|Sr|Prof|No|Nos|Op|Vol|vol|pp|vs|cf|etc|al|Inc|Co|Corp|Ltd|PP)"
    r"|(?<![^\s.(\[])\d{1,4})\Z"  # a date or the number of an item: 2011. 6. 27.
)
_CLOSED = re.compile(rf"[.!?…。！？｡][{_CLOSERS}]*\Z")
_QUOTED = re.compile(r"\s*(?:이?라(?:고|며|는|면서|던)|(?:고|며|면서)\s)")  # “…” 라고 말했다
_FINAL = re.compile(r"[다요죠까]\Z")
_BEGINS = re.compile(rf"[가-힣A-Z0-9一-鿿{re.escape(''.join(BRACKETS))}]")

# A line without marks.
_SYLLABLE = re.compile("|".join(f"(?:{one}|{unicodedata.normalize('NFD', one)})" for one in "다요죠"))
_PAST = "".join(map(chr, range(ord("갔"), ord("힣") + 1, 28)))  # 갔, 했, …: the syllables that end in ㅆ
_UNMARKED = re.compile(  # of the endings in -ㄴ다 only common ones: 우간다 and 혼다 are names
    rf"(?:[{_PAST}니이한된는진인킨]다|[어아해세네에예지]요|죠)\Z"
)
_UNMARKED_GOES_ON = re.compile(r"\s+(?:보[니면]|고\s|며\s|면\s|라[고며]\s|하더|해도|한들|손)")  # 했다 보니, 한다 고


def sentence_ranges(text: str, spans: Sequence[tuple[int, int]] = (), joined: bool = False) -> list[tuple[int, int]]:
    """Return the half-open character ranges of the sentences of a text, in order.

    The ranges do not overlap, neither begin nor end with a blank, and hold every character that is not blank (as
    `str.isspace` says). A sentence of more than `MAX_SENTENCE` characters is cut further, at a blank where there is
    one; only a span can keep it longer.

    Args:
        spans: inclusive characters (start, end) of entities, in any order; they may overlap. A boundary inside one is
            dropped, so that each lies in exactly one sentence.
        joined: The text is hard-wrapped: a line break ends a sentence only where a blank line follows.

    Raises:
        MtlReError: A span does not lie in the text, or begins or ends with a blank.
    """
    whole = _merged(text, spans)
    ranges: list[tuple[int, int]] = []
    start = 0
    for border in [*_borders(text, _PARAGRAPH if joined else _LINE), len(text)]:
        if border > start and not _inside(whole, border):
            ranges.extend(_pieces(text, *_trimmed(text, start, border), whole))
            start = border
    return ranges


def _merged(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Check the spans and return them in order, those that share a character as one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if not 0 <= start <= end < len(text):
            raise MtlReError(f"span {start}..{end} does not lie in the text (0..{len(text) - 1}, inclusive)")
        if text[start].isspace() or text[end].isspace():
            raise MtlReError(f"span {start}..{end} begins or ends with a blank; leave the blank out")
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _inside(intervals: Sequence[tuple[int, int]], border: int) -> bool:
    """Return whether a border, given by the character behind it, cuts one of some ordered, separate intervals."""
    before = bisect_left(intervals, (border,)) - 1  # the last that starts before the border
    return before >= 0 and border <= intervals[before][1]


def looks_wrapped(text: str) -> bool:
    """Return whether the lines of a text seem to be hard-wrapped: paragraphs hold five line breaks or more, most of
    them behind a line that is nearly as long as the longest and does not end like a sentence."""
    paragraphs = (paragraph.splitlines()[:-1] for paragraph in _PARAGRAPH.split(text))
    lines = [line.strip() for paragraph in paragraphs for line in paragraph]
    longest = max(map(len, lines), default=0)
    full = sum(len(line) >= 0.8 * longest and not _CLOSED.search(line) for line in lines)
    return len(lines) >= 5 and longest >= 20 and full > 0.6 * len(lines)


def _borders(text: str, breaks: re.Pattern[str]) -> Iterator[int]:
    """Yield where a sentence ends, as the place behind its last character, in order.

    Args:
        breaks: What ends a sentence wherever it stands.
    """
    start = 0
    for line in breaks.finditer(text):
        yield from _borders_of_line(text, start, line.start())
        yield line.start()
        start = line.end()
    yield from _borders_of_line(text, start, len(text))


def _borders_of_line(text: str, start: int, stop: int) -> Iterator[int]:
    """Yield where a sentence ends inside text[start:stop], a line or a paragraph."""
    marks = list(_END.finditer(text, start, stop))
    places = [mark.end() for mark in marks if mark.end() < stop and _ends_sentence(text, start, stop, mark)]
    if not places and not any(mark.end() == stop or text[mark.end()].isspace() for mark in marks):
        places = list(_unmarked(text, start, stop))
    if places:
        pairs = _pairs(text, start, stop)
        yield from (place for place in places if not _inside(pairs, place))


def _around(text: str, start: int, first: int, last: int, stop: int) -> tuple[str, str]:
    """Return what stands before text[first:last] and behind it, a few characters in composed form."""
    before, behind = text[max(start, first - 12) : first], text[last : min(stop, last + 24)]
    return unicodedata.normalize("NFC", before), unicodedata.normalize("NFC", behind)


def _ends_sentence(text: str, start: int, stop: int, mark: re.Match[str]) -> bool:
    """Return whether a mark, if it stands outside of quotations and brackets, ends a sentence of text[start:stop]."""
    signs, closers = mark.groups()
    before, behind = _around(text, start, mark.start(), mark.end(), stop)
    if not text[mark.end()].isspace():
        # 했다.그러나: a blank is missing. Behind a straight quotation mark it is unknown whether that one closes.
        return not closers and bool(_FINAL.search(before) and _BEGINS.match(behind)) and not _QUOTED.match(behind)
    if closers:
        return not _QUOTED.match(behind)
    return signs != "." or not (_NO_END.search(before) or behind.lstrip()[:1].islower())


def _unmarked(text: str, start: int, stop: int) -> Iterator[int]:
    """Yield where final endings stand before a blank in a line that has no marks."""
    for syllable in _SYLLABLE.finditer(text, start, stop):
        place = syllable.end()
        if place < stop and text[place].isspace():
            before, behind = _around(text, start, place, place, stop)
            if _UNMARKED.search(before) and not _UNMARKED_GOES_ON.match(behind):
                yield place


def _pairs(text: str, start: int, stop: int) -> list[tuple[int, int]]:
    """Return where quotations and brackets of text[start:stop] open and close, the outermost ones, in order."""
    openers = {closer: opener for opener, closer in BRACKETS.items()}
    last: dict[str, list[int]] = {opener: [] for opener in [*BRACKETS, *STRAIGHT]}  # those that wait for their closer
    found: list[tuple[int, int]] = []
    for match in re.finditer(rf"[{re.escape(''.join(BRACKETS))}{_CLOSERS}]", text[start:stop]):
        sign, place = match[0], start + match.start()
        if sign in STRAIGHT:
            # One behind a blank and before a word opens, even if another one still waits: that one was never closed.
            fresh = place == start or not text[place - 1].isalnum()
            opens = fresh and place + 1 < stop and not text[place + 1].isspace() and text[place - 1] not in ".!?…,"
            if last[sign] and not (opens and (place == start or text[place - 1].isspace())):
                found.append((last[sign].pop(), place))
                last[sign].clear()
            elif sign == '"' or fresh:  # ' between letters is an apostrophe
                last[sign] = [place]
        elif sign in BRACKETS:
            last[sign].append(place)
        elif last[openers[sign]]:
            found.append((last[openers[sign]].pop(), place))
    outer: list[tuple[int, int]] = []
    for opened, closed in sorted(found):
        if closed - opened > LONGEST_PAIR:
            continue
        if outer and opened <= outer[-1][1]:
            outer[-1] = (outer[-1][0], max(outer[-1][1], closed))
        else:
            outer.append((opened, closed))
    return outer


def _trimmed(text: str, start: int, stop: int) -> tuple[int, int]:
    """Return text[start:stop] without the blanks at its ends; an empty range if there is nothing else."""
    while start < stop and text[start].isspace():
        start += 1
    while start < stop and text[stop - 1].isspace():
        stop -= 1
    return start, stop


def _pieces(text: str, start: int, stop: int, whole: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield a sentence, in pieces of at most `MAX_SENTENCE` characters where no span is longer."""
    while stop - start > MAX_SENTENCE:
        cut = _cut(text, start, stop, whole)
        if cut == stop:
            break
        yield _trimmed(text, start, cut)
        start, _ = _trimmed(text, cut, stop)
    if start < stop:
        yield start, stop


def _cut(text: str, start: int, stop: int, whole: Sequence[tuple[int, int]]) -> int:
    """Return where to cut a sentence that is too long: at its last blank that will do, else in a word, else behind
    the span that fills it."""
    limit = start + MAX_SENTENCE
    places = [place for place in range(limit, start, -1) if not _inside(whole, place)]
    for place in places:
        if text[place].isspace():
            return place
    for place in places[:100]:  # a character of several code points stays whole, unless it is absurdly long
        if not _continues(text[place]):
            return place
    if places:
        return places[0]
    return next(place for place in range(limit + 1, stop + 1) if not _inside(whole, place))


def _continues(character: str) -> bool:
    """Return whether a character belongs to the one before it: an accent, a vowel or final consonant of decomposed
    Hangul, a part of an emoji."""
    return (
        unicodedata.category(character) in ("Mn", "Me", "Mc", "Cf")
        or "\u1160" <= character <= "\u11ff"
        or "\U0001f3fb" <= character <= "\U0001f3ff"
    )
