"""Child processes and threads of tests. Their exceptions are raised in the test, and none of them outlives it."""

import atexit
import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, WAIT
from tests.support import deaths


class ChildFailed(AssertionError):
    """A child process died, or raised an exception that cannot be pickled."""


def _child_main(connection: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    with suppress(Exception):
        faulthandler.enable()
    try:
        outcome = (True, function(*args))
    except BaseException as error:  # noqa: BLE001  reported to the parent
        outcome = (False, (error, traceback.format_exc()))
    try:
        connection.send(outcome)
    except Exception:  # noqa: BLE001  does not pickle
        connection.send((False, (None, f"{outcome!r}\n{traceback.format_exc()}")))
    connection.close()
    atexit._run_exitfuncs()  # a child of the server ends without running them


class Child:
    """A function that runs in a process of its own."""

    def __init__(self, context: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._receive, send = context.Pipe(duplex=False)
        self.process = context.Process(target=_child_main, args=(send, function, args), daemon=False)
        self.process.start()
        send.close()

    @property
    def pid(self) -> int:
        pid = self.process.pid
        assert pid is not None
        return pid

    def result(self, timeout: float = WAIT) -> Any:
        """Returns the function's result, or raises its exception."""
        if not self._receive.poll(timeout):
            self.kill()
            raise ChildFailed(f"the child process is not done after {timeout} s")
        try:
            ok, value = self._receive.recv()
        except EOFError:
            self.process.join(timeout)
            raise ChildFailed(f"the child process ended with exit code {self.process.exitcode}") from None
        self.process.join(timeout)
        if ok:
            return value
        error, text = value
        if error is None:
            raise ChildFailed(text)
        error.add_note(f"in the child process:\n{text}")
        raise error

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        # A child that was killed before may end between the two lines.
        if self.process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.process.join(WAIT)

    def close(self) -> None:
        self.kill()
        self._receive.close()
        self.process.close()


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    """child(function, *args, context="forkserver"): runs it in another process.

    The server has no pool, and has imported what every child needs: a spawned process imports it anew, for half a second.
    It has the environment that the first child found.
    """
    multiprocessing.set_forkserver_preload(["tests.conftest"])
    children: list[Child] = []

    def start(function: Callable[..., Any], *args: Any, context: str = "forkserver") -> Child:
        children.append(Child(multiprocessing.get_context(context), function, args))
        return children[-1]

    yield start
    for made in children:
        made.close()


@pytest.fixture
def spawn() -> Any:
    """The spawn context: events, barriers and values for children."""
    return multiprocessing.get_context("spawn")


def forked(function: Callable[..., Any], *args: Any) -> int:
    """Forks a child that runs a function; returns its pid.

    The child exits with the function's result if that is an int, with 1 if the function raises, and else with 0.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads, from Python 3.12
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            result = function(*args)
            code = result if type(result) is int else 0
        except BaseException:  # noqa: BLE001  the exit code shows it
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    return pid


def exit_code(pid: int) -> int:
    """The exit code of a forked child, or minus the number of the signal that ended it. The test fails if it does not end."""
    code = deaths.exit_code(pid, WAIT)
    assert code is not None, "the forked child does not end"
    return code


def run_python(code: str, *args: str, timeout: float = WAIT, prefix: tuple[str, ...] = ()) -> Any:
    """Runs Python code in a fresh process that may crash; returns the CompletedProcess."""
    return subprocess.run(
        [*prefix, sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        check=False,
    )


def on_small_tmpfs(code: str, tmp_path: Path, size: str = "8m") -> str:
    """Runs Python code with a small tmpfs mounted at sys.argv[1]; returns what it prints."""
    mount = tmp_path / "small"
    mount.mkdir(exist_ok=True)
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user and mount namespaces here (unshare -Urm)")
    script = f'mount -t tmpfs -o size={size} tmpfs "$0" && exec "$@"'
    done = run_python(code, str(mount), prefix=("unshare", "-Urm", "sh", "-c", script, str(mount)))
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Threads:
    """Runs functions in threads; the first exception of any is raised at the end."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.threads: list[threading.Thread] = []

    def start(self, function: Callable[..., Any], *args: Any) -> None:
        def run() -> None:
            try:
                function(*args)
            except BaseException as error:  # noqa: BLE001  raised in join
                self.errors.append(error)

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join(WAIT)
            assert not thread.is_alive(), "a thread does not end"
        errors, self.errors = self.errors, []
        if errors:
            raise errors[0]


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads()
    yield made
    made.join()
