"""What the words of the segment say: entries of pages, and words of frames, each in an array of uint64.

The core defines their bits (core/layout/words.h), and this module takes them from there.
"""

import numpy as np
import numpy.typing as npt

from bufferpool import _core

Words = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


def _bits(words: Words, shift: int, mask: int) -> Words:
    return words >> np.uint64(shift) & np.uint64(mask)


def _are(words: Words, mask: int, value: int) -> Mask:
    found: Mask = _bits(words, 0, mask) == value
    return found


# ---- entries ------------------------------------------------------------------------


def is_resident(entries: Words) -> Mask:
    """Whether each page is in a frame, and no client evicts it."""
    return _are(entries, _core.ENTRY_STATE, _core.RESIDENT)


def frame_of(entries: Words) -> Words:
    """The frame that each entry names."""
    return entries >> np.uint64(_core.ENTRY_FRAME_SHIFT)


def is_dirty(entries: Words) -> Mask:
    """Whether the store of each page lacks its newest version."""
    return _are(entries, _core.ENTRY_DIRTY, _core.ENTRY_DIRTY)


def is_hot(entries: Words) -> Mask:
    """Whether each page is in the hot ring."""
    return _are(entries, _core.ENTRY_RING, _core.ENTRY_HOT)


def writer_of(entries: Words) -> Words:
    """The client that writes each page; 0: none."""
    return _bits(entries, _core.ENTRY_OWNER_SHIFT, _core.CLIENTS_LIMIT)


def flusher_of(entries: Words) -> Words:
    """The client that flushes each page; 0: none."""
    return _bits(entries, _core.ENTRY_FLUSHER_SHIFT, _core.CLIENTS_LIMIT)


# ---- words of frames ----------------------------------------------------------------


def state_of(words: Words) -> Words:
    """The state of each frame, as the core numbers it."""
    return _bits(words, 0, _core.FRAME_STATE)


def page_of(words: Words) -> npt.NDArray[np.uint32]:
    """The page that each frame's word names, by the number of its entry."""
    return (words >> np.uint64(_core.FRAME_PAGE_SHIFT)).astype(np.uint32)
