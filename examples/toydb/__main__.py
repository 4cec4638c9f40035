"""``python -m toydb``: see :mod:`toydb.sql.shell`."""

import sys

from toydb.sql.shell import main

sys.exit(main())
