"""The report page: from the committed results, from whatever else lies there, and in a browser."""

import datetime as dt
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.asv_house import our_conf
from helpers.browser import Page, find_browser

from harness.cli import main
from harness.draw.chart import Line, Mark
from harness.errors import BadInput
from harness.report import model
from harness.report.charts import Bar, bars, lines, losses
from harness.report.contract import Contract, Criterion
from harness.report.model import gather
from harness.report.page import render

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
CPU = "amd-epyc-2c"
THREE = ("b30515e8", "2d47aa20", "8dfa664b")  # committed in this order, not measured in it
FAILED = 'class="s-warn failed"'
VOID = {"meta", "link", "br", "hr"}


class Checked(HTMLParser):
    """Follows every tag to its end; keeps the text, the tags and their attributes."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def section(page, name):
    found = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
    return Checked(found[0]).text


@pytest.fixture
def results(tmp_path):
    """A copy of one machine's results of three commits, to be changed."""
    folder = tmp_path / "results"
    (folder / CPU / "evidence").mkdir(parents=True)
    for commit in THREE:
        for path in (RESULTS / CPU).rglob(f"{commit}-*"):
            shutil.copy(path, folder / path.relative_to(RESULTS))
    shutil.copy(RESULTS / CPU / "machine.json", folder / CPU)
    shutil.copy(RESULTS / "benchmarks.json", folder)
    return folder


def newest():
    """The newest of the commits that were measured on the CPU."""
    files = [json.loads(path.read_text()) for path in (RESULTS / CPU).glob("*-*.json")]
    return max(files, key=lambda data: data["date"])["commit_hash"][:8]


def sidecar(results, start="8dfa664b-decode.EmbeddedDecode-depth=0"):
    (path,) = (results / CPU / "evidence").glob(f"{start}*.evidence")
    return path


def changed(path, **values):
    """Write a sidecar again, with other values at dotted places."""
    data = json.loads(path.read_text())
    for place, value in values.items():
        *way, last = place.split("__")
        inner = data
        for step in way:
            inner = inner[step]
        inner[last] = value
    path.write_text(json.dumps(data))
    return data


def on_a_gpu(results, *, peer=True, gpu="NVIDIA H200"):
    """Make up what a GPU machine would leave: the CPU's evidence under other names."""
    folder = results / "nvidia-h200" / "evidence"
    folder.mkdir(parents=True)
    identity = {"machine": "nvidia-h200", "gpu": gpu, "cpu": "", "num_cpu": ""}
    identity |= {"os": "Linux", "arch": "x86_64"}
    (results / "nvidia-h200" / "machine.json").write_text(json.dumps({**identity, "version": 1}))
    result = json.loads((results / CPU / "8dfa664b-virtualenv-py3.11.json").read_text())
    names = {"decode.EmbeddedDecode": "decode.Qwen3MoeDecode"}
    rows = {}
    for name, row in result["results"].items():
        if name.startswith("decode.EmbeddedDecode"):
            rows[name.replace(*next(iter(names.items())))] = row
    benchmarks = json.loads((results / "benchmarks.json").read_text())
    for name, row in rows.items():
        row[2] = benchmarks[name]["version"]
    result |= {"results": rows, "params": {**identity, "python": "3.11"}}
    (results / "nvidia-h200" / "8dfa664b-virtualenv-py3.11.json").write_text(json.dumps(result))
    for depth in (0, 512):
        data = json.loads(
            sidecar(results, f"8dfa664b-decode.EmbeddedDecode-depth={depth}").read_text()
        )
        data["benchmark"] = f"decode.Qwen3MoeDecode depth={depth}"
        data["machine"] = identity
        data["ran"] |= {"gpu": gpu, "backend": "cuda", "model_fingerprint": "same"}
        path = folder / f"8dfa664b-decode.Qwen3MoeDecode-depth={depth}.evidence"
        path.write_text(json.dumps(data))
    if peer:
        data = {
            "schema": "moe-harness/peer/1",
            "peer": "llama.cpp llama-bench",
            "version": None,
            "build_commit": "abc123",
            "gpu_info": gpu,
            "model_fingerprint": "same",
            "n_depth": 0,
            "test_time": "2026-11-24T23:00:00Z",
            "avg_ts": 300.0,
            "stddev_ts": 1.5,
            "ms_per_token": [3.3, 3.4, 3.35],
            "benchmark": "peers.LlamaBench depth=0",
            "planted": None,
            "machine": identity,
        }
        (folder / "8dfa664b-peers.LlamaBench-depth=0.evidence").write_text(json.dumps(data))


