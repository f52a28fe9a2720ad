"""Takes the pictures of docs/: asv's site and the report, of the results that are committed.

``make pictures``; needs a browser (``helpers.browser``).
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.asv_house import ROOT, asv_command, asv_environment
from helpers.browser import Page, find_browser

from harness.report.command import write_report

_SIZES = {
    "report-laptop": {"width": 1280, "height": 1000},
    "report-dark": {"width": 1280, "height": 1000, "dark": True},
    "report-phone": {"width": 390, "height": 844},
}
_BENCHMARK = "decode.EmbeddedDecode.track_ms_per_token"


def main(folder):
    binary = find_browser()
    if binary is None:
        sys.exit("no browser here: apt-get install chromium, or name one: MOE_HARNESS_BROWSER")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_report(ROOT / "results", work / "report.html")
        for picture, size in _SIZES.items():
            with Page(binary, work / picture, **size) as page:
                page.open((work / "report.html").as_uri())
                page.picture(folder / f"{picture}.png")
        command = asv_command("publish", "--html-dir", str(work / "site"))
        subprocess.run(command, cwd=ROOT, env=asv_environment(work), check=True)
        with Page(binary, work / "profile", height=760) as page:
            page.open(f"{(work / 'site' / 'index.html').as_uri()}#{_BENCHMARK}")
            page.wait_for("document.querySelector('#main-graph .legend') !== null")
            page.picture(folder / "site.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
