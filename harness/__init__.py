"""moe-harness: decode speed of quantised mixture-of-experts models, tied to the proof of it."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("moe-harness")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
