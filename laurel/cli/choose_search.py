"""`laurel choose search`: process-reward beam search and diverse verifier tree search."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laurel.cli.bar import progress
from laurel.cli.options import add_options, read_options
from laurel.search.tree_options import NOT_OURS, SearchConfig

if TYPE_CHECKING:
    from laurel.search.run import Chosen

WORDS = "answers grow a step at a time; a process reward model keeps the most promising prefixes"


def add_search(verbs: Any) -> None:
    """Register `search` among the verbs of `choose`."""
    parser = verbs.add_parser("search", help=WORDS)
    shown = SearchConfig.model_fields.keys() - set(NOT_OURS) - {"api", "api_key"}
    add_options(parser, SearchConfig, only=shown - {"concurrency", "timeout"})
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Search; 0 when it ends."""
    from laurel.cli.choose_model import local_sampler
    from laurel.eval.load import load_prompts
    from laurel.search.run import write_choices
    from laurel.search.tree_run import searched, shape_of

    config = read_options(args, SearchConfig)
    shape_of(config)
    rows = load_prompts(config, "choosing")
    generator, identity = local_sampler(config)
    with progress("questions searched", len(rows)) as watch:
        chosen = searched(generator, rows, config, identity, watch)
    print_found(write_choices(Path(config.output_dir), chosen), chosen, config.output_dir)
    return 0


def print_found(facts: dict[str, Any], chosen: Chosen, folder: str) -> None:
    """What came out, in a few lines."""
    print(f"questions  {facts['questions']}, {facts['unanswered']} without a choice")
    print(
        f"answers    {facts['answers']['value']:.2f} a question;"
        f" {facts['steps']} steps, {facts['tokens']} tokens in all"
    )
    if (found := facts.get("accuracy")) is not None:
        print(f"accuracy   {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]")
    for choice in [one for one in chosen.choices if one.place is None][:5]:
        print(f"no choice for question {choice.question}: {choice.reason}")
    print(f"written to {folder}")
