"""Makes the site that ``asv publish`` wrote readable without a network, and without a server.

asv's page loads its libraries from content delivery networks, and its data by requests, which a
browser refuses to a page opened from a file. So the libraries are laid beside the page, and the
data goes into a script that is read only where the page was opened from a file.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asv import util

from harness.errors import BadInput
from harness.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable

SITE = Path(__file__).parent / "site"
_FOLDER = "offline"
_DATA = "data.js"
_LOADER = "from_file.js"

# What asv 0.6 names, and what stands for it here (site/vendor/licences/README.md).
LIBRARIES = {
    "https://code.jquery.com/jquery-3.3.1.min.js": "jquery-3.3.1.min.js",
    "https://cdnjs.cloudflare.com/ajax/libs/flot/0.8.3/jquery.flot.min.js": "jquery.flot-0.8.3.js",
    "https://cdnjs.cloudflare.com/ajax/libs/flot/0.8.3/jquery.flot.time.min.js": (
        "jquery.flot.time-0.8.3.js"
    ),
    "https://cdnjs.cloudflare.com/ajax/libs/flot/0.8.3/jquery.flot.selection.min.js": (
        "jquery.flot.selection-0.8.3.js"
    ),
    "https://cdnjs.cloudflare.com/ajax/libs/flot/0.8.3/jquery.flot.categories.min.js": (
        "jquery.flot.categories-0.8.3.js"
    ),
    "https://cdn.jsdelivr.net/npm/flot-orderbars@1.0.0/js/jquery.flot.orderBars.js": (
        "jquery.flot.orderBars-1.0.0.js"
    ),
    "https://cdnjs.cloudflare.com/ajax/libs/stupidtable/1.0.1/stupidtable.min.js": (
        "stupidtable-1.1.3.min.js"
    ),
    "https://cdnjs.cloudflare.com/ajax/libs/blueimp-md5/2.19.0/js/md5.min.js": (
        "md5-2.19.0.min.js"
    ),
    "https://cdn.jsdelivr.net/npm/bootstrap@3.1.1/dist/js/bootstrap.min.js": (
        "bootstrap-3.1.1.min.js"
    ),
    "https://cdn.jsdelivr.net/npm/bootstrap@3.1.1/dist/css/bootstrap.min.css": (
        "bootstrap-3.1.1.min.css"
    ),
}

_SCRIPT = re.compile(r'<script\b[^>]*\bsrc="(https?:)?//[^>]*></script>')
_STYLE = re.compile(r'<link\b(?=[^>]*\brel="stylesheet")[^>]*\bhref="(https?:)?//[^>]*>')
_ADDRESS = re.compile(r'\b(?:src|href)="([^"]*)"')


def make_offline(site: Path) -> None:
    """Rewrite a site of asv's in place: every library and all data come from beside the page.

    Raises
    ------
    BadInput
        Where the page loads something that is not here: another asv than this was made for.

    """
    index = site / "index.html"
    page = index.read_text(encoding="utf-8")
    page = _STYLE.sub(lambda tag: f'<link rel="stylesheet" href="{_local(tag[0])}">', page)
    page, scripts = _SCRIPT.subn(_script, page)
    if not scripts:
        raise BadInput(
            f"{index}: loads no library, expected asv 0.6's page; install asv>=0.6.5,<0.7"
        )
    shutil.copytree(SITE / "vendor", site / _FOLDER / "vendor", dirs_exist_ok=True)
    shutil.copy(SITE / _LOADER, site / _FOLDER / _LOADER)
    files = {
        path.relative_to(site).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(site.rglob("*.json"))
    }
    data = json.dumps(files, separators=(",", ":"))
    write_atomically(site / _FOLDER / _DATA, f"window.asvFiles = {data};\n")
    write_atomically(index, page)


def _script(tag: re.Match[str]) -> str:
    local = _local(tag[0])
    script = f'<script src="{local}" onerror="js_load_failure()"></script>'
    if "/jquery-" in local:  # the loader extends it, before anything asks for data
        script += f'\n    <script src="{_FOLDER}/{_LOADER}"></script>'
    return script


def _local(tag: str) -> str:
    address = _ADDRESS.search(tag)
    name = LIBRARIES.get(address[1]) if address else None
    if name is None:
        raise BadInput(
            f"asv's page loads {address[1] if address else tag}, which is not kept here; expected "
            "what asv 0.6 loads: install asv>=0.6.5,<0.7"
        )
    return f"{_FOLDER}/vendor/{name}"


def install() -> None:
    """Have every ``asv publish`` end with ``make_offline``."""
    command = import_module("asv.commands.publish").Publish
    plain: Callable[..., Any] = command.run.__func__

    @functools.wraps(plain)
    def run(cls: type, conf: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - asv's own
        status = plain(cls, conf, *arguments, **options)
        try:
            make_offline(Path(conf.html_dir))
        except BadInput as error:  # in the form that asv prints in one line, exit status 1
            raise util.UserError(str(error)) from None
        return status

    command.run = classmethod(run)
