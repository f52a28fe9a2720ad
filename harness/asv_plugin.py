"""Lets the environments that asv makes use the packages of the one that asv runs in.

Torch, numba and PyCUDA take minutes to install and gigabytes to keep, need a network, and are not
what changes from commit to commit. Each of asv's environments holds this project alone; the rest
comes from here, and so all commits are measured with the same packages. ``ASV_PYTHONPATH`` wins
where it is already set.
"""

from __future__ import annotations

import os
import site
import sys
from pathlib import Path

_VARIABLE = "ASV_PYTHONPATH"


def share_packages() -> None:
    """Set ``ASV_PYTHONPATH`` to the folders that this interpreter takes packages from.

    Editable installs lie in ``.pth`` files, which a ``PYTHONPATH`` does not read: the checkout
    never shadows the commit that is measured.
    """
    folders = {*site.getsitepackages(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    here = Path.cwd().resolve()
    shared = [
        path
        for path in sys.path
        if path in folders and Path(path).is_dir() and Path(path).resolve() != here
    ]
    os.environ.setdefault(_VARIABLE, os.pathsep.join(dict.fromkeys(shared)))


share_packages()
