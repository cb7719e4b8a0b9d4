"""The command line: options → one function call, faults → one line and an exit code.

Options are the dataclasses of `config`, read by jsonargparse: every one is in `--help`, may stand in a YAML file
(`--config`), and can be overridden (`--loss.weights.coarse 2`). What a command does is imported only when it runs, so
help and usage errors need no torch. Exit codes: 0 done, 1 the input or the run failed, 2 usage.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from mtl_re import __version__, config
from mtl_re.errors import MtlReError

DATA_HELP = "a path (.json, .jsonl, .csv, .parquet, each also .gz), hub:DATASET/CONFIG:SPLIT or sample:train|valid|test"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser, runners = build_parser()
    try:
        options = parser.parse_args(_underscored(sys.argv[1:] if arguments is None else arguments))
        name = options.subcommand
        command = options[name]
        call = runners[name](command)
    except MtlReError as error:  # a value out of its range is a usage fault
        return _fail(error, 2)
    except (TypeError, ValueError, KeyError, AttributeError) as error:  # a config file of another shape than options
        return _fail(MtlReError(f"the options cannot be read ({type(error).__name__}: {error}); see --help"), 2)
    debug = command.debug
    try:
        _calm()
        call()
        sys.stdout.flush()
    except MtlReError as error:
        if debug:
            raise
        return _fail(error, 1)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _fail(MtlReError("interrupted"), 1)
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split())[:500]
        return _fail(MtlReError(f"{type(error).__name__}: {text} (--debug shows where)"), 1)
    return 0


def _underscored(arguments: Sequence[str]) -> list[str]:
    """`--label-order` means `--label_order`; what stands behind `=`, and head names, are left alone."""
    spelled = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--") and not name.startswith("--loss.weights."):
            name = "--" + name[2:].replace("-", "_")
        spelled.append(name + equals + value)
    return spelled


def _fail(error: MtlReError, code: int) -> int:
    """One line on stderr; under a launcher only the first process speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(f"mtl-re: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
    return code


def _calm() -> None:
    """Keep libraries from talking over the progress and the result."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


Runner = Callable[[Namespace], Callable[[], Any]]


def build_parser() -> tuple[ArgumentParser, dict[str, Runner]]:
    """The parser of all commands, and for each a function from its options to the call to make."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="mtl-re",
        version=f"mtl-re {__version__}",
        description="Relation extraction: one encoder, a coarse head that gates fine heads.",
    )
    commands = parser.add_subcommands(required=True, metavar="COMMAND")
    runners: dict[str, Runner] = {}

    def command(name: str, runner: Runner, help: str, positional: str = "") -> ArgumentParser:
        sub = ArgumentParser(description=help, usage=f"mtl-re {name} {positional}[options]")
        sub.add_argument("--config", action="config", help="YAML file with any of these options.")
        sub.add_argument("--debug", action="store_true", help="Show the traceback of a fault.")
        commands.add_subcommand(name, sub, help=help)
        runners[name] = runner
        return sub

    sub = command("sample", _sample, "Write the embedded corpus (train, valid and test as KLUE JSON).", "DIR ")
    sub.add_argument("directory", type=str, help="Where to write train.json, valid.json and test.json.")
    sub.add_class_arguments(config.SampleConfig)

    sub = command("check", _check, "Validate data: bad rows, duplicates, contradictions, overlap.", "DATA ... ")
    sub.add_argument("data", type=str, nargs="+", help=DATA_HELP)
    sub.add_argument("--heads", type=str, default="hierarchical", help="The label set, as model.heads.")

    sub = command("explore", _explore, "Draw the distributions of data files, side by side.", "DATA ... ")
    sub.add_argument("data", type=str, nargs="+", help=DATA_HELP)
    sub.add_argument("--output", type=str, required=True, help="Directory for the pictures and explore.md.")
    sub.add_argument("--heads", type=str, default="hierarchical", help="The label set, as model.heads.")

    sub = command("train", _train, "Train a model; prints the run directory last.")
    for name, group in config.GROUPS.items():
        sub.add_class_arguments(group, name)

    help = "Adapt an encoder to your text by masked-language modelling; prints the run directory last."
    sub = command("adapt", _adapt, help)
    for name, group in config.ADAPT_GROUPS.items():
        sub.add_class_arguments(group, name)
    help = "Evaluation sentences (any form of data.train): texts that share words with them are dropped and counted."
    sub.add_argument("--exclude", type=str, nargs="+", default=[], metavar="DATA", help=help)

    sub = command("evaluate", _evaluate, "Score a checkpoint on labelled rows.", "CKPT ")
    help = "A run's directory or model/ folder, an exported directory, or a hub id."
    sub.add_argument("ckpt", type=str | None, nargs="?", help=help)
    _compose(sub)
    sub.add_class_arguments(config.EvaluateConfig, skip={"compose"})

    sub = command("predict", _predict, "Predict rows; several checkpoints vote softly.", "CKPT ... ")
    sub.add_argument("ckpt", type=str, nargs="*", help="Checkpoints, as for evaluate.")
    sub.add_argument("--resume", action="store_true", help="Go on with an interrupted prediction of the same rows.")
    _compose(sub)
    sub.add_class_arguments(config.PredictConfig, skip={"compose", "resume"})

    sub = command("calibrate", _calibrate, "Fit temperatures and a threshold, store them.", "CKPT ")
    sub.add_argument("ckpt", type=str, help="A run's directory or a checkpoint directory.")
    sub.add_class_arguments(config.CalibrateConfig)

    sub = command("compare", _compare, "Paired bootstrap of two prediction files on the same rows.", "A.jsonl B.jsonl ")
    sub.add_argument("a", type=str, help="Predictions A.")
    sub.add_argument("b", type=str, help="Predictions B.")
    sub.add_class_arguments(config.CompareConfig)

    help = "Where the errors of a predictions file lie, with examples and pictures."
    sub = command("errors", _errors, help, "PREDICTIONS.jsonl ")
    sub.add_argument("predictions", type=str, help="Predictions with gold labels, as `evaluate --predictions` writes.")
    sub.add_class_arguments(config.ErrorsConfig)

    help = "How often unrelated entities of one sentence are predicted as related."
    sub = command("cooccurrence", _cooccurrence, help, "PREDICTIONS.jsonl ")
    sub.add_argument("predictions", type=str, help="Predictions with gold labels, as `evaluate --predictions` writes.")
    sub.add_class_arguments(config.CooccurrenceConfig)

    sub = command("extract", _extract, "The triples between the entities of one sentence.", "CKPT ")
    sub.add_argument("ckpt", type=str, help="A checkpoint, as for evaluate.")
    help = "An entity of the sentence, WORD:TYPE or WORD@START:TYPE; give the option once for each."
    sub.add_argument("--entity", type=str, action="append", required=True, metavar="WORD:TYPE", help=help)
    sub.add_class_arguments(config.ExtractConfig, skip={"entity"})

    sub = command("demo", _demo, "A web page on this machine to try a checkpoint.", "CKPT ")
    sub.add_argument("ckpt", type=str, help="A checkpoint, as for evaluate.")
    sub.add_class_arguments(config.DemoConfig)

    sub = command("export", _export, "One directory for PyTorch, ONNX and the hub, usable elsewhere.", "CKPT DIR ")
    sub.add_argument("ckpt", type=str, help="A checkpoint, as for evaluate; a run directory for --average.")
    sub.add_argument("directory", type=str, help="Where to write; it must be empty or not exist (see --overwrite).")
    flags = {
        "onnx": "Write model.onnx too: token ids to probabilities and label, checked against PyTorch.",
        "int8": "Write model.int8.onnx too (implies --onnx), its loss measured and bounded.",
        "force": "Keep an int8 graph that is over the bounds.",
        "overwrite": "Replace an older export in DIR.",
        "private": "Make the hub repository private.",
    }
    for name, help in flags.items():
        sub.add_argument(f"--{name}", action="store_true", help=help)
    sub.add_class_arguments(config.ExportConfig, skip=set(flags))

    sub = command("ablate", _ablate, "Run or continue a study of many trainings; writes its report.", "STUDY.yaml ")
    sub.add_argument("study", type=str, help="The study file (see experiments/ablations/).")
    sub.add_argument("--report", action="store_true", help="Train nothing: report on the cells that are finished.")
    sub.add_argument("--retry", action="store_true", help="Run failed cells again.")
    sub.add_class_arguments(config.AblateConfig, skip={"report", "retry"})
    return parser, runners


