"""Text to token ids and back, from the tokenizer inside a GGUF file.

Only what ``qwen3moe`` files hold: byte-level BPE (``tokenizer.ggml.model`` "gpt2") with Qwen2's
pre-tokenisation, as llama.cpp reads it from ``tokenizer.ggml.*``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from harness.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Source: Qwen2's tokenizer (transformers, Qwen2Tokenizer); llama.cpp's LLAMA_VOCAB_PRE_TYPE_QWEN2.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PREFIX = "tokenizer.ggml."
NO_VOCAB = "no_vocab"  # what a file without a tokenizer says; llama.cpp takes "none" for the same
_CONTROL = 3  # llama.cpp's token types: control tokens such as <|endoftext|>
_USER_DEFINED = 4  # never split, but no control: <think>, <tool_call>
_NORMAL = 1

T = TypeVar("T")


def byte_level_bpe(
    vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]]
) -> tokenizers.Tokenizer:
    """Return a ``tokenizers`` byte-level BPE with Qwen2's normalisation and pre-tokenisation."""
    engine = tokenizers.Tokenizer(models.BPE(vocab=dict(vocabulary), merges=list(merges)))
    engine.normalizer = normalizers.NFC()
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    return engine


class Tokenizer:
    """A vocabulary with its merges; build it with ``from_metadata``.

    Text is normalised to NFC first, as Qwen's own tokenizer does: ``decode(encode(text))`` is the
    NFC form of ``text``, which for nearly all text is the text itself.
    """

    def __init__(
        self, engine: tokenizers.Tokenizer, size: int, eos: int | None, bos: int | None
    ) -> None:
        self._engine = engine
        self.vocab_size = size
        self.eos_token_id = eos
        self._bos = bos

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object]) -> Tokenizer | None:
        """Build the tokenizer that a file's ``tokenizer.ggml.*`` keys describe.

        Returns
        -------
        None for a model without a tokenizer: that has not one such key, or says so.

        Raises
        ------
        BadInput
            For a tokenizer of another kind or a malformed one.

        """
        if not any(key.startswith(_PREFIX) for key in metadata):
            return None
        if metadata.get(f"{_PREFIX}model") in (NO_VOCAB, "none"):
            return None
        _expect(metadata, "model", "gpt2", "byte-level BPE")
        _expect(metadata, "pre", "qwen2", "Qwen2's pre-tokenisation")
        tokens = _items(metadata, "tokens", str)
        types = _items(metadata, "token_type", int) if _has(metadata, "token_type") else None
        if types is not None and len(types) != len(tokens):
            raise BadInput(
                f"{_PREFIX}token_type has {len(types)} entries for {len(tokens)} tokens; "
                "expected one each; convert the model again"
            )
        vocabulary = {token: index for index, token in enumerate(tokens)}
        if len(vocabulary) != len(tokens):
            raise BadInput(
                f"{_PREFIX}tokens has {len(tokens) - len(vocabulary)} duplicates; "
                "expected distinct tokens; convert the model again"
            )
        merges = [_merge(text) for text in _items(metadata, "merges", str)]
        try:
            engine = byte_level_bpe(vocabulary, merges)
        except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception
            raise BadInput(
                f"{_PREFIX}merges do not fit the tokens ({error}); convert the model again"
            ) from None
        for token, kind in zip(tokens, types or [_NORMAL] * len(tokens), strict=True):
            if kind in (_CONTROL, _USER_DEFINED):
                special = kind == _CONTROL
                added = tokenizers.AddedToken(token, special=special, normalized=False)
                (engine.add_special_tokens if special else engine.add_tokens)([added])
        adds_bos = metadata.get(f"{_PREFIX}add_bos_token", False) is True
        bos = _token_id(metadata, "bos_token_id", len(tokens))
        if adds_bos and bos is None:
            raise BadInput(
                f"{_PREFIX}add_bos_token is true but {_PREFIX}bos_token_id is missing; "
                "convert the model again"
            )
        _token_id(metadata, "padding_token_id", len(tokens))
        eos = _token_id(metadata, "eos_token_id", len(tokens))
        return cls(engine, len(tokens), eos, bos if adds_bos else None)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; control tokens written out (``<|endoftext|>``) are recognised."""
        try:
            text.encode()
        except UnicodeEncodeError:  # a command line's bytes that are no UTF-8
            raise BadInput("the text holds lone surrogates; expected valid Unicode") from None
        ids: list[int] = self._engine.encode(text, add_special_tokens=False).ids
        return ids if self._bos is None else [self._bos, *ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; bytes that are no UTF-8 (a character cut in two) become U+FFFD.

        Raises
        ------
        BadInput
            For an id outside the vocabulary.

        """
        wanted = [int(token) for token in ids]
        for token in wanted:
            if not 0 <= token < self.vocab_size:
                raise BadInput(
                    f"token id {token} is outside the vocabulary; expected 0 to "
                    f"{self.vocab_size - 1}"
                )
        text: str = self._engine.decode(wanted, skip_special_tokens=False)
        return text


def _has(metadata: Mapping[str, object], key: str) -> bool:
    return f"{_PREFIX}{key}" in metadata


def _expect(metadata: Mapping[str, object], key: str, wanted: str, meaning: str) -> None:
    found = metadata.get(f"{_PREFIX}{key}")
    if found != wanted:
        raise BadInput(
            f"{_PREFIX}{key} is {found!r}; expected {wanted!r} ({meaning}); "
            "give the prompt as token ids"
        )


def _items(metadata: Mapping[str, object], key: str, kind: type[T]) -> list[T]:
    found = metadata.get(f"{_PREFIX}{key}")
    if not isinstance(found, list | tuple):
        raise BadInput(
            f"{_PREFIX}{key} is {type(found).__name__}; expected an array; convert the model again"
        )
    items = list(found)
    if not all(isinstance(item, kind) for item in items):
        raise BadInput(
            f"{_PREFIX}{key} holds other things than {kind.__name__}; convert the model again"
        )
    return items


def _merge(text: str) -> tuple[str, str]:
    left, _, right = text.partition(" ")
    if not left or not right or " " in right:
        raise BadInput(
            f"{_PREFIX}merges holds {text!r}; expected two tokens and a space between; "
            "convert the model again"
        )
    return left, right


def _token_id(metadata: Mapping[str, object], key: str, size: int) -> int | None:
    found = metadata.get(f"{_PREFIX}{key}")
    if found is None:
        return None
    if not isinstance(found, int) or not 0 <= found < size:
        raise BadInput(
            f"{_PREFIX}{key} is {found!r}; expected an id below {size}; convert the model again"
        )
    return found
