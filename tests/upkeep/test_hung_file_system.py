"""A file system whose server does not answer, as one on a network: only the calls that need it wait."""

import numpy as np
import pytest

from tests.conftest import PAGE, fill, stamp
from tests.support.children import Threads
from tests.support.fuse_disk import OPERATIONS, HeldDisk


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_call_that_hangs_in_the_kernel_stops_no_other_thread(pool, data_file, tmp_path, operation):
    """A close that hung (FUSE and NFS ask their server) had the interpreter's lock: opening a file stopped all threads of the
    process, also those that use other spaces. So did the calls that ask for the kind of the file system and the file's number."""
    here = pool.open_file(data_file(64), "r+")
    with HeldDisk(tmp_path, 64 * PAGE) as disk:
        there = pool.open_file(disk.file, "r+")
        fill(there, range(4), version=1)

        def use_it():
            pool.open_file(disk.file, "r")
            return there.read_many(range(8, 24)).sum(), pool.flush(there)

        disk.hold(operation)
        user = Threads()
        user.start(use_it)
        disk.wait_until_held()
        for n in range(64):
            assert np.array_equal(here[n], stamp(n))
        fill(here, range(64), version=1)
        pool.flush(here)
        assert len(pool.spaces()) == 2
        assert pool.check() == []
        assert disk.let_go(), "the calls for the other file waited for this one"
        user.join()
        there.close()
