"""Exporting metrics: pools that come and go, registries, servers, and the command."""

import asyncio
import http.client
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import urllib.request
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import pytest
from prometheus_client import REGISTRY, CollectorRegistry

import bufferpool as bp
from bufferpool.cli import main
from bufferpool.prometheus import collector
from bufferpool.prometheus import server as exporter
from bufferpool.prometheus.collector import PoolCollector
from tests.conftest import EXTENT, PAGE, SHM, WAIT, remove, wait_until
from tests.prometheus.test_metrics import get, read
from tests.support.children import run_python

# ---- pools come and go --------------------------------------------------------------------


def test_pools_come_and_go(make_pool, tmp_path):
    registry = exporter.registry_of()

    def names() -> set[str]:
        found = {s.labels["pool"]: s.value for m in registry.collect() for s in m.samples if s.name == "bufferpool_up"}
        return {name for name, up in found.items() if up}

    first = make_pool()
    assert first.name in names()
    second = make_pool()
    assert {first.name, second.name} <= names()
    second.unlink()
    assert second.name not in names()
    series = read(first.name, second.name)
    assert get(series, "up", second) == 0
    assert ("bufferpool_hits_total", (("pool", second.name),)) not in series


def test_names_that_no_pool_can_have_are_refused():
    with pytest.raises(ValueError, match="without '/'"):
        PoolCollector("../etc")


# ---- in servers -------------------------------------------------------------------------------


def test_one_line_adds_it_to_a_registry(pool):
    collector = PoolCollector(pool.name)
    REGISTRY.register(collector)
    try:
        assert REGISTRY.get_sample_value("bufferpool_up", {"pool": pool.name}) == 1
        with pytest.raises(ValueError, match="Duplicated"):
            REGISTRY.register(PoolCollector())
    finally:
        REGISTRY.unregister(collector)


def test_one_metric_can_be_asked_for(pool):
    registry = exporter.registry_of(pool.name)
    for name in ("bufferpool_up", "bufferpool_shm_free_bytes", "bufferpool_hits_total", "bufferpool_load_seconds_sum"):
        families = list(registry.restricted_registry([name]).collect())
        assert {sample.name for family in families for sample in family.samples} == {name}


def test_registering_reads_no_pool(monkeypatch):
    monkeypatch.setattr("bufferpool.prometheus.collector.read_snapshot", lambda *_: pytest.fail("a pool was read"))
    CollectorRegistry(auto_describe=True).register(PoolCollector())


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve_as_worker(listener: socket.socket, name: str) -> None:
    """A worker of a prefork server: its application uses the pool and serves the metrics."""
    table = bp.Pool.attach(name).space("table")
    table[0]
    server = WSGIServer(("", 0), _Quiet, bind_and_activate=False)
    server.socket.close()
    server.socket, server.server_name, server.server_port = listener, "", 0
    server.setup_environ()
    server.set_app(exporter.wsgi_app(name))
    server.serve_forever()


def test_every_worker_of_a_prefork_server_tells_the_whole(make_pool, data_file, child):
    pool = make_pool()
    pool.open_file(data_file(4), name="table")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        workers = [child(serve_as_worker, listener, pool.name, context="fork") for _ in range(3)]
        wait_until(lambda: pool.stats().hits + pool.stats().misses == 3, "the workers read")
        port = listener.getsockname()[1]

        def hits() -> str:
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT).read().decode()
            found = re.search(rf'^bufferpool_hits_total{{pool="{pool.name}"}} (.*)$', text, re.MULTILINE)
            assert found is not None
            return found[1]

        assert {hits() for _ in range(6)} == {"2.0"}
        workers[0].kill()
        assert {hits() for _ in range(3)} == {"2.0"}


def test_it_serves_as_an_asgi_application(pool):
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    asyncio.run(exporter.asgi_app(pool.name)(scope, receive, send))
    assert sent[0]["status"] == 200
    assert b"bufferpool_hits_total" in sent[1]["body"]


# ---- the command -------------------------------------------------------------------------------


@pytest.fixture
def export(request):
    """export(*arguments): starts the command on a free port; the process, and the port."""
    started = []

    def start(*arguments: str) -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen([sys.executable, "-m", "bufferpool.cli", "export", "--port", "0", *arguments],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving"), line
        return process, int(line.rsplit(":", 1)[1].split("/")[0])

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_command_looks_for_signals_while_it_waits(monkeypatch):
    """It waited for its thread without a limit: a SIGTERM that came just before the wait ended it never."""
    waits = []

    class Serving:
        server_port = 1

        def is_alive(self):
            return True

        def join(self, timeout=None):
            waits.append(timeout)
            if len(waits) == 3:
                raise KeyboardInterrupt

        def shutdown(self):
            pass

    monkeypatch.setattr(exporter, "serve", lambda *_, **__: (Serving(), Serving()))
    assert main(["export"]) == 128 + signal.SIGINT
    assert len(waits) == 3
    assert all(timeout is not None and timeout <= 1 for timeout in waits)


def test_the_command_serves_both_formats(pool, make_pool, export):
    process, port = export()
    later = make_pool()
    for accept, kind in (
        ("text/plain", "text/plain"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text"),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
        connection.request("GET", "/metrics", headers={"Accept": accept})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        assert answer.status == 200
        assert answer.getheader("Content-Type", "").startswith(kind)
        assert f'bufferpool_up{{pool="{pool.name}"}} 1.0' in text
        assert f'bufferpool_up{{pool="{later.name}"}} 1.0' in text
    assert len(pool.clients()) == 1
    process.send_signal(signal.SIGINT)
    assert process.wait(WAIT) == 130


def test_the_command_serves_ipv6(pool, export):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    process, port = export("--address", "::1", pool.name)
    text = urllib.request.urlopen(f"http://[::1]:{port}/metrics", timeout=WAIT).read().decode()
    assert f'bufferpool_up{{pool="{pool.name}"}} 1.0' in text
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT) == 143


def test_who_hangs_up_is_no_error(pool, export):
    process, port = export(pool.name)
    for sent in (b"", b"GET /metrics HTTP/1.1\r\n", b"GET /metrics HTTP/1.1\r\n\r\n", b"\x16\x03\x01 no HTTP\r\n\r\n"):
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port)) as peer:
                peer.sendall(sent)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    assert b"bufferpool_up" in urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT).read()
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=WAIT) == ("", "")


