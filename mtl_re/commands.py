"""The table of commands: one row each, with the function that it calls and the files that it reads and writes.

The options of a command are the fields of a dataclass of `config`. Its function is named, not imported, until the
command runs, so that help and usage errors need no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from docstring_parser import parse_from_object
from jsonargparse import ArgumentParser, Namespace

from mtl_re import config
from mtl_re.errors import MtlReError
from mtl_re.files import protect
from mtl_re.outputs import check_directory, check_outputs, files_in, input_files, remember
from mtl_re.taxonomy import Taxonomy

# ---- what a command prints -----------------------------------------------------------------------------------------


def _print(result: Any, options: Any) -> None:
    """Print a list line by line, a dict as JSON, and anything else as it is."""
    if isinstance(result, dict):
        result = json.dumps(result, ensure_ascii=False, indent=1)
    print(*result if isinstance(result, list) else [result], sep="\n")


def _print_check(report: Any, options: None) -> None:
    from mtl_re.data.check import render_check

    print(render_check(report))
    if report.has_errors:
        raise MtlReError("the data has errors (listed above)")


def _print_scores(result: dict[str, Any], options: config.EvaluateConfig) -> None:
    from mtl_re.scoring.summary import evaluation_summary

    print(evaluation_summary(result))
    if options.output is None:
        _print(result, options)


def _print_count(count: int, options: config.PredictConfig) -> None:
    print(f"{count} predictions in {options.output}")


def _print_triples(result: Any, options: config.ExtractConfig) -> None:
    from mtl_re.predict.extract import render

    print(render(result, options))


def _rendered(function: str) -> Callable[[Any, Any], None]:
    """Return a printer of the text that `module:function` makes of the result."""
    return lambda result, options: print(_imported(function)(result))


def _imported(function: str) -> Callable[..., Any]:
    """Import a `module:function`; a command so loads what it needs, and `--help` nothing."""
    module, _, name = function.partition(":")
    made: Callable[..., Any] = getattr(import_module(module), name)
    return made


# ---- the table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Argument:
    """An argument that is no field of the command's dataclass: a positional one, or an option that is converted.

    Attributes:
        name: `ckpt`, or `--heads` for an option.
        help: its text in `--help`.
        usage: its name in the usage line (None: an option).
        kind: converts the parsed value for the function (None: left as it is).
        settings: what else `ArgumentParser.add_argument` takes.
    """

    name: str
    help: str
    usage: str | None = None
    kind: Callable[[Any], Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def value(self, parsed: Namespace) -> Any:
        """Return the value that the function is called with."""
        value = parsed[self.name.lstrip("-")]
        return value if self.kind is None else self.kind(value)


@dataclass(frozen=True)
class Command:
    """One row of the table.

    Attributes:
        help: its text in `--help`.
        run: `module:function`. It is called with the values of `arguments`, then the options, then (where these stand
            in groups, as those of a run do) the name for the run's directory.
        options: the dataclass of the options (None: `arguments` are all there is).
        arguments: in the order in which the function takes them.
        forms: settings of `ArgumentParser.add_argument` for fields of `options` that hold several words.
        show: prints what the function returned.
        reads: arguments and options that name inputs, which no output may replace.
        writes: arguments and options that name an output: a file (no names), or a directory and its files' names, which
            may be patterns; or the `module:function` that tells the names from the options.
        beside: option of `writes` → suffix of a second file beside the one that it names.
    """

    help: str
    run: str
    options: type | None
    arguments: tuple[Argument, ...] = ()
    forms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    show: Callable[[Any, Any], None] = _print
    reads: tuple[str, ...] = ()
    writes: Mapping[str, tuple[str, ...] | str] = field(default_factory=dict)
    beside: Mapping[str, str] = field(default_factory=dict)

    def parser(self, name: str) -> ArgumentParser:
        """Return the parser of this command's arguments."""
        usage = [argument.usage for argument in self.arguments if argument.usage]
        parser = ArgumentParser(description=self.help, usage=" ".join(["mtl-re", name, *usage, "[options]"]))
        about = "YAML file with any of these options (not with the arguments before them)."
        parser.add_argument("--config", action="config", help=about)
        parser.add_argument("--debug", action="store_true", help="Show the traceback of a fault.")
        for argument in self.arguments:
            settings = {"type": str, "metavar": argument.usage, **argument.settings}
            parser.add_argument(argument.name, help=argument.help, **settings)
        if self.options is not None:
            self._add_options(parser, self.options)
        if self.writes:
            help = "Replace output files that mtl-re did not write, or that were changed since."
            parser.add_argument("--overwrite", action="store_true", help=help)
        return parser

    def _add_options(self, parser: ArgumentParser, options: type) -> None:
        """Add one option a field; a field that is False by default becomes a flag."""
        flags = {field.name: {"action": "store_true"} for field in fields(options) if field.default is False}
        forms = {**flags, **self.forms}
        parents = [parent for parent in options.__mro__ if forms and is_dataclass(parent)]
        texts = {text.arg_name: text.description for parent in parents for text in parse_from_object(parent).params}
        for name, form in forms.items():
            parser.add_argument(f"--{name}", help=texts[name], **form)
        groups = config.groups(options)
        if {field.name for field in fields(options)} - set(forms) - set(groups):
            parser.add_class_arguments(options, skip={*forms, *groups})
        for name, kind in groups.items():
            parser.add_class_arguments(kind, name)
            whole_group = next(action for action in parser._actions if action.dest == name)
            whole_group.help = f"YAML file with the options of `{name}` alone."

    def made(self, parsed: Namespace) -> Any:
        """Return the dataclass of the parsed options.

        Raises:
            MtlReError: a value is out of its range.
        """
        if self.options is None:
            return None
        values = {field.name: parsed[field.name] for field in fields(self.options)}
        for name, kind in config.groups(self.options).items():
            if not isinstance(values[name], Namespace):
                raise MtlReError(f"{name}: expected a group of options, found {values[name]!r}")
            values[name] = kind(**vars(values[name]))
        return self.options(**values)

    @property
    def starts_run(self) -> bool:
        """Whether the command makes a run directory, which is named after its config file."""
        return self.options is not None and "train" in config.groups(self.options)

    def written(self, options: Any) -> dict[str, tuple[str, ...]]:
        """Return `writes`, with the names that follow from the options.

        Raises:
            MtlReError: the options name no output that could be written.
        """
        return {
            name: _imported(names)(options) if isinstance(names, str) else names for name, names in self.writes.items()
        }

    def check_files(self, parsed: Namespace, options: Any) -> None:
        """Refuse outputs that are inputs or somebody else's files, and protect the inputs from then on.

        Raises:
            MtlReError: naming the option and the file.
        """
        data = input_files([parsed.get(name) for name in self.reads])
        inputs = data + [Path(str(path)) for path in parsed.get("config") or ()]  # jsonargparse has its own path type
        writes = self.written(options)
        given = {name: path for name in writes if (path := parsed.get(name)) is not None}
        for name in filter(writes.get, given):
            check_directory(name, given[name], writes[name], inputs, parsed.overwrite)
        files = {name: path for name, path in given.items() if not writes[name]}
        if files:
            check_outputs(files, inputs, parsed.overwrite)
        for name in files.keys() & self.beside.keys():
            check_outputs({name: f"{given[name]}{self.beside[name]}"}, inputs, parsed.overwrite)
        protect(data if self.starts_run else inputs)  # a run that goes on may write its own config.yaml again

    def remember_files(self, parsed: Namespace) -> None:
        """Note the files that this command has written, so that it may write them again; in a folder whose file names
        depend on the options, each is noted where it is written."""
        for name, names in self.writes.items():
            path = parsed.get(name)
            if path is not None and not (isinstance(names, str) and Path(path).is_dir()):
                files = files_in(path, names) if names and not isinstance(names, str) else [Path(path)]
                if suffix := self.beside.get(name):
                    files.append(Path(f"{path}{suffix}"))
                remember(files)

    def call(self, parsed: Namespace, options: Any) -> Any:
        """Import the function, call it and return its result."""
        values = [argument.value(parsed) for argument in self.arguments]
        if self.options is not None:
            values.append(options)
            if self.starts_run:
                values.append(Path(str(parsed.config[-1])).stem if parsed.config else self.run.partition(":")[2])
        return _imported(self.run)(*values)


