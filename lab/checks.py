"""The checks of the lab, which run in a guest. A check returns the text for its cell of the table, or raises an error."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import pictures
from lab.guest import Guest, GuestError, Machine
from lab.images import CACHE
from lab.power import power
from lab.uml import unplugged_by_console

Check = Callable[[Any], str]
"""Of a Guest, or of a UserMode."""
PATIENCE = 20
"""The factor by which a wait of a test may take longer in a guest, whose processor is emulated in software."""


@dataclass(frozen=True)
class Group:
    """Checks that one guest performs, and the machine that they need."""

    checks: dict[str, Check]
    machine: Machine | None = field(default_factory=Machine)
    """None if the check boots guests itself."""
    kernels: tuple[str, ...] = ("5.10", "6.1", "6.12")
    """The kernels that it runs on."""


def say(fact: object, wrong: str) -> None:
    """Raises GuestError with this text unless the fact holds."""
    if not fact:
        raise GuestError(wrong)


# ---- the core --------------------------------------------------------------------------


def doctor(guest: Guest) -> str:
    """The doctor finds no failure, and names what the kernel lacks."""
    _, said = guest.run(f"{guest.environment} python3 -m bufferpool doctor --json")
    findings = json.loads(said)
    failed = [f"{one['what']}: {one['text']}" for one in findings if one["level"] == "FAIL"]
    say(not failed, "; ".join(failed))
    kernel = next(one["text"] for one in findings if one["what"] == "kernel")
    say(guest.release in kernel, f"the doctor names another kernel: {kernel}")
    lacks = [one["what"] for one in findings if one["level"] == "WARN"]
    return f"warns of {', '.join(lacks)}" if lacks else "nothing amiss"


def tests(*files: str) -> Check:
    """Runs the tests of some files that are marked as dependent on the kernel. The file tests-….log of the cache has the output,
    with the slowest tests."""

    def check(guest: Guest) -> str:
        command = f"{guest.environment} BP_PATIENCE={PATIENCE} python3 -m pytest -m kernel -p no:cacheprovider"
        code, said = guest.run(f"{command} --tb=short --durations=8 {' '.join(files)}", timeout=3600)
        (CACHE / f"tests-{guest.kernel.name}-{Path(files[0]).stem}.log").write_text(said)
        lines = said.strip().splitlines() or ["no output"]
        say(code == 0, f"{lines[-1]}\n" + "\n".join(lines[-40:]))
        return re.sub(r"(, \d+ deselected)? in .*", "", lines[-1])

    return check


def storm(kills: int) -> Check:
    """Runs the storm of tests/support/storm.py until it has killed so many processes. It ends with ``Pool.check``."""

    def check(guest: Guest) -> str:
        command = f"{guest.environment} BP_PATIENCE={PATIENCE} python3 tests/support/storm.py --kills {kills}"
        code, said = guest.run(command, timeout=3600)
        say("{" in said, f"the storm ended with {code}: {said[-2000:]}")
        report = json.loads(said[said.index("{") :])
        say(code == 0 and not report["findings"], f"the storm ended with {code}: {report['findings']}")
        say(report["kills"] >= kills, f"too few were killed: {report}")
        return (
            f"{report['kills']} kills, {report['operations']} operations, {report['verified']} pages verified: none lost;"
            f" longest stall {report['longest_stall_s']:.1f} s"
        )

    return check


def races(guest: Guest) -> str:
    """Runs the races of tests/native: threads act as clients and die, and every page is compared word by word."""
    code, said = guest.run("./races 30 1")
    say(code == 0 and "deaths" in said, f"it ended with {code}: {said[-1000:]}")
    return said.strip()


def features(guest: Guest) -> str:
    """The doctor names what the kernel lacks, and many pages of a file are loaded and flushed correctly without it."""
    found = guest.inside("features")
    say(found["named"], f"the doctor says something else: {found}")
    say(not found["wrong"], f"pages of a file went wrong: {found}")
    lacks = [name for name in ("io_uring", "RWF_DONTCACHE", "PSI trigger") if not found[name]]
    return f"without {', '.join(lacks)}: the fallback is right, the doctor names it" if lacks else "has all"


# ---- cgroups of version 2 ----------------------------------------------------------------


def group_limits(guest: Guest) -> str:
    """The limits of the parent, memory.max and memory.high, count for a nested group."""
    found = guest.inside("groups", "limits")
    for kind, size in (("max", 300 << 20), ("high", 200 << 20)):
        code, seen = found[kind]
        say(code == 0 and seen["limit"] == size == seen["room"][0], f"the limit by memory.{kind} is not seen: {seen}")
        say(seen["most"] <= size // 2, f"capacity='auto' takes too much of the group: {seen}")
        say(seen["psi"].endswith("inner/memory.pressure"), f"the pressure is another group's: {seen['psi']}")
    say(found["none"] == [0, {"limit": None}], f"a group without a limit: {found['none']}")
    return "memory.max and memory.high of the parent"


def group_kill(guest: Guest) -> str:
    """At memory.max the kernel kills the client that takes more memory; the other clients lose nothing."""
    found = guest.inside("groups", "killed")
    say(found["code"] == -9 and found["oom_kills"], f"nobody was killed: {found}")
    say(found["others_unharmed"] and not found["check"] and found["clients"] == 1, f"others were harmed: {found}")
    return "one client killed, the others unharmed"


def group_gives_way(guest: Guest) -> str:
    """Near memory.max the steward lowers the budget, and no process is killed."""
    found = guest.inside("groups", "gives_way")
    say(found["code"] == 0 and not found["wrong"] and not found["check"], f"the readers failed: {found}")
    say(found["events"]["oom_kill"] == 0, f"the kernel killed: {found}")
    say(found["budget"] < found["limit"], f"the budget is above the limit: {found}")
    return f"at most {found['most_used'] >> 20} of {found['limit'] >> 20} MiB used, nobody killed"


def group_high(guest: Guest) -> str:
    """Near memory.high the steward lowers the budget; otherwise the kernel would slow the clients down for ever."""
    found = guest.inside("groups", "high")
    say(found["code"] == 0 and not found["wrong"] and not found["check"], f"the readers failed: {found}")
    say(found["budget"] < found["limit"], f"the budget is above memory.high: {found}")
    say(found["late_high"] <= found["events"]["high"] // 2, f"the kernel slows the clients down for ever: {found}")
    return (
        f"at most {found['most_used'] >> 20} of {found['limit'] >> 20} MiB used, passed {found['events']['high']} times"
    )


def group_pressure(guest: Guest) -> str:
    """The steward sees the stalls of its own group, woken by a trigger where the kernel has one for groups."""
    found = guest.inside("groups", "pressure")
    say(found["code"] == 0 and found["file"].endswith("lab-pressure/memory.pressure"), f"not the group's file: {found}")
    say(found["woken"] or not found["trigger"], f"the trigger did not wake: {found}")
    return (
        "the group's trigger wakes the steward"
        if found["trigger"]
        else f"no trigger; read in each round: {found['some']} %"
    )


def group_exporter(guest: Guest) -> str:
    """An exporter in another group reports its own group's limit, and the pools of the machine."""
    found = guest.inside("groups", "exporter")
    (code, scraped), held = found["scraped"], found["held"]
    say(code == 0 and held == [0, []], f"the scrape failed: {found}")
    say(scraped["bufferpool_cgroup_limit_bytes"] == found["exporters_limit"], f"not the exporter's limit: {scraped}")
    say(len(scraped) > 1, f"the pool is not in the scrape: {scraped}")
    return "its own limit, and all pools"


