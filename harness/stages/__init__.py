"""The 23 observation points of a forward pass, plans over them, and APRT files."""

from harness.stages.capture import Capture
from harness.stages.names import PER_LAYER, REQUIRED, STAGES, WHOLE_MODEL
from harness.stages.plan import Plan

__all__ = ["PER_LAYER", "REQUIRED", "STAGES", "WHOLE_MODEL", "Capture", "Plan"]
