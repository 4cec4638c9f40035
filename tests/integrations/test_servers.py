"""Prefork and ASGI servers: gunicorn, uvicorn with workers and Celery run an application over one pool."""

import http.client
import importlib
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bufferpool as bp
from tests.conftest import ROOT, WAIT, Pools, wait_until
from tests.integrations.servers import __name__ as SERVERS
from tests.support.children import Threads

PAGES = 64


class Unix(http.client.HTTPConnection):
    """HTTP over a Unix socket: tests need no port that is free."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=WAIT)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(WAIT)
        self.sock.connect(self._path)


class Server:
    """A server in a process of its own, with an application of :mod:`tests.integrations.servers`."""

    def __init__(self, folder: Path, pool_name: str) -> None:
        self.socket, self.pool_name = folder / "socket", pool_name
        self.rendered, self.release = folder / "rendered", folder / "release"
        self.rendered.touch()
        self.release.write_text("1")
        self.environment = {
            "POOL": pool_name, "RENDERED": str(self.rendered), "RELEASE_FILE": str(self.release),
            "BROKER": str(folder / "broker"), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        self.log = folder / "log"

    def start(self, *command: str) -> "Server":
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command], env=os.environ | self.environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        return self

    def get(self, path: str) -> tuple[int, str]:
        connection = Unix(self.socket)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def tile(self, page_no: int | str) -> tuple[int, int]:
        """The worker that answered, and the first value of the tile."""
        status, text = self.get(f"/{page_no}")
        assert status == 200, f"{text}\n{self.log.read_text()}"
        pid, value = text.split()
        return int(pid), int(value)

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.get("/0")[0] == 200
        except OSError:
            return False

    def workers(self, count: int = 2) -> set[int]:
        """Asks until so many workers have answered."""
        found: set[int] = set()

        def asked() -> bool:
            found.add(self.tile(len(found) % PAGES)[0])
            return len(found) >= count

        wait_until(asked, f"{count} workers answer")
        return found

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WAIT)

    def kill(self) -> None:
        """Kills what is left of the server's session, at the end of a test that failed."""
        if hasattr(self, "process") and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(WAIT)


@pytest.fixture
def server(pools: Pools, tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path, pools.name())
    yield made
    made.kill()


def gunicorn(server: Server, *options: str) -> Server:
    pytest.importorskip("gunicorn")
    bind = f"unix:{server.socket}"
    server.start("gunicorn", "--workers", "2", "--bind", bind, *options, f"{SERVERS}.wsgi:app")
    wait_until(server.is_up, "gunicorn answers")
    return server


def uvicorn(server: Server, *options: str) -> Server:
    pytest.importorskip("uvicorn")
    server.start("uvicorn", "--workers", "2", "--uds", str(server.socket), *options, f"{SERVERS}.asgi:app")
    wait_until(server.is_up, "uvicorn answers")
    return server


STARTS: dict[str, Callable[[Server], Server]] = {
    "gunicorn": gunicorn,
    "gunicorn --preload": lambda server: gunicorn(server, "--preload"),
    "uvicorn": uvicorn,
}


@pytest.mark.parametrize(
    "kind", [kind if "preload" not in kind else pytest.param(kind, marks=pytest.mark.soak) for kind in STARTS]
)
def test_the_workers_share_one_pool(kind: str, server: Server) -> None:
    """Each worker rendered every tile for itself, and kept it; metrics were those of the worker that answered."""
    STARTS[kind](server)
    workers = server.workers()
    for _ in range(2):
        for n in range(PAGES):
            assert server.tile(n)[1] == n + 100
    assert Counter(server.rendered.read_text().splitlines()) == {f"1 {n}": 1 for n in range(PAGES)}
    status, metrics = server.get("/metrics")
    assert status == 200
    assert f'bufferpool_up{{pool="{server.pool_name}"}} 1.0' in metrics
    os.kill(min(workers), signal.SIGKILL)
    wait_until(lambda: server.workers().isdisjoint({min(workers)}), "the server starts another worker")
    assert server.tile(5)[1] == 105
    assert server.stop() == 0
    with bp.Pool.attach(server.pool_name) as pool:
        assert pool.check() == []
        assert pool.stats().clients == 1, "the workers have left"
        assert pool.stats().loads == PAGES, "the pool is kept for the next start"


def test_a_graceful_reload_fails_no_request(server: Server, threads: Threads) -> None:
    """A space of one name and another version was replaced under the workers of the old release: their last requests failed."""
    gunicorn(server)
    for release in (1, 2):
        late: list[int] = []
        threads.start(lambda n=release, late=late: late.append(server.tile(f"{n}/late")[1]))
        begun = server.release.with_name(f"late-{release}")
        wait_until(begun.exists, "a worker of the old release has the late request")
        server.release.write_text(str(release + 1))
        server.process.send_signal(signal.SIGHUP)
        threads.join()
        assert late == [release + 100 * release], "the old worker answers from the pages of its release"
        wait_until(
            lambda n=release + 1: {server.tile(7)[1] for _ in range(9)} == {100 * n + 7}, "the new release answers"
        )
    assert server.stop() == 0
    with bp.Pool.attach(server.pool_name) as pool:
        assert {space.name for space in pool.spaces()} == {"tiles-2", "tiles-3"}
        assert pool.check() == []


def test_celery_workers_share_one_pool(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("celery")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    for folder in ("results", "queue", "control"):
        Path(server.environment["BROKER"], folder).mkdir(parents=True)
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
    server.start("celery", "--app", f"{SERVERS}.tasks", "worker", "--pool", "prefork", "--concurrency", "2", *quiet)
    tasks: Any = importlib.import_module(f"{SERVERS}.tasks")
    try:
        asked = [tasks.tile.delay(n % 8) for n in range(24)]
        answers = [one.get(timeout=WAIT, interval=0.02) for one in asked]
        assert [value for _, value in answers] == [n % 8 + 100 for n in range(24)]
        assert len({pid for pid, _ in answers}) == 2
        assert Counter(server.rendered.read_text().splitlines()) == {f"1 {n}": 1 for n in range(8)}
        assert tasks.about_pool.delay().get(timeout=WAIT, interval=0.02) == [8, []]
        with pytest.raises(Exception, match="SIGKILL"):  # Celery's WorkerLostError
            tasks.die.delay(3).get(timeout=WAIT, interval=0.02)
        assert tasks.tile.delay(3).get(timeout=WAIT, interval=0.02)[1] == 103
        assert tasks.about_pool.delay().get(timeout=WAIT, interval=0.02) == [8, []]
        assert server.stop() == 0
    finally:
        tasks.pool.close()
        for module in ("tasks", "wsgi"):
            sys.modules.pop(f"{SERVERS}.{module}", None)
