"""Prompts: names, ids and text; what is neither is one line."""

import dataclasses
import time

import pytest

from harness.errors import BadInput
from harness.model import open_model
from harness.model.embedded import path as embedded_path
from harness.model.prompts import CANONICAL, parse_prompt


@pytest.fixture(scope="module")
def embedded():
    return open_model(embedded_path())


@pytest.fixture(scope="module")
def tiny(tiny_path):
    return open_model(tiny_path)


@pytest.fixture(scope="module")
def qwen_sized(tiny):
    """A model that has Qwen's vocabulary, as far as ids go."""
    return dataclasses.replace(tiny, config=dataclasses.replace(tiny.config, vocab=151936))


def test_canonical_names(qwen_sized):
    assert parse_prompt("canonical_3tok", qwen_sized) == [785, 9217, 308]
    assert parse_prompt("single_tok_785", qwen_sized) == [785]
    assert parse_prompt("multi_tok_short", qwen_sized) == [785, 374, 264, 6716]
    assert parse_prompt("multi_tok_code", qwen_sized) == [750, 220, 17, 220, 488, 220, 17, 30]
    assert len(CANONICAL) == 4


def test_a_canonical_name_needs_the_vocabulary(tiny):
    with pytest.raises(BadInput, match="token id 9217 is outside the vocabulary, expected 0 to"):
        parse_prompt("canonical_3tok", tiny)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("7", [7]),
        ("1,2,3", [1, 2, 3]),
        (" 1 , 2,3 ", [1, 2, 3]),
        ("1,\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t2\n", [1, 2]),
        ("007", [7]),
    ],
)
def test_ids(tiny, text, ids):
    assert parse_prompt(text, tiny) == ids


@pytest.mark.parametrize(
    "text", ["-1", "1,-2", "1021", "0,1,99999999", "9" * 30, "1," + "8" * 5000, "-" + "1" * 40]
)
def test_ids_outside_the_vocabulary(tiny, text):
    with pytest.raises(BadInput, match="outside the vocabulary") as caught:
        parse_prompt(text, tiny)
    assert len(str(caught.value)) < 200


def test_an_id_is_never_cut_to_another(tiny):
    """Twenty zeros and a five are five, or refused; never zero."""
    try:
        assert parse_prompt("0" * 25 + "5", tiny) == [5]
    except BadInput as error:
        assert "vocabulary" in str(error)  # noqa: PT017 - both ends are right


@pytest.mark.parametrize("text", ["1,,2", "1;2", "1.5", "hello", ",", "1,", "--1", "0x10"])
def test_text_needs_a_tokenizer(tiny, text):
    with pytest.raises(BadInput, match="has no tokenizer; give token ids"):
        parse_prompt(text, tiny)


def test_text_is_the_models_own_tokens(embedded):
    ids = parse_prompt("def read(self", embedded)
    assert embedded.tokenizer.decode(ids) == "def read(self"
    assert parse_prompt("canonical", embedded) != parse_prompt("canonical ", embedded)


def test_nothing_is_no_prompt(embedded):
    with pytest.raises(BadInput, match="the prompt is empty"):
        parse_prompt("", embedded)


@pytest.mark.parametrize("piece", ["1,", "a ", "9", "  "])
def test_absurd_lengths_are_refused_at_once(embedded, piece):
    began = time.perf_counter()
    with pytest.raises(BadInput) as caught:
        parse_prompt(piece * (1 << 20), embedded)
    assert time.perf_counter() - began < 1
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["1," * 1024 + "1", "word " * 1025])
def test_a_prompt_longer_than_the_context_is_refused(embedded, text):
    assert embedded.config.context_length == 1024
    with pytest.raises(
        BadInput, match=r"the prompt has \d+ tokens, but the model's context is 1024"
    ):
        parse_prompt(text, embedded)


def test_lone_surrogates_of_the_command_line_are_one_line(embedded):
    with pytest.raises(BadInput, match="surrogates"):
        parse_prompt("\udcff", embedded)
