"""The body of language models: checkpoints of safetensors, worked on block by block, so that a model larger than memory can be."""

from whet.compress.checkpoint.checkpoint import Checkpoint, is_checkpoint, open_checkpoint

__all__ = ["Checkpoint", "is_checkpoint", "open_checkpoint"]
