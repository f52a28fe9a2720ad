"""Worked examples; ``docs/own-kernel.md`` walks through them."""