# -- what is on the page -----------------------------------------------------------------------


def test_the_committed_results_are_all_on_the_page(tmp_path, capsys):
    out = tmp_path / "report.html"
    told = tmp_path / "report.json"
    assert main(["report", "--out", str(out), "--json", str(told)]) == 0
    assert f"written: {out}" in capsys.readouterr().out
    page = out.read_text(encoding="utf-8")
    checked = Checked(page)
    data = json.loads(told.read_text())
    assert data["schema"] == "moe-harness/report/1"
    assert data["unreadable"] == []
    assert {machine["name"] for machine in data["machines"]} >= {CPU}
    latest = f"{newest()}-decode.EmbeddedDecode-depth=0"
    evidence = json.loads(sidecar(RESULTS, latest).read_text())
    figures = section(page, "figures")
    assert f"{evidence['ms_per_token']['median']:.4g}" in figures
    assert f"{evidence['tokens_per_second']:.4g}" in figures
    assert newest() in figures
    assert "b30515e8" not in figures
    assert "qwen3-moe-decode-gpu" in section(page, "contract")
    assert "AC-001" in section(page, "contract")
    drawn = [attributes for name, attributes in checked.tags if name == "svg"]
    assert sum("role" in attributes for attributes in drawn) >= 8
    assert all("aria-label" in attributes or "aria-hidden" in attributes for attributes in drawn)


def test_the_page_needs_nothing_else():
    page = render(gather(RESULTS))
    for _name, attributes in Checked(page).tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attributes.get(name, "#")[0] == "#" or attributes[name] == "data:,"
        assert not any(name.startswith("on") for name in attributes)
    assert "<script" not in page
    assert not re.search(r"@import|url\(", page)
    assert "default-src 'none'" in page


def test_the_same_results_give_the_same_page():
    assert render(gather(RESULTS)) == render(gather(RESULTS))


def test_a_gpu_stands_first_and_its_peer_beside_it(results):
    on_a_gpu(results)
    report = gather(results)
    assert [machine.title for machine in report.machines] == ["NVIDIA H200", "AMD EPYC, 2 cores"]
    page = render(report)
    ours = report.machines[0].decodes[0].tokens_per_second
    peers = section(page, "peers")
    assert "llama.cpp llama-bench 0 300 ± 1.5" in peers
    assert f"{ours:.4g} {ours / 300:.2f} ×" in peers
    commits = section(page, "commits")
    assert commits.index("NVIDIA H200") < commits.index("AMD EPYC")
    assert "decode.Qwen3MoeDecode ms/token, watched" in commits
    assert "decode.Qwen3MoeDecode tok/s, not watched" in commits


def test_the_page_says_watched_of_what_asv_watches(results):
    on_a_gpu(results)
    path = results / "nvidia-h200" / "8dfa664b-virtualenv-py3.11.json"
    data = json.loads(path.read_text())
    benchmarks = json.loads((results / "benchmarks.json").read_text())
    for metric in ("ms_per_token", "tokens_per_second"):
        name = f"peers.LlamaBench.track_{metric}"
        data["results"][name] = [[3.0], [["0"]], benchmarks[name]["version"]]
    path.write_text(json.dumps(data))
    off = our_conf()["regressions_first_commits"]
    commits = section(render(gather(results)), "commits")
    for benchmark in ("decode.EmbeddedDecode", "decode.Qwen3MoeDecode", "peers.LlamaBench"):
        for metric, unit in (("ms_per_token", "ms/token"), ("tokens_per_second", "tok/s")):
            watched = not any(re.match(each, f"{benchmark}.track_{metric}(0)") for each in off)
            said = "watched" if watched else "not watched"
            assert f"{benchmark} {unit}, {said} " in commits


