"""The `laurel` command: verbs, each in a module that is imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from laurel.core.errors import LaurelError, UsageError, misspelt, nearest

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("laurel.cli.demo", "from nothing to a model that learned to add: a tour in minutes"),
    "train": ("laurel.cli.train", "train a model with one algorithm of the table"),
    "pipeline": (
        "laurel.cli.pipeline",
        "SFT, answers, preferences, reward model, reinforcement, comparison: one resumable plan",
    ),
    "constitution": (
        "laurel.cli.constitution",
        "a policy from principles in words: critiques, revisions, preferences of a judge, RL",
    ),
    "eval": (
        "laurel.cli.eval",
        "how good a model is: greedy accuracy, pass@k, majority@k, with intervals",
    ),
    "sample": ("laurel.cli.eval", "what a model says to a prompt"),
    "choose": (
        "laurel.cli.choose",
        "the best of several answers, or their vote: best-of-n, self-consistency, search, curves",
    ),
    "serve": (
        "laurel.cli.serve",
        "a model for other programs: OpenAI's and vLLM's wire on this machine",
    ),
    "data": ("laurel.cli.data", "check gold answers, show rows and tokens, convert formats"),
    "verify": (
        "laurel.cli.verify",
        "proof: what trains, against exact truths; planted mistakes must be noticed",
    ),
    "tabular": (
        "laurel.cli.tabular",
        "the foundations on exact worlds: gridworld, planning, imitation, inverse RL, hindsight",
    ),
    "feedback": (
        "laurel.cli.feedback",
        "people's preferences: pages to rate on, import, export, report",
    ),
    "judge": (
        "laurel.cli.judge",
        "AI feedback: a model's verdicts, and their report card beside people's",
    ),
    "prompt": (
        "laurel.cli.prompt",
        "which prompt for which query, learned from logs alone: fit, choose, report",
    ),
    "report": ("laurel.cli.report", "one self-contained page about a run"),
    "bench": ("laurel.cli.bench", "laurel beside its peers on this machine, with goals"),
    "doctor": ("laurel.cli.doctor", "a verdict on this installation"),
}
"""verb: (the module that has `add_parser(subparsers)`, one line of help)."""

SMALLER = (
    "Take a smaller token_budget or max_completion_length, a smaller model, or LoRA (use_peft)."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done, 1: a failure with a remedy, 2: wrong usage, 130 or 143: stopped on request.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        escape_unencodable(stream)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except LaurelError as error:
        _print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has enough (`laurel ... | head`)
        _discard_output()
        return 141
    except Exception as error:
        translated = _as_laurel_error(error)
        if translated is None:
            raise
        _print_error(translated)
        return translated.exit_code
    except SystemExit as leaving:  # argparse leaves so, after its own message
        return leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1


def escape_unencodable(stream: Any) -> None:
    """Let a terminal or file that cannot show a character show its number (`\\u4f60`)."""
    if getattr(stream, "errors", "") in ("strict", "surrogateescape") and hasattr(
        stream, "reconfigure"
    ):
        stream.reconfigure(errors="backslashreplace")


def _as_laurel_error(error: Exception) -> LaurelError | None:
    """An error of the disk or the memory as one of ours; None for any other."""
    from laurel.core.files import (  # here: the command opens sooner without it
        disk_error,
        os_error_of,
    )

    if (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    ):  # torch's, which is not imported here
        return LaurelError(
            f"out of memory: {str(error).partition('.')[0] or 'this machine has no more'}.",
            fix=SMALLER,
        )
    refused = os_error_of(error)
    return None if refused is None else disk_error(refused, "a file, or the output")


def _discard_output() -> None:
    """Discard what is still to be printed, so that Python does not complain when it leaves."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        from laurel import __version__

        print(f"laurel {__version__}")
        return 0
    verb = words[0]
    if verb not in VERBS:
        raise UsageError(f"unknown verb `{verb}`.", where="laurel", fix=nearest(verb, VERBS))
    parser = argparse.ArgumentParser(prog="laurel", allow_abbrev=False)
    importlib.import_module(VERBS[verb][0]).add_parser(parser.add_subparsers())
    known = set(_options(parser))
    args, left = parser.parse_known_args(normalise_words(words, known))
    if left:
        raise _unexpected(left, " ".join(["laurel", *words[:1]]), known, args)
    return args.run(args) or 0


def help_text() -> str:
    """What `laurel --help` prints: every verb with its line. Imports nothing more."""
    verbs = "\n".join(f"  {verb:10} {line}" for verb, (_, line) in VERBS.items())
    return (
        "usage: laurel VERB ...\n\nPost-train language models from rewards:\n  sample x ~ policy"
        " or data  ->  score R(x)  ->  weigh A(x)  ->  maximise A(x) log"
        f" pi(x)\n\nverbs:\n{verbs}\n\nlaurel VERB --help tells the options of a verb; laurel"
        " --version the version."
    )


def normalise_words(words: Sequence[str], known: set[str]) -> list[str]:
    """`--some-name` as `--some_name`, and `--name -1e-3` as `--name=-1e-3`.

    To argparse the second would be two options.
    """
    tidied: list[str] = []
    for position, word in enumerate(words):
        before = tidied[-1] if tidied else ""
        if "--" in words[:position]:
            tidied.append(word)
        elif re.fullmatch(r"-\.?\d[\d.]*(e[-+]?\d+)?", word, re.IGNORECASE) and before in known:
            tidied[-1] = f"{before}={word}"
        elif word.startswith("--"):
            name, equals, value = word.partition("=")
            tidied.append("--" + name[2:].replace("-", "_") + equals + value)
        else:
            tidied.append(word)
    return tidied


def _unexpected(
    left: list[str], where: str, known: set[str], args: argparse.Namespace
) -> UsageError:
    """The error for words that no option or argument took.

    An unknown option is named first, with the nearest right one. A verb whose options depend on
    what is done with it brings an `advise` of its own.
    """
    options = [word for word in left if word.startswith("-") and word != "--"]
    if not options:
        several = (
            left[0].removesuffix(".gz").endswith((".jsonl", ".json", ".csv", ".tsv", ".parquet"))
        )
        fix = (
            "Several files stand between commas (a.jsonl,b.jsonl), and a pattern in quotes."
            if several
            else ""
        )
        return UsageError(
            f"unexpected argument `{left[0]}`.",
            where=where,
            fix=fix or f"`{where} --help` tells what it takes.",
        )
    name = options[0].split("=")[0]
    near = misspelt(name.lstrip("-"), [option.lstrip("-") for option in known])
    hint = (
        args.advise(name.lstrip("-"), args)
        if "advise" in args
        else f"Did you mean `--{near}`?"
        if near
        else ""
    )
    return UsageError(
        f"unknown option `{name}`.",
        where=where,
        fix=hint or f"`{where} --help` tells what there is.",
    )


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every long option of a parser and of its verbs, which stop accepting abbreviations."""
    parser.allow_abbrev = False
    for action in parser._actions:
        yield from (option for option in action.option_strings if option.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            choices: dict[str, Any] = action.choices
            for below in choices.values():
                yield from _options(below)


def _print_error(error: LaurelError) -> None:
    """Print the message on standard error, red on a terminal unless somebody asked for the end."""
    if error.wanted:
        print(error, file=sys.stderr)
        return
    red, plain = (
        ("\033[31m", "\033[0m")
        if sys.stderr.isatty() and "NO_COLOR" not in os.environ
        else ("", "")
    )
    print(f"{red}error: {error}{plain}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
