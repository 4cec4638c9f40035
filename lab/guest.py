"""A guest: a machine that qemu emulates in software, driven over a virtio port; its console is written to a file."""

import json
import os
import re
import shlex
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from lab.images import CACHE, Images, Kernel

BOOT_S = 600.0  # by the guest's clock
COUNTED = ("-accel", "tcg,thread=single", "-icount", "shift=2,sleep=on")
"""Options of qemu: each instruction takes four nanoseconds of the guest's time, about as long as qemu needs for it;
the time of an idle guest is that of the host."""
MORTAL = ("setpriv", "--pdeathsig", "KILL")
"""The first words of a command that must end when this process is killed."""


class GuestError(Exception):
    """The guest does not answer, has ended, or a command that must succeed has failed."""


@dataclass(frozen=True)
class Machine:
    """The parts of a guest."""

    memory: str = "2G"
    cpus: int = 2
    options: tuple[str, ...] = ()
    """Further arguments of qemu."""
    kernel_options: str = ""
    disks: tuple[str, ...] = field(default=())
    """Values of ``-drive``, each a disk: /dev/vdc and so on."""
    counted: bool = True
    """Whether the guest's time is the count of its instructions, so that it does not depend on what else the host does.
    One thread of the host then emulates all processors, in turn. Else each has a thread, and the time is the host's."""


class Clock:
    """The seconds that a process has had a processor, or has wanted none. The time in which its thread waited for a processor
    does not count, so that a limit by this clock is the same on a busy host as on a quiet one."""

    def __init__(self, pid: int) -> None:
        self.pid, self.seconds = pid, 0.0
        self._looked, self._waited = time.monotonic(), waits_for_processors(pid)

    def now(self) -> float:
        """The seconds since it began."""
        looked, waited = time.monotonic(), waits_for_processors(self.pid)
        longest = max((wait - self._waited.get(thread, 0.0) for thread, wait in waited.items()), default=0.0)
        self.seconds += (
            looked - self._looked - longest
        )  # a wait is counted when it ends, and may be longer than since the last look
        self._looked, self._waited = looked, waited
        return self.seconds

    def sleep(self, seconds: float) -> None:
        """Sleeps until so many seconds of this clock have passed."""
        end = self.now() + seconds
        while self.now() < end:
            time.sleep(0.1)


def waits_for_processors(pid: int) -> dict[str, float]:
    """The seconds that each thread of a process was ready to run and waited for a processor (``schedstat`` of proc(5))."""
    found = {}
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):  # the thread has ended
            found[thread.parent.name] = int(thread.read_text().split()[1]) / 1e9
    return found


