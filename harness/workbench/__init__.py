"""A kernel of one's own: declared once, then compiled, guarded, proven and measured.

``docs/own-kernel.md`` is the recipe. Importing this needs no GPU.
"""

from harness.workbench.declaration import Arrays, Declaration, Limits
from harness.workbench.judge import LaunchEvidence, judge
from harness.workbench.rehearsal import rehearse
from harness.workbench.run import check, measure, prove

__all__ = [
    "Arrays",
    "Declaration",
    "LaunchEvidence",
    "Limits",
    "check",
    "judge",
    "measure",
    "prove",
    "rehearse",
]
