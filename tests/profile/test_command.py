"""``moe-harness profile`` as a user meets it."""

import json

import pytest

from harness.backends import open_decoder
from harness.cli import main

from .conftest import RULE


def run(*arguments):
    return main(["profile", *(str(argument) for argument in arguments)])


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Sample briefly: no figure is compared with another here."""
    monkeypatch.setattr("harness.profile.session.StoppingRule", lambda: RULE)


@pytest.fixture(scope="module")
def saved(recorded, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "recording.json"
    recorded.write(path)
    return path


def test_a_session_is_recorded_written_and_shown_again(tiny_path, tmp_path, capsys):
    out = tmp_path / "profile"
    live = [tiny_path, "--backend", "cpu", "--prompt", "1,2", "--tokens", 4]
    assert run(*live, "--out", out, "--vram", "--energy", "--json", tmp_path / "p.json") == 0
    shown = capsys.readouterr().out
    assert "gate_up" in shown
    assert "weights " in shown
    assert "no counter" in shown
    assert "verdict: ACCEPTED" in shown
    names = {path.name for path in out.iterdir()}
    pictures = {"roofline.svg", "timeline.svg"}
    assert names == {"recording.json", "profile.json", "table.txt", "trace.json", *pictures}
    data = json.loads((tmp_path / "p.json").read_text())
    assert data["schema"] == "moe-harness/profile/1"
    assert data == json.loads((out / "profile.json").read_text())
    assert json.loads((out / "trace.json").read_text())["traceEvents"]
    again = tmp_path / "again"
    assert run("--from", out / "recording.json", "--out", again) == 0
    for name in (*pictures, "trace.json", "profile.json"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_json_alone_on_standard_output(saved, capsys):
    assert run("--from", saved, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["path"]["sum_us"] > 0


def test_a_rejected_decode_is_refused_unless_asked_for(tiny_path, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        "harness.suite.open_decoder",
        lambda model, **given: open_decoder(model, **given | {"plant": "drop_top_expert"}),
    )
    live = [tiny_path, "--backend", "cpu", "--prompt", "1,2", "--tokens", 4]
    assert run(*live, "--out", tmp_path / "x") == 1
    captured = capsys.readouterr()
    assert "rejected" in captured.err
    assert captured.out == ""
    assert not (tmp_path / "x").exists()
    assert run(*live, "--out", tmp_path / "x", "--unguarded") == 1
    assert capsys.readouterr().out.startswith("UNGUARDED")
    for path in (tmp_path / "x").iterdir():
        text = path.read_text()
        assert "UNGUARDED" in text or '"accepted":false' in text.replace(" ", ""), path.name


def test_two_numerics_side_by_side(tiny_path, capsys):
    live = [tiny_path, "--backend", "cpu", "--prompt", "1,2", "--tokens", 4]
    assert run(*live, "--compare", "q8_k") == 0
    shown = capsys.readouterr().out
    assert "before: f32 at" in shown
    assert "after: q8_k" in shown


def test_two_recordings_side_by_side(saved, capsys):
    assert run("--from", saved, "--compare", saved) == 0
    assert "+0.0 %" in capsys.readouterr().out


def bad(saved):
    return {
        "no such model": ["nowhere.gguf"],
        "no recording": ["--from", "nowhere.json"],
        "a recording and a model": ["m.gguf", "--from", saved],
        "a recording and a prompt": ["--from", saved, "--prompt", "1"],
        "a recording and energy": ["--from", saved, "--energy"],
        "a recording unguarded": ["--from", saved, "--unguarded"],
        "a recording against numerics": ["--from", saved, "--compare", "q8_k"],
        "no such layer": ["--from", saved, "--out", "x", "--layer", "99"],
        "a layer of nothing": ["--from", saved, "--layer", "1"],
        "no tokens": ["--tokens", "0"],
        "negative depth": ["--depth", "-1"],
        "unknown kernel": ["--ncu", "warp_drive"],
        "ncu on a cpu": ["--ncu", "qkv", "--backend", "cpu"],
        "ncu unguarded": ["--ncu", "qkv", "--unguarded"],
        "ncu and pictures": ["--ncu", "qkv", "--out", "x"],
        "nvtx on a cpu": ["--nvtx", "--backend", "cpu"],
        "nvtx and pictures": ["--nvtx", "--out", "x"],
        "compare and pictures": ["--compare", "q8_k", "--out", "x"],
        "unwritable": ["--from", saved, "--out", "/proc/nowhere"],
        "unknown backend": ["--backend", "abacus"],
    }


@pytest.mark.parametrize("case", bad(None))
def test_bad_input_is_one_line_and_status_2(case, saved, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*bad(saved)[case]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("moe-harness: ")
    assert captured.out == ""
    assert not list(tmp_path.iterdir())
