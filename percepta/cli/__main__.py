"""`python -m percepta.cli`: the same as `percepta`."""

import sys

from percepta.cli import main

sys.exit(main())
