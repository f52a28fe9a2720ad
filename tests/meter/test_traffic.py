"""Bytes by kernel: together they are the token's, wherever they are counted."""

import pytest

from harness.meter.traffic import launch_traffic, token_traffic
from harness.model import open_model


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
@pytest.mark.parametrize("positions", [1, 2, 77])
def test_kernels_together_move_what_the_token_moves(small_model, odd_shapes, backend, positions):
    for model in (small_model, *map(open_model, odd_shapes.values())):
        moved = launch_traffic(model, backend, positions)
        assert sum(moved.values()) == token_traffic(model, backend, positions).total


def test_terms_are_where_they_are_read(small_model):
    c, moved = small_model.config, launch_traffic(small_model, "cuda", 9)
    cached = 2 * c.kv_width * 2  # keys and values of a layer's position, float16
    norms = 2 * c.head_dim * 4
    assert moved["attend", 3] == norms + 9 * cached
    experts = small_model.layer(3, "ffn_down_exps").nbytes
    assert moved["down", 3] == experts // c.experts * c.top_k
    assert moved["argmax", None] == 0
    assert {layer for _, layer in moved} == {None, *range(c.layers)}
