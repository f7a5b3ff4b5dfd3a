"""`python -m percepta`: the same as `percepta`, and what torchrun starts."""

import sys

from percepta.cli import main

sys.exit(main())
