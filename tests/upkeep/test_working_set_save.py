"""The working set, saved: order, and what is left of savers that were killed, that met, or that found no room."""

import fcntl
import os
import shutil
import signal
import stat
import threading
from pathlib import Path

import pytest

import bufferpool as bp
from bufferpool.errors import WorkingSetError
from bufferpool.upkeep import working_set
from bufferpool.upkeep.steward import Settings
from tests.conftest import PAGE, WAIT, touch, wait_until
from tests.support.children import on_small_tmpfs, run_python
from tests.support.rights import needs_another_user


def test_what_is_resident_is_saved_hottest_first_in_a_few_bytes(pool, data_file, tmp_path):
    one, two = pool.open_file(data_file(40), name="one"), pool.open_file(data_file(40), name="two")
    work = pool.open_scratch("work", 4)
    with work.write(0) as page:
        page[:] = 1
    touch(one, range(20))
    touch(two, range(10, 30))
    path = tmp_path / "set"
    assert pool.save_working_set(path) == 40  # without the scratch page
    saved = working_set.read_working_set(path)
    assert [s["name"] for s in saved.spaces] == ["one", "two"]
    assert saved.page_size == PAGE
    found = {(int(s), int(p)) for s, p in zip(saved.space, saved.page, strict=True)}
    assert found == {(0, n) for n in range(20)} | {(1, n) for n in range(10, 30)}
    frames = pool.frames()
    hot = {(int(f["space"]) - one.index, int(f["page_no"])) for f in frames[frames["hot"]] if f["space"] != work.index}
    first = {(int(s), int(p)) for s, p in zip(saved.space[: saved.hot], saved.page[: saved.hot], strict=True)}
    assert first == hot
    assert path.stat().st_size < 40 * 5 + 2000
    assert os.listdir(tmp_path).count("set") == 1


def test_an_empty_pool_and_a_read_only_client(pool, tmp_path, data_file):
    assert pool.save_working_set(tmp_path / "set") == 0
    work = pool.load_working_set(tmp_path / "set")
    assert work.wait(WAIT)
    assert (work.total, work.done, work.loaded) == (0, 0, 0)
    touch(pool.open_file(data_file(10)), range(10))
    with bp.Pool.attach(pool.name, mode="r") as other:
        assert other.save_working_set(tmp_path / "set") == 10


_SAVE = """
import os, signal, sys, bufferpool as bp
pool = bp.Pool.attach(sys.argv[1])
when = sys.argv[3]
real = getattr(os, when)
def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, when, die)
pool.save_working_set(sys.argv[2])
"""


@pytest.mark.parametrize("when", ["fsync", "replace"])
def test_killed_while_saving_the_file_is_the_old_one_and_the_next_save_clears_up(pool, data_file, tmp_path, when):
    table = pool.open_file(data_file(40))
    touch(table, range(10))
    folder = tmp_path / "sets"
    folder.mkdir()
    path = folder / "set"
    kept = {"set", "set.part", "set.old.part", "other.0123abcd.part"}  # of others: no draft has such a name
    for name in kept - {"set"}:
        (folder / name).write_bytes(b"of somebody else")
    pool.save_working_set(path)
    touch(table, range(10, 40))
    for _ in range(3):
        assert run_python(_SAVE, pool.name, str(path), when).returncode == -signal.SIGKILL
        assert len(working_set.read_working_set(path).page) == 10
        assert len(list(folder.glob("set.*.part"))) == 2  # one draft: each saver removes the one before
    assert pool.save_working_set(path) == 40
    assert set(os.listdir(folder)) == kept
    assert len(working_set.read_working_set(path).page) == 40


def test_a_draft_that_is_being_written_stays(pool, data_file, tmp_path, monkeypatch, threads):
    """Two savers at once, one of them held up in its fsync: neither disturbs the other."""
    touch(pool.open_file(data_file(40)), range(40))
    path, real, held, go = tmp_path / "set", os.fsync, threading.Event(), threading.Event()

    def fsync(fd):
        if threading.current_thread() is not threading.main_thread():
            held.set()
            assert go.wait(WAIT)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    threads.start(pool.save_working_set, path)
    assert held.wait(WAIT)
    assert pool.save_working_set(path) == 40
    assert len(list(tmp_path.glob("set.*.part"))) == 1
    path.unlink()
    go.set()
    threads.join()
    assert len(working_set.read_working_set(path).page) == 40
    assert not list(tmp_path.glob("set.*.part"))


def test_a_draft_that_is_taken_for_a_leftover_before_it_is_locked_is_made_anew(pool, tmp_path, monkeypatch):
    path, real, names = tmp_path / "set", fcntl.flock, []

    def flock(file, how):
        if not isinstance(file, int) and len(names) < 2:
            names.append(file.name)
            working_set._clear(str(path))
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert pool.save_working_set(path) == 0
    assert len(set(names)) == 2
    assert not [name for name in names if os.path.exists(name)]
    assert len(working_set.read_working_set(path).page) == 0
    monkeypatch.setattr(fcntl, "flock", lambda file, how: os.unlink(file.name))  # and not for ever
    with pytest.raises(OSError, match="draft"):
        pool.save_working_set(path)


def test_savers_of_many_processes_leave_one_whole_file(pool, data_file, tmp_path, child):
    touch(pool.open_file(data_file(40)), range(40))
    path = tmp_path / "set"
    savers = [child(_save_often, pool, str(path), context="fork") for _ in range(3)]
    killed = child(_save_often, pool, str(path), 10**6, context="fork")
    wait_until(path.exists, "somebody saves")
    for _ in range(50):
        assert len(working_set.read_working_set(path).page) == 40
    killed.kill()
    assert [saver.result() for saver in savers] == [40] * 3
    pool.save_working_set(path)
    assert not list(tmp_path.glob("set.*.part"))