def _compose(parser: ArgumentParser) -> None:
    help = "One checkpoint a head instead of one for all: coarse=A org=B per=C."
    parser.add_argument("--compose", type=str, nargs="+", metavar="HEAD=CKPT", help=help)


def _made(kind: type, options: Namespace) -> Any:
    """The dataclass of a flat command from its parsed options."""
    return kind(**{field.name: options[field.name] for field in fields(kind)})


def _groups(kinds: dict[str, Any], options: Namespace) -> dict[str, Any]:
    """The dataclasses of a command whose options stand in groups."""
    for name in kinds:
        if not isinstance(options[name], Namespace):
            raise MtlReError(f"{name}: expected a group of options, found {options[name]!r}")
    return {name: kind(**vars(options[name])) for name, kind in kinds.items()}


def _train(options: Namespace) -> Callable[[], Any]:
    made = config.Config(**_groups(config.GROUPS, options))
    given = options.config
    name = Path(str(given[-1])).stem if given else "train"

    def call() -> None:
        from mtl_re.training.train import train

        run_dir = train(made, name)
        if os.environ.get("RANK", "0") == "0":
            print(run_dir)

    return call


def _adapt(options: Namespace) -> Callable[[], Any]:
    made = config.AdaptConfig(**_groups(config.ADAPT_GROUPS, options), exclude=options.exclude)
    name = Path(str(options.config[-1])).stem if options.config else "adapt"

    def call() -> None:
        from mtl_re.adapt.adapt import adapt

        run_dir = adapt(made, name)
        if os.environ.get("RANK", "0") == "0":
            print(run_dir)

    return call


