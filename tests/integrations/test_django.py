"""Django's cache in a pool: the cases of Django's own tests of its caches, and what several processes do."""

import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

django = pytest.importorskip("django")

from django.conf import settings  # noqa: E402

if not settings.configured:
    settings.configure(USE_TZ=True)

from django.core.cache import CacheKeyWarning  # noqa: E402
from django.core.exceptions import ImproperlyConfigured  # noqa: E402
from django.utils.safestring import SafeString, mark_safe  # noqa: E402

from bufferpool.integrations.django import PoolCache  # noqa: E402
from bufferpool.objects.cache import Cache  # noqa: E402
from tests.conftest import ROOT, WAIT, Pools  # noqa: E402
from tests.support.children import exit_code, forked  # noqa: E402

SIZE = "8MiB"


class Unpicklable:
    def __reduce__(self) -> Any:
        raise pickle.PickleError


@pytest.fixture
def cache(name: str) -> PoolCache:
    return PoolCache(name, {"OPTIONS": {"size": SIZE}})


class TestValues:
    def test_a_value_is_what_was_set(self, cache: PoolCache) -> None:
        """Strings, unicode, binary data, containers, functions and classes come back equal, and of their types."""
        values: list[Any] = [
            "hello", "", "ünïcödé € 中", b"\x00binary\xff", 1, -(2**70), True, False, 1.5, None, [1, 2], {"a": {"b": (1,)}}, {1, 2},
            os.path.join, Path, mark_safe("<b>safe</b>"), range(3),
        ]  # fmt: skip
        for value in values:
            cache.set("key", value)
            found = cache.get("key", "absent")
            assert found == value
            assert type(found) is type(value)
        assert isinstance(cache.get("safe", mark_safe("")), SafeString)

    def test_an_array_is_read_without_a_copy(self, cache: PoolCache) -> None:
        cache.set("array", np.arange(10_000).reshape(100, 100))
        found = cache.get("array")
        assert found.shape == (100, 100)
        assert not found.flags.writeable
        assert not found.flags.owndata
        cache.set("array", None)
        assert int(found[99, 99]) == 9999

    def test_none_is_a_value(self, cache: PoolCache) -> None:
        cache.set("none", None)
        assert cache.get("none", "default") is None
        assert cache.has_key("none")
        assert cache.get_or_set("none", "default") is None
        assert not cache.add("none", 1)
        assert cache.get_many(["none", "absent"]) == {"none": None}

    def test_what_cannot_be_pickled_raises_and_sets_nothing(self, cache: PoolCache) -> None:
        with pytest.raises(pickle.PickleError):
            cache.set("key", Unpicklable())
        with pytest.raises(pickle.PickleError):
            cache.add("key", Unpicklable())
        assert "key" not in cache
        assert cache.add("key", 1)


