"""What each colour means, in ``map`` and in ``top``."""

HOLE, FREE, BUSY = "#333a45", "#7f9fbf", "#17becf"
CLEAN, DIRTY, PINNED, RETIRED = "#2ca02c", "#ff9f1c", "#d62728", "#9467bd"

AGES = (
    ("1 s", "#ffe066"),
    ("10 s", "#ffb347"),
    ("1 min", "#f4845f"),
    ("10 min", "#c05299"),
    ("1 h", "#6a4c93"),
    ("older", "#3d348b"),
)
"""The bands of ``stats.AGE_LIMITS_S``, each with its colour."""
