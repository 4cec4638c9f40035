"""The colours of ``map`` and ``top``."""

from bufferpool.figures.names import AGE_BANDS

HOLE, FREE, BUSY = "#333a45", "#7f9fbf", "#17becf"
CLEAN, DIRTY, PINNED, RETIRED = "#2ca02c", "#ff9f1c", "#d62728", "#9467bd"

AGES = tuple(zip(AGE_BANDS, ("#ffe066", "#ffb347", "#f4845f", "#c05299", "#6a4c93", "#3d348b"), strict=True))
"""The bands of ages, each with its colour."""
