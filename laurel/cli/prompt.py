"""`laurel prompt`: choose a prompt for each new query, learned from logs of prompted queries.

And what that choice is worth.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laurel.core.errors import UsageError

if TYPE_CHECKING:
    from laurel_prompts.logs import Log
    from laurel_prompts.predictor import Choice


def add_parser(subparsers: Any) -> None:
    """Register `prompt` with its verbs; `args.run` is what the command line calls."""
    parser = subparsers.add_parser(
        "prompt", help="which prompt for which query, learned from logs alone"
    )
    parser.set_defaults(run=run)
    verbs = parser.add_subparsers(
        dest="prompt_verb", required=True, metavar="fit|choose|candidates|report"
    )
    source = _source()
    _add_learning(verbs, source)
    _add_choose(verbs)
    _add_candidates(verbs, source)


def _source() -> argparse.ArgumentParser:
    """The options that say which log."""
    source = argparse.ArgumentParser(add_help=False)
    source.add_argument(
        "log",
        help=(
            "rows query, prompt, reward (.jsonl, .json, .csv, .parquet); a clone of Prompt-OIRL; or"
            " synthetic"
        ),
    )
    source.add_argument(
        "--dataset", default="", help="of a clone of Prompt-OIRL: gsm8k (default), mawps or svamp"
    )
    source.add_argument(
        "--prompts",
        metavar="FILE",
        help="the prompts that exist, rows name, prompt; the log may then name them",
    )
    source.add_argument(
        "--log_model", default="", metavar="NAME", help="take the rows of this language model only"
    )
    source.add_argument(
        "--features",
        default="words",
        metavar="words|FILE.npz|MODEL",
        help=(
            "words (default; no weights), vectors of your own, or a model of sentence-transformers"
            " by folder or name"
        ),
    )
    source.add_argument(
        "--seed", type=int, default=0, help="of folds, splits and directions (default 0)"
    )
    return source


def _add_learning(verbs: Any, source: argparse.ArgumentParser) -> None:
    fit = verbs.add_parser(
        "fit",
        parents=[source],
        help="learn the reward r(query, prompt) and when to leave the default prompt",
    )
    fit.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="where the predictor is saved",
    )

    report = verbs.add_parser(
        "report",
        parents=[source],
        help="coverage, values with paired intervals, reward models, verdicts",
    )
    report.add_argument(
        "--json", action="store_true", help="print the figures as JSON, and nothing else"
    )
    report.add_argument(
        "--page", metavar="FILE", type=Path, help="write everything as one page: .html"
    )


def _add_choose(verbs: Any) -> None:
    choose = verbs.add_parser("choose", help="a prompt for each query")
    choose.add_argument("predictor", help="a folder of `laurel prompt fit`")
    choose.add_argument(
        "queries",
        nargs="+",
        help="queries, or one file of rows with a column `query` (or `question`)",
    )
    choose.add_argument(
        "--candidates",
        metavar="FILE",
        help="rows name, prompt to choose from (default: the training prompts)",
    )
    choose.add_argument(
        "--unseen", action="store_true", help="let candidates compete that training did not see"
    )
    choose.add_argument(
        "--cost_weight",
        type=float,
        default=0.0,
        metavar="PRICE",
        help="reward that one unit of cost is worth (default 0)",
    )
    choose.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="write the rows there (.jsonl, .csv, ...) instead of a table",
    )


def _add_candidates(verbs: Any, source: argparse.ArgumentParser) -> None:
    more = verbs.add_parser(
        "candidates",
        parents=[source],
        help="more prompts: templates, examples, and a language model's rewrites; ranked",
    )
    more.add_argument(
        "--predictor",
        required=True,
        metavar="FOLDER",
        help="a folder of `laurel prompt fit`, which ranks them",
    )
    more.add_argument(
        "--endpoint",
        metavar="URL",
        help="an OpenAI-like server that writes more, such as http://127.0.0.1:8000/v1",
    )
    more.add_argument("--endpoint_model", default="", metavar="NAME", help="the model to ask there")
    more.add_argument(
        "--count",
        type=int,
        default=4,
        help="rewrites to ask for of each kind, APE's and OPRO's (default 4)",
    )
    more.add_argument("--out", metavar="FILE", type=Path, help="write them as rows name, prompt")


def run(args: argparse.Namespace) -> int:
    """Run the verb that was chosen."""
    return {
        "fit": run_fit,
        "report": run_report,
        "choose": run_choose,
        "candidates": run_candidates,
    }[args.prompt_verb](args)


def run_fit(args: argparse.Namespace) -> int:
    """Learn from all rows that are not held out, and save."""
    from laurel_prompts.fit import fit
    from laurel_prompts.logs import group_by_story

    log, _ = _read(args)
    found = fit(
        group_by_story(log) or log, features=args.features, seed=args.seed, cache=_cache(), say=_say
    )
    predictor, best = found.predictor, found.trials[0]
    gained = (
        "unknown: the log has neither every prompt on every query nor propensities"
        if found.gain is None
        else str(found.gain)
    )
    predictor.save(
        args.output_dir,
        {
            "log": log.name,
            "queries": int((~log.test_S).sum()),
            "cross_validated": {"log_loss": best.log_loss, "auc": best.auc, "value": best.value},
            "gain": gained,
        },
    )
    worth = "" if best.value is None else f", its choice worth {best.value:.3f}"
    print(
        f"model            {best.name}: log loss {best.log_loss:.4f}, AUC {best.auc:.3f}{worth},"
        " out of fold"
    )
    print(f"default prompt   {predictor.names[predictor.default()]}")
    print(f"gain over it     {gained}, out of fold over all {int((~log.test_S).sum()):,} queries")
    if math.isinf(predictor.margin):
        print("No gain was credible: this predictor sends the default prompt always.")
    else:
        print(
            f"it is left where another prompt is predicted better by more than {predictor.margin:g}"
        )
    print(f"saved: {args.output_dir}")
    return 0


def run_report(args: argparse.Namespace) -> int:
    """The tables, as text and as a page."""
    from laurel.cli.tabular import prepare_output_file, to_json_value
    from laurel.report.exhibit_text import print_exhibit
    from laurel_prompts.report import report

    prepare_output_file("--page", args.page, (".html", ".htm"))
    log, published = _read(args)
    exhibit = report(
        log, published, features=args.features, seed=args.seed, cache=_cache(), say=_say
    )
    if args.json:
        print(json.dumps(to_json_value(exhibit.data), ensure_ascii=False, allow_nan=False))
    else:
        from rich.console import Console

        print_exhibit(exhibit, Console(highlight=False))
    if args.page is not None:
        from laurel.report.exhibit_page import write_page

        command = " ".join(
            [
                "laurel prompt report",
                Path(args.log).name,
                *([f"--dataset {args.dataset}"] if args.dataset else []),
            ]
        )
        write_page(exhibit, args.page, command=command, more="; with --json it prints every figure")
        _say(f"written: {args.page}")
    return 0


def run_choose(args: argparse.Namespace) -> int:
    """A table, or a file, of queries and their prompts."""
    from laurel_prompts.logs import read_prompts
    from laurel_prompts.predictor import Predictor

    queries, given = _queries(args.queries)
    candidates = None if args.candidates is None else read_prompts(args.candidates)
    made = Predictor.load(args.predictor).choose(
        queries, candidates, cost_weight=args.cost_weight, unseen=True if args.unseen else None
    )
    rows = [_choice_row(query, one) for query, one in zip(queries, made, strict=True)]
    if args.out is not None:
        replaced = sorted({name for row in given for name in row} & set(rows[0]) - {"query"})
        if replaced:
            _say(
                f"{', '.join(f'`{name}`' for name in replaced)} of the file of queries make way for"
                " the choice's own"
            )
        _write([{**row, **made} for row, made in zip(given, rows, strict=True)], args.out)
        print(f"{len(rows):,} queries: {args.out}")
        return 0
    from rich.console import Console

    from laurel.report.exhibit import Table
    from laurel.report.exhibit_text import text_table

    columns = ("query", "name", "predicted", "default", "why")
    cells = tuple(tuple(row[name] for name in columns) for row in rows)
    console = Console(highlight=False)
    console.print(text_table(Table("", columns, cells), console.width))
    return 0


def _choice_row(query: str, choice: Choice) -> dict[str, Any]:
    return {
        "query": query,
        "name": choice.name,
        "prompt": choice.prompt,
        "predicted": round(choice.predicted, 4),
        "default": round(choice.default_predicted, 4),
        "why": choice.why,
    }


def run_candidates(args: argparse.Namespace) -> int:
    """Templates, examples and rewrites, ranked by predicted mean reward.

    The mean is over the log's training queries.
    """
    from laurel_prompts.candidates import TEMPLATES, few_shot, rank_candidates
    from laurel_prompts.predictor import Predictor

    if bool(args.endpoint) != bool(args.endpoint_model):
        raise UsageError(
            "a server and a model go together.",
            where="--endpoint",
            fix="Give both --endpoint and --endpoint_model.",
        )
    predictor = Predictor.load(args.predictor)
    log, _ = _read(args)
    train = log.rows(~log.test_S)
    found = dict(zip(predictor.names, predictor.prompts, strict=True))
    found |= {
        f"{name} (template)" if name in found else name: text for name, text in TEMPLATES.items()
    }
    if (shots := few_shot(log, seed=args.seed)) is not None:
        found["few-shot"] = shots
    if args.endpoint:
        found |= _rewrites(args, log, train)
    mean_P = predictor.scores(predictor.features(train.queries), found).mean(0)
    order = rank_candidates(
        mean_P, list(found), [text in predictor.prompts for text in found.values()]
    )
    for name, value, seen in order:
        print(
            f"{value:.3f}  {name:<18}"
            f" {'' if seen else '(unseen: a guess)  '}{found[name][:70].replace(chr(10), ' ')}"
        )
    if not predictor.unseen:
        print(
            "This predictor was not credibly right about unseen prompts: try them on some queries"
            " before you trust their places."
        )
    if args.out is not None:
        _write([{"name": name, "prompt": found[name]} for name, _, _ in order], args.out)
        print(f"written: {args.out}")
    return 0


def _rewrites(args: argparse.Namespace, log: Log, train: Log) -> dict[str, str]:
    """What the endpoint's model writes: for examples of the log, and after the best prompts."""
    from laurel_prompts.candidates import ape_request, generate_prompts, opro_request
    from laurel_prompts.model_selection import mean_rewards

    tried = train.columns([p for p in range(len(train.names)) if train.logged_SP[:, p].any()])
    scored = dict(zip(tried.prompts, mean_rewards(tried).tolist(), strict=True))
    requests = {"ape": ape_request(log, seed=args.seed), "opro": opro_request(scored)}
    return generate_prompts(args.endpoint, args.endpoint_model, requests, count=args.count)


