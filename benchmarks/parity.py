"""How far a decoder is from the float64 oracle, and that from others' code: lower is nearer."""

from harness import tracking


class EmbeddedParity:
    """The CPU decoder on text that the embedded model never saw."""

    params = ["f32", "q8_k"]
    param_names = ["numerics"]
    timeout = 600

    def setup_cache(self):
        return tracking.embedded_parity("parity.EmbeddedParity", self.params)

    def setup(self, outcomes, numerics):
        outcomes[numerics].require()

    def track_distance(self, outcomes, numerics):
        return outcomes[numerics].figures["distance"]

    def track_cosine_loss(self, outcomes, numerics):
        return outcomes[numerics].figures["cosine_loss"]

    def track_experts_swapped(self, outcomes, numerics):
        return outcomes[numerics].figures["experts_swapped"]

    def track_argmaxes_changed(self, outcomes, numerics):
        return outcomes[numerics].figures["argmaxes_changed"]

    track_distance.unit = "of the limit"
    track_cosine_loss.unit = "1 - worst cosine"
    track_experts_swapped.unit = "layer-positions"
    track_argmaxes_changed.unit = "positions"


class OracleAgreement:
    """The oracle beside Hugging Face's Qwen3-MoE; n/a where transformers is not installed."""

    timeout = 600

    def setup_cache(self):
        return tracking.oracle_agreement("parity.OracleAgreement")

    def setup(self, outcome):
        outcome.require()

    def track_cosine_loss(self, outcome):
        return outcome.figures["cosine_loss"]

    def track_rel_l2(self, outcome):
        return outcome.figures["rel_l2"]

    track_cosine_loss.unit = "1 - worst cosine"
    track_rel_l2.unit = "relative error"
