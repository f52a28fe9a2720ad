"""Which stages of which layers to capture."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import BadInput
from harness.stages.names import ALIASES, STAGES, WHOLE_MODEL


@dataclass(frozen=True)
class Plan:
    """A set of stages and a half-open range of layers (``stop`` None: to the last)."""

    stages: frozenset[str]
    start: int = 0
    stop: int | None = None

    def wants(self, stage: str, layer: int | None = None) -> bool:
        """Whether the plan names ``stage`` (of ``layer``; whole-model stages have none)."""
        if stage not in self.stages:
            return False
        if layer is None or stage in WHOLE_MODEL:
            return True
        return self.start <= layer and (self.stop is None or layer < self.stop)

    @classmethod
    def parse(cls, stages: str, layers: str | None = None) -> Plan:
        """Parse ``"moe_router,ffn_out"`` or ``"all"``, and ``"START..END"`` (end exclusive).

        Raises
        ------
        BadInput
            For an unknown stage, an empty item, or END <= START.

        """
        names: set[str] = set()
        for item in stages.lower().split(","):
            name = ALIASES.get(item.strip(), item.strip())
            if name == "all":
                names.update(STAGES)
            elif name in STAGES:
                names.add(name)
            else:
                raise BadInput(
                    f"plan {stages!r}: {item.strip() or 'an empty item'!r} is no stage; expected "
                    f"'all' or names out of {', '.join(STAGES)}"
                )
        if layers is None:
            return cls(frozenset(names))
        start, stop = parse_layers(layers)
        return cls(frozenset(names), start, stop)


def parse_layers(text: str) -> tuple[int, int]:
    """Parse a layer range ``START..END``, end exclusive."""
    start, dots, stop = text.partition("..")
    valid = dots and all(part.isascii() and part.isdigit() for part in (start, stop))
    if not valid or len(start) > 9 or len(stop) > 9 or int(stop) <= int(start):
        raise BadInput(f"layers {text!r}: expected START..END with END above START, as in 0..48")
    return int(start), int(stop)
