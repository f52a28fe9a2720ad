"""How it is measured: clocks, stopping rule, memory, machine identity."""
