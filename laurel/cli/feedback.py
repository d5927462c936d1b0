"""`laurel feedback`: people rate responses in their browsers.

Their votes come in and go out as files.
"""

from __future__ import annotations

import argparse
import getpass
import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

from laurel.core.errors import LaurelError, UsageError
from laurel.data.confidence import PAIR_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from laurel_feedback.store.batch_settings import BatchSettings
    from laurel_feedback.store.database import Store

NEEDED = (
    "sqlalchemy",
    "alembic",
    "fastapi",
    "uvicorn",
    "markdown_it",
    "nh3",
    "argon2",
    "python_multipart",
)
DATABASE = "feedback.db"
SHAPES = (
    "auto",
    "preferences",
    "responses",
    "samples",
    "answers",
    "llmfao",
    "llmbar",
    "argilla",
    "distilabel",
)
PASSWORD = "LAUREL_PASSWORD"


def add_parser(subparsers: Any) -> None:
    """Register `feedback` with its verbs; `args.run` is what the command line calls."""
    parser = subparsers.add_parser(
        "feedback", help="collect people's preferences: pages to rate on, import, export, report"
    )
    parser.set_defaults(run=run)
    verbs = parser.add_subparsers(dest="feedback_verb", required=True, metavar="VERB")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--database",
        default=DATABASE,
        help=f"a SQLite file, or postgresql://USER@HOST/NAME (default {DATABASE})",
    )
    _add_serve(verbs, where)
    _add_import(verbs, where)
    _add_export(verbs, where)
    _add_report(verbs)
    _add_database(verbs, where)
    _add_accounts(verbs, where)


def _add_report(verbs: Any) -> None:
    report = verbs.add_parser(
        "report", help="agreement, skill, scores, bias, pay, whose opinions: what the votes say"
    )
    report.add_argument(
        "source",
        nargs="?",
        default=DATABASE,
        help=f"a database, or a folder of LLMFAO or MT-Bench (default {DATABASE})",
    )
    report.add_argument("--out", metavar="FILE", help="write the report as one HTML page, too")
    report.add_argument(
        "--json",
        action="store_true",
        help="print every figure as JSON; `labels`: what an export is worth on held-out votes",
    )


def _add_database(verbs: Any, where: argparse.ArgumentParser) -> None:
    backup = verbs.add_parser(
        "backup",
        parents=[where],
        help="copy the database while it is in use, and count the copy's rows",
    )
    backup.add_argument(
        "out", help="the file to write; pg_restore reads it where the database is PostgreSQL"
    )

    audit = verbs.add_parser(
        "verify-audit",
        parents=[where],
        help="check that nobody changed the audit log; prints its last hash",
    )
    audit.add_argument(
        "--head",
        default="",
        metavar="HASH",
        help="a hash that was printed before: it must still be in the log",
    )

    erase = verbs.add_parser(
        "erase", parents=[where], help="take somebody's votes and everything about them out"
    )
    erase.add_argument("pseudonym", help="as the pages and exports show it")


def _add_accounts(verbs: Any, where: argparse.ArgumentParser) -> None:
    invite = verbs.add_parser(
        "invite", parents=[where], help="make invitations; each link works once and for two weeks"
    )
    invite.add_argument("--count", type=int, default=1, help="how many (default 1)")
    invite.add_argument(
        "--public_url",
        default="http://127.0.0.1:8000",
        help="the server's address (default http://127.0.0.1:8000)",
    )

    admin = verbs.add_parser(
        "admin",
        parents=[where],
        help=f"make a coordinator, or change a password (asked for, or {PASSWORD})",
    )
    admin.add_argument("name")
    admin.add_argument(
        "--link",
        action="store_true",
        help="print a link that lets them in once, without a password, instead",
    )
    admin.add_argument(
        "--public_url",
        default="http://127.0.0.1:8000",
        help="the server's address (default http://127.0.0.1:8000)",
    )

    key = verbs.add_parser(
        "key", parents=[where], help="make a key for an application that asks its users"
    )
    key.add_argument("name", help="the application; further keys of one name have the same users")
    key.add_argument("--revoke", action="store_true", help="end its keys instead")