class TestOperations:
    def test_absent_keys(self, cache: PoolCache) -> None:
        assert cache.get("absent") is None
        assert cache.get("absent", "default") == "default"
        assert not cache.has_key("absent")
        assert "absent" not in cache
        assert not cache.delete("absent")
        assert not cache.touch("absent")
        assert cache.get_many(["a", "b"]) == {}
        with pytest.raises(ValueError, match="'absent' not found"):
            cache.incr("absent")
        with pytest.raises(ValueError, match="'absent' not found"):
            cache.decr("absent")

    def test_add_sets_only_what_is_absent(self, cache: PoolCache) -> None:
        assert cache.add("key", "value")
        assert not cache.add("key", "other")
        assert cache.get("key") == "value"

    def test_delete(self, cache: PoolCache) -> None:
        cache.set_many({"a": 1, "b": 2, "c": 3})
        assert cache.delete("a")
        assert cache.get("a") is None
        cache.delete_many(["b"])
        assert cache.get_many(["a", "b", "c"]) == {"c": 3}
        cache.clear()
        assert cache.get("c") is None

    def test_incr_and_decr(self, cache: PoolCache) -> None:
        cache.set("answer", 41)
        assert cache.incr("answer") == 42
        assert cache.incr("answer", 10) == 52
        assert cache.decr("answer") == 51
        assert cache.decr("answer", 100) == -49
        assert cache.get("answer") == -49
        assert type(cache.get("answer")) is int
        cache.set("text", "a")
        with pytest.raises(TypeError):
            cache.incr("text")
        assert cache.get("text") == "a"

    def test_get_or_set(self, cache: PoolCache) -> None:
        assert cache.get_or_set("key", "made", 100) == "made"
        assert cache.get_or_set("key", "other", 100) == "made"
        assert cache.get_or_set("called", lambda: "made") == "made"
        assert cache.get_or_set("empty", lambda: None) is None

    def test_versions_are_keys_of_their_own(self, cache: PoolCache) -> None:
        cache.set("key", 1)
        cache.set("key", 2, version=2)
        assert (cache.get("key"), cache.get("key", version=2)) == (1, 2)
        assert cache.incr_version("key", delta=2) == 3
        assert cache.get("key") is None
        assert (cache.get("key", version=2), cache.get("key", version=3)) == (2, 1)
        assert cache.decr_version("key", version=3, delta=2) == 1
        assert cache.get("key") == 1
        with pytest.raises(ValueError, match="not found"):
            cache.incr_version("absent")

    def test_prefixes_and_key_functions(self, name: str) -> None:
        options = {"size": SIZE}
        plain, prefixed = (
            PoolCache(name, {"OPTIONS": options}),
            PoolCache(name, {"OPTIONS": options, "KEY_PREFIX": "p"}),
        )
        made = PoolCache(name, {"OPTIONS": options, "KEY_FUNCTION": lambda *parts: "-".join(map(str, parts))})
        for number, cache in enumerate((plain, prefixed, made)):
            cache.set("key", number)
        assert [cache.get("key") for cache in (plain, prefixed, made)] == [0, 1, 2]

    def test_keys_that_memcached_refuses_give_a_warning(self, cache: PoolCache) -> None:
        for key in ("key with spaces and 清", "a" * 251):
            with pytest.warns(CacheKeyWarning):
                cache.set(key, "value")
            with pytest.warns(CacheKeyWarning):
                assert cache.get(key) == "value"

    def test_names_of_the_cache_are_apart(self, name: str) -> None:
        one, two = (PoolCache(name, {"OPTIONS": {"size": SIZE, "cache": which}}) for which in ("one", "two"))
        one.set("key", 1)
        assert two.get("key") is None
        two.clear()
        assert one.get("key") == 1


class TestExpiry:
    def test_timeouts(self, cache: PoolCache) -> None:
        for key, timeout in {"none": None, "long": 60, "zero": 0, "negative": -1, "float": 0.02}.items():
            cache.set(key, "value", timeout)
        time.sleep(0.05)
        assert {key: cache.get(key) for key in ("none", "long", "zero", "negative", "float")} == {
            "none": "value", "long": "value", "zero": None, "negative": None, "float": None,
        }  # fmt: skip
        assert not cache.has_key("float")
        assert cache.add("float", "new")

    def test_zero_deletes_what_was_there(self, cache: PoolCache) -> None:
        cache.set("key", 1)
        cache.set("key", 2, 0)
        assert cache.get("key") is None
        assert cache.add("key", 1, 0)
        assert cache.get("key") is None

    def test_touch_changes_the_expiry(self, cache: PoolCache) -> None:
        cache.set("key", "value", 0.05)
        assert cache.touch("key", 60)
        time.sleep(0.08)
        assert cache.get("key") == "value"
        assert cache.touch("key", 0)
        assert cache.get("key") is None

    def test_incr_keeps_the_expiry(self, cache: PoolCache) -> None:
        """A limit of requests a minute counts from the first one; a counter whose expiry moved on would never end."""
        cache.add("hits", 0, 0.2)
        end = time.monotonic() + WAIT / 10
        while time.monotonic() < end:
            try:
                cache.incr("hits")
            except ValueError:
                return
        pytest.fail("the counter outlived its timeout")

    def test_the_default_is_the_settings(self, name: str) -> None:
        cache = PoolCache(name, {"TIMEOUT": 0.02, "OPTIONS": {"size": SIZE}})
        cache.set("key", 1)
        time.sleep(0.05)
        assert cache.get("key") is None


