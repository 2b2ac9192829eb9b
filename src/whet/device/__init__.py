"""Floor 1: what runs on a small board. Standard library, numpy, onnxruntime and ``whet.core``; nothing else."""
