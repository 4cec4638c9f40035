"""``python -m toydb``: see :mod:`toydb.shell`."""

import sys

from toydb.shell import main

sys.exit(main())
