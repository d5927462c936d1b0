"""`laurel train ALGORITHM`: train one row of the table.

Options are checked before torch is imported.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from laurel.core.algorithms import ABOUT
from laurel.core.config import ALGORITHM_NAMES, TrainConfig
from laurel.core.errors import UsageError, nearest
from laurel.core.options import suggestion
from laurel.core.trl import Request

PORT = "FILE"
FROM_TRL = (
    "a configuration of TRL's (YAML of `trl ALGORITHM --config`, or a saved JSON), "
    "translated and shown; options on the command line win over it"
)


def add_parser(subparsers: Any) -> None:
    """Register `train`; its options are those of TrainConfig.

    `--help` is ours: what applies depends on the algorithm.
    """
    from laurel.cli.options import add_options, add_trl_names

    parser = subparsers.add_parser(
        "train", help="train a model with one algorithm of the table", add_help=False
    )
    parser.add_argument(
        "algorithm", metavar="ALGORITHM", nargs="?", help=", ".join(ALGORITHM_NAMES)
    )
    parser.add_argument(
        "-h",
        "--help",
        action="store_true",
        help="show the options of ALGORITHM, with their defaults, and leave",
    )
    parser.add_argument("--from_trl", metavar=PORT, help=FROM_TRL)
    add_options(parser, TrainConfig)
    add_trl_names(parser, TrainConfig)
    parser.set_defaults(run=run, advise=advise_on_unknown_option)


def run(args: argparse.Namespace) -> int:
    """Train to the end; the exit code.

    Wrong options and algorithms are UsageErrors before torch is imported.
    """
    from laurel.cli.options import as_yaml, read_options

    if args.help:
        print(help_text(args.algorithm))
        return 0

    def resolved(config: TrainConfig) -> TrainConfig:
        from laurel.train.options import resolve

        return resolve(check_algorithm(args.algorithm), config)

    if args.from_trl is not None:
        from laurel.cli.from_trl import port_config

        config = port_config(args, algorithm_with_defaults(check_algorithm(args.algorithm)))
        if args.print_config:
            print(as_yaml(resolved(config)), end="")
            return 0
    else:
        config = read_options(
            args, TrainConfig, resolve=resolved, ask=algorithm_with_defaults(args.algorithm)
        )
    algorithm = check_algorithm(args.algorithm)
    from laurel.train.loop import train

    train(algorithm, config)
    return 0


def algorithm_with_defaults(algorithm: str | None) -> Request:
    """The algorithm that is named, with the defaults of its options.

    They are looked up only where they are needed.
    """

    def own() -> Mapping[str, Any]:
        from laurel.train.options import applicable_options

        return applicable_options(check_algorithm(algorithm))

    return Request(algorithm or "", own=own)


def advise_on_unknown_option(name: str, args: argparse.Namespace) -> str:
    """What to write instead of an option that `laurel train` has not."""
    return suggestion(name, TrainConfig, algorithm_with_defaults(args.algorithm)).replace(
        "Did you mean `", "Did you mean `--"
    )


def check_algorithm(name: str | None) -> str:
    """The name, if it is a row of the table."""
    if name is None:
        raise UsageError(
            "name an algorithm.", where="laurel train", fix=f"Known: {', '.join(ALGORITHM_NAMES)}."
        )
    if name not in ALGORITHM_NAMES:
        raise UsageError(
            f"unknown algorithm `{name}`.", where="laurel train", fix=nearest(name, ALGORITHM_NAMES)
        )
    return name


def help_text(algorithm: str | None) -> str:
    """Without an algorithm: the table, and every option.

    With one: what it is, the options that apply and their defaults in this row.
    """
    from laurel.cli.options import add_options
    from laurel.train.options import applicable_options

    def parser(words: str, about: str) -> argparse.ArgumentParser:
        form = argparse.ArgumentParser(
            prog=f"laurel train {words}",
            description=about,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
                prog, max_help_position=36, width=120
            ),
            add_help=False,
        )
        form.add_argument("--from_trl", metavar=PORT, help=FROM_TRL)
        return form

    if algorithm is None:
        table = "\n".join(f"  {name:20} {about}" for name, about in ABOUT.items())
        about = (
            f"Train a model with one algorithm:\n\n{table}\n\nWhich options apply, and their"
            " defaults: laurel train ALGORITHM --help"
        )
        form = parser("ALGORITHM", about)
        add_options(form, TrainConfig)
        return form.format_help()
    own = applicable_options(check_algorithm(algorithm))
    form = parser(algorithm, f"{algorithm}: {ABOUT[algorithm]}")
    add_options(form, TrainConfig, only=set(own), defaults=own)
    return form.format_help()
