"""What can be asked of a pool by anyone who sees it: a client, or an observer."""

import numpy as np
import numpy.typing as npt

from bufferpool.figures import events
from bufferpool.figures.advice import Advice, read_advice
from bufferpool.figures.stats import ClientInfo, PoolStats, Seen, read_clients, read_extents, read_frames, read_stats


class Inspection:
    """The figures of a pool. Looking allocates no page of the segment and waits for nobody."""

    def stats(self: Seen) -> PoolStats:
        """Figures of the whole pool, over all clients, present and past."""
        return read_stats(self)

    def frames(self: Seen) -> npt.NDArray[np.void]:
        """Every frame that has ever been used: a structured array, dtype ``stats.FRAME``."""
        return read_frames(self)

    def extents(self: Seen) -> npt.NDArray[np.void]:
        """Every extent that has ever been used: a structured array, dtype ``stats.EXTENT``."""
        return read_extents(self)

    def clients(self: Seen) -> list[ClientInfo]:
        """Who is attached, and what each pins."""
        return read_clients(self)

    def steward(self: Seen) -> int:
        """The client number of the pool's steward, 0 if it has none."""
        return self._seg.steward()

    def events(self: Seen) -> list[events.Event]:
        """The last thousand decisions about the pool's memory, oldest first: when, what, why, bytes."""
        return events.read_events(self)

    def advise(self: Seen) -> Advice:
        """What the hit ratio would be with an eighth to eight times the budget, from recent references.

        No points while there are too few references.
        """
        return read_advice(self)
