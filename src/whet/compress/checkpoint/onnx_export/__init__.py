"""A language model as an ONNX graph with a cache of keys and values, or an encoder, built from a checkpoint's config and weights."""

from whet.compress.checkpoint.onnx_export.export import OnnxReport, export_onnx

__all__ = ["OnnxReport", "export_onnx"]
