"""The shell: ``python -m toydb FILE ["SQL"]``.

With a statement it prints the result and ends; exit code 0, or 1 after an error, 2 if
the command line is wrong, 130 after Ctrl-C. Without one it is a prompt, or, where standard input is
no terminal, it executes the input. Errors are one line each.
"""

import argparse
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import apsw
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

import bufferpool as bp
from toydb import sql
from toydb.errors import ToyDBError
from toydb.sql import importer, parsing
from toydb.sql.session import Pages
from toydb.sql.shell_output import FORMATS, Result, write

EXPECTED = (apsw.Error, ToyDBError, bp.BufferPoolError, OSError, ValueError)  # printed in one line; others are bugs
PROGRESS_STEPS = 20_000  # virtual-machine instructions of SQLite between two checks for Ctrl-C
_INDEX = re.compile(r"VIRTUAL TABLE INDEX \d:")


class CommandError(ValueError):
    """A dot command that is not understood."""


class Command(NamedTuple):
    run: Callable[["Shell", list[str]], None]
    arguments: str
    what: str


class Shell:
    """The shell of one connection: executes statements and commands, and prints results."""

    def __init__(self, connection: sql.Connection, *, form: str, explain: bool, console: Console) -> None:
        self.connection = connection
        self.form = form
        self.explain = explain
        self.console = console
        self.finished = False
        self._interrupted = False
        # Python handles signals only between its own instructions; this callback is such a place.
        connection.set_progress_handler(lambda: False, PROGRESS_STEPS)
        connection.session.interrupted = lambda: self._interrupted

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C interrupts SQLite, which then ends the statement: apsw.InterruptError.

        A KeyboardInterrupt would be raised anywhere in a virtual table's callbacks,
        and some of them cannot pass an exception on.
        """
        self._interrupted = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(*_: object) -> None:
            self._interrupted = True
            self.connection.interrupt()

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _check_interrupted(self) -> None:
        """Raises after a Ctrl-C between two statements, when SQLite has nothing to interrupt."""
        if self._interrupted:
            raise apsw.InterruptError("interrupted")

    def execute(self, text: str) -> None:
        """Executes statements, or one dot command. Raises what they raise; apsw.InterruptError after Ctrl-C."""
        with self._interruptible():
            self._execute(text)

    def _execute(self, text: str) -> None:
        text = PLAIN.get(text.strip().rstrip(";").lower(), text)
        if text.lstrip().startswith("."):
            self._command(text.strip())
            return
        for statement in parsing.script(text):
            self._check_interrupted()
            self._statement(statement)

    def _statement(self, statement: parsing.Statement) -> None:
        plan = self._plan(statement) if self.explain else []
        before = self.connection.pages()
        cursor = self.connection.cursor()
        names: list[str] = []

        def describe(running: apsw.Cursor, *_: object) -> bool:
            names[:] = [column[0] for column in running.get_description()]
            return True

        cursor.exec_trace = describe
        rows = cursor.execute(statement.sql).fetchall()
        if names:
            write(Result(names, rows), self.form)
        if self.explain:
            self._show_costs(plan, self.connection.pages().since(before))

    def _plan(self, statement: parsing.Statement) -> list[str]:
        if statement.kind not in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH", "VALUES"):
            return []
        depth = {0: -1}
        lines = []
        for number, parent, _, what in self.connection.execute(f"EXPLAIN QUERY PLAN {statement.sql}"):
            depth[number] = depth.get(parent, -1) + 1
            lines.append("  " * depth[number] + _INDEX.sub("BY ", str(what)))
        return lines

    def _show_costs(self, plan: list[str], pages: Pages) -> None:
        error = Console(stderr=True, highlight=False, soft_wrap=True)
        for line in plan:
            error.print(line, style="cyan", markup=False)
        error.print(f"{pages.touched:,} pages touched: {pages.hit:,} hit, {pages.missed:,} missed", style="cyan")

    # -- dot commands ----------------------------------------------------------------------

    def _command(self, text: str) -> None:
        name, *arguments = shlex.split(text.rstrip(";"))
        command = COMMANDS.get(name)
        if command is None:
            raise CommandError(f"no command {name}; .help lists them")
        command.run(self, arguments)

    def help(self, _arguments: list[str]) -> None:
        width = max(len(f"{name} {command.arguments}") for name, command in COMMANDS.items())
        for name, command in COMMANDS.items():
            self.console.print(
                f"{name} {command.arguments}".ljust(width + 2) + command.what, markup=False, highlight=False
            )

    def quit(self, _arguments: list[str]) -> None:
        self.finished = True

    def tables(self, _arguments: list[str]) -> None:
        self.connection.catalog.refresh()
        rows = self.connection.execute(
            "SELECT name, type FROM sqlite_schema WHERE type IN ('table', 'view') AND name <> 'toydb_schema' ORDER BY name"
        ).fetchall()
        write(Result(["name", "type"], rows), self.form)

    def schema(self, arguments: list[str]) -> None:
        self.connection.catalog.refresh()
        wanted = [name.lower() for name in arguments]
        found = 0
        for table in self.connection.tables():
            if table.name.lower() == "toydb_schema" or (wanted and table.name.lower() not in wanted):
                continue
            found += 1
            for text in (table.sql, *table.index_sqls):
                self.console.print(f"{text};", markup=False, highlight=False, soft_wrap=True)
        views = "SELECT sql, lower(name) FROM sqlite_schema WHERE type IN ('view', 'trigger')"
        for text, name in self.connection.execute(views):
            if not wanted or name in wanted:
                found += 1
                self.console.print(f"{text};", markup=False, highlight=False, soft_wrap=True)
        if wanted and not found:
            raise CommandError(f"no such table: {' '.join(arguments)}")

    def read_csv(self, arguments: list[str]) -> None:
        if len(arguments) != 2:
            raise CommandError(".import FILE.csv TABLE")
        path, table = arguments
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task(f"{Path(path).name} into {table}", total=None)

            def progress(read: int, size: int) -> None:
                self._check_interrupted()
                bar.update(task, completed=read, total=size)

            done = importer.import_csv(self.connection, path, table, progress=progress)
        made = " (new table)" if done.created else ""
        self.console.print(f"{done.rows:,} rows into {table}{made}", markup=False, highlight=False)

    def switch_explain(self, arguments: list[str]) -> None:
        if arguments not in (["on"], ["off"]):
            raise CommandError(".explain on, or .explain off")
        self.explain = arguments == ["on"]

    def set_mode(self, arguments: list[str]) -> None:
        if len(arguments) != 1 or arguments[0] not in FORMATS:
            raise CommandError(f".mode {'|'.join(FORMATS)}")
        self.form = arguments[0]

    def checkpoint(self, _arguments: list[str]) -> None:
        lsn = self.connection.database.checkpoint()
        self.console.print(f"recovery would start at LSN {lsn}", highlight=False)

    def check(self, _arguments: list[str]) -> None:
        found = self.connection.check()
        for finding in found:
            self.console.print(finding, markup=False, highlight=False)
        self.console.print("the database is sound" if not found else f"{len(found)} findings", highlight=False)
        if found:
            raise CommandError("the database is damaged")


COMMANDS = {
    ".tables": Command(Shell.tables, "", "tables and views"),
    ".schema": Command(Shell.schema, "[TABLE …]", "the statements that made them"),
    ".import": Command(Shell.read_csv, "FILE.csv TABLE", "insert a file's rows; makes the table if there is none"),
    ".explain": Command(Shell.switch_explain, "on|off", "show each statement's plan, and the pages that it used"),
    ".mode": Command(Shell.set_mode, "|".join(FORMATS), "how results are written"),
    ".checkpoint": Command(Shell.checkpoint, "", "write dirty pages, so that recovery is short"),
    ".check": Command(Shell.check, "", "look for damage, in pages, trees and indexes"),
    ".help": Command(Shell.help, "", "this list"),
    ".quit": Command(Shell.quit, "", "leave; so does Ctrl-D"),
}
PLAIN = {"help": ".help", "exit": ".quit", "quit": ".quit"}


# -- running ----------------------------------------------------------------------------------


def describe(error: BaseException) -> str:
    """An error as one line."""
    told = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    text = " ".join(told.split()) or type(error).__name__
    return f"error: {text}"


def complete(text: str) -> bool:
    """Whether a text can be executed as it is: a command, or whole statements."""
    stripped = text.strip()
    return not stripped or stripped.startswith(".") or stripped.lower() in PLAIN or bool(apsw.complete(text))


def run_text(shell: Shell, text: str) -> int:
    """Execute and end: the exit code."""
    try:
        shell.execute(text)
    except (KeyboardInterrupt, apsw.InterruptError):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise  # the reader of the output has ended: not an error of the statement
    except EXPECTED as error:
        print(describe(error), file=sys.stderr)
        return 1
    return 0


def run_lines(shell: Shell, lines: Iterator[str]) -> int:
    """Execute statements from a file; the first error ends it."""
    pending = ""
    for line in lines:
        if not pending and not line.strip():
            continue
        pending += line
        if complete(pending):
            code = run_text(shell, pending)
            pending = ""
            if code or shell.finished:
                return code
    return run_text(shell, pending) if pending.strip() else 0


def run_prompt(shell: Shell) -> int:
    """The interactive prompt."""
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession(history=_history())
    shell.console.print("toydb: statements end with a semicolon; .help lists commands", highlight=False)
    pending = ""
    while not shell.finished:
        try:
            inside = "" if shell.connection.get_autocommit() else "*"  # of a transaction
            pending += session.prompt("   ...> " if pending else f"toydb{inside}> ") + "\n"
        except KeyboardInterrupt:
            pending = ""
            continue
        except EOFError:
            break
        if complete(pending):
            run_text(shell, pending)
            pending = ""
    return 0


def _history() -> Any:
    """The history of the prompt: in a file, if one can be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local" / "state")) / "toydb_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