def test_a_peer_on_another_file_is_not_compared(results):
    on_a_gpu(results)
    path = results / "nvidia-h200" / "evidence" / "8dfa664b-peers.LlamaBench-depth=0.evidence"
    changed(path, model_fingerprint="another")
    assert "300 ± 1.5 – –" in section(render(gather(results)), "peers")


def test_a_rejected_run_is_told_with_its_reasons_and_an_older_figure_says_so(results):
    newest = sidecar(results)
    data = json.loads(newest.read_text())
    benchmark = data["benchmark"]
    rejected = {
        "schema": "moe-harness/evidence/1",
        "verdict": {"accepted": False, "reasons": ["layer 7 is off", "so is layer 9"]},
        "evidence": None,
        "benchmark": benchmark,
        "planted": "wrong_expert",
        "machine": data["machine"],
    }
    newest.write_text(json.dumps(rejected))
    report = gather(results)
    assert [r.reasons for r in report.rejections] == [("layer 7 is off", "so is layer 9")]
    (decode,) = (d for d in report.machines[0].decodes if d.origin.benchmark == benchmark)
    assert decode.origin.commit.startswith("2d47aa20")
    page = render(report)
    told = section(page, "rejected")
    assert "layer 7 is off so is layer 9 planted to be rejected: wrong_expert" in told
    assert "8dfa664b" in told
    assert f"{benchmark} a newer run was rejected" in section(page, "figures")


def test_a_planted_fault_that_was_accepted_is_no_figure(results):
    changed(sidecar(results), planted="drop_expert")
    report = gather(results)
    assert "planted and accepted" in report.rejections[0].reasons[0]
    commits = [decode.origin.commit[:8] for decode in report.machines[0].decodes]
    assert commits == ["2d47aa20", "8dfa664b"]


def test_a_failure_without_evidence_is_told(results):
    path = results / CPU / "8dfa664b-virtualenv-py3.11.json"
    data = json.loads(path.read_text())
    data["results"]["decode.EmbeddedDecode.track_ms_per_token"][0] = None
    path.write_text(json.dumps(data))
    page = render(gather(results))
    told = section(page, "rejected")
    for depth in (0, 512):
        assert f"decode.EmbeddedDecode depth={depth} {CPU} 8dfa664b failed in asv" in told
    assert page.count(FAILED) == 2
    # With the evidence of a rejection beside it, that tells why, once.
    for depth in (0, 512):
        verdict = {"accepted": False, "reasons": ["because"]}
        changed(sidecar(results, f"8dfa664b-decode.EmbeddedDecode-depth={depth}"), verdict=verdict)
    assert "failed in asv" not in section(render(gather(results)), "rejected")


def test_figures_of_another_version_of_a_benchmark_are_not_drawn(results):
    path = results / CPU / "b30515e8-virtualenv-py3.11.json"
    data = json.loads(path.read_text())
    data["results"]["decode.EmbeddedDecode.track_ms_per_token"][2] = "another"
    path.write_text(json.dumps(data))
    (series,) = (
        each
        for each in gather(results).machines[0].series
        if (each.benchmark, each.metric, each.parameters)
        == ("decode.EmbeddedDecode", "ms_per_token", "depth=0")
    )
    assert [point.commit[:8] for point in series.points] == ["2d47aa20", "8dfa664b"]


