"""Bytes that compute nothing. On a model of 100 kB, names and annotations are a third of the file."""

from __future__ import annotations

import onnx_ir as ir


def shorten_names(model: ir.Model) -> None:
    """Give the tensors inside the main graph short names. Inputs, outputs and nodes (by which recipes speak) keep theirs."""
    graph = model.graph
    fixed = {value.name for value in (*graph.inputs, *graph.outputs)}
    # A subgraph may read, or shadow, any name of the graph around it; ONNX scoping makes renaming there a trap.
    kinds = {attribute.type for node in graph for attribute in node.attributes.values()}
    if kinds & {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
        return
    inner = [value for node in graph for value in node.outputs if value.name and value.name not in fixed]
    constants = [value for name, value in graph.initializers.items() if name not in fixed]
    taken = set(fixed)
    for letter, values in (("v", inner), ("w", constants)):
        names = (name for number in range(len(values) + len(taken) + 1) if (name := f"{letter}{number}") not in taken)
        _rename(graph, values, list(names))


def drop_annotations(model: ir.Model) -> None:
    """Take away what a runtime does not need: documentation, exporter metadata, and the shapes of inner tensors."""
    model.doc_string = None
    model.graph.doc_string = None
    model.graph.metadata_props.clear()
    outputs = set(model.graph.outputs)
    for node in model.graph.all_nodes():
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
            if value not in outputs and node.graph is model.graph:
                value.shape, value.type = None, None
    for value in model.graph.initializers.values():
        if not value.is_graph_input() and not value.is_graph_output():
            value.shape, value.type = None, None  # the tensor says them itself


def _rename(graph: ir.Graph, values: list[ir.Value], names: list[str]) -> None:
    # Through temporary names: "v3" may already be the name of a later value of the list.
    for number, value in enumerate(values):
        value.name = f"\0{number}"
    for value, name in zip(values, names, strict=False):
        value.name = name
        if value.const_value is not None:
            value.const_value.name = name
