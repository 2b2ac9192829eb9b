"""Checkpoints as GGUF, the file of llama.cpp: blocks made of our codes as they are, encoders of its K types, names, tokenizer, and back."""

from whet.compress.checkpoint.gguf.export import GgufReport, GgufTensor, export_gguf
from whet.compress.checkpoint.gguf.reading import weights_in

__all__ = ["GgufReport", "GgufTensor", "export_gguf", "weights_in"]
