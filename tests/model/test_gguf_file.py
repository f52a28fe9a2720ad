"""Files from outside are hostile: one clear line, no traceback, no large allocation."""

import struct
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import BadInput
from harness.model import open_model

MOST_BYTES = 64 << 20
HEADER = 24  # magic, version, tensors, keys


@pytest.fixture(scope="module")
def whole(tiny_path):
    return tiny_path.read_bytes()


def refused(tmp_path, raw):
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        with pytest.raises(BadInput) as caught:
            open_model(path)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def key_at(raw, key):
    """Offset of the value's type of a metadata key."""
    at = raw.index(struct.pack("<Q", len(key)) + key.encode())
    return at + 8 + len(key)


def with_value(raw, key, packed):
    at = key_at(raw, key) + 4
    return raw[:at] + packed + raw[at + len(packed) :]


def test_opens_what_is_whole(tiny_path):
    model = open_model(tiny_path)
    assert model.config.architecture == "qwen3moe"
    assert len(model.tensors) == 3 + 12 * model.config.layers


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_truncated(tmp_path, whole, share):
    refused(tmp_path, whole[: int(len(whole) * share)])


def test_truncated_by_one_byte_anywhere_in_the_header(tmp_path, whole):
    for length in [*range(40), *range(40, 3000, 97)]:
        refused(tmp_path, whole[:length])


@pytest.mark.parametrize(
    ("at", "packed"),
    [
        (0, b"GGML"),
        (4, struct.pack("<I", 1)),
        (4, struct.pack("<I", 99)),
        (4, struct.pack(">I", 3)),
        (8, struct.pack("<Q", 2**63)),
        (8, struct.pack("<Q", 2**31)),
        (16, struct.pack("<Q", 2**63)),
        (16, struct.pack("<Q", 2**31)),
        (HEADER, struct.pack("<Q", 2**62)),
    ],
)
def test_header(tmp_path, whole, at, packed):
    refused(tmp_path, whole[:at] + packed + whole[at + len(packed) :])


@pytest.mark.parametrize(
    ("key", "packed", "word"),
    [
        ("qwen3moe.expert_used_count", struct.pack("<I", 1000), "expert"),
        ("qwen3moe.attention.layer_norm_rms_epsilon", struct.pack("<f", float("nan")), "eps"),
        ("qwen3moe.attention.layer_norm_rms_epsilon", struct.pack("<f", -1.0), "eps"),
        ("qwen3moe.rope.freq_base", struct.pack("<f", float("nan")), "rope"),
        ("qwen3moe.rope.freq_base", struct.pack("<f", -1e4), "rope"),
        ("qwen3moe.block_count", struct.pack("<I", 2**31), ""),
        ("qwen3moe.embedding_length", struct.pack("<I", 7), ""),
        ("qwen3moe.attention.head_count", struct.pack("<I", 0), "head"),
    ],
)
def test_metadata(tmp_path, whole, key, packed, word):
    assert word in refused(tmp_path, with_value(whole, key, packed))


def test_another_architecture(tmp_path, whole):
    raw = whole.replace(b"qwen3moe", b"llamaxyz")
    assert "qwen3moe" in refused(tmp_path, raw)


def test_a_tensor_is_missing(tmp_path, whole):
    raw = whole.replace(b"blk.1.ffn_up_exps", b"blk.1.ffn_xx_exps")
    assert "ffn_up_exps" in refused(tmp_path, raw)


def test_a_tensor_is_misshapen(tmp_path, whole):
    name = b"blk.1.attn_k.weight"
    at = whole.index(name) + len(name) + 4
    columns, rows = struct.unpack("<QQ", whole[at : at + 16])
    for shape in ((columns, rows // 2), (columns // 2, rows)):
        raw = whole[:at] + struct.pack("<QQ", *shape) + whole[at + 16 :]
        if shape[0] % 256 == 0:
            assert "attn_k.weight has shape" in refused(tmp_path, raw)
        else:
            assert "attn_k.weight has rows of" in refused(tmp_path, raw)
    flat = whole[:at] + struct.pack("<QQ", columns * rows, 1) + whole[at + 16 :]
    assert "config and weights disagree" in refused(tmp_path, flat)


def test_offset_of_a_tensor(tmp_path, whole):
    name = b"blk.1.attn_q.weight"
    at = whole.index(name) + len(name) + 4 + 2 * 8 + 4
    for offset in (struct.pack("<Q", 2**62), struct.pack("<Q", 1), struct.pack("<Q", len(whole))):
        refused(tmp_path, whole[:at] + offset + whole[at + 8 :])


def test_type_of_a_tensor(tmp_path, whole):
    name = b"blk.1.attn_q.weight"
    at = whole.index(name) + len(name) + 4 + 2 * 8
    for kind in (2, 39, 255, 2**31):  # Q4_0, MXFP4, none, none
        refused(tmp_path, whole[:at] + struct.pack("<I", kind) + whole[at + 4 :])


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_change_of_the_header_opens_or_is_refused(tmp_path, whole, data):
    end = whole.index(b"blk.1.attn_q.weight") + 200
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, end))
        raw[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "fuzzed.gguf"
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        open_model(path)
    except BadInput as error:
        assert "\n" not in str(error)  # noqa: PT017 - both ends are right
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MOST_BYTES
