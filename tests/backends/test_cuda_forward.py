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


def weights_of(model, memory, *, tiles):
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
        )
        for index in range(model.config.layers)
    ]
    return SimpleNamespace(
        table=described("token_embd.weight"),
        output=described("output.weight"),
        layers=layers,
        final_norm=memory.take(4),
    )


@pytest.fixture(params=["f32", "i24"])
def forward(request, small_model, monkeypatch):
    c, memory = small_model.config, Addresses()
    program = Recording(
        Variant(activation=request.param),
        Heads(c.head_dim, c.heads // c.kv_heads),
        "sm_90",
        DEVICE,
    )
    weights = weights_of(small_model, memory, tiles=request.param == "i24")
    made = Forward(c, program, weights, memory, CAPACITY, "stream")
    copies = []
    monkeypatch.setattr(made, "_copy", lambda *what: copies.append(what))
    monkeypatch.setattr("harness.backends.cuda.trace.poison_f32", lambda *_: None)
    trace = Trace(c, memory)
    return SimpleNamespace(
        run=made, program=program, copies=copies, config=c, memory=memory, trace=trace
    )


def names(launches):
    return [name.removesuffix("_tiled") for name, _, _ in launches]


def test_a_token_is_launched_in_the_order_of_the_model(forward):
    forward.run.token()
    expected = ["embed", *(LAYER * forward.config.layers), "logits", "argmax"]
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
                if key not in ("trace_ids", "trace_weights") or names([(name, 0, 0)]) == ["down"]:
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
    route, gate_up, down = (
        [a for name, a, _ in forward.program.launches if names([(name, 0, 0)]) == [family]]
        for family in ("route", "gate_up", "down")
    )
    c = forward.config
    for written, *read in zip(route, gate_up, down, strict=True):
        for a in read:
            assert a["choosing"]["logits"] == written["logits"]
            assert (a["choosing"]["experts"], a["choosing"]["top_k"]) == (c.experts, c.top_k)


def test_every_launch_of_a_token_belongs_to_one_family_and_every_family_has_some(forward):
    forward.run.token()
    launched = names(forward.program.launches)
    assert tuple(dict.fromkeys(launched)) == TOKEN_FAMILIES
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
    assert len(in_token) == (forward.config.layers if family in LAYER else 1)
    launches.clear()
    forward.run.token()
    assert len(launches) == whole


def test_an_error_inside_leaves_no_kernel_out(forward):
    with pytest.raises(RuntimeError), forward.run.only({"embed"}):
        raise RuntimeError
    forward.run.token()
    assert tuple(dict.fromkeys(names(forward.program.launches))) == TOKEN_FAMILIES
