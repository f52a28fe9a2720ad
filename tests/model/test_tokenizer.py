"""Text to ids and back through a GGUF of Qwen's kind, held against Qwen's own rules.

Two independent sources: the pattern that ``transformers`` ships for Qwen2, run by the ``regex``
package, and its ``Qwen2Tokenizer`` over the same vocabulary.
"""

import json
import unicodedata

import gguf
import numpy as np
import pytest
import regex
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX, Qwen2Tokenizer

from harness.errors import BadInput
from harness.model import Config, open_model
from harness.model.config import tensor_shapes
from harness.model.tokenizer import QWEN2_PATTERN, Tokenizer, byte_level_bpe

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
EOS = "<|endoftext|>"
SPECIAL = {EOS: CONTROL, "<|im_start|>": CONTROL, "<think>": USER_DEFINED, "[PAD0]": UNUSED}
CORPUS = [
    "def read(self, size=-1):\n    return self._buffer[:size]\n\n\n",
    "It's what they'll say; we've 12345 of them, I'D say.\r\n\tTabs\tand  runs   of    spaces ",
    "Größe, naïve café, Ελλάδα, Москва, 東京の天気, 안녕하세요, नमस्ते, 👩‍👩‍👧 ½ ² ٣",
]
TEXTS = [
    *CORPUS,
    " leading, trailing  \n\n  ",
    "\n",
    "   ",
    "x" * 300,
    "0123456789" * 5,
    "'S 'll 'LL don\u2019t",
    "a\u00a0b\u3000c\u200bd",
    "\x00\x01\x7f\x85",
    "e\u0301 is not \u00e9 until it is composed",
    "\U00010348\U0001f600\u200d",
]
# Unassigned characters aside: two engines may know two versions of Unicode.
ANY_TEXT = st.text(
    st.one_of(
        st.sampled_from("a1 \n\r\t.'s_é東½\u00a0\u0301"),
        st.characters(exclude_categories=["Cs", "Cn"]),
    ),
    max_size=40,
)


