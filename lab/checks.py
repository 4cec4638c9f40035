"""What the lab checks in a guest. A check returns the text of its cell, or raises what was wrong."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from lab.guest import Guest, GuestError, Machine
from lab.power import power

Check = Callable[[Guest], str]
PATIENCE = 20
"""How much longer a wait of a test may take in a guest: a processor in software is that much slower."""


@dataclass(frozen=True)
class Group:
    """Checks that one guest runs, and the machine that they need."""

    checks: dict[str, Check]
    machine: Machine = field(default_factory=Machine)
    kernels: tuple[str, ...] = ("5.10", "6.1", "6.12")
    """The kernels that it runs on."""


def say(fact: object, wrong: str) -> None:
    """Raises GuestError with this text unless the fact holds."""
    if not fact:
        raise GuestError(wrong)


# ---- the core --------------------------------------------------------------------------


def doctor(guest: Guest) -> str:
    """What the doctor finds: no failure, and what the kernel lacks is named."""
    _, said = guest.run(f"{guest.environment} python3 -m bufferpool doctor --json")
    findings = json.loads(said)
    failed = [f"{one['what']}: {one['text']}" for one in findings if one["level"] == "FAIL"]
    say(not failed, "; ".join(failed))
    kernel = next(one["text"] for one in findings if one["what"] == "kernel")
    say(guest.release in kernel, f"the doctor names another kernel: {kernel}")
    lacks = [one["what"] for one in findings if one["level"] == "WARN"]
    return f"warns of {', '.join(lacks)}" if lacks else "nothing amiss"


def tests(*files: str) -> Check:
    """Runs files of the suite."""

    def check(guest: Guest) -> str:
        command = f"{guest.environment} BP_PATIENCE={PATIENCE} python3 -m pytest -p no:cacheprovider --tb=short "
        code, said = guest.run(command + " ".join(files), timeout=3600)
        lines = said.strip().splitlines() or ["no output"]
        say(code == 0, f"{lines[-1]}\n" + "\n".join(lines[-40:]))
        return re.sub(r" in .*", "", lines[-1])

    return check


def storm(kills: int) -> Check:
    """The storm of tests/support/storm.py."""

    def check(guest: Guest) -> str:
        command = f"{guest.environment} BP_PATIENCE={PATIENCE} python3 tests/support/storm.py --kills {kills}"
        code, said = guest.run(command, timeout=7200)
        say("{" in said, f"the storm ended with {code}: {said[-2000:]}")
        report = json.loads(said[said.index("{") :])
        say(code == 0 and not report["findings"], f"the storm ended with {code}: {report['findings']}")
        return f"{report['kills']} kills, {report['verified']} pages verified, none lost, longest stall {report['longest_stall_s']:.1f} s"

    return check


def features(guest: Guest) -> str:
    """What the kernel lacks; many pages of a file are loaded and flushed correctly without it."""
    found = guest.inside("features")
    say(not found["wrong"], f"pages of a file went wrong: {found}")
    lacks = [name for name in ("io_uring", "RWF_DONTCACHE", "PSI trigger") if not found[name]]
    return f"without {', '.join(lacks)}: the fallback is right" if lacks else "has all"


# ---- cgroups of version 2 ----------------------------------------------------------------


def group_limits(guest: Guest) -> str:
    """A nested group's limit is its parent's, by memory.max and by memory.high."""
    found = guest.inside("groups", "limits")
    for kind, size in (("max", 300 << 20), ("high", 200 << 20)):
        code, seen = found[kind]
        say(code == 0 and seen["limit"] == size == seen["room"][0], f"the limit by memory.{kind} is not seen: {seen}")
        say(seen["most"] <= size // 2, f"capacity='auto' takes too much of the group: {seen}")
        say(seen["psi"].endswith("inner/memory.pressure"), f"the pressure is another group's: {seen['psi']}")
    say(found["none"] == [0, {"limit": None}], f"a group without a limit: {found['none']}")
    return "memory.max and memory.high of the parent"


def group_kill(guest: Guest) -> str:
    """At memory.max the kernel kills the client that takes more; the others lose nothing."""
    found = guest.inside("groups", "killed")
    say(found["code"] == -9 and found["oom_kills"], f"nobody was killed: {found}")
    say(found["others_unharmed"] and not found["check"] and found["clients"] == 1, f"others were harmed: {found}")
    return "one client killed, the others unharmed"


def group_gives_way(guest: Guest) -> str:
    """Near memory.max the steward lowers the budget, and nobody is killed."""
    found = guest.inside("groups", "gives_way", timeout=1200)
    say(found["code"] == 0 and not found["wrong"] and not found["check"], f"the readers failed: {found}")
    say(found["events"]["oom_kill"] == 0, f"the kernel killed: {found}")
    say(found["budget"] < found["limit"], f"the budget is above the limit: {found}")
    return f"at most {found['most_used'] >> 20} of {found['limit'] >> 20} MiB used, nobody killed"


def group_high(guest: Guest) -> str:
    """Near memory.high the steward lowers the budget, so that the kernel does not slow the clients down for ever."""
    found = guest.inside("groups", "high", timeout=1200)
    say(found["code"] == 0 and not found["wrong"] and not found["check"], f"the readers failed: {found}")
    say(found["budget"] < found["limit"], f"the budget is above memory.high: {found}")
    say(found["late_high"] <= found["events"]["high"] // 2, f"the kernel slows the clients down for ever: {found}")
    return (
        f"at most {found['most_used'] >> 20} of {found['limit'] >> 20} MiB used, passed {found['events']['high']} times"
    )


def group_pressure(guest: Guest) -> str:
    """The steward sees the stalls of its own group, woken by a trigger where the kernel has one for groups."""
    found = guest.inside("groups", "pressure", timeout=1200)
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
    """The workload elastic.py in a cgroup: the pool follows the load, and gives way to a neighbour in its group."""
    guest.must("echo +memory > /sys/fs/cgroup/cgroup.subtree_control")
    command = (
        f"cd examples/workloads && {guest.environment} python3 elastic.py --limit cgroup --pool 32 --idle 6 --quick"
    )
    code, said = guest.run(command, timeout=1800)
    say(code == 0 and "a memory cgroup (version 2)" in said, f"it ended with {code}:\n{said[-3000:]}")
    return said.strip().splitlines()[-1]


# ---- swap --------------------------------------------------------------------------------


def swap(kind: str) -> Check:
    """Pages that were swapped out are dropped without being read back in, and swap comes back to the byte."""

    def check(guest: Guest) -> str:
        found = guest.inside("swap", kind, timeout=1800)
        want = "OK" if kind == "noswap" and not found.get("refused") else "WARN"
        say(found["doctor"] == want, f"the doctor on swap: {found['doctor']}")
        if found.get("refused"):
            return "this kernel has no noswap (Linux 6.4 has it); the doctor warns of swap"
        say(not found["wrong"] and not found["check"], f"pages are wrong: {found}")
        if kind == "noswap":
            say(found["swapped_mib"] < 1, f"pages were swapped out: {found}")
            return f"{found['swapped_mib']:.1f} MiB swapped out"
        say(found["swapped_mib"] > 30, f"too little was swapped out: {found}")
        say(found["dropped_mib"] == found["st_blocks_fell_by_mib"] == 24, f"not all was dropped: {found}")
        say(found["pages_read_back"] == 0, f"dropped pages were read back: {found}")
        say(found["read_back_by_unlink"] == 0, f"removed pages were read back: {found}")
        # Before Linux 6.14 the kernel keeps up to 64 slots of swap for each processor, free or about to be.
        left = found["left_in_swap_bytes"]
        say(left <= found["slot_caches_bytes"], f"swap is not back: {found}")
        return f"{found['swapped_mib']:.0f} MiB out; 24 MiB dropped, none read back; {left >> 10} KiB left in the kernel's slot caches"

    return check


# ---- memory that the host takes back, and nodes --------------------------------------------


def balloon(guest: Guest) -> str:
    """A virtio balloon takes the guest's memory: the pool gives way, and the host has it."""
    host: dict[str, int] = {}

    def hear(line: str) -> None:
        if line.startswith("filled"):
            host["before"] = guest.memory_of_host()
            guest.monitor("balloon", value=400 << 20)
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