@contextmanager
def opened(options: argparse.Namespace) -> Iterator[Shell]:
    chosen = {} if options.pool is None else {"pool_name": options.pool}
    connection = sql.connect(options.file, capacity=options.capacity, create=not options.existing, **chosen)
    form = "json" if options.json else "csv" if options.csv else "table"
    try:
        yield Shell(connection, form=form, explain=options.explain, console=Console(soft_wrap=True))
    finally:
        if not connection.get_autocommit():
            print("the transaction was not committed: rolled back", file=sys.stderr)
        connection.close()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m toydb", description="A database in a file, for SQL.")
    made.add_argument("file", help="the database; created if there is none")
    made.add_argument("statement", nargs="?", help="SQL or a dot command; without it there is a prompt")
    made.add_argument("--existing", action="store_true", help="fail if there is no such database")
    made.add_argument("--explain", action="store_true", help="show plans, and pages touched, hit or missed")
    form = made.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="write results as one JSON array of objects each")
    form.add_argument("--csv", action="store_true", help="write results as CSV with a header")
    made.add_argument("--capacity", default="64MiB", help="memory for pages, if the pool is created (default: 64MiB)")
    made.add_argument("--pool", metavar="NAME", help="the pool's name (default: derived from the path)")
    return made


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    try:
        with opened(options) as shell:
            if options.statement is not None:
                code = run_text(shell, options.statement)
            elif sys.stdin.isatty():
                code = run_prompt(shell)
            else:
                code = run_lines(shell, iter(sys.stdin))
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except EXPECTED as error:
        print(describe(error), file=sys.stderr)
        return 1
