"""``python -m bufferpool.cli`` runs the command ``bufferpool``."""

import sys

from bufferpool.cli import main

sys.exit(main())
