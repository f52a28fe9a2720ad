"""The site that asv publishes, with the network off: in a browser, and by what it names."""

import base64
import hashlib
import re
from pathlib import Path

import asv
import pytest
from helpers.asv_house import ROOT, new_house, this_commit
from helpers.asv_house import asv as run_asv
from helpers.browser import Page, find_browser

from harness.errors import BadInput
from harness.history.offline import LIBRARIES, SITE, make_offline

PAGE = Path(asv.__file__).parent / "www" / "index.html"
# flot's npm package has no minified files, and stupidtable 1.0.1 is not on npm.
NOT_THE_SAME_FILE = ("flot/0.8.3", "stupidtable")


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Plain ``asv publish`` of the committed results."""
    house = tmp_path_factory.mktemp("house")
    head = this_commit()
    new_house(house, repo=str(ROOT), results_dir=str(ROOT / "results"), branches=[head])
    ran = run_asv(house, "publish")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return house / ".asv" / "html"


def test_every_library_of_asvs_page_is_kept_here_as_it_names_it():
    page = PAGE.read_text()
    named = re.findall(r'(?:src|href)="(https://[^"]+)" integrity="(sha\d+)-([^"]+)"', page)
    assert {address for address, _, _ in named} == set(LIBRARIES)
    for address, kind, expected in named:
        kept = (SITE / "vendor" / LIBRARIES[address]).read_bytes()
        same = base64.b64encode(hashlib.new(kind, kept).digest()).decode() == expected
        assert same != any(part in address for part in NOT_THE_SAME_FILE), address


def test_every_library_keeps_its_licence():
    table = (SITE / "vendor" / "licences" / "README.md").read_text()
    for name in LIBRARIES.values():
        assert f"`{name}`" in table
    for licence in re.findall(r"`(\w+\.txt)`", table):
        text = (SITE / "vendor" / "licences" / licence).read_text()
        assert "without restriction" in " ".join(text.split())


def test_the_page_names_nothing_outside(site):
    for page in site.glob("*.html"):
        text = page.read_text()
        assert not re.search(r"<(script|link|img|iframe)\b[^>]*(src|href)=\"(https?:)?//", text)
        for address in re.findall(r"<(?:script|link)\b[^>]*(?:src|href)=\"([^\"]*)\"", text):
            assert (site / address).is_file(), address


def test_an_unknown_library_is_refused_and_the_page_left_as_it_was(tmp_path):
    index = tmp_path / "index.html"
    text = PAGE.read_text().replace("jquery-3.3.1", "jquery-9")
    index.write_text(text)
    with pytest.raises(BadInput, match=r"jquery-9\.min\.js.*install asv"):
        make_offline(tmp_path)
    assert index.read_text() == text
    index.write_text("<html></html>")
    with pytest.raises(BadInput, match="loads no library"):
        make_offline(tmp_path)


@pytest.fixture
def page(tmp_path):
    binary = find_browser()
    if binary is None:
        pytest.skip("no browser here: apt-get install chromium, or name one: MOE_HARNESS_BROWSER")
    with Page(binary, tmp_path) as opened:
        yield opened


# Of a canvas: how many of its pixels were drawn on.
DRAWN = """[...document.querySelectorAll('%s canvas.flot-base')].map(canvas => {
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    return data.filter((value, index) => index %% 4 == 3 && value > 0).length;
})"""


def test_the_charts_are_drawn_from_a_file_with_the_network_off(site, page):
    page.open((site / "index.html").as_uri())
    overview = DRAWN % "#summarygrid-display"
    page.wait_for(f"({overview}).filter(pixels => pixels > 500).length >= 4")
    page.open(f"{(site / 'index.html').as_uri()}#decode.EmbeddedDecode.track_ms_per_token")
    page.wait_for(f"({DRAWN % '#main-graph'}).some(pixels => pixels > 2000)")
    legend = page.evaluate("document.querySelector('#main-graph .legend').textContent")
    assert "depth-0" in legend
    assert "depth-512" in legend
    for name in ("summarylist", "regressions"):
        page.open(f"{(site / 'index.html').as_uri()}#/{name}")
        page.wait_for(f"document.querySelector('#{name}-body table') !== null")
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []


def test_a_request_for_the_network_would_be_seen(page, tmp_path):
    outside = tmp_path / "outside.html"
    outside.write_text('<script src="https://code.jquery.com/jquery-3.3.1.min.js"></script>')
    page.open(outside.as_uri())
    assert any(url.startswith("https:") for url in page.requests)
    page.wait_for("true")
    assert page.errors
