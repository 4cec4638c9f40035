"""``python -m bufferpool``: the command."""

import sys

from bufferpool.cli import main

sys.exit(main())
