"""`mtl-re check`: validate data files and report what one should know before training on them.

Enters: the DATA of the command line, each read once. Leaves: counts, bad rows, repeated rows, contradictory labels and
the overlap between the files. Bad rows and unreadable files are errors; repeats, contradictions and overlaps are
warnings, because KLUE-RE itself has them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from mtl_re.config import CheckConfig, ReadingConfig
from mtl_re.data.loading import cures, parsed
from mtl_re.data.lost_pieces import LostPieces, TrimmedTokenizers
from mtl_re.data.subject_types import SubjectTypes
from mtl_re.data.unicode_form import is_decomposed
from mtl_re.data.validation import AS_KLUE, BadRow, Key, shown
from mtl_re.errors import MtlReError
from mtl_re.taxonomy import Taxonomy

SHOWN = 50
"""Bad rows, and groups of contradictory ones, that are printed for one file."""


@dataclass
class FileCheck:
    """Facts about one DATA.

    Attributes:
        fault: why reading ended early, or None; the counts cover what came before it.
        keys: sentence and spans → (row, label) of every row that has them.
        ids: id → number of rows.
        cures: what to do about faults that many rows share.
        decomposed: rows with characters written in parts.
        lost: what the sentences lose under a trimmed vocabulary, where one was asked about.
    """

    source: str
    subjects: SubjectTypes
    fault: str | None = None
    good: int = 0
    unlabelled: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    keys: dict[Key, list[tuple[int, str | None]]] = field(default_factory=lambda: defaultdict(list))
    ids: Counter[str] = field(default_factory=Counter)
    cures: list[str] = field(default_factory=list)
    decomposed: int = 0
    lost: LostPieces | None = None

    @property
    def bad(self) -> int:
        return len(self.bad_rows)

    @property
    def sentences(self) -> set[str]:
        return {key[0] for key in self.keys}

    @property
    def repeated_keys(self) -> int:
        """Number of rows whose key an earlier row has."""
        return self.good - len(self.keys)

    @property
    def contradictions(self) -> list[list[tuple[int, str]]]:
        """The labelled rows (row, label) of each key that has two labels or more."""
        labelled = ([(row, label) for row, label in rows if label is not None] for rows in self.keys.values())
        return [rows for rows in labelled if len({label for _, label in rows}) > 1]

    @property
    def repeated_ids(self) -> list[str]:
        return [name for name, count in self.ids.items() if count > 1]


@dataclass
class CheckReport:
    """The facts about every DATA, in the order given."""

    files: list[FileCheck]

    @property
    def has_errors(self) -> bool:
        """Whether a file has bad rows or cannot be read to its end; all else is a warning."""
        return any(file.fault is not None or file.bad for file in self.files)


def check_files(specs: Sequence[str], taxonomy: Taxonomy, reading: ReadingConfig = AS_KLUE) -> CheckReport:
    """Read every DATA to its end; a file that cannot be read does not stop the others.

    Raises:
        MtlReError: `reading` names an encoder that was not trimmed.
    """
    encoder = reading.encoder if isinstance(reading, CheckConfig) else None
    tokenizers = None if encoder is None else TrimmedTokenizers(encoder)
    files = [_check_file(spec, taxonomy, reading) for spec in specs]
    if tokenizers is not None:
        for file in files:
            file.lost = tokenizers.lost(sorted(file.sentences))
    return CheckReport(files)


def _check_file(spec: str, taxonomy: Taxonomy, reading: ReadingConfig) -> FileCheck:
    facts = FileCheck(spec, SubjectTypes(taxonomy))
    try:
        for number, row in parsed(spec, taxonomy, reading):
            if isinstance(row, BadRow):
                facts.bad_rows.append(row)
                continue
            facts.good += 1
            facts.decomposed += is_decomposed(row.sentence)
            facts.subjects.add(row)
            facts.keys[row.key].append((number, row.label))
            facts.ids[row.id] += 1
            if row.label is None:
                facts.unlabelled += 1
            else:
                facts.labels[row.label] += 1
    except MtlReError as error:
        facts.fault = str(error)
    facts.cures = cures(facts.bad_rows, facts.good + facts.bad)
    return facts


def render_check(report: CheckReport) -> str:
    """Return the report as lines of text; those about errors and warnings begin with the word."""
    lines = [line for file in report.files for line in _file_lines(file)]
    for first, second in combinations(report.files, 2):
        keys, sentences = first.keys.keys() & second.keys.keys(), first.sentences & second.sentences
        if sentences:
            what = f"{len(sentences):,} distinct sentence(s), {len(keys):,} of them with the same two spans"
            lines.append(f"warning: {first.source} and {second.source} share {what}")
    bad, faults = sum(file.bad for file in report.files), sum(file.fault is not None for file in report.files)
    lines.append(f"{bad:,} bad row(s), {faults} unreadable file(s)" if report.has_errors else "no errors")
    return "\n".join(lines)


def _file_lines(file: FileCheck) -> Iterator[str]:
    counts = f"{file.good + file.bad:,} rows, {file.good:,} good, {file.bad:,} bad, {file.unlabelled:,} unlabelled"
    yield f"{file.source}: {counts}, {len(file.sentences):,} distinct sentences"
    for label, count in file.labels.most_common():
        yield f"  {label:<40}{count:>9,}  {100 * count / file.labels.total():5.1f} %"
    if file.fault is not None:
        yield f"error: {file.fault}"
    yield from (f"error: {file.source}: {cure}" for cure in file.cures)
    listed = file.bad_rows[: 3 if file.cures else SHOWN]
    yield from (f"error: {bad}" for bad in listed)
    if file.bad > len(listed):
        yield f"error: {file.source}: {file.bad - len(listed):,} more bad row(s)"
    if file.decomposed:
        share = f"{100 * file.decomposed / file.good:.1f} % of the rows hold characters written in parts (NFD)"
        yield f"warning: {file.source}: {share}; few vocabularies know these (--data.normalise nfc composes them)"
    if file.lost is not None:
        none = f"{file.source}: the encoder's trimmed vocabulary has all pieces that its sentences need"
        yield file.lost.warning(file.source) or none
    if warning := file.subjects.warning(file.source):
        yield warning
    if file.repeated_keys:
        yield f"warning: {file.source}: {file.repeated_keys:,} row(s) repeat the sentence and spans of an earlier row"
    contradictions = file.contradictions
    if contradictions:
        yield f"warning: {file.source}: {len(contradictions):,} group(s) of such rows have contradictory labels"
    for group in contradictions[:SHOWN]:
        yield "  " + ", ".join(f"row {row} {label}" for row, label in group)
    if repeated := file.repeated_ids:
        yield f"warning: {file.source}: {len(repeated):,} id(s) occur more than once, first {shown(repeated[0])}"
