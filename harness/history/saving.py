"""Keeps asv's results whole, and as complete as the run is, at every moment.

asv 0.6 writes a commit's results once, after its last benchmark, and writes them in place: a run
that is killed loses everything that it had measured, or leaves half a file. Here every file is
written beside and renamed, and a commit's results are written after each benchmark.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from asv import util
from asv.environment import ExistingEnvironment
from asv.results import Results

_BESIDE = ".tmp-"  # not .json: asv reads those

_write_in_place = util.write_json
_run_unnamed = ExistingEnvironment.run


class SavingResults(Results):
    """Results that are on disk as soon as they are there.

    asv loads what is stored exactly where it will store: so that tells the folder, and that a run
    is not to be stored (``--dry-run``) tells itself by not loading.
    """

    _folder: str | None = None

    def load_data(self, result_dir: str) -> None:
        """Load earlier results of the same commit, and save to the same place from now on."""
        super().load_data(result_dir)
        self._folder = result_dir

    def add_result(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - asv's own
        """Add one benchmark's result, and save."""
        super().add_result(*arguments, **options)
        if self._folder is not None:
            self.save(self._folder)


def write_json(
    path: str, data: object, api_version: int | None = None, compact: bool = False
) -> None:
    """As asv's own ``write_json``, but nobody ever sees half a file."""
    whole = Path(path).absolute()
    beside = whole.with_name(f"{_BESIDE}{os.getpid()}")
    try:
        _write_in_place(str(beside), data, api_version, compact)
        beside.replace(whole)
    finally:
        beside.unlink(missing_ok=True)


def _name(environment: ExistingEnvironment) -> str:
    return f"{environment.tool_name}-py{_version(environment)}"


def _version(environment: ExistingEnvironment) -> str:
    script = "import sys; print('%d.%d' % sys.version_info[:2])"
    return str(util.check_output([environment._executable, "-c", script])).strip()  # noqa: SLF001


def _run(environment: ExistingEnvironment, arguments: list[str], **options: Any) -> Any:  # noqa: ANN401 - asv's own
    """As asv's own ``run``, which tells the other kinds of environment their names alone."""
    told = {"ASV_ENV_NAME": environment.name}
    options["env"] = {**(options.get("env") or os.environ), **told}
    return _run_unnamed(environment, arguments, **options)


def install() -> None:
    """Put these in place of asv's own."""
    util.write_json = write_json
    # By setattr: to a type checker a class's name is no variable.
    setattr(import_module("asv.commands.run"), "Results", SavingResults)  # noqa: B010
    # asv names an existing environment by its path, and a path splits no series here.
    setattr(ExistingEnvironment, "name", property(_name))  # noqa: B010
    setattr(ExistingEnvironment, "python", property(_version))  # noqa: B010
    setattr(ExistingEnvironment, "run", _run)  # noqa: B010