def _save_often(pool, path, times=40):
    return min(pool.save_working_set(path) for _ in range(times))


_FULL = """
import errno, os, sys, bufferpool as bp
folder = sys.argv[1]
pool = bp.Pool.create(f"bptest-full-{os.getpid()}", 600 * 4096, page_size=4096)
try:
    space = pool.open_derived("d", 10**6, lambda n, out: None)
    rng = __import__("random").Random(1)
    for _ in range(500): space[rng.randrange(10**6)]
    path = f"{folder}/set"
    good = pool.save_working_set(path)
    room = os.statvfs(folder)
    with open(f"{folder}/set.0123abcd.part", "wb") as left:  # of a saver that was killed: it fills the disk
        left.write(bytes(room.f_bavail * room.f_frsize))
    assert os.statvfs(folder).f_bavail == 0
    again = pool.save_working_set(path)
    print(good, again, os.listdir(folder))
    room = os.statvfs(folder)
    with open(f"{folder}/full", "wb") as full:
        full.write(bytes(room.f_bavail * room.f_frsize))
    try:
        pool.save_working_set(path)
    except OSError as error:
        print(errno.errorcode[error.errno], sorted(os.listdir(folder)), len(bp.upkeep.working_set.read_working_set(path).page))
finally:
    pool.unlink()
"""


def test_a_full_disk_keeps_the_old_file_and_leftovers_do_not_fill_it(tmp_path):
    lines = on_small_tmpfs(_FULL, tmp_path, "64k").splitlines()
    good, again, listed = lines[0].split(maxsplit=2)
    assert good == again
    assert listed == "['set']"
    assert lines[1] == f"ENOSPC ['full', 'set'] {good}"


@needs_another_user
def test_a_folder_that_may_not_be_listed_or_written(pool, data_file, tmp_path):
    """Runs as a user other than root, because root is permitted everything."""
    touch(pool.open_file(data_file(10)), range(10))
    code = """
import os, sys, bufferpool as bp
pool = bp.Pool.attach(sys.argv[1])
folder = sys.argv[2]
pool.save_working_set(f"{folder}/set")  # what it imports may be root's alone
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
for mode in (0o300, 0o500):
    os.chmod(folder, mode)
    try:
        print(pool.save_working_set(f"{folder}/set"))
    except PermissionError as error:
        print(error.filename.startswith(f"{folder}/set."))
os.chmod(folder, 0o700)
print(os.listdir(folder), flush=True)
os._exit(0)  # this user may not write what coverage writes at the end
"""
    folder = f"/tmp/{pool.name}"
    os.mkdir(folder, 0o700)
    os.chown(folder, 65534, 65534)
    try:
        done = run_python(code, pool.name, folder)
    finally:
        shutil.rmtree(folder)
    assert (done.stdout.splitlines(), done.stderr) == (["10", "True", "['set']"], "")


def test_a_place_that_cannot_be_written_is_an_oserror_and_leaves_nothing(pool, tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        pool.save_working_set(tmp_path / "nowhere" / "set")
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        pool.save_working_set(tmp_path / "taken")
    assert os.listdir(tmp_path) == ["taken"]


@pytest.mark.parametrize("what", ["device", "pipe", "data", "segment"])
def test_what_is_no_working_set_is_not_replaced(pool, tmp_path, what):
    """The file is renamed over the old one: ``save_working_set("/dev/null")`` replaced the device by a file, and a wrong path a file of data."""
    path = tmp_path / what
    if what == "device":
        if os.geteuid():
            pytest.skip("needs root to make a device")
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "data":
        path.write_bytes(b"precious")
    else:
        path = Path(pool.path)
    before = path.lstat()
    with pytest.raises(WorkingSetError, match="is no working set"):
        pool.save_working_set(path)
    with pytest.raises(WorkingSetError, match="is no working set"):
        pool.load_working_set(path)  # a pipe or a device may have no end
    assert os.path.samestat(path.lstat(), before)
    assert what not in ("device", "pipe", "data") or os.listdir(tmp_path) == [what]
    assert pool.check() == []


def test_a_link_to_a_working_set_stays_one(pool, tmp_path):
    """The link itself was replaced by a file, and the file that it leads to was out of date from then on."""
    (tmp_path / "shelf").mkdir()
    (tmp_path / "set").symlink_to(tmp_path / "shelf" / "set")
    for _ in range(2):
        pool.save_working_set(tmp_path / "set")
        assert (tmp_path / "set").is_symlink()
        assert os.listdir(tmp_path / "shelf") == ["set"]
    assert pool.load_working_set(tmp_path / "set").wait(WAIT)
    assert pool.check() == []


@pytest.mark.parametrize("wrong", [{"working_set": 3}, {"rules": 3}, {"source": object()}])
def test_wrong_settings_are_refused_at_once(wrong):
    """Only the steward's thread noticed wrong arguments, rounds later."""
    with pytest.raises(TypeError):
        Settings(**wrong)


def test_a_hook_that_is_none_is_refused_at_once(pool):
    """Only the next flush, in any thread, noticed it."""
    with pytest.raises(TypeError, match="log_sync must be a function"):
        pool.log_sync = 3
    pool.log_sync = None
    assert pool.check() == []