def elastic(guest: Guest) -> str:
    """Runs the workload elastic.py in a cgroup: the pool follows the load, and gives way to a neighbour in its group."""
    guest.must("echo +memory > /sys/fs/cgroup/cgroup.subtree_control")
    code, said = guest.run(f"{guest.environment} python3 -m lab.inside.elastic", timeout=3600)
    lines = said.strip().splitlines()
    told = [line for line in lines if line and not line.startswith('{"samples"')]
    say(code == 0 and "a memory cgroup (version 2)" in said, "\n".join(["; ".join(told[-1:]) or "no output", *told]))
    if guest.kernel.name == "6.1":
        pictures.elastic(json.loads(next(line for line in lines if line.startswith('{"samples"'))))
    return lines[-1]


# ---- swap --------------------------------------------------------------------------------


OWN_PAGES = 64
"""The most pages of 4 KiB that a step may read back: those with the pool's own records. A step frees 1024 pages or more."""


def swap(kind: str) -> Check:
    """Pages that were swapped out are dropped without being read back, and the swap in use falls by exactly their size."""

    def check(guest: Guest) -> str:
        found = guest.inside("swap", kind)
        want = "OK" if kind == "noswap" and not found.get("refused") else "WARN"
        say(found["doctor"] == want, f"the doctor on swap: {found['doctor']}")
        if found.get("refused"):
            return "this kernel has no noswap (Linux 6.4 has it); the doctor warns of swap"
        say(not found["wrong"] and not found["check"], f"pages are wrong: {found}")
        if kind == "noswap":
            say(found["swapped_mib"] < 1, f"pages were swapped out: {found}")
            return f"{max(0.0, found['swapped_mib']):.1f} MiB swapped out"
        say(found["swapped_mib"] > 30, f"too little was swapped out: {found}")
        say(found["dropped_mib"] == found["drop"]["fell_mib"] == 24, f"not all was dropped: {found}")
        say(found["disconnect"]["fell_mib"] == 8, f"not all pages of the client are gone: {found}")
        say(found["trimmed_mib"] == found["trim"]["fell_mib"] == 4, f"not all was trimmed: {found}")
        read = [found[step]["read_back"] for step in ("drop", "disconnect", "trim")]
        say(max(read) <= OWN_PAGES and found["read_back_by_unlink"] == 0, f"pages were read back: {found}")
        if guest.kernel.name == "6.1" and kind == "zram":
            pictures.swap(found["steps"])
        # Before Linux 6.14 the kernel keeps up to 64 slots of swap for each processor, free or about to be.
        left = found["left_in_swap_bytes"]
        say(left <= found["slot_caches_bytes"], f"swap is not back: {found}")
        return f"{found['swapped_mib']:.0f} MiB out; 36 MiB given back, {sum(read) << 2} KiB of the pool's own records read back; {max(0, left) >> 10} KiB left in the kernel's slot caches"

    return check


