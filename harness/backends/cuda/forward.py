"""Where a token is computed: the ``qwen3moe`` forward pass of FACTS, kernel by kernel."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.backends.cuda.memory import download
from kernels.argmax import BLOCKS, Argmax
from kernels.attention import Attention
from kernels.embedding import Embedding
from kernels.experts import Choosing, Experts
from kernels.matvec import Announcing, Matvec
from kernels.router import Router

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from numpy.typing import NDArray

    from harness.backends.cuda.memory import DeviceMemory
    from harness.backends.cuda.trace import Trace
    from harness.backends.cuda.weights import DeviceWeights, Layer
    from harness.model import Config
    from kernels.compiler import Program
    from kernels.launch import Kernel

POSITION, TOKEN = 0, 4  # offsets in the kernels' State

# A token's launches by family: a kernel, whatever the form of its matrices. Those between the first
# and the last two are launched in each layer, but for the router where its logits are announced.
TOKEN_FAMILIES = (
    "embed",
    "qkv",
    "attend",
    "attention_output",
    "route",
    "gate_up",
    "down",
    "logits",
    "argmax",
)


def family_of(kernel: Kernel) -> str:
    """Family that a kernel's launches belong to."""
    return kernel.name.removesuffix("_tiled")


class Forward:
    """Launches one token's kernels, on buffers that are taken once.

    Parameters
    ----------
    config
        Of the model.
    program
        Kernels of the numerics, for this GPU.
    weights
        On the device.
    memory
        Gives the buffers: scratch, and the KV cache, float16 ``[layers, capacity, kv_heads,
        head_dim]``.
    capacity
        Positions in the cache.
    stream
        PyCUDA's, that everything is launched on.

    Attributes
    ----------
    state
        Address of the kernels' ``State``: position and token, int32 each.
    tokens
        Address of the tokens chosen at each position, int32 ``[capacity]``.
    keys, values
        Addresses of the cache.
    place
        Where in the model the last launch stands, in words.

    """

    def __init__(
        self,
        config: Config,
        program: Program,
        weights: DeviceWeights,
        memory: DeviceMemory,
        capacity: int,
        stream: Any,  # noqa: ANN401 - PyCUDA's
    ) -> None:
        c = config
        self._config, self._weights, self._stream = config, weights, stream
        self._embedding, self._matvec = Embedding(program), Matvec(program)
        self._attention = Attention(program, c.kv_heads)
        self._router, self._experts = Router(program), Experts(program)
        self._argmax = Argmax(program)
        self.place = "nowhere"

        half = np.arange(c.head_dim // 2, dtype=np.float64)
        self._frequencies = memory.array(c.rope_base ** (-2 * half / c.head_dim), "scratch")
        self.layer_cache = capacity * c.kv_width  # values of one layer's keys
        self.keys = memory.halves(c.layers * self.layer_cache, "KV cache")
        self.values = memory.halves(c.layers * self.layer_cache, "KV cache")
        self.state = memory.zeros(2, "scratch")
        self.tokens = memory.zeros(capacity, "scratch")
        # Counters of blocks that have arrived: argmax's, attention's.
        self._arrived = memory.zeros(1 + c.heads, "scratch")
        floats = {
            "x": c.hidden,
            "rotation": 2 * c.head_dim,
            "qkv": c.q_width + 2 * c.kv_width,
            "partial": self._attention.partial_values,
            "mixed": c.q_width,
            "attended": c.hidden,
            "router_logits": c.experts,
            "router_weights": c.top_k,
            "gated": c.top_k * c.expert_width,
            "logits": c.vocab,
            "best": BLOCKS,
            "best_id": BLOCKS,
        }
        self._at = {name: memory.floats(count, "scratch") for name, count in floats.items()}
        # Of 32-bit words, by address: all that kernels write, but for the cache.
        self._written = {self._at[name]: count for name, count in floats.items()}
        self._written |= {self.state: 2, self.tokens: capacity}

    @property
    def logits(self) -> int:
        """Address of the last token's logits, float32 ``[vocab]``."""
        return self._at["logits"]

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that a token may launch."""
        launchers = (
            self._embedding,
            self._matvec,
            self._attention,
            self._router,
            self._experts,
            self._argmax,
        )
        return tuple(kernel for launcher in launchers for kernel in launcher.kernels)

    @contextmanager
    def only(self, families: Collection[str]) -> Iterator[None]:
        """Inside, ``token`` launches kernels of these families alone, with the same arguments."""
        for kernel in self.kernels:
            kernel.left_out = family_of(kernel) not in families
        try:
            yield
        finally:
            for kernel in self.kernels:
                kernel.left_out = False

    def put_state(self, position: int, token: int) -> None:
        """Say which token stands where, in the stream's order: this can be captured."""
        from pycuda import driver  # noqa: PLC0415 - an extra

        driver.memset_d32_async(self.state + POSITION, position, 1, self._stream)
        driver.memset_d32_async(self.state + TOKEN, token, 1, self._stream)

    def read_logits(self) -> NDArray[np.float32]:
        """Download the last token's logits, float32 ``[vocab]``."""
        into = np.empty(self._config.vocab, dtype=np.float32)
        download(self.logits, into)
        return into

    def left(self) -> bytes:
        """Download all that the launches before have left behind, but for the cache."""
        words = [np.empty(count, dtype=np.uint32) for count in self._written.values()]
        for address, into in zip(self._written, words, strict=True):
            download(address, into)
        return b"".join(each.tobytes() for each in words)

    def token(self, trace: Trace | None = None, forced: int = 0) -> None:
        """Launch one token's kernels, in order.

        The token and its position are ``state``'s, which moves on. ``forced`` is the address of
        each layer's input, float32 ``[layers, hidden]``, or null.
        """
        c, at, stream = self._config, self._at, self._stream
        self.place = "in the embedding"
        self._embedding.embed(
            self._weights.table,
            state=self.state,
            frequencies=self._frequencies,
            x=at["x"],
            rotation=at["rotation"],
            half_dim=c.head_dim // 2,
            stream=stream,
        )
        for layer in self._weights.layers:
            self.place = f"in layer {layer.index}"
            if forced:
                self._copy(forced + 4 * layer.index * c.hidden, at["x"], c.hidden)
            self._see(trace, "embedding", layer.index, at["x"])
            self._attend(layer, trace)
            self._see(trace, "post_attn_residual", layer.index, at["attended"])
            self._mix_experts(layer, trace)
            self._see(trace, "post_ffn_residual", layer.index, at["x"])
        self.place = "behind the last layer"
        self._matvec.logits(
            self._weights.output,
            x=at["x"],
            norm=self._weights.final_norm,
            eps=c.rms_eps,
            logits=at["logits"],
            stream=stream,
            trace_norm=0 if trace is None else trace.final_norm,
        )
        self._argmax.argmax(
            logits=at["logits"],
            vocab=c.vocab,
            best=at["best"],
            best_id=at["best_id"],
            arrived=self._arrived,
            state=self.state,
            tokens=self.tokens,
            stream=stream,
        )

    def _attend(self, layer: Layer, trace: Trace | None) -> None:
        c, at, stream = self._config, self._at, self._stream
        seen = _Addresses(trace, layer.index)
        keys = self.keys + 2 * layer.index * self.layer_cache
        values = self.values + 2 * layer.index * self.layer_cache
        self._matvec.qkv(
            layer.q,
            layer.k,
            layer.v,
            x=at["x"],
            norm=layer.attn_norm,
            eps=c.rms_eps,
            out=at["qkv"],
            stream=stream,
            announced=at["router_logits"] if layer.folded else 0,
            experts=c.experts,
            trace_norm=seen["attn_norm"],
        )
        self._see(trace, "qkv_matmul", layer.index, at["qkv"])
        self._attention.attend(
            qkv=at["qkv"],
            q_norm=layer.q_norm,
            k_norm=layer.k_norm,
            rotation=at["rotation"],
            eps=c.rms_eps,
            state=self.state,
            keys=keys,
            values=values,
            partial=at["partial"],
            arrived=self._arrived + 4,
            mixed=at["mixed"],
            stream=stream,
            trace_q=seen["q_post_rope"],
            trace_k=seen["k_post_rope"],
        )
        self._see(trace, "attention", layer.index, at["mixed"])
        self._matvec.attention_output(
            layer.o,
            mixed=at["mixed"],
            residual=at["x"],
            total=at["attended"],
            stream=stream,
            announcing=self._announcing(layer),
            trace_out=seen["attn_out"],
        )

    def _announcing(self, layer: Layer) -> Announcing | None:
        """Whether the router runs with the attention's output, ahead of what it follows from."""
        if not layer.folded:
            return None
        return Announcing(
            int(layer.router["base"]),
            layer.ffn_norm,
            layer.folded,
            self._at["router_logits"],
            self._config.experts,
            self._config.hidden,
        )

    def _mix_experts(self, layer: Layer, trace: Trace | None) -> None:
        c, at, stream = self._config, self._at, self._stream
        seen = _Addresses(trace, layer.index)
        if not layer.folded:
            self._router.route(
                layer.router,
                x=at["attended"],
                norm=layer.ffn_norm,
                eps=c.rms_eps,
                logits=at["router_logits"],
                stream=stream,
            )
        choosing = Choosing(
            at["router_logits"],
            at["router_weights"],
            c.experts,
            c.top_k,
            announced=bool(layer.folded),
            trace_ids=seen["moe_router_indices"],
            trace_weights=seen["moe_router"],
        )
        self._experts.gate_up(
            layer.gate,
            layer.up,
            choosing,
            x=at["attended"],
            norm=layer.ffn_norm,
            eps=c.rms_eps,
            gated=at["gated"],
            stream=stream,
            trace_norm=seen["ffn_norm"],
            trace_gate=seen["ffn_gate"],
            trace_up=seen["ffn_up"],
            trace_silu=seen["ffn_silu"],
        )
        self._see(trace, "ffn_swigl", layer.index, at["gated"])
        self._experts.down(
            layer.down,
            choosing,
            gated=at["gated"],
            state=self.state,
            before=at["attended"],
            residual=at["x"],
            last_layer=layer.index == c.layers - 1,
            stream=stream,
            trace_down=seen["ffn_out"],
            trace_moe=seen["moe_ffn_out"],
        )

    def _see(self, trace: Trace | None, stage: str, layer: int, source: int) -> None:
        """Copy a stage that lies in memory as it is."""
        if trace is not None:
            self._copy(source, trace.at(stage, layer), trace.size(stage))

    def _copy(self, source: int, target: int, count: int) -> None:
        from pycuda import driver  # noqa: PLC0415

        driver.memcpy_dtod_async(target, source, 4 * count, self._stream)


class _Addresses:
    """Where fused kernels write the stages that they swallow; null where nothing is traced."""

    def __init__(self, trace: Trace | None, layer: int) -> None:
        self._trace, self._layer = trace, layer

    def __getitem__(self, stage: str) -> int:
        return 0 if self._trace is None else self._trace.at(stage, self._layer)
