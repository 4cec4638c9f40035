"""Names that a terminal would obey: escape sequences, newlines, overrides of the writing direction, bytes that are no UTF-8."""

import ctypes
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import unicodedata
import urllib.parse
import warnings
from pathlib import Path

import pytest

import bufferpool as bp
from bufferpool.errors import BufferPoolError, PoolDiffers, PoolNameless, PoolTooLarge, SegmentNotFound, SpaceNotFound
from bufferpool.printable import printable
from bufferpool.prometheus import server
from tests.conftest import PAGE, ROOT, SHM, WAIT, new_name, write_file

RED, CSI, BIDI, LINE = "\x1b[31m", "\x9b2J", "\u202egnp.exe\u2066", "\nforged  4096  in use"
EVIL = f"{RED}{CSI}{BIDI}{LINE}\x07\x7f\u2028\udc9b2J"
_PR_SET_NAME = 15


def obeyed(text: str) -> list[str]:
    """The characters that a terminal would obey, but for the ends of lines."""
    return [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


def test_what_is_escaped_and_what_is_not():
    assert printable("orders.db · Zürich 東京 ✓") == "orders.db · Zürich 東京 ✓"
    assert printable(RED) == "\\x1b[31m"
    assert printable("a\nb\tc") == "a\\nb\\tc"
    assert printable("\x9b\x85\x7f\xad") == "\\x9b\\x85\\x7f\\xad"
    assert printable("\u202e\u2066\u200f\u2028\ufeff") == "\\u202e\\u2066\\u200f\\u2028\\ufeff"
    assert printable(os.fsdecode(b"a\x9bb")) == "a\\x9bb"
    assert printable(12) == "12"
    assert printable(printable(EVIL)) == printable(EVIL)


@pytest.mark.parametrize("kind", [SegmentNotFound, SpaceNotFound, BufferPoolError])
def test_messages_of_errors(kind):
    assert obeyed(str(kind(f"there is no {EVIL}"))) == []
    assert "\n" not in str(kind(f"there is no {EVIL}"))


@pytest.mark.parametrize("kind", [PoolDiffers, PoolNameless, PoolTooLarge])
def test_messages_of_warnings(kind):
    """Only errors were escaped: the warning about a pool without a name has the path of its segment."""
    with pytest.warns(kind) as given:
        warnings.warn(kind(f"{EVIL} was removed"), stacklevel=1)
    text = str(given[0].message)
    assert obeyed(text) == []
    assert "\n" not in text


def test_the_warning_about_a_pool_whose_name_was_removed():
    with bp.Pool.create(new_name() + EVIL, 64 * PAGE, page_size=PAGE) as pool:
        os.unlink(pool.path)
        with pytest.warns(PoolNameless) as given:
            pool.open_scratch("work", 4)
    assert obeyed(str(given[0].message)) == []


@pytest.fixture
def evil_pool(tmp_path):
    """A pool whose name, spaces, files and program are evil; the command line looks at it."""
    name = new_name() + EVIL
    libc = ctypes.CDLL(None)
    before = Path("/proc/self/comm").read_bytes().rstrip()
    libc.prctl(_PR_SET_NAME, b"\x1b[31mpwn\x9b\n", 0, 0, 0)
    try:
        pool = bp.Pool.create(name, 64 * PAGE, page_size=PAGE)
    finally:
        libc.prctl(_PR_SET_NAME, before, 0, 0, 0)
    table = pool.open_file(write_file(tmp_path / f"table{RED}", 4), "r+", name=f"t{RED}{BIDI}")
    work = pool.open_scratch(f"w\n{CSI}", 4)
    with table.write(0) as page, work.write(1) as other:
        page[0] = other[0] = 1
    kept = table[1]
    yield pool
    del kept, page, other
    assert pool.check() == []
    pool.unlink(discard=True)
    pool.close()


def run(*command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "bufferpool.cli", *command],
        capture_output=True,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        timeout=WAIT,
        check=False,
    )


