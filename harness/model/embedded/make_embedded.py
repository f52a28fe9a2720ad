"""Make the embedded model, end to end: corpus, 5-gram, tokenizer, training, quantising, card.

Three steps share a folder: ``corpus`` (CPU, minutes), ``train`` (a GPU) and ``finish``, which
quantises, evaluates *the quantised file* and writes everything that ships. No figure of the card
is typed by hand: ``finish`` writes ``embedded.json`` and fills the card from it.

    python -m harness.model.embedded.make_embedded corpus --stdlib LIB --folder build/embedded
    python -m harness.model.embedded.make_embedded train --folder build/embedded
    python -m harness.model.embedded.make_embedded finish --folder build/embedded

LIB holds the ``.py`` files of Python's standard library (``lib/python3.12`` of an installation).
The last line printed by each step is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import sys
import time
import unicodedata
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import tokenizers
import torch
from tokenizers import trainers
from torch import Tensor
from torch.nn import functional

from harness.model.embedded import network
from harness.model.embedded.network import Shape
from harness.model.embedded.ngram import KneserNey
from harness.model.quantise import quantise, round_to_nearest
from harness.model.tokenizer import byte_level_bpe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

END = "<|endoftext|>"
VOCABULARY = 4096
PYTHON = "3.12.1"
EXCLUDED = {"site-packages", "__pycache__", "lib2to3", "idle_test"}
# Of 100 buckets by hash of the path: the first 5 are held out, the next 2 choose the recipe.
HELDOUT_BUCKETS, VALIDATION_BUCKETS = range(5), range(5, 7)
SHIPPED_BYTES = 96 << 10
PREFIX_TOKENS = 1500
PROMPT = "def read(self"
BATCH = 32  # windows of the whole context
BALANCE = 0.01  # weight of the load-balancing loss: small beside cross-entropy, no expert dies


# --- corpus --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SourceFile:
    """One file of the corpus: its path below the library and its text, in NFC."""

    name: str
    text: str

    @property
    def bucket(self) -> int:
        """Place of the path in 100 buckets; the same on every machine."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big") % 100


def collect(stdlib: Path) -> list[SourceFile]:
    """All UTF-8 ``.py`` files below ``stdlib`` but the excluded folders, sorted by path."""
    files = []
    for path in sorted(stdlib.rglob("*.py")):
        name = path.relative_to(stdlib)
        if EXCLUDED & set(name.parts):
            continue
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError:
            continue
        if text.strip() and END not in text:
            files.append(SourceFile(name.as_posix(), unicodedata.normalize("NFC", text)))
    return files


