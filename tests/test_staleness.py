"""GPU evidence goes stale: what is committed must have been taken on these kernels."""

import json
from pathlib import Path

import pytest

from harness.backends.cuda.decoder import gpu_source_hash
from harness.errors import BadInput
from harness.staleness import newest_gpu_evidence

RESULTS = Path(__file__).parents[1] / "results"


def test_the_committed_gpu_evidence_speaks_for_these_kernels():
    found = newest_gpu_evidence(RESULTS)
    if not found:
        pytest.skip("n/a: results/ has no GPU evidence yet")
    stale = [evidence.why_stale(gpu_source_hash()) for evidence in found]
    assert not [why for why in stale if why], "\n".join(why for why in stale if why)


def sidecar(folder, name, date, source_hash, *, accepted=True, gpu="NVIDIA H200", **others):
    folder = folder / "machine" / "evidence"
    folder.mkdir(parents=True, exist_ok=True)
    ran = {
        "backend": others.get("backend", "cuda"),
        "gpu": gpu,
        "date": date,
        "source_hash": source_hash,
    }
    data = {"verdict": {"accepted": accepted, "reasons": []}, "ran": ran}
    data["schema"] = others.get("schema", "moe-harness/decode/1")
    (folder / f"{name}.evidence").write_text(json.dumps(data))


def test_the_newest_accepted_evidence_of_each_gpu_counts(tmp_path):
    sidecar(tmp_path, "a", "2026-01-01T00:00:00+00:00", "old")
    sidecar(tmp_path, "b", "2026-01-02T00:00:00+00:00", "new")
    sidecar(tmp_path, "c", "2026-01-03T00:00:00+00:00", "rejected", accepted=False)
    sidecar(tmp_path, "d", "2026-01-04T00:00:00+00:00", "cpu", backend="cpu")
    own = "moe-harness/kernel-guard/1"
    sidecar(tmp_path, "f", "2026-01-05T00:00:00+00:00", "own", schema=own)
    sidecar(tmp_path, "e", "2026-01-01T00:00:00+00:00", "other", gpu="NVIDIA H100")
    found = newest_gpu_evidence(tmp_path)
    assert [(e.gpu, e.source_hash) for e in found] == [
        ("NVIDIA H100", "other"),
        ("NVIDIA H200", "new"),
    ]
    assert found[1].why_stale("new") is None
    why = found[1].why_stale("newer")
    assert "NVIDIA H200" in why
    assert "asv run" in why


def test_no_evidence_is_not_a_pass(tmp_path):
    assert newest_gpu_evidence(tmp_path) == []


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_damaged_sidecar_is_named(tmp_path, text):
    sidecar(tmp_path, "a", "2026", "x")
    (tmp_path / "machine" / "evidence" / "a.evidence").write_text(text)
    with pytest.raises(BadInput, match="no evidence"):
        newest_gpu_evidence(tmp_path)
