"""A fork that reaps, in a process whose other threads need the interpreter's lock to continue.

Where no client slot is free for the child, the fork reaps the dead, and it has the interpreter's lock while it does. It waited for
an operation of the process to end, which was a loader's that needs that lock; or for a thread that was reaping, and that
asked for that lock in order to run the handlers of signals.
"""

import pytest

import bufferpool as bp
from tests.support.children import run_python

_START = """
import faulthandler, os, subprocess, sys, threading, time
import bufferpool as bp
from bufferpool import _core
faulthandler.dump_traceback_later(300, exit=True)
name = sys.argv[1]
pool = bp.Pool.attach(name)

def other(code):  # another client, up to the end of its input
    code = f"import os, sys, time; import bufferpool as bp; pool = bp.Pool.attach({name!r}); {code}"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\\n"
    return process

dead = other("s = pool.open_scratch('own', 4, lifetime='process'); w = s.write(0); w.__enter__(); w.__exit__(None, None, None); "
             "print('ready', flush=True); sys.stdin.read(); os._exit(0)")

def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0 if pool.stats() else 1)  # it has a slot, that of the dead
    assert os.waitpid(pid, 0)[1] == 0
"""

_OPERATIONS = """
begun, go = threading.Semaphore(0), threading.Event()
def loader(n, out):
    begun.release()
    go.wait()
    out[:] = n
space = pool.open_derived("made", 64, loader)
threads = [threading.Thread(target=space.get, args=(n,)) for n in range(64)]
for thread in threads:
    thread.start()
for _ in threads:
    begun.acquire()
dead.communicate()
fork()
go.set()
for thread in threads:
    thread.join()
"""

_SIGNALS = """
word = _core.fields()["Header.growth.word"][0]
owner = other("print('ready', flush=True); sys.stdin.read()")
me, fd = [c.client for c in pool.clients() if c.pid == owner.pid][0], os.open(pool.path, os.O_RDWR)
os.pwrite(fd, me.to_bytes(4, "little"), word)  # it has the growth lock, and lives
dead.communicate()
helper = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(3); fd = os.open({pool.path!r}, os.O_RDWR); os.pwrite(fd, bytes(4), {word})"])
def later():
    time.sleep(1)  # the main thread reaps by now, and waits for the growth lock in order to remove the space of the dead
    fork()
thread = threading.Thread(target=later)
thread.start()
pool.reap()
thread.join()
helper.wait()
owner.communicate()
"""


@pytest.mark.parametrize("code", [_OPERATIONS, _SIGNALS], ids=["operations", "signals"])
def test_a_fork_that_reaps_waits_for_nobody_who_needs_the_interpreter(pool_name, code):
    clients = 2 if code is _OPERATIONS else 3
    with bp.Pool.create(pool_name, "1MiB", page_size=4096, max_clients=clients + 1) as pool:
        done = run_python(_START + code + "\nos._exit(0)", pool_name)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
        pool.reap()
        assert pool.check() == []
