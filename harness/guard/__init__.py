"""Whether a decoder computes the right thing: evidence, verdict, planted faults."""

from harness.guard.evidence import Evidence, LayerEvidence, Verdict
from harness.guard.run import guard

__all__ = ["Evidence", "LayerEvidence", "Verdict", "guard"]