def nodes(guest: Guest) -> str:
    """A page lies on the node of the process that writes it first."""
    found = guest.inside("nodes")
    say(found["codes"] == [0, 0] and not found["check"] and found["nodes"] == 2, f"it failed: {found}")
    kept = [places.get(f"N{node}", 0) / max(1, sum(places.values())) for node, places in enumerate(found["places"])]
    say(min(kept) > 0.8, f"pages lie on other nodes: {found}")
    return "pages lie on the node that writes them first"


# ---- containers --------------------------------------------------------------------------


def container(kind: str) -> Check:
    """A container of podman with its /dev/shm of 64 MiB and its seccomp profile; "user": without root."""

    def check(guest: Guest) -> str:
        ran = guest.inside("containers", kind, timeout=1200)
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
    found = guest.inside("containers", "shared", timeout=1200)
    server = found["server"]
    say(server["code"] == 0 and len(found.get("clients", [])) == 2, f"the containers failed: {found}")
    say([client["code"] for client in found["clients"]] == [0, 137], f"the clients failed: {found['clients']}")
    say(server["facts"] == {"found": [10, 20], "clients": 1, "check": []}, f"the pool is wrong: {server}")
    return "two clients of other containers, one killed: its slot is free, its page there"


CORE = Group(
    {
        "doctor": doctor,
        "features": features,
        "segment": tests("tests/client/test_segment.py"),
        "pins": tests("tests/core/test_pins.py"),
        "memory": tests("tests/core/test_memory.py"),
        "write": tests("tests/core/test_write.py"),
        "fork": tests("tests/client/test_fork.py"),
        "full tmpfs": tests("tests/upkeep/test_full.py"),
        "storm": storm(500),
    }
)
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
TWO_NODES = ("-object", "memory-backend-ram,id=m0,size=1G", "-object", "memory-backend-ram,id=m1,size=1G",
             "-numa", "node,nodeid=0,memdev=m0,cpus=0-3", "-numa", "node,nodeid=1,memdev=m1,cpus=4-7")  # fmt: skip
