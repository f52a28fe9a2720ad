"""Prompts: canonical ones by name, token ids, or text."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from harness.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.model.gguf_file import Model

# Ids in Qwen's vocabulary (FACTS: of the project that this one grew out of).
CANONICAL = {
    "canonical_3tok": (785, 9217, 308),
    "single_tok_785": (785,),
    "multi_tok_short": (785, 374, 264, 6716),
    "multi_tok_code": (750, 220, 17, 220, 488, 220, 17, 30),
}
_STRIDE = 7919  # far enough for neighbouring ids' likeness to end, in a vocabulary of words
_IDS = re.compile(r"\s*-?\d+\s*(,\s*-?\d+\s*)*")
_MOST_CHARACTERS = 1 << 20
_MOST_DIGITS = 20  # of an id: no vocabulary needs them, and int() of many takes long or raises


def parse_prompt(text: str, model: Model) -> list[int]:
    """Token ids of a canonical name, of ids separated by commas, or of text.

    Raises
    ------
    BadInput
        For an empty prompt, one longer than the model's context, an id outside the vocabulary,
        or text where the model has no tokenizer.

    """
    if not text:
        raise BadInput("the prompt is empty; expected a canonical name, ids or text")
    if len(text) > _MOST_CHARACTERS:
        raise BadInput(
            f"the prompt has {len(text)} characters, expected at most {_MOST_CHARACTERS}"
        )
    if text in CANONICAL:
        ids = list(CANONICAL[text])
    elif _IDS.fullmatch(text):
        ids = [_id(item.strip(), text, model) for item in text.split(",")]
    else:
        ids = _tokenised(text, model)
    for token in ids:
        if not 0 <= token < model.config.vocab:
            raise _outside(str(token), text, model)
    if len(ids) > model.config.context_length:
        raise BadInput(
            f"the prompt has {len(ids)} tokens, but the model's context is "
            f"{model.config.context_length}; give a shorter one"
        )
    return ids


def distinct_prompts(prompt: Sequence[int], count: int, vocab: int) -> list[list[int]]:
    """``count`` prompts of one length: the given one, and others that differ from it everywhere.

    The n-th has each id moved on by n strides around the vocabulary, so that the sequences choose
    experts of their own; the same for the same prompt.

    Raises
    ------
    BadInput
        For more prompts than the vocabulary has tokens.

    """
    if count > vocab:
        raise BadInput(
            f"{count} different prompts were asked for, but the vocabulary has {vocab} tokens; ask "
            "for fewer sequences"
        )
    stride = next(n for n in range(_STRIDE, _STRIDE + vocab + 1) if math.gcd(n, vocab) == 1)
    return [[(token + number * stride) % vocab for token in prompt] for number in range(count)]


def _id(item: str, text: str, model: Model) -> int:
    if len(item) > _MOST_DIGITS:
        raise _outside(f"{item[:_MOST_DIGITS]}...", text, model)
    return int(item)


def _outside(token: str, text: str, model: Model) -> BadInput:
    return BadInput(
        f"prompt {text[:40]!r}: token id {token} is outside the vocabulary, expected 0 to "
        f"{model.config.vocab - 1}"
    )


def _tokenised(text: str, model: Model) -> list[int]:
    if model.tokenizer is None:
        raise BadInput(
            f"prompt {text[:40]!r}: {model.path.name} has no tokenizer; give token ids "
            f"(1,2,3) or one of {', '.join(CANONICAL)}"
        )
    ids = model.tokenizer.encode(text)
    if not ids:
        raise BadInput(f"prompt {text[:40]!r} has no tokens; give some text")
    return ids
