"""The parity laboratory: where a divergence is born, what moved it, and what a rounding costs."""
