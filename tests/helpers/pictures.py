"""Takes the pictures of docs/: of the results and the recording that are committed.

``make pictures``; asv's site and the report need a browser (``helpers.browser``).
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.asv_house import ROOT, asv_command, asv_environment
from helpers.browser import Page, find_browser

from harness.profile import Profile
from harness.profile.recording import read_recording
from harness.profile.roofline import roofline
from harness.profile.timeline import timeline
from harness.report.batch import batch_picture
from harness.report.command import write_report
from harness.report.depth import depth_picture
from harness.report.model import gather

_SIZES = {
    "report-laptop": {"width": 1280, "height": 1000},
    "report-dark": {"width": 1280, "height": 1000, "dark": True},
    "report-phone": {"width": 390, "height": 844},
}
_BENCHMARK = "decode.EmbeddedDecode.track_ms_per_token"
_GPU = "nvidia-h200", "decode.Qwen3MoeDecode"
_BATCHES = "decode.Qwen3MoeBatch"
_RECORDING = ROOT / "tests" / "profile" / "recordings" / "h200.json"


def drawn():
    """The pictures that are files of their own, by name."""
    profile = Profile(read_recording(_RECORDING))
    report = gather(ROOT / "results")
    return {
        "batch.svg": batch_picture(report, *_GPU, _BATCHES),
        "depth.svg": depth_picture(report, *_GPU),
        "profile-roofline.svg": roofline(profile),
        "profile-timeline.svg": timeline(profile),
    }


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in drawn().items():
        (folder / name).write_text(picture, encoding="utf-8")
    binary = find_browser()
    if binary is None:
        sys.exit("no browser here: apt-get install chromium, or name one: MOE_HARNESS_BROWSER")
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
