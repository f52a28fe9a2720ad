"""What is measured: the GGUF file, its config, quant formats, prompts and synthetic models."""

from harness.model.config import Config
from harness.model.gguf_file import Model, Tensor, open_model
from harness.model.quants import FORMATS, QuantFormat

__all__ = ["FORMATS", "Config", "Model", "QuantFormat", "Tensor", "open_model"]
