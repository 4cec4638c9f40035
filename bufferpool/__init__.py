"""bufferpool: a cache of pages in shared memory, for several processes, which gives cold memory back.

>>> import bufferpool as bp
>>> pool = bp.Pool.open("orders", capacity="256MiB")      # doctest: +SKIP
>>> table = pool.open_file("orders.db", mode="r+")        # doctest: +SKIP
>>> page = table[7]                                       # doctest: +SKIP

The interface is what this module exports, with bufferpool.errors and bufferpool.prometheus. All other modules are internal.
"""

import importlib
import importlib.util
from types import ModuleType

if importlib.util.find_spec("bufferpool._core") is None:
    raise ImportError(
        "bufferpool's compiled core is missing: this is its source folder. Build it in place with "
        "'pip install --editable .', or change the folder to import the installed package."
    )

from bufferpool import errors
from bufferpool._core import Pin, PinnedPages, Write
from bufferpool.errors import *  # noqa: F403
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

_MODULES = ("observer", "prometheus")  # imported on first use: most programs need neither


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        return importlib.import_module(f"bufferpool.{name}")
    raise AttributeError(f"module 'bufferpool' has no attribute {name!r}")