def test_a_contract_is_shown_with_the_state_of_its_criteria(results, monkeypatch):
    criteria = (
        Criterion("001", "cosine of every layer at least 0.99", "met", "worst 0.999"),
        Criterion("006", "150 tok/s on an RTX 4090", "open", "no such machine"),
        Criterion("007", "memory", "failed", "0.97"),
    )
    contract = Contract("qwen3-moe-forward-gpu-v1", "ACTIVE_ALGORITHM_LEVEL", criteria)
    monkeypatch.setattr(model, "judged_contracts", lambda _results: [contract])
    told = section(render(gather(results)), "contract")
    assert "qwen3-moe-forward-gpu-v1: ACTIVE_ALGORITHM_LEVEL" in told
    assert "006 150 tok/s on an RTX 4090 open no such machine" in told


def test_sections_without_data_say_so(results):
    shutil.rmtree(results / CPU / "evidence")
    (results / CPU / "2d47aa20-virtualenv-py3.11.json").unlink()
    (results / CPU / "b30515e8-virtualenv-py3.11.json").unlink()
    data = json.loads((results / CPU / "8dfa664b-virtualenv-py3.11.json").read_text())
    data["results"] = {}
    (results / CPU / "8dfa664b-virtualenv-py3.11.json").write_text(json.dumps(data))
    page = render(gather(results))
    for name in ("figures", "commits", "layers", "roofline", "peers", "rejected", "contract"):
        found = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)[0]
        assert [tagged for tagged, _ in Checked(found).tags] == ["section", "h2", "p"]


# -- hostile files -----------------------------------------------------------------------------

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u202e\ud800\x00"


def test_text_from_files_stays_text(results):
    on_a_gpu(results, gpu=EVIL)
    path = sidecar(results)
    changed(
        path,
        benchmark=EVIL,
        ran__device=EVIL,
        ran__commit=EVIL,
        ran__model=EVIL,
        ran__numerics=EVIL,
    )
    rejected = sidecar(results, "8dfa664b-decode.EmbeddedDecode-depth=512")
    changed(rejected, verdict={"accepted": False, "reasons": [EVIL] * 50}, planted=EVIL)
    asv = results / CPU / "8dfa664b-virtualenv-py3.11.json"
    data = json.loads(asv.read_text())
    rows = data["results"]
    rows[f"{EVIL}.track_ms_per_token"] = [[1.0], [[EVIL]], "x"]
    asv.write_text(json.dumps(data))
    page = render(gather(results))
    checked = Checked(page)
    assert {name for name, _ in checked.tags} & {"script", "img"} == set()
    assert not any(n.startswith("on") for _, attributes in checked.tags for n in attributes)
    assert "<script>alert(1)" in checked.text  # to be read, not to be run
    assert "\u202e" not in page
    assert "\x00" not in page
    assert page.encode("utf-8")
    assert "and 30 more" in checked.text


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("", "no JSON"),
        ("[]", "found a list, expected an object"),
        (DEEP, "no JSON"),
        ('{"schema": 1}', "schema: found 1, expected text"),
        ('{"schema": "moe-harness/decode/1"}', "evidence: found null, expected an object"),
        ('{"schema": "moe-harness/decode/1", "verdict": {"accepted": 1}}', "verdict.accepted"),
        ('{"schema": "moe-harness/decode/1", "verdict": {"accepted": "true"}}', "true or false"),
        ("\ufeff{}", "no JSON"),
    ],
)
def test_a_damaged_sidecar_is_named_and_hides_no_other(results, capsys, tmp_path, written, why):
    sidecar(results).write_text(written)
    out = tmp_path / "out.html"
    assert main(["report", "--results", str(results), "--out", str(out)]) == 0
    line = capsys.readouterr().err
    assert f"left out: {CPU}/evidence/8dfa664b-decode.EmbeddedDecode-depth=0.evidence: " in line
    assert why in line
    assert line.count("\n") == 1
    page = out.read_text(encoding="utf-8")
    assert "1 file of results/ could not be read and is left out" in page
    assert "457.3" in section(page, "figures")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("ms_per_token__median", 0),
        ("ms_per_token__median", -1),
        ("ms_per_token__p99", float("nan")),
        ("tokens_per_second", float("inf")),
        ("tokens_per_second", 10**400),
        ("tokens_per_second", True),
        ("tokens_per_second", "685"),
        ("memory", []),
        ("ran__date", "yesterday"),
        ("workload__depth", None),
        ("evidence__layers", {}),
        ("evidence__layers", [1]),
        ("evidence__layers", [{"layer": 0, "moe_ffn_out_cosine": 7}]),
        ("machine", "amd"),
        ("verdict__reasons", None),
    ],
)
def test_a_value_that_is_none_makes_no_figure(results, place, value):
    before = len(gather(results).unreadable)
    changed(sidecar(results), **{place: value})
    if place == "verdict__reasons":  # read where it was rejected alone
        changed(sidecar(results), verdict__accepted=False)
    report = gather(results)
    assert len(report.unreadable) == before + 1
    assert "expected" in report.unreadable[-1].why
    assert "\n" not in report.unreadable[-1].why
    render(report)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("version", 3),
        ("date", 1e30),
        ("results", []),
        ("results", {"a.track_b": 5}),
        ("results", {"a.track_b": [[1.0, 2.0], [["0"]], "v"]}),
        ("results", {"a.track_b": [[1.0], [["0"] * 9999] * 20, "v"]}),
        ("results", {"a.track_b": [None, [["0"] * 9999] * 20, "v"]}),
        ("results", {"a.track_b": [["x"], [["0"]], "v"]}),
        ("params", {}),
    ],
)
def test_a_damaged_result_file_is_left_out(results, place, value):
    path = results / CPU / "8dfa664b-virtualenv-py3.11.json"
    changed(path, **{place: value})
    report = gather(results)
    assert [each.path for each in report.unreadable] == [f"{CPU}/{path.name}"]
    render(report)


