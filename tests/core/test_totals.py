"""The sums and look-ups that inventories, plans and targets offer."""

from __future__ import annotations

from whet.core.inventory import Inventory, Layer
from whet.core.plan import Plan, PlannedLayer
from whet.core.recipe import Recipe
from whet.core.target import Speed, Target


def test_an_inventory_adds_up_its_layers() -> None:
    layers = (Layer("a", "Conv", parameters=3, weight_bytes=12, macs=100), Layer("b", "Loop", parameters=2, weight_bytes=2, macs=None))
    inventory = Inventory(layers)
    assert (inventory.parameters, inventory.weight_bytes, inventory.macs) == (5, 14, 100)
    assert Inventory(()).macs == 0


def test_a_plan_adds_up_its_layers() -> None:
    layers = (PlannedLayer("a", "Conv", "static", "int8", "uint8", "QLinearConv", 40, 10), PlannedLayer("b", "Add", "", "", "", "", 5, 5))
    plan = Plan("m.onnx", Recipe(), "host", layers)
    assert (plan.bytes_before, plan.bytes_after) == (45, 15)


def test_the_speed_of_an_operator_goes_before_the_speed_of_all() -> None:
    speeds = (Speed("static", "*", 2.0, "x"), Speed("static", "Conv", 3.0, "x"), Speed("float16", "Gemm", 0.5, "x"))
    target = Target("t", "T", "onnxruntime", "avx2", 1, speeds=speeds)
    assert [entry and entry.ratio for entry in (target.speed("static", "Conv"), target.speed("static", "Gemm"))] == [3.0, 2.0]
    assert target.speed("float16", "Gemm") == speeds[2]
    assert target.speed("float16", "Conv") is None
