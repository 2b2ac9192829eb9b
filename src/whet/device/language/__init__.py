"""Running language models on the device: numpy, onnxruntime and tokenizers; GGUF files where llama-cpp-python is installed."""

from whet.device.language.generate import Generation, Writing, generate

__all__ = ["Generation", "Writing", "generate"]