# ---- memory that the host takes back, and nodes --------------------------------------------


def balloon(guest: Guest) -> str:
    """A virtio balloon takes the guest's memory: the pool gives way, and the host gets the memory."""
    host: dict[str, int] = {}

    def hear(line: str) -> None:
        if line.startswith("filled"):
            host["before"] = guest.memory_of_host()
            for size in range(976, 399, -64):  # steps of about the steward's headroom: the pool gives way between them
                guest.monitor("balloon", value=size << 20)
                end = guest.clock.now() + 60
                while guest.monitor("query-balloon")["actual"] > size << 20 and guest.clock.now() < end:
                    guest.clock.sleep(0.2)
                guest.clock.sleep(4)
        if line.startswith("given"):
            host["after"] = guest.memory_of_host()

    command = f"{guest.environment} python3 -u -m lab.inside.balloon"
    code, said = guest.run(command, 1200, hear)
    say(code == 0, f"the pool failed: {said[-2000:]}")
    found = json.loads(said.strip().splitlines()[-1])
    say(not found["wrong"] and not found["check"], f"pages are wrong: {found}")
    given, fell = found["full"] - found["resident"], host["before"] - host["after"]
    say(given > 100 << 20, f"the pool gave too little: {found}")
    say(fell > 150 << 20, f"the host got too little: {host}")
    return f"the pool gave {given >> 20} MiB; the guest's memory fell by {fell >> 20} MiB on the host"


def unplugged(guest: Guest) -> str:
    """A DIMM is taken out of use block by block while its pages are in use, and is removed: the host gets its memory."""
    found = guest.inside("unplug")
    say(found["code"] == 0 and not found["wrong"] and not found["check"], f"blocks or pages are wrong: {found}")
    say(found["blocks"] == 4 and set(found["states"]) == {"offline"}, f"blocks are in use: {found}")
    before = guest.memory_of_host()
    guest.monitor("device_del", id="dimm")
    end = guest.clock.now() + 120
    while guest.monitor("query-memory-devices"):
        say(guest.clock.now() < end, "the guest does not let the DIMM go")
        guest.clock.sleep(0.2)
    guest.monitor("object-del", id="plugged")
    given, fell = found["full"] - found["resident"], 0
    say(given > 60 << 20, f"the pool gave too little: {found}")
    while fell < 400 << 20:  # qemu unmaps the memory a moment later
        say(guest.clock.now() < end, f"the host got too little: {fell}")
        guest.clock.sleep(0.2)
        fell = before - guest.memory_of_host()
    return (
        f"4 blocks of 128 MiB offline in {sum(found['seconds']):.0f} s, the pool gave {given >> 20} MiB;"
        f" the DIMM pulled, the guest's memory fell by {fell >> 20} MiB on the host"
    )


def nodes(guest: Guest) -> str:
    """The memory of a page is on the NUMA node of the process that writes the page first."""
    found = guest.inside("nodes")
    say(found["codes"] == [0, 0] and not found["check"] and found["nodes"] == 2, f"it failed: {found}")
    kept = [places.get(f"N{node}", 0) / max(1, sum(places.values())) for node, places in enumerate(found["places"])]
    say(min(kept) > 0.8, f"pages lie on other nodes: {found}")
    say(min(found["spread"]) > 0.4 * sum(found["spread"]), f"mpol=interleave does not spread the pages: {found}")
    return "pages lie on the node that writes them first; on both in turn with mpol=interleave"


# ---- containers --------------------------------------------------------------------------


