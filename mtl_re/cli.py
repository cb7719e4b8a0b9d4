"""The command line: options → one function call, faults → one line and an exit code.

`commands.COMMANDS` is the table. jsonargparse reads the options of a command: each is in `--help`, may stand in a YAML
file (`--config`), and can be overridden (`--loss.weights.coarse 2`). Exit codes: 0 done, 1 the input or the run failed,
2 usage.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Collection, Sequence

from jsonargparse import ArgumentParser, set_parsing_settings

from mtl_re import __version__
from mtl_re.commands import COMMANDS
from mtl_re.errors import MtlReError, is_first_process, tell

KERNELS = "256"
"""Kernels that oneDNN keeps. With 64 of them training ko-mini takes 4 % more CPU time, with 256 under 3 %."""


def build_parser(words: Collection[str] = tuple(COMMANDS)) -> ArgumentParser:
    """Return the parser of all commands; those that are not among `words` are known by name and have no options.

    Reading the options of all commands takes a second and more, those of one a small part of that.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="mtl-re",
        version=__version__,
        description="Relation extraction: one encoder, a coarse head that gates fine heads.",
    )
    commands = parser.add_subcommands(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        commands.add_subcommand(name, command.parser(name) if name in words else ArgumentParser(), help=command.help)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = _underscored(sys.argv[1:] if arguments is None else arguments)
    try:
        parsed = build_parser(words).parse_args(words)
        command, parsed = COMMANDS[parsed.subcommand], parsed[parsed.subcommand]
        options = command.made(parsed)
    except MtlReError as error:  # a value out of its range is a usage fault
        return _fail(error, 2)
    except (TypeError, ValueError, KeyError, AttributeError) as error:  # a config file of another shape than options
        return _fail(MtlReError(f"the options cannot be read ({type(error).__name__}: {error}); see --help"), 2)
    try:
        _calm()
        _yield_cores()
        _bound_kernel_caches()
        command.check_files(parsed, options)
        result = command.call(parsed, options)
        if is_first_process():
            command.remember_files(parsed)
            command.show(result, options)
        sys.stdout.flush()
    except MtlReError as error:
        if parsed.debug:
            raise
        return _fail(error, 1)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _fail(MtlReError("interrupted"), 1)
    except Exception as error:
        if parsed.debug:
            raise
        text = " ".join(str(error).split())[:500]
        return _fail(MtlReError(f"{type(error).__name__}: {text} (--debug shows where)"), 1)
    return 0


def _underscored(arguments: Sequence[str]) -> list[str]:
    """Read `--label-order` as `--label_order`; what stands behind `=`, and head names, are left alone."""
    spelled = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--") and not name.startswith("--loss.weights."):
            name = "--" + name[2:].replace("-", "_")
        spelled.append(name + equals + value)
    return spelled


def _fail(error: MtlReError, code: int) -> int:
    """Print the error as one line on stderr and return the exit code."""
    tell(f"mtl-re: error: {' '.join(str(error).splitlines())}")
    return code


def _yield_cores() -> None:
    """Let OpenMP's threads sleep while they wait for one another; it is read when torch is imported.

    By default they spin. Where another process holds one of the cores, each of the many small operations of a step then
    waits for a turn of the scheduler: 2 threads beside one busy process on 2 cores took 1.9 s a step instead of 0.13 s.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _bound_kernel_caches() -> None:
    """Let oneDNN, and torch's layer above it, keep fewer kernels; both read this when they make the first.

    Each keeps one for every shape that a matrix product in bf16 has had (1,024 by default, about 0.3 MB each): rows of
    all lengths fill that with hundreds of megabytes, which look like a leak.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, KERNELS)


def _calm() -> None:
    """Keep libraries from talking over the progress and the result."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    for stream in (sys.stdout, sys.stderr):  # a console of CP949 must not end a command whose work is done
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
