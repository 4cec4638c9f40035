"""A User Mode Linux: a kernel that is a process of the host. Its memory is taken away over its console ``mconsole``.

It runs in the root file system of a release, because its own libraries are newer than the host's may be. The folder
``/disk`` there is the cache of the lab.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from lab.guest import MORTAL, GuestError, processor_time
from lab.images import CACHE, Images, Kernel, root_folder, wheels_folder

MEMORY, LEFT, STEP = 1 << 30, 420 << 20, 16 << 20
_MAGIC, _VERSION, _SIZE = 0xCAFEBABE, 2, 512
WAIT_S = 1800


class UserMode:
    """A running User Mode Linux that performs the check of the balloon."""

    def __init__(self, kernel: Kernel, images: Images) -> None:
        self.kernel, self.release = kernel, ""
        self.place = Path(tempfile.mkdtemp(prefix=f"run-{os.getpid()}-", dir=CACHE))
        inside, root = f"/disk/{self.place.name}", root_folder(kernel)
        linux = [
            f"/disk/{images.kernel.relative_to(CACHE)}", f"mem={MEMORY}", f"ubda={inside}/cow,/disk/{images.root.name}",
            f"ubdbr=/disk/{images.project.name}", "root=/dev/ubda", "rw", f"hostfs={inside}", f"uml_dir={inside}/", "umid=uml",
            "con=null", "con0=null,fd:1", f"PYTHONPATH=/lab:{wheels_folder()}", "panic=-1", "init=/bin/sh", "--", "-c", '"mount /dev/ubdb /lab && exec sh /lab/lab/uml.sh"',
        ]  # fmt: skip
        script = f"""mount --bind {CACHE} {root}/disk && mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev &&
            exec chroot {root} env TMPDIR=/dev/shm HOME={inside} "$@" """
        with open(CACHE / "console-uml.log", "wb") as console:
            self._process = subprocess.Popen(
                [*MORTAL, "unshare", "--mount", "sh", "-c", script, "sh", *linux],
                stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0bufferpool-lab-{os.getpid()}")  # the guest sees the files at other paths
        self._socket.settimeout(30)

    def ask(self, command: str) -> str:
        """Sends a command to the console; returns its answer."""
        data, said, more = command.encode(), b"", 1
        request = struct.pack(f"<III{_SIZE}s", _MAGIC, _VERSION, len(data), data)
        try:
            self._socket.sendto(request, str(self.place / "uml" / "mconsole"))
            while more:
                answer = self._socket.recv(12 + _SIZE)
                error, more, length = struct.unpack_from("<III", answer)
                said += answer[12 : 12 + length].rstrip(b"\0")
                if error:
                    raise GuestError(f"{command}: {said.decode()}")
        except OSError as error:
            raise GuestError(f"the console does not answer: {error}; {self.tail()}") from None
        return said.decode()

    def wait_for(self, text: str, name: str = "said") -> str:
        """Waits until a file that the guest writes has this text; returns the file's text."""
        end = time.monotonic() + WAIT_S
        while True:
            over = time.monotonic() > end or self._process.poll() is not None or (self.place / "code").exists()
            with suppress(FileNotFoundError):
                if text in (said := (self.place / name).read_text()):
                    return said
            if over:
                raise GuestError(f"User Mode Linux does not say {text!r}: {self.tail()}")
            time.sleep(0.2)

    def tail(self) -> str:
        """The end of its console, and of what the program in it printed."""
        files = CACHE / "console-uml.log", self.place / "said"
        return "".join(file.read_text(errors="replace")[-1500:] for file in files if file.exists())

    def memory_of_host(self) -> int:
        """Bytes of the host that the file with the guest's memory takes."""
        for fd in Path(f"/proc/{self._process.pid}/fd").iterdir():
            found = fd.stat()
            if found.st_size >= MEMORY and "/dev/shm/" in os.readlink(fd):
                return found.st_blocks * 512
        raise GuestError("User Mode Linux has no file with its memory")

    def spent(self) -> float:
        """Seconds of processor time that its kernel has used."""
        return processor_time(self._process.pid)

    def close(self) -> None:
        """Ends it, and removes its files."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._socket.close()
        subprocess.run(["rm", "-rf", self.place], check=True)


def unplugged_by_console(guest: UserMode) -> str:
    """Takes memory away in steps, as far as the pool in the guest gives way. The host gets the memory."""
    guest.wait_for("filled")
    guest.release = guest.wait_for("\n", "release").strip()
    before, end = guest.memory_of_host(), time.monotonic() + WAIT_S
    while guest.memory_of_host() > LEFT:  # the console itself does not say how much the guest has
        if time.monotonic() > end:
            raise GuestError(
                f"the guest has {guest.memory_of_host() >> 20} MiB of the host, not {LEFT >> 20}: {guest.tail()}"
            )
        guest.ask(f"config mem=-{STEP}")
        time.sleep(0.3)
    fell = before - guest.memory_of_host()
    (guest.place / "stop").touch()
    code = guest.wait_for("\n", "code").strip()
    found = json.loads(guest.wait_for("}").strip().splitlines()[-1])
    if code != "0" or found["wrong"] or found["check"]:
        raise GuestError(f"pages are wrong: {code} {found}")
    given = found["full"] - found["resident"]
    if given < 50 << 20:
        raise GuestError(f"the pool gave too little: {found}")
    return f"the pool gave {given >> 20} MiB; {fell >> 20} MiB of the guest's memory went to the host"