def train_tokenizer(texts: Iterator[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE of ``VOCABULARY`` tokens; ``END`` is token 0."""
    engine = byte_level_bpe({}, [])
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    engine.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END],
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        ),
    )
    return engine


def stream_of(engine: tokenizers.Tokenizer, files: list[SourceFile]) -> NDArray[np.int64]:
    """Token ids of all files, ``END`` before the first and after each."""
    end = engine.token_to_id(END)
    encoded = engine.encode_batch([file.text for file in files], add_special_tokens=False)
    parts = [[end], *([*encoding.ids, end] for encoding in encoded)]
    return np.concatenate([np.array(part, dtype=np.int64) for part in parts])


def size_of(files: list[SourceFile]) -> int:
    """UTF-8 bytes of all texts."""
    return sum(len(file.text.encode()) for file in files)


def corpus(arguments: argparse.Namespace) -> dict[str, Any]:
    """Split the library, train the tokenizer, encode, and measure the 5-gram."""
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    files = collect(arguments.stdlib)[:: arguments.every]
    heldout = [file for file in files if file.bucket in HELDOUT_BUCKETS]
    validation = [file for file in files if file.bucket in VALIDATION_BUCKETS]
    apart = {file.name for file in heldout + validation}
    training = [file for file in files if file.name not in apart]
    shipped = ship(heldout)
    say(f"{len(training)} files to train on, {len(heldout)} held out, {len(shipped)} shipped")
    engine = train_tokenizer(file.text for file in training)
    engine.save(str(folder / "tokenizer.json"))
    streams = {
        "training": stream_of(engine, training),
        "validation": stream_of(engine, validation),
        "heldout": stream_of(engine, heldout),
        "shipped": stream_of(engine, shipped),
    }
    for name, stream in streams.items():
        np.save(folder / f"{name}.npy", stream.astype(np.uint16))
    shipped_text = END.join(file.text for file in shipped)
    (folder / "heldout.txt").write_bytes(shipped_text.encode())
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.text}\0".encode())
    say(f"{len(streams['training'])} tokens; the 5-gram next")
    facts = {
        "python": PYTHON,
        "sha256": digest.hexdigest(),
        "files": {
            "training": len(training),
            "validation": len(validation),
            "heldout": len(heldout),
        },
        "bytes": {
            "training": size_of(training),
            "validation": size_of(validation),
            "heldout": size_of(heldout),
            "shipped": size_of(shipped),
        },
        "tokens": {name: len(stream) for name, stream in streams.items()},
        "shipped": [file.name for file in shipped],
        "five_gram": five_gram(streams, size_of(heldout), size_of(shipped)),
        "command": command(),
    }
    write_json(folder / "corpus.json", facts)
    return facts


def ship(heldout: list[SourceFile]) -> list[SourceFile]:
    """Held-out library files (no tests), by hash of the path, up to ``SHIPPED_BYTES``."""
    chosen: list[SourceFile] = []
    library = [file for file in heldout if "test" not in file.name and "/" not in file.name]
    for file in sorted(library, key=lambda file: hashlib.sha256(file.name.encode()).digest()):
        if size_of([*chosen, file]) <= SHIPPED_BYTES:
            chosen.append(file)
    return chosen


def five_gram(
    streams: dict[str, NDArray[np.int64]], heldout_bytes: int, shipped_bytes: int
) -> dict[str, Any]:
    """Bits per byte of the 5-gram, and how far from 1 its probabilities sum at worst."""
    model = KneserNey(streams["training"], VOCABULARY)
    heldout = streams["heldout"]
    at = np.linspace(4, len(heldout) - 1, 24).astype(np.int64)
    contexts = np.stack([heldout[at - back] for back in range(4, 0, -1)], axis=1)
    unseen = np.random.default_rng(0).integers(0, VOCABULARY, (8, 4))
    sums = model.sums(np.concatenate([contexts, unseen]))
    worst = float(np.abs(sums - 1).max())
    if worst > 1e-9:
        raise ValueError(f"the 5-gram's probabilities sum to 1 only within {worst}")
    return {
        "heldout_bits_per_byte": model.bits(heldout, 0) / heldout_bytes,
        "shipped_bits_per_byte": model.bits(streams["shipped"], 0) / shipped_bytes,
        "worst_sum_error": worst,
        "contexts_summed": len(sums),
    }


# --- train ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """``epochs:dropout`` as given on the command line."""

    epochs: float
    dropout: float

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Read ``epochs:dropout``."""
        epochs, dropout = text.split(":")
        return cls(float(epochs), float(dropout))


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train each recipe in its share of the time; keep the one of lowest validation loss."""
    started = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    shape = Shape(layers=arguments.layers)
    training = read_stream(arguments.folder, "training").to(device)
    validation = read_stream(arguments.folder, "validation").to(device)
    recipes = [Recipe.parse(text) for text in arguments.recipes.split(",")]
    step = torch.compile(network.layer_step) if arguments.compile else network.layer_step
    runs: list[dict[str, Any]] = []
    best: dict[str, Tensor] = {}
    for index, recipe in enumerate(recipes):
        left = arguments.minutes * 60 - (time.monotonic() - started)
        seconds = left / (len(recipes) - index)
        weights, run = train_once(
            shape, recipe, training, validation, seconds, arguments.steps, step
        )
        run["recipe"] = asdict(recipe)
        if not runs or run["validation_loss"] < min(other["validation_loss"] for other in runs):
            best = weights
            torch.save({"shape": asdict(shape), "weights": best}, arguments.folder / "trained.pt")
        runs.append(run)
    facts = {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none (CPU)",
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - started, 1),
        "runs": runs,
        "kept": min(range(len(runs)), key=lambda at: runs[at]["validation_loss"]),
        "command": command(),
    }
    write_json(arguments.folder / "train.json", facts)
    return facts


def train_once(
    shape: Shape,
    recipe: Recipe,
    training: Tensor,
    validation: Tensor,
    seconds: float,
    most_steps: int,
    step: network.LayerStep,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """AdamW in bf16; the learning rate falls to 0 when the epochs or the seconds are used up.

    Returns
    -------
    The weights with the lowest validation loss seen, float32 on the CPU, and what happened.

    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    device = training.device
    weights = {
        name: tensor.to(device).requires_grad_()
        for name, tensor in network.initial_weights(shape, generator).items()
    }
    optimiser = torch.optim.AdamW(
        [
            {"params": [w for w in weights.values() if w.dim() > 1], "weight_decay": 0.1},
            {"params": [w for w in weights.values() if w.dim() == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )
    total = max(1, int(recipe.epochs * len(training) / (BATCH * shape.context)))
    total = min(total, most_steps) if most_steps else total
    checks = max(1, total // 16)
    batches = windows(training, shape.context, generator)
    started = time.monotonic()
    best_loss, best = math.inf, {}
    history = []
    taken, progress = 0, 0.0
    while progress < 1:
        rate = 2e-3 * min(1.0, (taken + 1) / 200) * (1 - progress)
        for group in optimiser.param_groups:
            group["lr"] = rate
        rows = next(batches)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits, routing = network.forward(shape, weights, rows[:, :-1], recipe.dropout, step)
        loss = functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        balance = sum(
            (imbalance(shape, probability, chosen) for probability, chosen in routing),
            start=torch.zeros((), device=device),
        )
        (loss + BALANCE * balance / shape.layers).backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        taken += 1
        if taken % 10 == 0 or total <= 50:
            torch.cuda.synchronize() if device.type == "cuda" else None
        progress = max(taken / total, (time.monotonic() - started) / seconds)
        if taken % checks == 0 or progress >= 1:
            now = validation_loss(shape, weights, validation)
            elapsed = time.monotonic() - started
            history.append([taken, round(loss.item(), 4), round(now, 4)])
            say(
                f"{elapsed:6.1f} s step {taken}/{total} loss {float(loss):.4f} validation {now:.4f}"
            )
            if now < best_loss:
                best_loss = now
                best = {name: w.detach().cpu().clone() for name, w in weights.items()}
    return best, {
        "steps": taken,
        "steps_planned": total,
        "tokens": taken * BATCH * shape.context,
        "seconds": round(time.monotonic() - started, 1),
        "validation_loss": best_loss,
        "history_step_loss_validation": history,
    }


def imbalance(shape: Shape, probability: Tensor, chosen: Tensor) -> Tensor:
    """Load-balancing loss of one layer: 1 when the experts share the tokens equally.

    Source: Fedus et al., "Switch Transformers" (2021), equation 4, with top-k assignments.
    """
    share = torch.bincount(chosen.flatten(), minlength=shape.experts) / chosen.numel()
    return shape.experts * (share * probability.flatten(0, 1).mean(0)).sum()


def windows(stream: Tensor, context: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffled batches of windows of context + 1 tokens, cut at another offset each epoch."""
    while True:
        offset = int(torch.randint(context, (1,), generator=generator))
        count = (len(stream) - 1 - offset) // context
        order = torch.randperm(count, generator=generator)
        span = torch.arange(context + 1)
        for at in range(0, max(1, count - BATCH + 1), BATCH):
            starts = offset + order[at : at + BATCH, None] * context
            yield stream[(starts + span).to(stream.device)]


@torch.no_grad()
def validation_loss(shape: Shape, weights: network.Weights, stream: Tensor) -> float:
    """Nats per token over windows that do not overlap: cheap, and enough to compare."""
    count = (len(stream) - 1) // shape.context
    total = 0.0
    for first in range(0, count, BATCH):
        starts = torch.arange(first, min(first + BATCH, count))[:, None] * shape.context
        rows = stream[(starts + torch.arange(shape.context + 1)).to(stream.device)]
        with torch.autocast(stream.device.type, dtype=torch.bfloat16):
            logits, _ = network.forward(shape, weights, rows[:, :-1])
        lost = functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        total += float(lost) * len(rows)
    return total / count


# --- finish --------------------------------------------------------------------------------------


def finish(arguments: argparse.Namespace) -> dict[str, Any]:
    """Quantise, write the file, evaluate it, and write what ships beside it."""
    folder, out = arguments.folder, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trained = torch.load(folder / "trained.pt", weights_only=True)
    shape = Shape(**trained["shape"])
    corpus_facts = json.loads((folder / "corpus.json").read_text())
    engine = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    target = out / "embedded.gguf"
    errors = write_gguf(target, shape, trained["weights"], engine)
    say(f"{target} written, {target.stat().st_size} bytes")

    master = {name: tensor.to(device) for name, tensor in trained["weights"].items()}
    _, shipped_weights = network.load(target, device)
    read_back, _ = network.load(target)
    if read_back != replace(shape, eps=float(np.float32(shape.eps))):  # GGUF holds float32
        raise ValueError(f"the file says {read_back}, the training said {shape}")
    heldout = read_stream(folder, "heldout").to(device)
    shipped = read_stream(folder, "shipped").to(device)
    sizes = corpus_facts["bytes"]
    bits, counts = network.stream_bits(shape, shipped_weights, heldout)
    say("held-out text evaluated")
    unquantised, _ = network.stream_bits(shape, master, heldout)
    shipped_bits, _ = network.stream_bits(shape, shipped_weights, shipped)
    prefix = shipped[:PREFIX_TOKENS]
    prefix_bits, _ = network.stream_bits(shape, shipped_weights, prefix)
    prompt = engine.encode(PROMPT, add_special_tokens=False).ids
    sample = PROMPT + engine.decode(network.greedy(shape, shipped_weights, prompt, 96))
    say(sample)
    shares = (counts.double() / counts.sum(1, keepdim=True)).tolist()
    baseline = corpus_facts["five_gram"]
    facts: dict[str, Any] = {
        "schema": "moe-harness/embedded/1",
        "file_bytes": target.stat().st_size,
        "file_sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
        "parameters": sum(tensor.numel() for tensor in master.values()),
        "architecture": asdict(shape),
        "tensor_types": tensor_types(shape),
        "heldout": {
            "bits_per_byte": bits / sizes["heldout"],
            "bits_per_byte_unquantised": unquantised / sizes["heldout"],
            "bits_per_byte_five_gram": baseline["heldout_bits_per_byte"],
            "below_five_gram": 1 - bits / sizes["heldout"] / baseline["heldout_bits_per_byte"],
        },
        "shipped_heldout": {
            "sha256": hashlib.sha256((folder / "heldout.txt").read_bytes()).hexdigest(),
            "bits_per_byte": shipped_bits / sizes["shipped"],
            "bits_per_byte_five_gram": baseline["shipped_bits_per_byte"],
            "below_five_gram": 1
            - shipped_bits / sizes["shipped"] / baseline["shipped_bits_per_byte"],
            "prefix_tokens": len(prefix),
            "prefix_bits_per_token": prefix_bits / (len(prefix) - 1),
        },
        "expert_shares": shares,
        "quantisation": errors,
        "greedy_sample": sample,
        "corpus": corpus_facts,
        "training": json.loads((folder / "train.json").read_text()),
        "made_with": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "tokenizers": tokenizers.__version__,
            "numpy": np.__version__,
        },
        "command": command(),
    }
    write_json(out / "embedded.json", facts)
    (out / "heldout.txt").write_bytes((folder / "heldout.txt").read_bytes())
    (out / "MODEL_CARD.md").write_text(card(facts), encoding="utf-8")
    return {key: facts[key] for key in ("file_bytes", "heldout", "shipped_heldout")}


def tensor_types(shape: Shape) -> dict[str, str]:
    """Quant format of each tensor, as llama.cpp's Q4_K_M has it.

    ``output`` is Q6_K; ``attn_v`` and ``ffn_down_exps`` are Q6_K on the first eighth of the
    layers, the last eighth and every third between; norms and routers stay F32.
    """
    eighth = shape.layers // 8
    types = {}
    for name, size in network.tensor_shapes(shape).items():
        if len(size) == 1 or "ffn_gate_inp" in name:
            types[name] = "F32"
            continue
        types[name] = "Q6_K" if name == "output.weight" else "Q4_K"
        if "attn_v." in name or "ffn_down_exps." in name:
            layer = int(name.split(".")[1])
            edge = layer < eighth or layer >= 7 * shape.layers // 8
            types[name] = "Q6_K" if edge or (layer - eighth) % 3 == 2 else "Q4_K"
    return types


def write_gguf(
    path: Path, shape: Shape, weights: dict[str, Tensor], engine: tokenizers.Tokenizer
) -> dict[str, dict[str, float]]:
    """Write the quantised file beside ``path``, then rename.

    Returns
    -------
    For each block format the relative RMS error over all its tensors, searched and plain.

    """
    beside = path.with_name(f"{path.name}.tmp")
    writer = gguf.GGUFWriter(beside, "qwen3moe")
    write_facts(writer, shape)
    write_vocabulary(writer, engine)
    squares: dict[str, list[float]] = {}
    for name, fmt in tensor_types(shape).items():
        values = weights[name].float().numpy()
        if fmt == "F32":
            writer.add_tensor(name, values)
            continue
        kind = gguf.GGMLQuantizationType[fmt]
        rows = values.reshape(-1, values.shape[-1])
        blocks = quantise(rows, fmt)
        sums = squares.setdefault(fmt, [0.0, 0.0, 0.0])
        sums[0] += float(np.square(rows, dtype=np.float64).sum())
        for at, encoded in enumerate((blocks, round_to_nearest(rows, fmt)), start=1):
            difference = gguf.quants.dequantize(encoded, kind) - rows
            sums[at] += float(np.square(difference, dtype=np.float64).sum())
        writer.add_tensor(name, blocks.reshape(*values.shape[:-1], -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    beside.replace(path)
    return {
        fmt: {
            "relative_rms": math.sqrt(searched / power),
            "relative_rms_round_to_nearest": math.sqrt(plain / power),
        }
        for fmt, (power, searched, plain) in squares.items()
    }


def write_facts(writer: gguf.GGUFWriter, shape: Shape) -> None:
    """General and architecture metadata."""
    writer.add_name("moe-harness embedded")
    writer.add_description("A small qwen3moe trained on the source of Python's standard library")
    writer.add_license("MIT")
    writer.add_custom_alignment(32)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.expert_width)
    writer.add_expert_feed_forward_length(shape.expert_width)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.top_k)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_freq_base(shape.rope_base)


def write_vocabulary(writer: gguf.GGUFWriter, engine: tokenizers.Tokenizer) -> None:
    """The tokenizer in the form that llama.cpp reads."""
    vocabulary = engine.get_vocab(with_added_tokens=True)
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    merges = json.loads(engine.to_str())["model"]["merges"]
    kinds = [gguf.TokenType.CONTROL if token == END else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(vocabulary[END])
    writer.add_pad_token_id(vocabulary[END])
    writer.add_add_bos_token(False)


def card(facts: dict[str, Any]) -> str:
    """Return the model card; every figure comes from ``facts`` (``embedded.json``)."""
    shape, heldout, shipped = facts["architecture"], facts["heldout"], facts["shipped_heldout"]
    corpus_facts, training = facts["corpus"], facts["training"]
    shares = [share for layer in facts["expert_shares"] for share in layer]
    kept = training["runs"][training["kept"]]
    recipes = "\n".join(
        f"| {run['recipe']['epochs']:g} | {run['recipe']['dropout']:g} | {run['steps']} of "
        f"{run['steps_planned']} | {run['seconds']:.0f} | {run['validation_loss']:.4f} |"
        for run in training["runs"]
    )
    layers = "\n".join(
        f"| {layer} | {min(row):.2%} | {max(row):.2%} | "
        + " ".join(f"{100 * share:.1f}" for share in row)
        + " |"
        for layer, row in enumerate(facts["expert_shares"])
    )
    errors = "\n".join(
        f"| {fmt} | {error['relative_rms']:.5f} | {error['relative_rms_round_to_nearest']:.5f} |"
        for fmt, error in facts["quantisation"].items()
    )
    commands = "\n".join(
        part["command"] for part in (corpus_facts, training, facts) if part["command"]
    )
    q6 = ", ".join(
        name.removesuffix(".weight")
        for name, kind in facts["tensor_types"].items()
        if kind == "Q6_K"
    )
    return f"""# The embedded model

A small `qwen3moe`, really trained, so that argmaxes and routing mean something on any machine.
Written by `make_embedded.py`; every figure is from `embedded.json`, which it wrote beside this.

| | |
|---|---|
| file | `embedded.gguf`, {facts["file_bytes"]} bytes, sha256 `{facts["file_sha256"]}` |
| parameters | {facts["parameters"]} |
| licence | weights MIT, as the project; training text and `heldout.txt` PSF-2.0 |
| data | `.py` files of Python {corpus_facts["python"]}'s standard library, tests included |
| corpus sha256 | `{corpus_facts["sha256"]}` (name, NUL, text in NFC, NUL; by sorted name) |
| trained on | {training["gpu"]}, torch {training["torch"]}, {training["seconds"]:.0f} s in all |
| intended use | measuring and checking decoders; it is no assistant and no code generator |

## Held-out cross-entropy

Of the files, {corpus_facts["files"]["training"]} ({corpus_facts["bytes"]["training"]} bytes,
{corpus_facts["tokens"]["training"]} tokens) were trained on,
{corpus_facts["files"]["validation"]} ({corpus_facts["bytes"]["validation"]} bytes) chose the
recipe, and {corpus_facts["files"]["heldout"]} ({corpus_facts["bytes"]["heldout"]} bytes) were held
out: by hash of the path, whole files. Bits per UTF-8 byte of text, `<|endoftext|>` after each
file counted as bits but not as bytes, float32 arithmetic, at least
{shape["context"] // 2} tokens of context wherever the text has them.

| text | quantised file | unquantised | 5-gram | below the 5-gram |
|---|---|---|---|---|
| all held-out files | {heldout["bits_per_byte"]:.4f} | \
{heldout["bits_per_byte_unquantised"]:.4f} | {heldout["bits_per_byte_five_gram"]:.4f} | \
{heldout["below_five_gram"]:.1%} |
| `heldout.txt` | {shipped["bits_per_byte"]:.4f} | | \
{shipped["bits_per_byte_five_gram"]:.4f} | {shipped["below_five_gram"]:.1%} |

The 5-gram is an interpolated modified Kneser-Ney model over the same tokens, trained on the same
files (`ngram.py`); over {corpus_facts["five_gram"]["contexts_summed"]} contexts its probabilities
sum to 1 within {corpus_facts["five_gram"]["worst_sum_error"]:.0e}. `heldout.txt` holds
{", ".join(f"`{name}`" for name in corpus_facts["shipped"])}.

## Architecture

{shape["layers"]} layers, hidden {shape["hidden"]}, {shape["heads"]} query heads and
{shape["kv_heads"]} KV heads of {shape["head_dim"]}, {shape["experts"]} experts of width
{shape["expert_width"]}, top-{shape["top_k"]}, RMSNorm (eps {shape["eps"]:g}) also on each head of
Q and K, RoPE (NeoX pairing, base {shape["rope_base"]:g}), context {shape["context"]}, vocabulary
{shape["vocabulary"]} (own byte-level BPE, Qwen2's pre-tokenisation), untied output. Q4_K, but Q6_K
where Q4_K_M has it ({q6}); norms and routers F32.

## Training

AdamW, bf16 autocast, weight decay 0.1, learning rate 2e-3 falling to 0, batches of {BATCH} windows,
load-balancing loss {BALANCE:g}. The recipe of lowest validation loss was kept:
{kept["recipe"]["epochs"]:g} epochs planned, dropout {kept["recipe"]["dropout"]:g}.

| epochs | dropout | steps | seconds | validation loss, nats per token |
|---|---|---|---|---|
{recipes}

```
{commands}
```

## Experts

Share of the (token, slot) assignments on all held-out files; equal shares would be
{1 / shape["experts"]:.2%}. Least {min(shares):.2%}, most {max(shares):.2%}: none is dead.

| layer | least | most | expert 0 to {shape["experts"] - 1}, % |
|---|---|---|---|
{layers}

## Quantisation

Relative RMS error over all tensors of a format, beside round-to-nearest in the same layout.

| format | searched (shipped) | round to nearest |
|---|---|---|
{errors}

## A sample

Greedy, from `{PROMPT}`:

```python
{facts["greedy_sample"]}
```
"""


# --- shared --------------------------------------------------------------------------------------


def read_stream(folder: Path, name: str) -> Tensor:
    """Token ids of one part of the corpus, int64, 1-D."""
    return torch.from_numpy(np.load(folder / f"{name}.npy").astype(np.int64))


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Write facts, readable."""
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def command() -> str:
    """Return the command line of this step."""
    return " ".join(["python -m harness.model.embedded.make_embedded", *sys.argv[1:]])


def say(line: str) -> None:
    """Progress goes to stderr."""
    print(line, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    steps = top.add_subparsers(required=True)

    def add(name: str, run: Callable[[argparse.Namespace], dict[str, Any]]) -> Any:  # noqa: ANN401
        step = steps.add_parser(name, help=(run.__doc__ or "").splitlines()[0])
        step.add_argument("--folder", type=Path, default=Path("build/embedded"))
        step.set_defaults(run=run)
        return step

    first = add("corpus", corpus)
    first.add_argument("--stdlib", type=Path, required=True, help="folder of the library's sources")
    first.add_argument("--every", type=int, default=1, help="take each n-th file only (a trial)")
    second = add("train", train)
    second.add_argument("--minutes", type=float, default=7.0, help="for all recipes together")
    second.add_argument("--recipes", default="10:0.1,20:0.2", help="epochs:dropout, with commas")
    second.add_argument("--steps", type=int, default=0, help="at most so many a recipe (a trial)")
    second.add_argument("--layers", type=int, default=8)
    second.add_argument("--compile", action="store_true", help="torch.compile each layer")
    third = add("finish", finish)
    third.add_argument("--out", type=Path, default=Path(__file__).parent)
    return top


def main() -> int:
    """Run one step."""
    arguments = parser().parse_args()
    print(json.dumps(arguments.run(arguments)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