NODES = Group(
    {
        "2 nodes: first touch": nodes,
        "2 nodes, 8 processors: threads": tests("tests/core/test_many_at_once.py"),
        "2 nodes, 8 processors: storm": storm(100),
    },
    Machine(cpus=8, options=TWO_NODES),
)
CONTAINERS = Group(
    {
        "container: podman's defaults": container("default"),
        "container: without root": container("user"),
        "container: shared by --ipc": shared_container,
    }
)
POWER = Group({"power": power(100)})
ARM64 = Group(
    {
        "doctor": doctor,
        "features": features,
        "pins": tests("tests/core/test_pins.py"),
        "memory": tests("tests/core/test_memory.py"),
        "write": tests("tests/core/test_write.py"),
        "fork": tests("tests/client/test_fork.py"),
        "full tmpfs": tests("tests/upkeep/test_full.py"),
        "threads": tests("tests/core/test_many_at_once.py"),
        "storm": storm(100),
    },
    kernels=("6.1-arm64",),
)
GROUPS = {
    "core": CORE,
    "arm64": ARM64,
    "power": POWER,
    "balloon": BALLOON,
    "nodes": NODES,
    "containers": CONTAINERS,
    "cgroup": CGROUP,
    **{f"swap-{kind}": group for kind, group in SWAP.items()},
}