def _sample(options: Namespace) -> Callable[[], Any]:
    made = _made(config.SampleConfig, options)

    def call() -> None:
        from mtl_re.data.sample import write

        for path in write(options.directory, made):
            print(path)

    return call


def _check(options: Namespace) -> Callable[[], Any]:
    def call() -> None:
        from mtl_re.data.check import check_files, render_check
        from mtl_re.taxonomy import Taxonomy

        report = check_files(options.data, Taxonomy.from_option(options.heads))
        print(render_check(report))
        if report.has_errors:
            raise MtlReError("the data has errors (listed above)")

    return call


def _explore(options: Namespace) -> Callable[[], Any]:
    def call() -> None:
        from mtl_re.analysis.explore import explore
        from mtl_re.taxonomy import Taxonomy

        print(explore(options.data, Path(options.output), Taxonomy.from_option(options.heads)))

    return call


def _evaluate(options: Namespace) -> Callable[[], Any]:
    made = _made(config.EvaluateConfig, options)

    def call() -> None:
        from mtl_re.scoring.evaluation import evaluate
        from mtl_re.scoring.summary import evaluation_summary

        result = evaluate(options.ckpt, made)
        print(evaluation_summary(result))
        if made.output is None:
            print(json.dumps(result, ensure_ascii=False, indent=1))

    return call


def _predict(options: Namespace) -> Callable[[], Any]:
    made = _made(config.PredictConfig, options)

    def call() -> None:
        from mtl_re.predict.predict import predict

        count = predict(options.ckpt or [], made)
        if os.environ.get("RANK", "0") == "0":
            print(f"{count} predictions in {made.output}")

    return call


def _calibrate(options: Namespace) -> Callable[[], Any]:
    made = _made(config.CalibrateConfig, options)

    def call() -> None:
        from mtl_re.scoring.calibrate import calibrate

        print(json.dumps(calibrate(options.ckpt, made), ensure_ascii=False, indent=1))

    return call


def _compare(options: Namespace) -> Callable[[], Any]:
    made = _made(config.CompareConfig, options)

    def call() -> None:
        from mtl_re.scoring.significance import compare_files

        result = compare_files(Path(options.a), Path(options.b), made.resamples, made.seed)
        print(json.dumps(result, ensure_ascii=False, indent=1))

    return call


def _errors(options: Namespace) -> Callable[[], Any]:
    made = _made(config.ErrorsConfig, options)

    def call() -> None:
        from mtl_re.analysis.error_analysis import write_errors

        print(write_errors(Path(options.predictions), made))

    return call


def _cooccurrence(options: Namespace) -> Callable[[], Any]:
    made = _made(config.CooccurrenceConfig, options)

    def call() -> None:
        from mtl_re.analysis.cooccurrence import cooccurrence, render_cooccurrence

        print(render_cooccurrence(cooccurrence(Path(options.predictions), made)))

    return call


def _extract(options: Namespace) -> Callable[[], Any]:
    made = _made(config.ExtractConfig, options)

    def call() -> None:
        from mtl_re.predict.predictor import Predictor
        from mtl_re.predict.triples import find_entity, render_triples

        entities = [find_entity(made.sentence, text) for text in made.entity]
        predictor = Predictor.from_pretrained(options.ckpt, gate=made.gate, prior=made.prior, restrict=made.restrict)
        print(render_triples(predictor.extract(made.sentence, entities, made.threshold), made))

    return call


def _demo(options: Namespace) -> Callable[[], Any]:
    made = _made(config.DemoConfig, options)

    def call() -> None:
        from mtl_re.page.server import demo

        demo(options.ckpt, made)

    return call


def _export(options: Namespace) -> Callable[[], Any]:
    made = _made(config.ExportConfig, options)

    def call() -> None:
        from mtl_re.export.export import export, render_export

        print(render_export(export(options.ckpt, options.directory, made)))
        print(options.directory)

    return call


def _ablate(options: Namespace) -> Callable[[], Any]:
    made = _made(config.AblateConfig, options)

    def call() -> None:
        from mtl_re.study.workers import ablate

        print(ablate(Path(options.study), made))

    return call
