"""onnxruntime's own weight-only quantiser, ``MatMulNBitsQuantizer``, on a graph of one MatMul for each linear layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def prepare(model: Path, samples: dict[str, np.ndarray], out: Path, *, bits: int, group: int, method: str = "default",
            symmetric: bool = False) -> Callable[[], dict[str, Any]]:
    """method: default (rounding to nearest), hqq or k_quant. group: 0 for 256, its largest, which is longer than any row here."""
    import onnx
    import onnxruntime
    import torch
    from onnxruntime.quantization import matmul_nbits_quantizer as ort

    from __main__ import PEERS, loaded  # worker.py

    plain = loaded(PEERS / "llm" / "plain.py")
    block = group or 256

    def graph(weights: dict[str, Any]) -> Any:
        """y = x W^T for each layer."""
        nodes = [onnx.helper.make_node("MatMul", [f"x {name}", name], [f"y {name}"], name=name) for name in weights]
        floats = onnx.TensorProto.FLOAT
        inputs = [onnx.helper.make_tensor_value_info(f"x {name}", floats, [None, weight.shape[1]]) for name, weight in weights.items()]
        outputs = [onnx.helper.make_tensor_value_info(f"y {name}", floats, [None, weight.shape[0]]) for name, weight in weights.items()]
        constants = [onnx.numpy_helper.from_array(weight.numpy().T.copy(), name) for name, weight in weights.items()]
        return onnx.helper.make_model(onnx.helper.make_graph(nodes, "linears", inputs, outputs, constants),
                                      opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)

    def configuration() -> Any:
        if method == "hqq":
            return ort.HQQWeightOnlyQuantConfig(block_size=block, bits=bits)
        if method == "k_quant":
            return ort.KQuantWeightOnlyQuantConfig()
        return ort.DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=symmetric, bits=bits, accuracy_level=0)

    def work() -> dict[str, Any]:
        weights = plain.linear_weights(model)
        quantizer = ort.MatMulNBitsQuantizer(graph(weights), bits=bits, block_size=block, is_symmetric=symmetric, accuracy_level=0,
                                             algo_config=configuration())
        quantizer.process()
        found = quantizer.model.model
        kinds = {node.op_type for node in found.graph.node} - {"Reshape"}
        assert kinds == {"MatMulNBits"}, f"it left {sorted(kinds)}"
        # What the packed weights stand for is what comes out for the unit vectors.
        session = onnxruntime.InferenceSession(found.SerializeToString(), providers=["CPUExecutionProvider"])
        units = {f"x {name}": np.eye(weight.shape[1], dtype=np.float32) for name, weight in weights.items()}
        outputs = session.run([f"y {name}" for name in weights], units)
        changed = {name: torch.from_numpy(values.T.copy()) for name, values in zip(weights, outputs, strict=True)}
        plain.write(model, out, changed)
        arrays = [onnx.numpy_helper.to_array(tensor) for tensor in found.graph.initializer]
        # Its scales have the dtype of the weights; models that ship have float16, so that is what is counted.
        return {"size_bytes": sum(array.size * min(array.itemsize, 2) for array in arrays)}

    return work
