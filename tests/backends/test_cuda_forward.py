"""The order in which a token's kernels are launched, and with what: recorded, without a GPU."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from harness.backends.cuda.forward import TOKEN_FAMILIES, Forward, family_of
from harness.backends.cuda.trace import Trace, stage_sizes
from harness.backends.cuda.weights import Layer
from kernels.compiler import Program
from kernels.family import Heads, Variant
from kernels.launch import Device, Kernel
from kernels.weights import can_be_tiled, matrix

LAYER = ["qkv", "attend", "attention_output", "route", "gate_up", "down"]
CAPACITY = 40
DEVICE = Device(132, 227 << 10)


@dataclass
class Recording(Program):
    launches: list = field(default_factory=list)

    def kernel(self, family, name):
        dtype = family.arguments[name.removesuffix("_tiled")]

        def note(arguments, **configuration):
            self.launches.append((name, np.array(arguments, dtype), configuration))

        return Noted(note, name, dtype)


class Noted(Kernel):
    """A kernel that may have all of the shared memory without asking."""

    def _allow(self, shared):
        assert shared <= DEVICE.shared_bytes


class Addresses:
    """Memory that hands out addresses, none of them a small number."""

    def __init__(self):
        self.next, self.sizes = 1 << 40, {}

    def take(self, nbytes, _purpose="x"):
        self.next += 1 << 28
        self.sizes[self.next] = nbytes
        return self.next

    def floats(self, count, purpose):
        return self.take(4 * count, purpose)

    def halves(self, count, purpose):
        return self.take(2 * count, purpose)

    def zeros(self, count, purpose):
        return self.take(4 * count, purpose)

    def array(self, values, purpose):
        return self.take(values.nbytes, purpose)


def weights_of(model, memory, *, tiles, folded):
    def described(name):
        tensor = model[name]
        fmt = tensor.format.name
        tiled = tiles and name != "token_embd.weight" and can_be_tiled(fmt, tensor.shape)
        fmt += "_TILED" if tiled else ""
        return matrix(memory.take(tensor.nbytes), fmt, tensor.shape, tensor.nbytes)

    names = {
        "q": "attn_q",
        "k": "attn_k",
        "v": "attn_v",
        "o": "attn_output",
        "router": "ffn_gate_inp",
        "gate": "ffn_gate_exps",
        "up": "ffn_up_exps",
        "down": "ffn_down_exps",
    }
    norms = ("attn_norm", "q_norm", "k_norm", "ffn_norm")
    layers = [
        Layer(
            index,
            **{short: described(f"blk.{index}.{name}.weight") for short, name in names.items()},
            **{norm: memory.take(4) for norm in norms},
            folded=memory.take(4) if folded else 0,
        )
        for index in range(model.config.layers)
    ]
    return SimpleNamespace(
        table=described("token_embd.weight"),
        output=described("output.weight"),
        layers=layers,
        final_norm=memory.take(4),
    )


@pytest.fixture(params=["f32", "i24", "announced"])
def forward(request, small_model, monkeypatch):
    """In f32; in i24, whose router runs by itself where it is not F32, and else is announced."""
    c, memory = small_model.config, Addresses()
    announced = request.param == "announced"
    program = Recording(
        Variant(activation="i24" if announced else request.param),
        Heads(c.head_dim, c.heads // c.kv_heads),
        "sm_90",
        DEVICE,
    )
    weights = weights_of(small_model, memory, tiles=request.param != "f32", folded=announced)
    made = Forward(c, program, weights, memory, CAPACITY, "stream")
    copies = []
    monkeypatch.setattr(made, "_copy", lambda *what: copies.append(what))
    monkeypatch.setattr("harness.backends.cuda.trace.poison_f32", lambda *_: None)
    trace = Trace(c, memory)
    return SimpleNamespace(
        run=made,
        program=program,
        copies=copies,
        config=c,
        memory=memory,
        trace=trace,
        layer=[name for name in LAYER if not announced or name != "route"],
        layers=weights.layers,
    )


def names(launches):
    return [name.removesuffix("_tiled") for name, _, _ in launches]


def test_a_token_is_launched_in_the_order_of_the_model(forward):
    forward.run.token()
    expected = ["embed", *(forward.layer * forward.config.layers), "logits", "argmax"]
    assert names(forward.program.launches) == expected
    assert not forward.copies
    tiled = {name for name, _, _ in forward.program.launches if name.endswith("_tiled")}
    # 517 rows of the output matrix are no whole tiles.
    wanted = {"qkv", "attention_output", "gate_up", "down"}
    tiles = forward.program.variant.activation == "i24"
    assert tiled == ({f"{name}_tiled" for name in wanted} if tiles else set())
    assert {str(configuration["stream"]) for *_, configuration in forward.program.launches} == {
        "stream"
    }


def fields(arguments):
    """Arguments by name, those of the choice of experts too; matrices are whole."""
    for key in arguments.dtype.names:
        if key == "choosing":
            yield from fields(arguments[key])
        else:
            yield key, arguments[key]


def test_tracing_adds_copies_and_addresses_and_changes_nothing_else(forward):
    forward.run.token()
    plain = list(forward.program.launches)
    forward.program.launches.clear()
    forward.run.token(forward.trace)
    traced = forward.program.launches
    assert names(traced) == names(plain)
    seen = {target for _, target, _ in forward.copies}
    for (name, a, one), (_, b, two) in zip(plain, traced, strict=True):
        assert one == two, name
        for (key, before), (_, after) in zip(fields(a), fields(b), strict=True):
            if key.startswith("trace_"):
                assert before == 0
                # Both choose experts, and the choice is written where it is weighed.
                weighs = names([(name, 0, 0)]) == ["gate_up"]
                if key not in ("trace_ids", "trace_weights") or weighs:
                    seen.add(int(after))
            else:
                assert before == after, (name, key)
    # Every stage of every layer is written by a copy or by a kernel.
    for layer in range(forward.config.layers):
        for stage in stage_sizes(forward.config):
            assert forward.trace.at(stage, layer) in seen, stage
    assert forward.trace.final_norm in seen


def test_forced_inputs_are_copied_before_each_layer(forward):
    given = 7 << 50
    forward.run.token(forward.trace, given)
    sources = [source for source, _, _ in forward.copies]
    hidden = forward.config.hidden
    assert [s for s in sources if s >= given] == [
        given + 4 * layer * hidden for layer in range(forward.config.layers)
    ]


def test_each_layer_has_its_own_weights_and_its_own_part_of_the_cache(forward):
    forward.run.token()
    attended = [a for name, a, _ in forward.program.launches if name == "attend"]
    values = CAPACITY * forward.config.kv_width
    for key, base in (("keys", forward.run.keys), ("values", forward.run.values)):
        assert [int(a[key]) for a in attended] == [
            base + 2 * layer * values for layer in range(forward.config.layers)
        ]
    down = [a for name, a, _ in forward.program.launches if names([(name, 0, 0)]) == ["down"]]
    assert len({int(a["down"]["base"]) for a in down}) == forward.config.layers
    assert [int(a["last_layer"]) for a in down] == [0] * (forward.config.layers - 1) + [1]


def test_what_the_router_leaves_is_what_both_choose_by(forward):
    forward.run.token()
    by_family = {
        family: [a for name, a, _ in forward.program.launches if names([(name, 0, 0)]) == [family]]
        for family in LAYER
    }
    c, announced = forward.config, "route" not in forward.layer
    if announced:
        written = [a["announcing"] for a in by_family["attention_output"]]
        for a, forgotten, layer in zip(written, by_family["qkv"], forward.layers, strict=True):
            assert (a["experts"], a["hidden"]) == (c.experts, c.hidden)
            assert (a["router"], a["norm"]) == (layer.router["base"], layer.ffn_norm)
            assert a["folded"] == layer.folded
            assert (forgotten["announced"], forgotten["experts"]) == (a["logits"], c.experts)
    else:
        written = by_family["route"]
        assert not any(a["announcing"]["router"] for a in by_family["attention_output"])
        assert not any(a["announced"] for a in by_family["qkv"])
    for left, *read in zip(written, by_family["gate_up"], by_family["down"], strict=True):
        for a in read:
            choosing = a["choosing"]
            assert choosing["logits"] == left["logits"]
            assert (choosing["experts"], choosing["top_k"]) == (c.experts, c.top_k)
            assert choosing["announced"] == announced
        assert len({int(a["choosing"]["weights"]) for a in read}) == 1


def test_the_residual_goes_from_attention_to_the_experts_and_back(forward):
    forward.run.token()
    by_family = {
        family: [a for name, a, _ in forward.program.launches if names([(name, 0, 0)]) == [family]]
        for family in LAYER
    }
    attended = {int(a["sum"]) for a in by_family["attention_output"]}
    before = {int(a["residual"]) for a in by_family["attention_output"]}
    assert len(attended) == len(before) == 1
    assert attended != before
    for family, name in (("route", "x"), ("gate_up", "x"), ("down", "before")):
        assert {int(a[name]) for a in by_family[family]} in (attended, set()), family
    for family, name in (("qkv", "x"), ("down", "residual")):
        assert {int(a[name]) for a in by_family[family]} == before, family


def test_every_launch_of_a_token_belongs_to_one_family_and_every_family_has_some(forward):
    forward.run.token()
    launched = names(forward.program.launches)
    assert list(dict.fromkeys(launched)) == ["embed", *forward.layer, "logits", "argmax"]
    assert set(launched) <= set(TOKEN_FAMILIES)
    # What a token may launch and what it does: one matrix by itself is for tests alone.
    assert {family_of(kernel) for kernel in forward.run.kernels} == {*TOKEN_FAMILIES, "matvec"}


@pytest.mark.parametrize("family", TOKEN_FAMILIES)
def test_one_family_alone_is_launched_just_as_in_the_token(forward, family):
    launches = forward.program.launches

    def of_family():
        return [
            (name, arguments.tobytes(), configuration)
            for name, arguments, configuration in launches
            if names([(name, 0, 0)]) == [family]
        ]

    forward.run.token()
    whole, in_token = len(launches), of_family()
    launches.clear()
    with forward.run.only({family}):
        forward.run.token()
    assert of_family() == in_token
    assert len(launches) == len(in_token)
    once = family not in LAYER
    of_each = once or family in forward.layer
    assert len(in_token) == (1 if once else forward.config.layers * of_each)
    launches.clear()
    forward.run.token()
    assert len(launches) == whole


def test_an_error_inside_leaves_no_kernel_out(forward):
    with pytest.raises(RuntimeError), forward.run.only({"embed"}):
        raise RuntimeError
    forward.run.token()
    launched = list(dict.fromkeys(names(forward.program.launches)))
    assert launched == ["embed", *forward.layer, "logits", "argmax"]