CKPT = Argument("ckpt", "A run directory, its model/, an exported directory, or a hub id.", "CKPT")
DATA = Argument(
    "data",
    "A path (.json, .jsonl, .csv, .tsv, .parquet, all also .gz), hub:DATASET/CONFIG:SPLIT, or sample:train|valid|test.",
    "DATA ...",
    settings={"nargs": "+", "metavar": "DATA"},
)
HEADS = Argument(
    "--heads", "The label set, as `model.heads`.", kind=Taxonomy.from_option, settings={"default": "hierarchical"}
)
PREDICTIONS = Argument(
    "predictions", "Predictions with gold labels, as `evaluate --predictions` writes.", "PREDICTIONS.jsonl", Path
)
COMPOSE = {"compose": {"type": str, "nargs": "+", "metavar": "HEAD=CKPT"}}

COMMANDS: dict[str, Command] = {
    "sample": Command(
        "Write the embedded corpus (train, valid and test as KLUE JSON).",
        "mtl_re.data.sample:write",
        config.SampleConfig,
        (Argument("directory", "Where to write train.json, valid.json and test.json.", "DIR"),),
        writes={"directory": ("train.json", "valid.json", "test.json")},
    ),
    "check": Command(
        "Validate data: bad rows, duplicates, contradictions, overlap.",
        "mtl_re.data.check:check_files",
        config.CheckConfig,
        (DATA, HEADS),
        show=_print_check,
    ),
    "heads": Command(
        "Write the two-level map of a file's labels, for `model.heads`.",
        "mtl_re.data.heads:write_heads",
        config.HeadsConfig,
        (Argument("data", "Rows with labels of any set.", "DATA"),),
        reads=("data",),
        writes={"output": ()},
    ),
    "convert": Command(
        "Convert rows or annotations of other tools to rows.",
        "mtl_re.data.convert:convert",
        config.ConvertConfig,
        (
            Argument("file", "The file (.json, .jsonl, .csv, .tsv, .parquet; .txt for semeval).", "FILE"),
            Argument(
                "--from",
                "Its format: tacred, semeval, opennre, label-studio, doccano, korre, boostcamp, columns.",
                settings={"required": True},
            ),
        ),
        reads=("file", "columns"),
        writes={"output": ()},
    ),
    "explore": Command(
        "Draw the distributions of data files, side by side.",
        "mtl_re.analysis.explore:explore",
        config.ReadingConfig,
        (
            DATA,
            Argument("--output", "Directory for the pictures and explore.md.", kind=Path, settings={"required": True}),
            HEADS,
        ),
        reads=("data",),
        writes={"output": ("explore.md", "labels.png", "labels_*.png", "coarse.png", "lengths.png", "pairs.png")},
    ),
    "train": Command(
        "Train a model; prints the run directory last.",
        "mtl_re.training.train:train",
        config.Config,
        reads=("data.train", "data.valid", "model.encoder", "model.init", "model.heads", "loss.class_weights"),
    ),
    "trim": Command(
        "Cut an encoder's vocabulary to the pieces that a language's text needs.",
        "mtl_re.trim.trim:trim",
        config.TrimConfig,
        (
            Argument("encoder", "A hub id or a local directory.", "ENCODER"),
            Argument("directory", "Where to write: a new or empty directory (see --overwrite).", "DIR"),
        ),
        forms={
            "text": {"type": str, "nargs": "+", "required": True, "metavar": "FILE"},
            "keep": {"type": str, "nargs": "+", "default": [], "metavar": "FILE|PIECE"},
        },
        show=_rendered("mtl_re.trim.report:render_trim"),
        reads=("encoder", "text", "held_out", "keep"),
    ),
    "adapt": Command(
        "Adapt an encoder to your text by masked-language modelling; prints the run directory last.",
        "mtl_re.adapt.adapt:adapt",
        config.AdaptConfig,
        forms={"exclude": {"type": str, "nargs": "+", "default": [], "metavar": "DATA"}},
        reads=("data.train", "exclude", "model.encoder"),
    ),
    "evaluate": Command(
        "Score a checkpoint on labelled rows.",
        "mtl_re.scoring.evaluation:evaluate",
        config.EvaluateConfig,
        (replace(CKPT, settings={"type": str | None, "nargs": "?"}),),
        forms=COMPOSE,
        show=_print_scores,
        reads=("ckpt", "compose", "data"),
        writes={"output": (), "predictions": ()},
    ),
    "predict": Command(
        "Predict rows; the probabilities of several checkpoints are averaged (soft vote).",
        "mtl_re.predict.predict:predict",
        config.PredictConfig,
        (replace(CKPT, usage="CKPT ...", kind=list, settings={"nargs": "*", "metavar": "CKPT"}),),
        forms=COMPOSE,
        show=_print_count,
        reads=("ckpt", "compose", "data"),
        writes={"output": "mtl_re.predict.folders:output_names"},
        beside={"output": ".rejected.jsonl"},
    ),
    "vote": Command(
        "Average prediction files of the same rows, with weights (soft vote).",
        "mtl_re.predict.vote:vote_files",
        config.VoteConfig,
        (
            Argument(
                "files",
                "Predictions (.jsonl, .parquet) or contest submissions (.csv) of the same rows.",
                "FILE FILE ...",
                settings={"nargs": "+", "metavar": "FILE"},
            ),
            HEADS,
        ),
        show=_print_count,
        reads=("files", "heads"),
        writes={"output": ()},
    ),
    "calibrate": Command(
        "Fit temperatures and a threshold, and store them in the checkpoint.",
        "mtl_re.scoring.calibrate:calibrate",
        config.CalibrateConfig,
        (CKPT,),
        reads=("data", "unlabelled"),
        writes={"output": ("calibration.json", "reliability.png")},
    ),
    "compare": Command(
        "Compare two prediction files of the same rows by paired bootstrap.",
        "mtl_re.scoring.significance:compare_files",
        config.CompareConfig,
        (
            Argument("a", "Predictions A (.jsonl, .parquet, or .csv with --data).", "A.jsonl", Path),
            Argument("b", "Predictions B.", "B.jsonl", Path),
        ),
    ),
    "errors": Command(
        "Analyse the errors of a predictions file, with examples and pictures.",
        "mtl_re.analysis.error_analysis:write_errors",
        config.ErrorsConfig,
        (PREDICTIONS,),
        reads=("predictions", "data", "heads"),
        writes={"output": ("errors.md", "gate.png", "lengths.png", "types.png", "false_alarms.png")},
    ),
    "cooccurrence": Command(
        "Measure how often unrelated entities of one sentence are predicted to be related.",
        "mtl_re.analysis.cooccurrence:cooccurrence",
        config.CooccurrenceConfig,
        (PREDICTIONS,),
        show=_rendered("mtl_re.analysis.cooccurrence:render_cooccurrence"),
        reads=("predictions", "data", "heads"),
        writes={"output": ()},
    ),
    "extract": Command(
        "Extract the triples between the entities of a sentence, or of any number of documents.",
        "mtl_re.predict.extract:extract",
        config.ExtractConfig,
        (CKPT,),
        # `append` would make one text of the list in a config file (jsonargparse)
        forms={"entity": {"type": str, "action": "extend", "nargs": 1, "default": [], "metavar": "WORD:TYPE"}},
        show=_print_triples,
        reads=("ckpt", "data", "ner_types"),
        writes={"output": "mtl_re.predict.folders:output_names"},
        beside={"output": ".rejected.jsonl"},
    ),
    "demo": Command(
        "Serve a web page on this machine to try a checkpoint.", "mtl_re.page.server:demo", config.DemoConfig, (CKPT,)
    ),
    "export": Command(
        "Write one directory for PyTorch, ONNX and the hub, usable without this package.",
        "mtl_re.export.export:export",
        config.ExportConfig,
        (CKPT, Argument("directory", "Where to write: a new or empty directory (see --overwrite).", "DIR")),
        show=_rendered("mtl_re.export.export:render_export"),
        reads=("ckpt", "check_data", "metrics", "cooccurrence"),
    ),
    "ablate": Command(
        "Run or continue a study of many trainings, and write its report.",
        "mtl_re.study.workers:ablate",
        config.AblateConfig,
        (Argument("study", "The study file (see experiments/ablations/).", "STUDY.yaml", Path),),
        reads=("study",),
    ),
}