@pytest.fixture(scope="module")
def vocabulary():
    """Tokens and merges, trained with GPT-2's rules: it knows "12", which Qwen's never make."""
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(CORPUS * 4, trainer)
    model = json.loads(engine.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return tokens, [tuple(pair) for pair in model["merges"]]


def metadata(vocabulary, **changes):
    """The `tokenizer.ggml` keys of a good file, with changes; None leaves a key out."""
    tokens, merges = vocabulary
    keys = {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": [*tokens, *SPECIAL],
        "token_type": [NORMAL] * len(tokens) + list(SPECIAL.values()),
        "merges": [" ".join(pair) for pair in merges],
        "eos_token_id": len(tokens),
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None}


def write_model(path, vocabulary, rows_more=0):
    """A `qwen3moe` of one layer whose metadata is what llama.cpp's converter writes for Qwen."""
    rows = len(vocabulary[0]) + len(SPECIAL) + rows_more
    c = Config("qwen3moe", 1, 32, 2, 1, 16, 2, 1, 32, rows, 1e-6, 1e6, 128, tied_output=True)
    writer = gguf.GGUFWriter(path, c.architecture)
    writer.add_block_count(c.layers)
    writer.add_context_length(c.context_length)
    writer.add_embedding_length(c.hidden)
    writer.add_expert_feed_forward_length(c.expert_width)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_layer_norm_rms_eps(c.rms_eps)
    writer.add_rope_freq_base(c.rope_base)
    writer.add_expert_count(c.experts)
    writer.add_expert_used_count(c.top_k)
    keys = metadata(vocabulary)
    writer.add_tokenizer_model(keys["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(keys["tokenizer.ggml.pre"])
    writer.add_token_list(keys["tokenizer.ggml.tokens"])
    writer.add_token_types(keys["tokenizer.ggml.token_type"])
    writer.add_token_merges(keys["tokenizer.ggml.merges"])
    writer.add_eos_token_id(keys["tokenizer.ggml.eos_token_id"])
    writer.add_add_bos_token(False)
    rng = np.random.default_rng(0)
    for name, shape in tensor_shapes(c).items():
        writer.add_tensor(name, rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def qwen_path(vocabulary, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("qwen") / "qwen.gguf", vocabulary, rows_more=7)


@pytest.fixture(scope="module")
def model(qwen_path):
    return open_model(qwen_path)


@pytest.fixture(scope="module")
def theirs(vocabulary):
    """Hugging Face's tokenizer over the same vocabulary."""
    tokens, merges = vocabulary
    twin = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate([*tokens, *SPECIAL])}, merges=merges
    )
    twin.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    twin.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
    return twin


@pytest.fixture(scope="module")
def splitter():
    alone = byte_level_bpe({}, []).pre_tokenizer
    letters = {char: byte for byte, char in bytes_to_unicode().items()}

    def split(text):
        return [
            bytes(letters[char] for char in piece).decode()
            for piece, _ in alone.pre_tokenize_str(text)
        ]

    return split


def bytes_to_unicode():
    """GPT-2's byte alphabet, as its paper's code states it."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {
        byte: chr(256 + index) for index, byte in enumerate(others)
    }


def test_the_pattern_is_qwens():
    assert QWEN2_PATTERN == PRETOKENIZE_REGEX


@pytest.mark.parametrize("text", TEXTS)
def test_splits_as_another_regex_engine_does(splitter, text):
    assert splitter(text) == regex.findall(PRETOKENIZE_REGEX, text)


@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT)
def test_splits_any_text_as_another_regex_engine_does(splitter, text):
    assert splitter(text) == regex.findall(PRETOKENIZE_REGEX, text)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_hugging_face_and_come_back_as_the_text(model, theirs, text):
    ids = model.tokenizer.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert model.tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT)
def test_any_text_comes_back(model, theirs, text):
    ids = model.tokenizer.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert model.tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_each_digit_is_a_token_though_the_vocabulary_has_pairs(vocabulary, model):
    assert "12" in vocabulary[0]
    assert [model.tokenizer.decode([i]) for i in model.tokenizer.encode("12345")] == list("12345")


def test_special_tokens_written_out_are_one_token_and_padding_is_text(vocabulary, model):
    first = len(vocabulary[0])
    ids = model.tokenizer.encode("<|im_start|>a<think>[PAD0]<|endoftext|>")
    assert ids[0] == first + 1
    assert ids[2] == first + 2
    assert ids[-1] == model.tokenizer.eos_token_id == first
    assert first + 3 not in ids
    assert model.tokenizer.decode(ids) == "<|im_start|>a<think>[PAD0]<|endoftext|>"


def test_a_character_cut_in_two_is_a_replacement_character(model):
    ids = model.tokenizer.encode("\U00010348")
    assert len(ids) > 1
    assert "\ufffd" in model.tokenizer.decode(ids[:1])


def test_the_bos_token_is_added_where_the_file_says_so(vocabulary):
    first = len(vocabulary[0])
    keys = metadata(vocabulary, add_bos_token=True, bos_token_id=first + 1)
    assert Tokenizer.from_metadata(keys).encode("a")[0] == first + 1
    assert len(Tokenizer.from_metadata(metadata(vocabulary)).encode("a")) == 1


def test_no_key_is_no_tokenizer():
    assert Tokenizer.from_metadata({"general.name": "x"}) is None
    for said in ("no_vocab", "none"):
        assert Tokenizer.from_metadata({"tokenizer.ggml.model": said}) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "llama"}, "'llama'; expected 'gpt2'"),
        ({"model": None}, "None; expected 'gpt2'"),
        ({"pre": "llama-bpe"}, "'llama-bpe'; expected 'qwen2'"),
        ({"tokens": None}, "tokens is NoneType; expected an array"),
        ({"tokens": ["a", 3]}, "other things than str"),
        ({"tokens": ["a", "a"], "token_type": None}, "1 duplicates"),
        ({"token_type": [1]}, "1 entries for"),
        ({"merges": ["a b c"]}, "expected two tokens"),
        ({"merges": ["ab"]}, "expected two tokens"),
        ({"merges": ["a qqq"]}, "merges do not fit"),
        ({"merges": "a b"}, "expected an array"),
        ({"eos_token_id": 10**6}, "expected an id below"),
        ({"eos_token_id": "3"}, "expected an id below"),
        ({"add_bos_token": True}, "bos_token_id is missing"),
    ],
)
def test_a_malformed_tokenizer_is_bad_input(vocabulary, changes, words):
    with pytest.raises(BadInput, match=words):
        Tokenizer.from_metadata(metadata(vocabulary, **changes))


@pytest.mark.parametrize("token", [-1, 10**30])
def test_ids_outside_the_tokenizer_have_no_text(model, token):
    with pytest.raises(BadInput, match="outside the vocabulary"):
        model.tokenizer.decode([0, token])


def test_rows_that_the_tokenizer_does_not_name_have_no_text(model):
    assert model.config.vocab == model.tokenizer.vocab_size + 7
    with pytest.raises(BadInput, match="outside the vocabulary"):
        model.tokenizer.decode([model.tokenizer.vocab_size])


def test_lone_surrogates_are_bad_input(model):
    with pytest.raises(BadInput, match="surrogates"):
        model.tokenizer.encode("\ud800")


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_change_of_the_tokenizers_bytes_opens_or_is_refused(tmp_path, qwen_path, data):
    raw = bytearray(qwen_path.read_bytes())
    start = raw.index(b"tokenizer.ggml.model") - 8
    end = raw.index(b"token_embd.weight")
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(start, end))] = data.draw(st.integers(0, 255))
    path = tmp_path / "fuzzed.gguf"
    path.write_bytes(raw)
    try:
        tokenizer = open_model(path).tokenizer
        assert tokenizer is None or isinstance(tokenizer.encode("def f(x): return 12"), list)
    except BadInput as error:
        assert "\n" not in str(error)  # noqa: PT017 - both ends are right
