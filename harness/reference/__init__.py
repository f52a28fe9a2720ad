"""What is true: the float64 oracle."""

from harness.reference.oracle import Oracle, Routing

__all__ = ["Oracle", "Routing"]