def _add_serve(verbs: Any, where: argparse.ArgumentParser) -> None:
    serve = verbs.add_parser("serve", parents=[where], help="serve the pages")
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on (default 127.0.0.1: this machine only)",
    )
    serve.add_argument("--port", type=int, default=8000, help="(default 8000)")
    serve.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    serve.add_argument(
        "--public_url",
        metavar="URL",
        help="the address in browsers, https://... behind a proxy (default: host and port)",
    )
    serve.add_argument(
        "--trusted_proxy",
        nargs="+",
        default=[],
        metavar="ADDRESS",
        help="proxies on other hosts whose X-Forwarded-For is believed",
    )
    serve.add_argument(
        "--demo",
        action="store_true",
        help="fill a new database with a small example, and print how to come in",
    )


def _add_import(verbs: Any, where: argparse.ArgumentParser) -> None:
    load = verbs.add_parser(
        "import",
        parents=[where],
        help="bring a file into a batch: preferences, samples of a run, LLMFAO, LLMBar, ...",
    )
    load.add_argument("file", help="a file: .jsonl, .json, .csv, also with .gz; .parquet")
    load.add_argument(
        "--batch",
        required=True,
        metavar="NAME",
        help="the batch; a draft is made if there is none of this name",
    )
    load.add_argument(
        "--shape",
        choices=SHAPES,
        default="auto",
        help="what the rows are (default auto: by their columns)",
    )
    load.add_argument(
        "--kind",
        default="",
        help=(
            "of rows that do not say theirs: normal, gold, attention, check, training (default"
            " normal)"
        ),
    )
    load.add_argument(
        "--harm",
        nargs="+",
        default=[],
        metavar="TAG",
        help="kinds of harm, of rows that do not say theirs",
    )
    load.add_argument(
        "--pairs",
        type=int,
        default=0,
        metavar="N",
        help="take N pairs of each prompt with more than two responses",
    )
    load.add_argument(
        "--votes",
        metavar="FILE",
        help="LLMFAO: the table of votes; items then want the same workers again",
    )
    load.add_argument("--limit", type=int, metavar="N", help="the first N items only")
    load.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="settings of a new batch, such as target_votes=3 form=ranking",
    )


def _add_export(verbs: Any, where: argparse.ArgumentParser) -> None:
    export = verbs.add_parser(
        "export",
        parents=[where],
        help="write votes as files for trainers, with where each row comes from",
    )
    export.add_argument(
        "out", help="the file to write: .jsonl, .json, .csv, also with .gz; .parquet"
    )
    export.add_argument("--batch", nargs="+", required=True, metavar="NAME", help="the batches")
    export.add_argument(
        "--kind",
        choices=("preferences", "unpaired", "ranks", "votes"),
        default="preferences",
        help="what (default preferences)",
    )
    export.add_argument(
        "--eval_share",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="this share of the prompts goes to OUT.eval",
    )
    export.add_argument(
        "--columns",
        nargs="*",
        choices=PAIR_COLUMNS,
        default=list(PAIR_COLUMNS),
        help="what preferences say beside who was chosen (default all three)",
    )
    export.add_argument(
        "--ties",
        choices=("drop", "half"),
        default="drop",
        help="drop them, or write soft_label 0.5 (default drop)",
    )
    export.add_argument(
        "--least_votes",
        type=int,
        default=1,
        metavar="N",
        help="leave items with fewer votes out (default 1)",
    )
    export.add_argument(
        "--revisions", action="store_true", help="of votes: those that were changed later, too"
    )