def test_a_huge_file_is_not_read(results):
    with sidecar(results).open("wb") as file:
        file.truncate(100 << 20)
    assert "expected at most" in gather(results).unreadable[0].why


def test_nothing_to_tell_is_bad_input_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "out.html"
    for folder in (tmp_path / "none", tmp_path):
        assert main(["report", "--results", str(folder), "--out", str(out)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()
    with pytest.raises(BadInput, match="no such folder"):
        gather(tmp_path / "none")
    there = tmp_path / "folder"
    there.mkdir()
    assert main(["report", "--results", str(RESULTS), "--out", str(there)]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [there]


# -- charts ------------------------------------------------------------------------------------


def numbers(chart, name, attribute):
    return [
        float(attributes[attribute])
        for tagged, attributes in Checked(chart).tags
        if tagged == name and attribute in attributes and "mark" in attributes.get("class", "")
    ]


def test_a_line_chart_puts_larger_values_higher_and_later_ones_right():
    marks = tuple(Mark(x, value, "") for x, value in enumerate([1.0, 3.0, None, 2.0]))
    chart = lines("t", "ms", [Line("a", marks)], ["c0", "c1", "c2", "c3"])
    across, down = numbers(chart, "circle", "cx"), numbers(chart, "circle", "cy")
    assert across == sorted(across)
    assert down[1] < down[2] < down[0]
    # From zero up: three times the value is three times the height.
    foot = max(float(a["y1"]) for n, a in Checked(chart).tags if n == "line" and "y1" in a)
    assert (foot - down[1]) / (foot - down[0]) == pytest.approx(3, rel=0.01)
    (path,) = (a["points"] for n, a in Checked(chart).tags if n == "polyline")
    assert len(path.split()) == 2  # no line across the hole
    assert chart.count(FAILED) == 1
    assert "from 1 to 2 ms, 1 failed" in chart


def test_losses_are_logarithmic_and_an_equal_layer_is_drawn_at_the_foot():
    values = (1e-12, 1e-8, 1e-4, 0.0)
    chart = losses("t", [Line("a", tuple(Mark(x, v, "") for x, v in enumerate(values)))], 0.99)
    down = numbers(chart, "circle", "cy")
    assert down[0] - down[1] == pytest.approx(down[1] - down[2], rel=0.01)
    assert down[3] == max(down)
    (floor,) = (
        float(a["y1"]) for n, a in Checked(chart).tags if a.get("class") == "s-warn" and "y1" in a
    )
    assert floor < min(down)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.7])
def test_bars_fit_and_keep_their_scale(share):
    chart = bars("t", [Bar("a", share, ""), Bar("b", 1.0, "")], "100 %")
    widths = [
        float(a["width"]) for n, a in Checked(chart).tags if n == "rect" and a["class"] == "f-c1"
    ]
    assert max(widths) <= 460
    assert widths[0] / widths[1] == pytest.approx(share, abs=0.01)


# -- in a browser ------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_the_page_opens_with_the_network_off(results, tmp_path, width, dark):
    binary = find_browser()
    if binary is None:
        pytest.skip("no browser here: apt-get install chromium, or name one: MOE_HARNESS_BROWSER")
    on_a_gpu(results)
    out = tmp_path / "report.html"
    out.write_text(render(gather(results)), encoding="utf-8")
    with Page(binary, tmp_path / "profile", width=width, dark=dark) as page:
        page.open(out.as_uri())
        sizes = page.evaluate(
            "[...document.querySelectorAll('svg.chart')]"
            ".map(c => [c.clientWidth, c.clientHeight, c.querySelectorAll('title').length])"
        )
        assert len(sizes) >= 8
        assert all(w > 250 and h > 100 and marks > 1 for w, h, marks in sizes)
        # The page never scrolls sideways: what is too wide scrolls by itself.
        assert page.evaluate("document.documentElement.scrollWidth") == width
        light, ground = page.evaluate(CONTRAST)
        assert (light < 0.2) is dark
        assert ground > 4.5
        assert page.errors == []
        assert page.requests == [out.as_uri()]


# Luminance of the ground, and the worst contrast of any text on what lies behind it (WCAG 2).
CONTRAST = """(() => {
    const parse = c => c.match(/[\\d.]+/g).map(Number);
    const luminance = c => parse(c).slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = node => {
        for (let n = node; n; n = n.parentElement) {
            const c = getComputedStyle(n).backgroundColor;
            if (parse(c)[3] !== 0) { return c; }
        }
        return getComputedStyle(document.body).backgroundColor;
    };
    const worst = [...document.querySelectorAll('body *')]
        .filter(n => [...n.childNodes].some(c => c.nodeType == 3 && c.data.trim()))
        .filter(n => n.tagName !== 'title')
        .map(n => {
            const style = getComputedStyle(n);
            const a = luminance(n.namespaceURI.endsWith('svg') ? style.fill : style.color);
            const b = luminance(behind(n));
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        });
    return [luminance(getComputedStyle(document.body).backgroundColor), Math.min(...worst)];
})()"""


def test_dates_without_a_zone_are_utc(results):
    changed(sidecar(results), ran__date="2026-11-24T12:00:00")
    decode = next(d for d in gather(results).machines[0].decodes if d.depth == 0)
    assert decode.origin.measured == dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)


def test_kernel_families_of_a_gpu_are_on_the_roofline(tmp_path, capsys):
    told = tmp_path / "report.json"
    assert main(["report", "--out", str(tmp_path / "r.html"), "--json", str(told)]) == 0
    machines = {machine["name"]: machine for machine in json.loads(told.read_text())["machines"]}
    # Of ten families argmax reads no weights; attention at two depths, and a kernel of one's own.
    assert "nvidia-h200: 4 decodes, 12 kernels" in capsys.readouterr().out
    assert "nvidia-h200" in machines
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "gate_up" in section(page, "roofline")