class TestProcesses:
    def test_a_value_is_seen_by_all(self, cache: PoolCache) -> None:
        assert exit_code(forked(cache.set, "key", "from the child")) == 0
        assert cache.get("key") == "from the child"

    def test_add_succeeds_once(self, cache: PoolCache) -> None:
        """Locks made of ``add`` let two processes in, if two of them can find the key absent."""
        children = [forked(lambda: sum(cache.add(f"key-{n}", n) for n in range(40))) for _ in range(4)]
        assert sum(map(exit_code, children)) == 40

    def test_no_increment_is_lost(self, cache: PoolCache) -> None:
        cache.set("count", 0)
        children = [forked(lambda: [cache.incr("count") for _ in range(50)] and 0) for _ in range(4)]
        assert [exit_code(child) for child in children] == [0] * 4
        assert cache.get("count") == 200

    def test_a_process_that_dies_in_an_increment_stops_nobody(self, cache: PoolCache) -> None:
        cache.set("count", 0)

        class Dies(int):
            def __radd__(self, _: int) -> int:
                os.kill(os.getpid(), signal.SIGKILL)
                return 0

        def die() -> None:
            cache.incr("count", Dies(1))

        assert exit_code(forked(die)) == -signal.SIGKILL
        assert cache.incr("count") == 1


class TestOthersMeanwhile:
    """``touch`` and ``incr`` read a value and put one: what another process did in between was undone."""

    def between(self, cache: PoolCache, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
        get, acted = Cache.get, []

        def get_and_act(self: Cache, *args: Any) -> Any:
            value = get(self, *args)
            if not acted:
                acted.append(True)
                act()
            return value

        monkeypatch.setattr(Cache, "get", get_and_act)

    def test_touch_does_not_bring_back_what_was_deleted(
        self, cache: PoolCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache.set("session", "logged in")
        self.between(cache, monkeypatch, lambda: cache.delete("session"))
        cache.touch("session", 60)
        cache.get("any")  # touch() calls no get() now, so this is when the key is deleted
        assert cache.get("session") is None

    def test_touch_does_not_bring_back_what_was_replaced(
        self, cache: PoolCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache.set("session", "old")
        self.between(cache, monkeypatch, lambda: cache.set("session", "new"))
        cache.touch("session", 60)
        cache.get("any")
        assert cache.get("session") == "new"

    def test_incr_counts_from_what_was_set_meanwhile(self, cache: PoolCache) -> None:
        class Sets(int):
            """A step that sets the number to 100 while it is added for the first time."""

            added = 0

            def __radd__(self, number: int) -> int:
                self.added += 1
                if self.added == 1:
                    cache.set("count", 100)
                return number + 1

        cache.set("count", 1)
        assert cache.incr("count", Sets()) == 101
        assert cache.get("count") == 101


def test_options_that_are_unknown_are_refused(name: str) -> None:
    """MAX_ENTRIES was taken without a word, and did nothing."""
    PoolCache(name, {"OPTIONS": {"size": SIZE}})
    for params in ({"OPTIONS": {"MAX_ENTRIES": 30}}, {"max_entries": 30}, {"OPTIONS": {"sise": SIZE}}):
        with pytest.raises(ImproperlyConfigured, match="has no option"):
            PoolCache(name, params)
    with pytest.raises(ImproperlyConfigured, match="LOCATION"):
        PoolCache("", {})


@pytest.mark.soak
def test_django_s_own_suite(tmp_path: Path, pools: Pools) -> None:
    """The tests that Django's source distribution has for all of its caches, with this backend in place of the one in local memory."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    source = [f"django=={django.__version__}", "--dest", str(tmp_path)]
    if subprocess.run([*command, *source], check=False).returncode:
        pytest.skip("the source distribution of Django cannot be had")
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    tests = next(tmp_path.glob("*/tests"))
    name = pools.name()
    (tests / "cache" / "tests_pool.py").write_text(SUITE.format(name=name, size=SIZE))
    run = [sys.executable, "runtests.py", "cache.tests_pool", "--parallel", "1", "--settings", "test_sqlite"]
    paths = os.pathsep.join([str(next(tmp_path.glob("*/django")).parent), str(ROOT)])
    done = subprocess.run(
        run, cwd=tests, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=600
    )
    print(done.stderr[-4000:])
    assert done.returncode == 0
    assert "Ran 0 tests" not in done.stderr


SUITE = """
from unittest import skip
from django.test import SimpleTestCase, TestCase, override_settings
from .tests import BaseCacheTests, caches_setting_for_tests

@override_settings(CACHES=caches_setting_for_tests(
    BACKEND="bufferpool.integrations.django.PoolCache", LOCATION="{name}", exclude={{"cull", "zero_cull"}}))
class PoolCacheTests(BaseCacheTests, TestCase):
    incr_decr_type_error = TypeError

    def test_cull(self): pass  # values are evicted by their bytes
    def test_zero_cull(self): pass
    def test_cull_delete_when_store_empty(self): pass
"""
