"""Deaths at the named points of the objects: the program behind tests/objects/test_object_killpoints.py.

Runs with a copy of bufferpool in which BP_POINT kills (tests/native/faults.h). Reads lines "name point count"; for each, a
victim uses a new pool's cache in every way until it dies at that point. Then the others continue, no value is wrong, and
nothing is left. Answers each line with one of JSON.
"""

import ctypes
import json
import os
import signal
import sys
import time
from typing import Any

import bufferpool as bp
from tests.support.deaths import exit_code

MIB = 1 << 20
REACH_S, GO_ON_S = 60.0, 30.0
PR_SET_PDEATHSIG = 1
SIZES = (100, 3000, 9000, 30_000, 70_000, 300_000)


def value_of(key: int, version: int) -> bytes:
    """The bytes of a version of a key. They contain both numbers, and differ for every version."""
    size = SIZES[(key + version) % len(SIZES)] + 160 * (version % 50)
    return (key.to_bytes(8, "little") + version.to_bytes(8, "little")) * (size // 16)


def require_whole(key: int, found: Any) -> None:
    data = bytes(found)
    assert data[:8] == key.to_bytes(8, "little"), f"{key}: {data[:16]!r}"
    assert data == value_of(key, int.from_bytes(data[8:16], "little")), f"{key}: {len(data)} bytes are no version"


def orphan(pool: bp.Pool, cache: Any, where: str) -> None:
    """A child dies in a load, with a view, or while it fills a block, and we reap it."""
    pid = os.fork()
    if pid == 0:
        os.environ.pop("BUFFERPOOL_KILL")
        view = cache.get("pinned")
        if where == "block":
            os.environ["BUFFERPOOL_KILL"] = "put.copied:1"
            os.environ["BUFFERPOOL_KILLED"] = "/dev/null"
            cache.put("orphan", bytes(200_000))
        cache.get_or_load(f"orphan-{where}", lambda key: os._exit(len(view or b"") & 0))
        os._exit(0)
    os.waitpid(pid, 0)
    pool.reap()


def leave(cache: Any) -> None:
    """A load cannot be ended, because another process is stopped with the lock of the objects. It dies with this one."""

    def load(key: str) -> bytes:
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.environ["BUFFERPOOL_KILL"] = f"objects.locked:1:{signal.SIGSTOP:d}"
            os.environ["BUFFERPOOL_KILLED"] = "/dev/null"
            cache.put(key, b"of the child")
            os._exit(0)
        os.waitpid(pid, os.WUNTRACED)
        stopped.append(pid)
        return b"value"

    stopped: list[int] = []
    cache.delete("left")
    cache.get_or_load("left", load, timeout=0.01)
    os.kill(stopped[0], signal.SIGCONT)
    os.waitpid(stopped[0], 0)


def use(pool: bp.Pool) -> None:
    """Performs all operations, so that it soon passes every point."""
    cache = pool.cache("deaths", limit=6 * MIB)
    cache.put("pinned", bytes(10_000))
    orphan(pool, cache, "load")
    orphan(pool, cache, "block")
    leave(cache)
    for version in range(8):
        for key in range(150):
            cache.put(key, value_of(key, version))
            if (found := cache.get(key - 3)) is not None:
                require_whole(key - 3, found)
            if key % 7 == 0:
                cache.delete(key - 1)
        for key in range(1000, 2200):
            cache.put(key, value_of(0, version)[:2000] if key % 3 else b"small")
        for key in range(2000, 2020):
            cache.get_or_load(key, lambda key: b"loaded")
        cache.put("renewed", b"old", ttl=0.001)
        while "renewed" in cache:
            time.sleep(0.001)
        cache.get_or_load("renewed", lambda: b"new")
        pool.cache("removed").put("x", bytes(10_000))
        pool.remove_cache("removed")
        pool.cache(f"another-{version}").put("x", "y")


def victim(name: str, point: str, count: int, killed: str) -> None:
    with bp.Pool.attach(name) as pool:
        os.environ["BUFFERPOOL_KILLED"] = killed
        os.environ["BUFFERPOOL_KILL"] = f"{point}:{count}"
        end = time.monotonic() + REACH_S
        while time.monotonic() < end:
            use(pool)


def neighbour(name: str, beat: int) -> None:
    """Another process that uses the cache meanwhile. It must never see a wrong value."""
    with bp.Pool.attach(name) as pool:
        cache = pool.cache("deaths")
        for version in range(1000, 10**9):
            for key in range(150):
                if (found := cache.get(key)) is not None:
                    require_whole(key, found)
                found = None
                cache.put(key, value_of(key, version))
            os.write(beat, b".")


def goes_on(pid: int, beats: int) -> bool:
    """Whether the neighbour performs all its work two more times."""
    os.set_blocking(beats, True)
    signal.alarm(int(GO_ON_S))
    before = 0
    while before < 3:
        got = len(os.read(beats, 1))
        if not got:
            return False
        before += got
    signal.alarm(0)
    return os.waitpid(pid, os.WNOHANG)[0] == 0


def audit(name: str) -> list[str]:
    found = []
    with bp.Pool.attach(name) as pool:
        pool.reap()
        found += pool.check()
        cache = pool.cache("deaths")
        for key in range(150):
            if (value := cache.get(key)) is not None:
                require_whole(key, value)
                value = None
            cache.put(key, value_of(key, 5))
        for key in range(1000, 2200):
            cache.get_or_load(key, lambda key: b"after", timeout=GO_ON_S)
        cache.clear()
        if len(cache):
            found.append(f"{len(cache)} values are left")
        found += pool.check()
        clients = [client.client for client in pool.clients()]
        if len(clients) != 1:
            found.append(f"clients {clients} are left")
    return found


def start(function: Any, *args: Any) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function(*args)
            code = 0
        finally:
            os._exit(code)
    return pid


MAKING = ("objects.sized", "objects.written", "objects.plugged")  # passed once in the life of a pool


def kill_at(name: str, point: str, count: int) -> dict[str, Any]:
    bp.Pool.create(name, 16 * MIB, page_size=4096, max_clients=8).close()
    beats, beat = os.pipe()
    killed = f"/dev/shm/{name}-killed"
    beside = 0
    try:
        if point not in MAKING:
            with bp.Pool.attach(name) as pool:
                pool.cache("deaths", limit=6 * MIB)
            beside = start(neighbour, name, beat)
        os.close(beat)
        code = exit_code(start(victim, name, point, count, killed), REACH_S + 10)
        went_on = True
        if beside:
            os.set_blocking(beats, False)
            while True:  # what it did before the death
                try:
                    if not os.read(beats, 4096):
                        break
                except BlockingIOError:
                    break
            went_on = goes_on(beside, beats)
            os.kill(beside, signal.SIGKILL)
            exit_code(beside, GO_ON_S)
        return {"code": code, "reached": os.path.exists(killed), "went_on": went_on, "findings": audit(name)}
    finally:
        os.close(beats)
        for path in (f"/dev/shm/{name}", killed):
            if os.path.exists(path):
                os.unlink(path)


def main() -> None:
    for line in sys.stdin:
        name, point, count = line.split()
        print(json.dumps(kill_at(name, point, int(count))), flush=True)


if __name__ == "__main__":
    main()
