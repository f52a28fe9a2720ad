"""What asv loads as its plugin: shared packages, results that survive a kill, an offline site.

The environments that asv makes use the packages of the one that asv runs in.

Torch, numba and PyCUDA take minutes to install and gigabytes to keep, need a network, and are not
what changes from commit to commit. Each of asv's environments holds this project alone; the rest
comes from here, and so all commits are measured with the same packages.

As a plugin this notes where the packages are; asv's build and install commands run it as a script,
which writes that into the new environment as a ``.pth`` file. (asv 0.6.6 takes
``ASV_PYTHONPATH``, but its benchmark process strips those folders again.)
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from pathlib import Path

_VARIABLE = "MOE_HARNESS_PACKAGES"  # passes from asv to the commands that it runs


def note_packages() -> None:
    """Note the folders that this interpreter takes packages from, unless they are noted.

    Editable installs lie in ``.pth`` files, which a ``.pth`` file does not follow: the checkout
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


def share_packages() -> None:
    """Make the noted folders visible in the environment whose interpreter runs this."""
    noted = os.environ.get(_VARIABLE, "").split(os.pathsep)
    target = Path(sysconfig.get_path("purelib")) / "shared-packages.pth"
    target.write_text("".join(f"{folder}\n" for folder in noted if folder), encoding="utf-8")


if __name__ == "__main__":
    share_packages()
else:
    from harness.history import offline, saving

    note_packages()
    saving.install()
    offline.install()
