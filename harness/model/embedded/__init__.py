"""The model that ships with the package: where it lies, and text that it never saw.

``make_embedded.py`` makes it, ``MODEL_CARD.md`` describes it.
"""

from pathlib import Path

_HERE = Path(__file__).parent


def path() -> Path:
    """Return the GGUF file, on disk."""
    return _HERE / "embedded.gguf"


def heldout() -> str:
    """Files of Python's standard library that training never saw, ``<|endoftext|>`` between."""
    return (_HERE / "heldout.txt").read_bytes().decode()