def container(kind: str) -> Check:
    """A container of podman with its /dev/shm of 64 MiB and its seccomp profile; "user": without root."""

    def check(guest: Guest) -> str:
        ran = guest.inside("containers", kind)
        found = ran["facts"]
        say(ran["code"] == 0 and found, f"the container failed: {ran}")
        say(found["uid"] == (1000 if kind == "user" else 0) and not found["failed"], f"the doctor: {found}")
        say(found["shm"][0] == "WARN" and "--shm-size" in found["shm"][1], f"the doctor on /dev/shm: {found['shm']}")
        say(
            "SharedMemoryFull" in found["refused"] and "--shm-size" in found["refused"],
            f"the error: {found['refused']}",
        )
        say(found["wrong"] == [0, []], f"pages are wrong: {found['wrong']}")
        return (
            f"SharedMemoryFull at {found['written'] >> 4} MiB; io_uring {'granted' if found['io_uring'] else 'refused'}"
        )

    return check


def shared_container(guest: Guest) -> str:
    """Containers with --ipc=container:… share a pool across pid namespaces and users; one is killed."""
    found = guest.inside("containers", "shared")
    server = found["server"]
    say(server["code"] == 0 and len(found.get("clients", [])) == 2, f"the containers failed: {found}")
    say([client["code"] for client in found["clients"]] == [0, 137], f"the clients failed: {found['clients']}")
    say(server["facts"] == {"found": [10, 20], "clients": 1, "check": []}, f"the pool is wrong: {server}")
    return "two clients of other containers, one killed: its slot is free, its page there"


SUITE: dict[str, Check] = {
    "segment": tests("tests/client/test_segment.py"),
    "pins": tests("tests/core/test_pins.py"),
    "memory": tests("tests/core/test_memory.py"),
    "write": tests("tests/core/test_write.py"),
    "fork": tests("tests/client/test_fork.py"),
    "full tmpfs": tests("tests/upkeep/test_full.py"),
    "limits": tests("tests/client/test_limits.py", "tests/machine/test_pressure.py"),
    "files": tests("tests/stores/test_cache.py", "tests/core/test_load_many.py"),
}
PARALLEL = Machine(counted=False)
"""For checks that look for races: the processors run at the same time, as far as the host has processors."""
CORE = Group({"doctor": doctor, "features": features, **SUITE})
STORM = Group({"storm": storm(500)}, PARALLEL)
CGROUP = Group(
    {
        "cgroup: limits, nested": group_limits,
        "cgroup: killed at memory.max": group_kill,
        "cgroup: gives way": group_gives_way,
        "cgroup: memory.high": group_high,
        "cgroup: elastic": elastic,
        "cgroup: memory.pressure": group_pressure,
        "cgroup: exporter elsewhere": group_exporter,
    }
)
SWAP = {kind: Group({f"swap: {kind}": swap(kind)}, Machine(memory="1G")) for kind in ("zram", "file", "noswap")}
BALLOON = Group({"balloon": balloon}, Machine(memory="1G", options=("-device", "virtio-balloon-pci")))
DIMM = ("-object", "memory-backend-ram,id=plugged,size=512M", "-device", "pc-dimm,id=dimm,memdev=plugged")
UNPLUG = Group(
    {"memory unplugged": unplugged},
    Machine("512M,slots=1,maxmem=2G", options=DIMM, kernel_options="memhp_default_state=online_movable"),
)
TWO_NODES = ("-object", "memory-backend-ram,id=m0,size=1G", "-object", "memory-backend-ram,id=m1,size=1G",
             "-numa", "node,nodeid=0,memdev=m0,cpus=0-3", "-numa", "node,nodeid=1,memdev=m1,cpus=4-7")  # fmt: skip
NODES = Group(
    {
        "2 nodes: first touch": nodes,
        "2 nodes, 8 processors: threads": tests("tests/core/test_many_at_once.py"),
        "2 nodes, 8 processors: races": races,
        "2 nodes, 8 processors: storm": storm(100),
    },
    Machine(cpus=8, options=TWO_NODES, counted=False),
    ("6.1",),
)
CONTAINERS = Group(
    {
        "container: podman's defaults": container("default"),
        "container: without root": container("user"),
        "container: shared by --ipc": shared_container,
    },
    kernels=("6.1", "6.12"),  # crun of Debian 12, in whose root 5.10 runs, does not start a container there
)
POWER = Group({"power": power(200)}, None, ("6.1",))
ARM64 = Group({"doctor": doctor, "features": features, **SUITE}, kernels=("6.1-arm64",))
ARM64_RACES = Group(
    {"native: races": races, "threads": tests("tests/core/test_many_at_once.py"), "storm": storm(100)},
    PARALLEL,
    kernels=("6.1-arm64",),
)
GROUPS = {
    "core": CORE,
    "storm": STORM,
    "arm64": ARM64,
    "arm64-races": ARM64_RACES,
    "power": POWER,
    "nodes": NODES,
    "containers": CONTAINERS,
    "cgroup": CGROUP,
    **{f"swap-{kind}": group for kind, group in SWAP.items()},
    "balloon": BALLOON,
    "unplug": UNPLUG,
    "uml": Group({"memory unplugged": unplugged_by_console}, kernels=("UML",)),
}
