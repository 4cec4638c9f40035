"""fsspec's own tests of file systems, with the pool before a local file system and before one in memory."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

fsspec = pytest.importorskip("fsspec")

from fsspec.tests import abstract  # noqa: E402


class Fixtures(abstract.AbstractFixtures):  # type: ignore[misc]
    target = ""

    @pytest.fixture
    def fs(self, options: Callable[..., dict[str, Any]]) -> Any:
        more = {"target_options": {"auto_mkdir": True}} if self.target == "file" else {}
        return fsspec.filesystem("bufferpool", target_protocol=self.target, skip_instance_cache=True, **options(**more))


class Local(Fixtures):
    target = "file"

    @pytest.fixture
    def fs_path(self, tmpdir: Any) -> str:
        return str(tmpdir)


class Memory(Fixtures):
    target = "memory"

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def fs_path(self, fs: Any) -> Iterator[str]:
        yield ""
        fs.fs.store.clear()
        fs.fs.pseudo_dirs[:] = [""]


class TestLocalCopy(abstract.AbstractCopyTests, Local):  # type: ignore[misc]
    pass


class TestLocalGet(abstract.AbstractGetTests, Local):  # type: ignore[misc]
    pass


class TestLocalPut(abstract.AbstractPutTests, Local):  # type: ignore[misc]
    pass


class TestLocalPipe(abstract.AbstractPipeTests, Local):  # type: ignore[misc]
    pass


class TestLocalOpen(abstract.AbstractOpenTests, Local):  # type: ignore[misc]
    pass


class TestMemoryCopy(abstract.AbstractCopyTests, Memory):  # type: ignore[misc]
    pass


class TestMemoryGet(abstract.AbstractGetTests, Memory):  # type: ignore[misc]
    pass


class TestMemoryPut(abstract.AbstractPutTests, Memory):  # type: ignore[misc]
    pass


class TestMemoryPipe(abstract.AbstractPipeTests, Memory):  # type: ignore[misc]
    pass


class TestMemoryOpen(abstract.AbstractOpenTests, Memory):  # type: ignore[misc]
    pass
