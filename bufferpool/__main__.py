"""``python -m bufferpool``: the command."""

import sys

from bufferpool.cli import script

sys.exit(script())