class Guest:
    """A guest. It runs if it has a machine. The end of the ``with`` block kills it without a shutdown."""

    def __init__(self, kernel: Kernel, images: Images, machine: Machine | None) -> None:
        self.kernel, self.images, self.release = kernel, images, ""
        self.place = Path(tempfile.mkdtemp(prefix=f"run-{os.getpid()}-", dir=CACHE))
        self.console = self.place / "console"
        self._process: subprocess.Popen[bytes] | None = None
        self._connections: list[socket.socket] = []
        self._greeted: socket.socket | None = None
        if machine is not None:
            self.boot(machine)

    def boot(self, machine: Machine) -> None:
        """Starts the guest. If it runs already, its power is cut off first."""
        self.cut()
        self.machine, self._waiting = machine, b""
        self._process = subprocess.Popen(
            self._command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self.clock = Clock(self._process.pid)
        try:
            self._port, self._monitor = self._connect("port"), self._connect("monitor")
            self.release = self._receive(BOOT_S)["ready"]
        except BaseException:
            self.close()
            raise

    def cut(self) -> None:
        """Ends qemu at once, as a power failure does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        while self._connections:
            self._connections.pop().close()

    def cut_later(self, seconds: float) -> threading.Thread:
        """Starts a thread that ends qemu after so many seconds of the guest's clock."""
        assert self._process is not None
        process, clock = self._process, Clock(self._process.pid)

        def cut() -> None:
            clock.sleep(seconds)
            process.kill()

        waiting = threading.Thread(target=cut)
        waiting.start()
        return waiting

    def _command(self) -> list[str]:
        machine, images = self.machine, self.images
        cpus = min(machine.cpus, self.kernel.most_counted) if machine.counted else machine.cpus
        drives = (f"file={images.root},snapshot=on", f"file={images.project},snapshot=on", *machine.disks)
        command = [
            *MORTAL, *self.kernel.qemu, *(COUNTED if machine.counted else ("-accel", "tcg,thread=multi")),
            "-smp", str(cpus), "-m", machine.memory, "-display", "none", "-no-reboot", "-nodefaults",
            "-kernel", str(images.kernel), "-initrd", str(images.initrd), "-serial", f"file:{self.console}",
            "-append", f"{self.kernel.options} panic=-1 quiet psi=1 rdinit=/init {machine.kernel_options}",
            "-device", "virtio-serial-pci", "-chardev", f"socket,id=port,path={self.place}/port,server=on,wait=off",
            "-device", "virtserialport,chardev=port,name=lab", "-device", "virtio-rng-pci",
            "-qmp", f"unix:{self.place}/monitor,server=on,wait=off",
        ]  # fmt: skip
        for drive in drives:
            command += ["-drive", f"{drive},format=raw,if=none,id=d{len(command)}"]
            command += ["-device", f"virtio-blk-pci,drive=d{len(command) - 2}"]
        return [*command, *machine.options]

    def _connect(self, name: str) -> socket.socket:
        end = self.clock.now() + 60
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self.place / name))
                self._connections.append(connection)
                return connection
            except OSError:
                connection.close()
                if self.clock.now() > end or self._process is None or self._process.poll() is not None:
                    raise GuestError(f"qemu does not start: {self._errors()}") from None
                time.sleep(0.05)

    def _errors(self) -> str:
        if self._process is None or self._process.poll() is None or self._process.stderr is None:
            return "no message"
        return self._process.stderr.read().decode(errors="replace")

    def _receive(self, limit: float) -> dict[str, Any]:
        """The guest's next message, within a limit by its clock."""
        end = self.clock.now() + limit
        self._port.settimeout(1.0)
        while b"\n" not in self._waiting:
            try:
                more = self._port.recv(65536)
            except TimeoutError:
                if self.clock.now() < end:
                    continue
                console = self.console_tail()
                raise GuestError(f"no answer in {limit:.0f} s; the end of the console: {console}") from None
            except OSError:
                more = b""
            if not more:
                raise GuestError(f"the guest ended; the end of the console: {self.console_tail()}")
            self._waiting += more
        line, _, self._waiting = self._waiting.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def console_tail(self) -> str:
        """The last lines of the guest's console."""
        return self.console.read_text(errors="replace")[-1500:] if self.console.exists() else ""

    # ---- what the checks use -----------------------------------------------------------

    def run(self, command: str, timeout: float = 1800, hear: Callable[[str], None] | None = None) -> tuple[int, str]:
        """Runs a command of the shell in /lab; returns its exit code and what it printed. ``hear`` gets each line as it comes.

        The time limit is by the guest's clock. Raises GuestError after it; the guest is of no use then."""
        self._port.sendall(json.dumps({"command": command}).encode() + b"\n")
        said, heard, end = "", 0, self.clock.now() + timeout
        while True:
            answer = self._receive(end - self.clock.now())
            if "rc" in answer:
                return answer["rc"], said
            said += answer["out"]
            if hear is not None and "\n" in said[heard:]:
                *lines, rest = said[heard:].split("\n")
                heard = len(said) - len(rest)
                for line in lines:
                    hear(line)

    def must(self, command: str, timeout: float = 1800) -> str:
        """Runs a command that has to succeed; returns what it printed."""
        code, said = self.run(command, timeout)
        if code:
            kernel = self.run("dmesg | tail -n 5")[1] if code == -9 else ""  # killed: for lack of memory?
            raise GuestError(f"{command!r} ended with {code}:\n{said[-3000:]}{kernel}")
        return said

    def inside(self, program: str, *arguments: str, timeout: float = 3600) -> Any:
        """Runs a program of lab/inside that has to succeed; returns what its last line says."""
        said = self.must(f"{self.environment} python3 -m lab.inside.{program} {shlex.join(arguments)}", timeout)
        return json.loads(said.strip().splitlines()[-1])

    @property
    def environment(self) -> str:
        """The variables with which the guest's Python finds the package and the wheels."""
        from lab.images import wheels_folder

        return f"PYTHONPATH=/lab:/lab/examples:{wheels_folder()}"

    def monitor(self, command: str, **arguments: Any) -> Any:
        """Sends a command of QMP to qemu; returns its answer."""
        lines = self._monitor.makefile("rwb")
        if self._greeted is not self._monitor:
            self._greeted = self._monitor
            lines.readline()
            lines.write(b'{"execute": "qmp_capabilities"}\n')
            lines.flush()
            lines.readline()
        lines.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        lines.flush()
        while True:
            answer = json.loads(lines.readline())
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise GuestError(f"{command}: {answer['error']}")

    def memory_of_host(self) -> int:
        """Bytes of the host that the process of qemu has in memory."""
        assert self._process is not None
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) * 1024

    def spent(self) -> float:
        """Seconds of processor time that the running qemu has used."""
        return processor_time(self._process.pid) if self._process is not None else 0.0

    def close(self) -> None:
        """Ends the guest, and removes its files; the last console of each kernel stays in the cache."""
        self.cut()
        if self.console.exists():
            self.console.replace(CACHE / f"console-{self.kernel.name}.log")
        for path in self.place.iterdir():
            path.unlink()
        self.place.rmdir()

    def __enter__(self) -> "Guest":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def processor_time(pid: int) -> float:
    """Seconds of processor time that a process has used; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