def test_the_command_says_what_is_wrong(export):
    _, port = export()
    done = run_python(
        "import sys; from bufferpool.cli import main; sys.exit(main(sys.argv[1:]))", "export", "--port", str(port)
    )
    assert done.returncode == 1
    assert "choose another --port" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_prints_once(pool):
    done = run_python(
        "import sys; from bufferpool.cli import main; sys.exit(main(sys.argv[1:]))", "export", "--once", pool.name
    )
    assert done.returncode == 0
    assert f'bufferpool_up{{pool="{pool.name}"}} 1.0' in done.stdout
    assert 'extent="' not in done.stdout


def test_a_name_that_is_no_utf8_is_shown():
    raw = os.fsdecode(b"bp\xff") + str(os.getpid())
    pool = bp.Pool.create(raw, 64 * PAGE, page_size=PAGE, extent_size=EXTENT)
    try:
        assert f'bufferpool_up{{pool="bp\ufffd{os.getpid()}"}} 1.0' in exporter.text_of(raw)
    finally:
        pool.close()
        remove(SHM / raw)


# ---- the exporter's pages -------------------------------------------------------------------


@pytest.fixture
def served(make_pool):
    pool = make_pool()
    server, thread = exporter.serve(pool.name, port=0)
    yield pool, server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def ask(port: int, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_the_exporter_has_a_page_with_links(served):
    """Every path was the metrics: a person who opened the address saw thousands of lines."""
    pool, port = served
    status, headers, body = ask(port, "/")
    assert status == 200
    assert headers["Content-Type"].startswith("text/html")
    assert b'href="/metrics"' in body
    assert b'href="/healthz"' in body
    assert pool.name.encode() in body
    assert bp.__version__.encode() in body
    assert ask(port, "/nothing")[0] == 404
    assert ask(port, "/", "POST")[0] == 405


def test_names_on_the_page_are_escaped(make_pool):
    page = exporter._page(("<script>alert(1)</script>",), None).decode()
    assert "<script>" not in page
    assert "there is no such pool" in page


def test_healthz_reads_no_pool(served, monkeypatch):
    """A probe that scrapes every pool each second costs more than the scrapes."""
    _, port = served
    monkeypatch.setattr(collector, "read_snapshot", lambda *_: pytest.fail("a pool was read"))
    assert ask(port, "/healthz")[::2] == (200, b"ok\n")


def test_head_works_on_each_page(served):
    """A HEAD request was answered with 405, and later, for the metrics, with a length of 0."""
    _, port = served
    for path in ("/", "/metrics?name[]=bufferpool_build_info", "/healthz"):
        status, headers, body = ask(port, path, "HEAD")
        assert (status, body) == (200, b""), path
        _, same, text = ask(port, path)
        assert {**headers, "Date": ""} == {**same, "Date": ""}, path
        assert headers["Content-Length"] == str(len(text)), path


def test_the_exporter_has_its_own_metrics_and_one_family_alone(served):
    pool, port = served
    body = ask(port, "/metrics")[2].decode()
    assert "process_cpu_seconds_total" in body
    assert "bufferpool_build_info" in body
    one = ask(port, "/metrics?name[]=bufferpool_up")[2].decode()
    assert {line.split("{")[0] for line in one.splitlines() if not line.startswith("#")} == {"bufferpool_up"}
    assert pool.name in one


def test_https(make_pool, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    key, certificate = str(tmp_path / "key"), str(tmp_path / "cert")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    server, _ = exporter.serve(make_pool().name, port=0, tls=(certificate, key))
    try:
        context = ssl.create_default_context(cafile=certificate)
        address = f"https://127.0.0.1:{server.server_port}/healthz"
        with urllib.request.urlopen(address, timeout=WAIT, context=context) as answer:
            assert answer.read() == b"ok\n"
    finally:
        server.shutdown()
        server.server_close()


def test_once_of_a_pool_that_is_not_there_fails(pool_name):
    """The command printed bufferpool_up 0 and ended with 0: the textfile collector's job was green for ever."""
    done = subprocess.run(
        [sys.executable, "-m", "bufferpool.cli", "export", "--once", pool_name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "there is no pool" in done.stderr
