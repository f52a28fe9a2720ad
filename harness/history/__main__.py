"""``python -m harness.history [RESULTS]``: put into asv's files what a killed run had measured."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.errors import BadInput
from harness.history.recovery import recover
from harness.settings import settings

if __name__ == "__main__":
    try:
        lines = recover(Path(sys.argv[1]) if sys.argv[1:] else settings().results)
    except BadInput as error:
        print(f"moe-harness: {error}", file=sys.stderr)
        sys.exit(2)
    print("\n".join(lines) or "nothing to recover")
