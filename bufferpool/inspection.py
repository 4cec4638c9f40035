"""What can be asked of a pool by anyone who sees it: a client, or an observer."""

import numpy as np
import numpy.typing as npt

from bufferpool import events, inspect
from bufferpool.advise import Advice, read_advice


class Inspection:
    """The figures of a pool. Looking allocates no page of the segment and waits for nobody."""

    def stats(self: inspect.Seen) -> inspect.PoolStats:
        """Figures of the whole pool, over all clients, present and past."""
        return inspect.read_stats(self)

    def frames(self: inspect.Seen) -> npt.NDArray[np.void]:
        """Every frame that has ever been used: a structured array, dtype ``inspect.FRAME``."""
        return inspect.read_frames(self)

    def extents(self: inspect.Seen) -> npt.NDArray[np.void]:
        """Every extent that has ever been used: a structured array, dtype ``inspect.EXTENT``."""
        return inspect.read_extents(self)

    def clients(self: inspect.Seen) -> list[inspect.ClientInfo]:
        """Who is attached, and what each pins."""
        return inspect.read_clients(self)

    def steward(self: inspect.Seen) -> int:
        """The client number of the pool's steward, 0 if it has none."""
        return self._seg.steward()

    def events(self: inspect.Seen) -> list[events.Event]:
        """The last thousand decisions about the pool's memory, oldest first: when, what, why, bytes."""
        return events.read_events(self)

    def advise(self: inspect.Seen) -> Advice:
        """What the hit ratio would be with an eighth to eight times the budget, from recent references.

        No points while there are too few references.
        """
        return read_advice(self)
