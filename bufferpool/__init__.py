"""bufferpool: a cache of pages in shared memory, for several processes, which gives cold memory back.

>>> import bufferpool as bp
>>> pool = bp.Pool.open("orders", capacity="256MiB")      # doctest: +SKIP
>>> table = pool.open_file("orders.db", mode="r+")        # doctest: +SKIP
>>> page = table[7]                                       # doctest: +SKIP

The interface is what this module exports, with bufferpool.errors and bufferpool.prometheus. All other modules are internal.

A name is imported when it is first used. A program that gives up its rights or changes its root directory (``setuid``,
``chroot``) before that writes ``from bufferpool import Pool``, which imports it at once.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING

if importlib.util.find_spec("bufferpool._core") is None:
    raise ImportError(
        "bufferpool's compiled core is missing: this is its source folder. Build it in place with "
        "'pip install --editable .', or change the folder to import the installed package."
    )

from bufferpool import errors
from bufferpool.errors import *  # noqa: F403

if TYPE_CHECKING:
    from bufferpool import observer as observer
    from bufferpool import prometheus as prometheus
    from bufferpool._core import Pin, PinnedPages, Write
    from bufferpool.figures.advice import Advice, AdvicePoint
    from bufferpool.figures.cache_advice import CacheAdvice, CacheAdvicePoint
    from bufferpool.figures.events import Event
    from bufferpool.figures.names import EventKind, EventReason, FrameState, Kind, PolicyMode
    from bufferpool.figures.stats import CacheStats, ClientInfo, FrameCounts, PoolStats, SpaceStats
    from bufferpool.observer import Observer
    from bufferpool.pool import Pool
    from bufferpool.simulation import ObjectSimulation, Simulation, simulate, simulate_objects
    from bufferpool.spaces.space import Space
    from bufferpool.stores.base import FileStore, Store
    from bufferpool.upkeep.budget import Rules
    from bufferpool.upkeep.steward import Settings, Steward
    from bufferpool.upkeep.working_set import WarmUp
else:
    # Each name is imported when it is first used: a command such as `bufferpool ls` uses few of them.
    _NAMES = {
        "_core": ("Pin", "PinnedPages", "Write"),
        "figures.advice": ("Advice", "AdvicePoint"),
        "figures.cache_advice": ("CacheAdvice", "CacheAdvicePoint"),
        "figures.events": ("Event",),
        "figures.names": ("EventKind", "EventReason", "FrameState", "Kind", "PolicyMode"),
        "figures.stats": ("CacheStats", "ClientInfo", "FrameCounts", "PoolStats", "SpaceStats"),
        "observer": ("Observer",),
        "pool": ("Pool",),
        "simulation": ("ObjectSimulation", "Simulation", "simulate", "simulate_objects"),
        "spaces.space": ("Space",),
        "stores.base": ("FileStore", "Store"),
        "upkeep.budget": ("Rules",),
        "upkeep.steward": ("Settings", "Steward"),
        "upkeep.working_set": ("WarmUp",),
    }
    _MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

    def __getattr__(name: str) -> object:
        if name in ("observer", "prometheus"):
            return importlib.import_module(f"bufferpool.{name}")
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'bufferpool' has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"bufferpool.{_MODULE_OF[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__version__ = "0.1.0"
__all__ = [
    "Advice",
    "AdvicePoint",
    "CacheAdvice",
    "CacheAdvicePoint",
    "CacheStats",
    "ClientInfo",
    "Event",
    "EventKind",
    "EventReason",
    "FileStore",
    "FrameCounts",
    "FrameState",
    "Kind",
    "ObjectSimulation",
    "Observer",
    "Pin",
    "PinnedPages",
    "PolicyMode",
    "Pool",
    "PoolStats",
    "Rules",
    "Settings",
    "Simulation",
    "Space",
    "SpaceStats",
    "Steward",
    "Store",
    "WarmUp",
    "Write",
    "simulate",
    "simulate_objects",
]
__all__ += errors.__all__
