"""What is true: the float64 oracle."""

from harness.reference.oracle import Oracle, Replay, Routing, Run

__all__ = ["Oracle", "Replay", "Routing", "Run"]
