"""`laurel choose`: the best of several answers, the one that most agree on, and what it costs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laurel.cli.bar import progress
from laurel.cli.options import add_options, read_options
from laurel.core.errors import UsageError
from laurel.search.options import ChooseConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laurel.data.source import Row
    from laurel.reward.mixture import Mixture
    from laurel.search.draw import AnswerSource
    from laurel.search.pool import Question
    from laurel.search.run import Chosen

VERBS = {
    "best": "the answer with the highest score (best-of-n), or the first that reaches a bar",
    "vote": "the answer that most agree on (self-consistency), each vote weighed as you say",
    "curves": "accuracy against tokens for every way of choosing from one pool of answers",
}
FOR_CURVES = ("adaptive", "bar", "give_up", "worth", "weigh")


def add_parser(subparsers: Any) -> None:
    """Register `choose` with its verbs; `args.run` is what the command line calls."""
    from laurel.cli.choose_search import add_search

    parser = subparsers.add_parser(
        "choose", help="best-of-n, votes, rejection sampling, search: keep a sample, train nothing"
    )
    verbs = parser.add_subparsers(dest="choose_verb", required=True, metavar="VERB")
    for verb, words in VERBS.items():
        one = verbs.add_parser(verb, help=words)
        add_options(one, ChooseConfig)
        if verb != "curves":
            one.add_argument("--sft", metavar="FILE", help="write the choices as rows for SFT")
            one.add_argument(
                "--preferences", metavar="FILE", help="write choices against others as pairs"
            )
        one.set_defaults(run=run)
    add_search(verbs)


def run(args: argparse.Namespace) -> int:
    """Choose, or draw curves; 0 when it ends."""
    from laurel.search.run import check_config

    config = read_options(args, ChooseConfig)
    verb = args.choose_verb
    if verb == "curves":
        for name in FOR_CURVES:
            if getattr(config, name) != ChooseConfig.model_fields[name].default:
                raise UsageError("it says nothing to curves.", where=name, fix="Leave it out.")
        return run_curves(config)
    check_config(config, verb)
    chosen = run_choice(config, verb)
    finish(args, config, chosen)
    return 0


def run_choice(config: ChooseConfig, verb: str) -> Chosen:
    """The choices of a verb, from answers that are there, or that are drawn for it."""
    from laurel.search.pool import scored
    from laurel.search.run import (
        Chosen,
        check_scorers,
        choose,
        graded,
        load_grader,
        load_scorers,
    )

    questions, rows = stored_or_rows(config)
    columns = [one.row for one in questions] if questions else rows
    scorers, grader = load_scorers(config, columns), load_grader(config, columns)
    check_scorers(config, scorers)
    if not questions:
        questions = draw_answers(config, verb, rows, scorers)
    with progress("questions chosen", len(questions)) as watch:
        if scorers is not None:
            questions = scored(questions, scorers, watch)
        choices = [choose(one, config, verb) for one in questions]
    return Chosen(verb, questions, choices, graded(questions, choices, grader))


def stored_or_rows(config: ChooseConfig) -> tuple[list[Question], list[Row]]:
    """The questions of a pool with their answers; or none, and the rows to draw answers for."""
    from laurel.eval.load import load_prompts
    from laurel.search.pool import Question, read_pool

    if config.pool is None:
        return [], load_prompts(config, "choosing")
    most = config.num_generations if "num_generations" in config.model_fields_set else None
    found = [
        Question(one.id, one.row, one.answers[:most])
        for one in read_pool(config.pool)[: config.limit or None]
    ]
    return found, []


def draw_answers(
    config: ChooseConfig, verb: str, rows: Sequence[Row], scorers: Mixture | None
) -> list[Question]:
    """The rows with answers: so many each, or as many as the adaptive rule wants."""
    from laurel.search.draw import Drawing
    from laurel.search.run import AdaptiveRule

    stops = config.adaptive or (verb == "best" and config.bar is not None)
    source, identity = answer_source(config)
    drawing = Drawing(Path(config.output_dir), rows, config, identity)
    if drawing.known:
        print(f"{drawing.known} answers are there and are not drawn again", flush=True)
    try:
        with progress("questions answered", len(rows)) as watch:
            if stops:
                wants = AdaptiveRule(config, verb, scorers)
                return drawing.draw_while(source, config.num_generations, wants, watch)
            drawing.fill(source, config.num_generations, watch)
    finally:
        if (close := getattr(source, "close", None)) is not None:
            close()
    most = config.num_generations
    return [drawing.first_answers(row, most) for row in rows]


def greedy_answers(config: ChooseConfig, rows: Sequence[Row]) -> list[Question]:
    """The rows with their greedy answer, which is kept in a folder of its own."""
    cold = config.model_copy(
        update={"temperature": 0.0, "output_dir": f"{config.output_dir}/greedy"}
    )
    return draw_answers(cold.model_copy(update={"num_generations": 1}), "vote", rows, None)


def answer_source(config: ChooseConfig) -> tuple[AnswerSource, str]:
    """What draws answers, and what tells its model from any other."""
    from laurel.search.draw import LocalSource, ServerSource

    if config.url is not None:
        return ServerSource(config), f"{config.url} {config.model}"
    from laurel.cli.choose_model import local_sampler

    sampler, identity = local_sampler(config)
    return LocalSource(sampler, config), identity


def run_curves(config: ChooseConfig) -> int:
    """The figure, the table, curves.json."""
    from laurel.cli.choose_report import curves_exhibit, write_curves
    from laurel.search.curves import curves
    from laurel.search.pool import scored
    from laurel.search.run import judged_pool, load_grader, load_scorers

    questions, rows = stored_or_rows(config)
    columns = [one.row for one in questions] if questions else rows
    scorers, grader = load_scorers(config, columns), load_grader(config, columns)
    if grader is None:
        fix = "Name a reward that is 1 for a right answer: --rewards gsm8k, or file.py:function."
        raise UsageError("nothing says which answer is right.", where="rewards", fix=fix)
    greedy = None
    if not questions:
        questions = draw_answers(config, "vote", rows, None)
        greedy = judged_pool(greedy_answers(config, rows), config, grader)
    with progress("questions scored", len(questions)) as watch:
        if scorers is not None:
            questions = scored(questions, scorers, watch)
        judged = judged_pool(questions, config, grader)
    names = list(scorers.names) if scorers is not None else []
    likely = all(answer.likelihood is not None for one in questions for answer in one.answers)
    how: dict[str, Any] = {"ks": config.k, "alpha": config.alpha, "seed": config.seed}
    points = curves(judged, names, weigh_likelihood=likely, greedy=greedy, **how)
    shown = curves_exhibit(points, config.pool or config.dataset, len(questions))
    write_curves(shown, points, config)
    return 0


def finish(args: argparse.Namespace, config: ChooseConfig, chosen: Chosen) -> None:
    """Write the choices and what is made of them; print what came out."""
    from laurel.judge.run import write_rows
    from laurel.search.distil import preference_rows, sft_rows
    from laurel.search.run import scorer_name, write_choices

    facts = write_choices(Path(config.output_dir), chosen)
    print(summary_lines(facts))
    for choice in [one for one in chosen.choices if one.place is None][:5]:
        print(f"no choice for question {choice.question}: {choice.reason}")
    if args.sft:
        rows = sft_rows(chosen.questions, chosen.choices)
        write_rows(Path(args.sft), rows)
        print(f"{len(rows)} demonstrations: {args.sft}")
    if args.preferences:
        by = scorer_name(config, chosen.questions[0]) if chosen.verb == "best" else ""
        rows = preference_rows(
            chosen.questions, chosen.choices, scorer=by, kind=config.kind, seed=config.seed
        )
        write_rows(Path(args.preferences), rows)
        print(f"{len(rows)} preferences: {args.preferences}")
    print(f"written to {config.output_dir}")


def summary_lines(facts: dict[str, Any]) -> str:
    """What came out, in a few lines."""
    answers = facts["answers"]
    lines = [
        f"questions  {facts['questions']}, {facts['unanswered']} without a choice",
        f"answers    {answers['value']:.2f} a question, {facts['tokens']} tokens in all;"
        f" {facts['left_out']} took no part",
    ]
    if "accuracy" in facts:
        found = facts["accuracy"]
        bounds = f"[{found['low']:.3f}, {found['high']:.3f}]"
        lines.append(f"accuracy   {found['value']:.3f} {bounds}")
    return "\n".join(lines)