def _read(args: argparse.Namespace) -> tuple[Log, dict[str, float]]:
    """The log and, of the authors' logs as we keep them, the published figures."""
    from laurel_prompts.clone import find_clone_root, read_clone
    from laurel_prompts.logs import read_log
    from laurel_prompts.published import is_published, read_published
    from laurel_prompts.synthetic import synthetic_log

    path = Path(args.log).expanduser()
    if is_published(path):
        return read_published(path, args.dataset)
    if (root := find_clone_root(path)) is not None:
        log, features = read_clone(root, args.dataset, cache=_cache(), say=_say)
        if features and args.features == "words":  # of a question's number words say nothing
            args.features = features
        return log, {}
    if args.dataset:
        raise UsageError(
            "only the authors' folder holds several data sets.",
            where="--dataset",
            fix="Leave it out.",
        )
    if args.log == "synthetic" and not path.exists():
        return synthetic_log(seed=args.seed)[0], {}
    return read_log(path, prompts=args.prompts, model=args.log_model, say=_say), {}


def _queries(words: list[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """The queries, and the rows of their file, whose other columns are kept (of queries as words:
    no columns).
    """
    from laurel.data.read import SUFFIXES, read_records
    from laurel_prompts.columns import query_column

    files = [
        word
        for word in words
        if word.removesuffix(".gz").endswith(SUFFIXES) and (" " not in word or Path(word).exists())
    ]
    if not files:
        if not all(word.strip() for word in words):
            raise UsageError("a query is blank.", where="queries", fix="Leave it out.")
        return words, [{} for _ in words]
    if len(words) > 1:
        raise UsageError(
            "one file of queries, or queries.", where=files[0], fix="Call it once for each file."
        )
    records = read_records(Path(words[0]).expanduser())
    column = query_column(records, words[0])
    wrong = [
        where
        for where, row in records
        if not isinstance(row.get(column), str) or not row[column].strip()
    ]
    if wrong:
        raise UsageError(
            f"no text in the column `{column}`.", where=wrong[0], fix="Each row has its query."
        )
    return [row[column] for _, row in records], [row for _, row in records]


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    from laurel.data.source import Row, row_id
    from laurel.data.write import write_rows

    write_rows([Row(row, f"row {n}", row_id(row, n)) for n, row in enumerate(rows)], path)


def _cache() -> Path:
    """Where encodings that took long are kept."""
    from laurel.train.starter import cache_folder

    return cache_folder() / "prompt"


def _say(line: str) -> None:
    print(line, file=sys.stderr)