COMMANDS = (
    "ls",
    "doctor",
    "stat",
    "spaces",
    "clients",
    "pins",
    "frames",
    "check",
    "map",
    "events",
    "advise",
    "flush",
    "trim",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_shows_names_that_no_terminal_obeys(evil_pool, command):
    named = () if command in ("ls", "doctor") else (evil_pool.name,)
    done = run(command, *named)
    if done.returncode == 2:
        pytest.skip(f"no command {command}")
    for stream in (done.stdout, done.stderr):
        text = stream.decode(errors="surrogateescape")
        assert obeyed(text) == []
        assert not any(line.startswith("forged") for line in text.splitlines())
    assert done.stdout


def test_errors_of_the_command_line():
    for command in (("stat", f"none{EVIL}"), ("rm", f"none{EVIL}"), ("ls", "--directory", f"/none{EVIL}")):
        done = run(*command)
        text = done.stderr.decode(errors="surrogateescape")
        assert done.returncode == 1
        assert obeyed(text) == []
        assert len(text.splitlines()) == 1


def test_metrics_of_evil_names(evil_pool):
    text = server.text_of(evil_pool.name)
    assert obeyed(text) == []
    assert not any(line.startswith("forged") for line in text.splitlines())


@pytest.fixture
def evil_folder():
    """A directory with an evil name, in which are a pool without a process, one that has died, and a damaged one, all with evil names."""
    folder = Path(tempfile.mkdtemp(dir=SHM, prefix=f"test-cli-{RED}{BIDI}\udc9b<b>"))
    with bp.Pool.create(f"<i>{EVIL}", 64 * PAGE, page_size=PAGE, directory=folder) as pool:
        pool.open_scratch("work", 4)
        with open(pool.path, "rb") as file:
            (folder / f"torn{EVIL}").write_bytes(file.read(5000))
        with open(folder / f"other{EVIL}", "wb") as file:
            file.truncate(4 << 20)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("options", [[], ["--json"], ["--yes"], ["--yes", "--json"]], ids=" ".join)
def test_gc_asks_about_and_removes_pools_with_evil_names(evil_folder, options):
    done = run("gc", "--directory", str(evil_folder), *options)
    for stream in (done.stdout, done.stderr):
        text = stream.decode(errors="surrogateescape")
        assert obeyed(text) == []
        assert not any(line.startswith("forged") for line in text.splitlines())
    assert done.returncode == 0
    assert b"torn" in done.stdout
    assert len(list(evil_folder.iterdir())) == (1 if "--yes" in options else 3)


@pytest.mark.parametrize("named", [True, False])
def test_the_pages_of_an_exporter_show_names_that_no_terminal_obeys(evil_folder, named):
    """Of all pools of a directory, and of named ones, of which two cannot be read and one does not exist."""
    names = [f"<i>{EVIL}", f"torn{EVIL}", f"none{EVIL}"] if named else []
    site, thread = server.serve(*names, port=0, directory=evil_folder)
    try:
        for path, accept in (
            ("/", "text/html"),
            ("/metrics", "text/plain"),
            ("/metrics", "application/openmetrics-text; version=1.0.0"),
            (f"/metrics?name[]={urllib.parse.quote(EVIL, errors='surrogateescape')}", "text/plain"),
            (f"/{urllib.parse.quote(EVIL, errors='surrogateescape')}", "text/plain"),
        ):
            connection = http.client.HTTPConnection("127.0.0.1", site.server_port, timeout=WAIT)
            connection.request("GET", path, headers={"Accept": accept})
            answer = connection.getresponse()
            text = answer.read().decode()  # it must be UTF-8
            connection.close()
            assert obeyed(text + str(answer.headers).replace("\r", "")) == []
            assert not any(line.startswith("forged") for line in text.splitlines())
            assert "<i>" not in text or "html" not in accept
            if path in ("/", "/metrics"):
                assert answer.status == 200
                assert "torn" in text
    finally:
        site.shutdown()
        site.server_close()
        thread.join()


@pytest.mark.parametrize("command", ["discard", "drop", "remove", "dirty", "pins", "remove-cache"])
def test_a_name_that_is_no_utf_8_is_not_found(evil_pool, command):
    """The commands that take the name of a space ended in a traceback of UnicodeEncodeError."""
    done = run(command, evil_pool.name, "t\udc9b2J", *(["1"] if command == "pins" else []))
    text = done.stderr.decode(errors="surrogateescape")
    assert done.returncode == 1
    assert len(text.splitlines()) == 1
    assert "t\\" in text
    assert obeyed(text) == []


def test_calls_with_a_name_that_is_no_name(pool):
    calls = (
        pool.space,
        pool.discard,
        pool.overwrite,
        lambda name: next(pool.dirty_pages(name)),
    )
    for call in calls:
        for name in ("t\udc9b", "t\0", EVIL, ""):
            with pytest.raises(SpaceNotFound):
                call(name)
        for wrong in (5, None, b"t"):
            with pytest.raises(TypeError, match="a space's name must be a string"):
                call(wrong)
    with pytest.raises(ValueError, match="UTF-8"):
        pool.cache("c\udc9b")
    assert not pool.remove_cache("c\udc9b")
    assert not pool.remove_cache("c\0")
