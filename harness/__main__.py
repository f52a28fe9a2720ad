"""``python -m harness``: the commands without an installed entry point."""

import sys

from harness.cli import main

sys.exit(main())