def run(args: argparse.Namespace) -> int:
    """Run the verb that was chosen; what the database itself refuses is told without its SQL."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UsageError(
            f"`{missing[0]}` is not installed.",
            where="laurel feedback",
            fix="pip install 'laurel-rl[feedback]'",
        )
    from sqlalchemy.exc import DBAPIError

    try:
        return _run(args)
    except DBAPIError as error:
        message = (str(error.orig).splitlines() or [type(error.orig).__name__])[0]
        fix = (
            "Is the server running, is there room on the disk, may you write there? Then run it"
            " again: what was not finished was undone."
        )
        where = args.source if args.feedback_verb == "report" else args.database
        raise LaurelError(
            f"the database refused: {message}.", where=_without_password(where), fix=fix
        ) from error


def _run(args: argparse.Namespace) -> int:
    if args.feedback_verb == "report":
        return run_report(args)
    from laurel_feedback.store.database import Store

    verb = {
        "serve": run_serve,
        "import": run_import,
        "export": run_export,
        "backup": run_backup,
        "verify-audit": run_audit,
        "erase": run_erase,
        "invite": run_invite,
        "admin": run_admin,
        "key": run_key,
    }[args.feedback_verb]
    if args.feedback_verb not in ("serve", "import", "admin", "invite", "key"):
        _check_database_exists(args.database)
    store = Store(args.database)
    try:
        return verb(args, store) or 0
    finally:
        store.close()


def run_serve(args: argparse.Namespace, store: Store) -> int:
    """The pages, until Ctrl-C."""
    from laurel_feedback.web.serve import check, serve

    shown = (
        "127.0.0.1"
        if args.host in ("0.0.0.0", "::")
        else f"[{args.host}]"
        if ":" in args.host
        else args.host
    )
    public = (args.public_url or f"http://{shown}:{args.port}").rstrip("/")
    check(store, args.host, args.port, args.workers, public, demo=args.demo)
    if args.demo:
        from laurel_feedback.demo import fill

        demo = fill(store)
        _print_table(
            "A small example. The password is not stored: note it now.",
            [
                ("annotator", f"{public}/invite/{demo.token}"),
                ("coordinator", f"{public}/admin/login"),
                ("name", demo.admin),
                ("password", demo.password),
            ],
        )
    say = f"serving {store.shown} at {public} (Ctrl-C ends it)"
    serve(store, args.host, args.port, args.workers, public, say=say, proxies=args.trusted_proxy)
    return 0


def run_import(args: argparse.Namespace, store: Store) -> None:
    """A file into a batch; what was left out and why, and what nobody will be shown."""
    from laurel_feedback.exchange.load import import_file
    from laurel_feedback.statistics.batches import never_shown

    made = import_file(
        store,
        args.file,
        args.batch,
        settings=_settings(args.set),
        shape=args.shape,
        kind=args.kind,
        harm=args.harm,
        pairs=args.pairs,
        votes=args.votes,
        limit=args.limit,
    )
    for line in made.left_out[:20]:
        print(f"left out: {line}")
    if len(made.left_out) > 20:
        print(f"... and {len(made.left_out) - 20} more")
    idle = never_shown(store, made.batch)
    rows = [
        ("items added", made.items),
        ("left out", len(made.left_out)),
        *([("shown to nobody", idle)] if idle else []),
    ]
    _print_table(f"batch {args.batch.strip()}", rows)


def run_export(args: argparse.Namespace, store: Store) -> None:
    """Votes into a file."""
    from laurel_feedback.exchange.export import export
    from laurel_feedback.statistics.sections import held_out_score_cells

    made = export(
        store,
        args.batch,
        args.kind,
        args.out,
        eval_share=args.eval_share,
        columns=args.columns,
        ties=args.ties,
        least_votes=args.least_votes,
        revisions=args.revisions,
    )
    rows = [
        ("release", made.release),
        *(("file", path) for path in made.files),
        ("rows", made.rows),
    ]
    rows += [("pairs that are ties", made.ties), ("items without (enough) votes", made.unrated)]
    if args.kind != "votes":
        rows += [
            (what, f"{figure}  ({note})" if note else figure)
            for what, figure, note in held_out_score_cells(made.held_out)
        ]
    _print_table(args.kind, rows)


def run_report(args: argparse.Namespace) -> int:
    """What the votes say."""
    from laurel_feedback.statistics.report import report

    print(report(args.source, args.out, as_json=args.json))
    return 0


def run_backup(args: argparse.Namespace, store: Store) -> None:
    """A copy that was opened and counted."""
    from laurel_feedback.store.backup import backup

    counts = backup(store, args.out)
    _print_table(
        f"{args.out}: read back, all rows there",
        [(name, count) for name, count in counts.items() if count],
    )


def run_audit(args: argparse.Namespace, store: Store) -> int:
    """Is the audit log whole? Its last hash, to be noted elsewhere."""
    from sqlalchemy import select

    from laurel_feedback.store.audit import verify
    from laurel_feedback.store.tables import Audit

    with store.read() as session:
        wrong = verify(session, args.head)
        last = session.scalar(select(Audit).order_by(Audit.id.desc()).limit(1))
    for line in wrong:
        print(f"wrong: {line}", file=sys.stderr)
    if not wrong:
        print(
            f"{last.id if last else 0} rows, none changed or missing; the last hash, to note"
            f" elsewhere:\n{last.hash if last else ''}"
        )
    return 1 if wrong else 0


def run_erase(args: argparse.Namespace, store: Store) -> None:
    """Somebody goes, with their votes."""
    from sqlalchemy import select

    from laurel_feedback.store.accounts import withdraw
    from laurel_feedback.store.tables import Annotator

    with store.read() as session:
        found = session.scalar(select(Annotator).where(Annotator.pseudonym == args.pseudonym))
    if found is None:
        raise UsageError(
            f"there is no annotator `{args.pseudonym}`.",
            where="pseudonym",
            fix="The coordinator's pages list them.",
        )
    outcome = "was erased already" if found.state == "erased" else "is erased"
    gone = withdraw(store, found.id, actor="operator", erase=True)
    _print_table(
        f"{args.pseudonym} {outcome}",
        [(f"{name}s removed", count) for name, count in gone["removed"].items() if count],
    )
    for path in gone["released_in"]:
        print(f"released already, with their votes: {path} (export it anew)")


def run_invite(args: argparse.Namespace, store: Store) -> None:
    """Links, each for one annotator."""
    from laurel_feedback.store.accounts import invite_annotator
    from laurel_feedback.web.app import address_of

    if args.count < 1:
        raise UsageError("make at least one.", where="--count", fix="Give 1 or more.")
    public = address_of(args.public_url)
    for _ in range(args.count):
        pseudonym, token = invite_annotator(store)
        print(f"{pseudonym}  {public}/invite/{token}")


def run_admin(args: argparse.Namespace, store: Store) -> None:
    """A coordinator with a password, which has no default."""
    from laurel_feedback.store.accounts import add_admin

    if args.link:
        from laurel_feedback.store.admin_login import LINK_MINUTES, make_login_link
        from laurel_feedback.web.app import address_of

        print(f"{address_of(args.public_url)}/enter/{make_login_link(store, args.name.strip())}")
        print(f"it works once, within {LINK_MINUTES:.0f} minutes", file=sys.stderr)
        return
    if not 0 < len(args.name.strip()) <= 200:
        raise UsageError(
            "a coordinator has a name of 1 to 200 characters.", where="name", fix="Give one."
        )
    password = os.environ.get(PASSWORD, "")
    if not password:
        if not sys.stdin.isatty():
            raise UsageError(
                "no password.",
                where="laurel feedback admin",
                fix=f"Run it in a terminal, or set {PASSWORD}.",
            )
        password = getpass.getpass("password: ")
        if getpass.getpass("once more: ") != password:
            raise UsageError("they differ.", where="password", fix="Try again.")
    add_admin(store, args.name.strip(), password)
    print(f"coordinator {args.name.strip()}: the password is set")


def run_key(args: argparse.Namespace, store: Store) -> None:
    """A key for an application, shown once."""
    from laurel_feedback.exchange.product import create_api_key, revoke_api_keys

    if args.revoke:
        ended = revoke_api_keys(store, args.name)
        if not ended:
            raise LaurelError(f"application `{args.name}` has no key that works.", where="key")
        print(f"{ended} key{'s' if ended > 1 else ''} ended")
        return
    print(create_api_key(store, args.name))
    print("note it now: only its digest is stored", file=sys.stderr)


def _settings(given: Sequence[str]) -> BatchSettings | None:
    """name=value, name=value as settings; None where nothing is given."""
    from laurel.core.config import build_config
    from laurel_feedback.store.batch_settings import BatchSettings

    values = dict[str, Any]()
    for word in given:
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"`{word}` is not name=value.", where="--set")
        values[name] = value
    return build_config(values, BatchSettings, where="--set") if values else None


def _without_password(database: str) -> str:
    """An address without its password."""
    if "://" not in database:
        return database
    from sqlalchemy.engine import make_url

    return make_url(database).render_as_string()


def _check_database_exists(database: str) -> None:
    """A typing mistake must not make an empty database."""
    path = database.removeprefix("sqlite:///")
    if "://" not in path and not os.path.exists(os.path.expanduser(path)):
        raise UsageError(
            "there is no such database.", where=database, fix="Name it with --database."
        )


def _print_table(title: str, rows: Iterable[tuple[str, Any]]) -> None:
    """Print two columns, no wider than the terminal unless a value is.

    A link or a path is never cut, so that it can be copied.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [(name, str(value)) for name, value in rows]
    table = Table(title=Text(title), title_justify="left", show_header=False, box=box.SIMPLE)
    for _ in range(2):
        table.add_column(no_wrap=True)
    for name, value in rows:
        table.add_row(name, Text(value))
    console = Console(highlight=False)
    widest = (
        max(
            len(title),
            10 + max(len(name) for name, _ in rows) + max(len(value) for _, value in rows),
        )
        if rows
        else len(title)
    )
    Console(highlight=False, width=max(console.width, widest)).print(table)
