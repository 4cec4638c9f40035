"""``python -m bufferpool.cli`` runs the command ``bufferpool``."""

import sys

from bufferpool.cli import script

sys.exit(script())
