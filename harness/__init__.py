"""moe-harness: decode speed of quantised mixture-of-experts models, tied to the proof of it."""

__version__ = "0.1.0"  # the one place that states it; the build reads it here
