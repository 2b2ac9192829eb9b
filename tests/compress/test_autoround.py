"""AutoRound: what is learned, what is stored, and that it never ends worse than it began."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.compress.rounded_checkpoints import random_checkpoint
from tests.slow_papers import autoround as slow
from torch import Tensor

from whet.compress.checkpoint import Checkpoint, open_checkpoint
from whet.compress.checkpoint.apply import apply_to_checkpoint
from whet.compress.checkpoint.block import BlockAtWork
from whet.compress.checkpoint.skeleton import Skeleton
from whet.compress.grid import Quantised, quantise, weight_grid
from whet.compress.learned_grids import Rounding, Schedule, learn
from whet.compress.technique import LayerView, technique
from whet.compress.views import Block
from whet.compress.weight_search import searched_grid
from whet.core.errors import Refused
from whet.core.inventory import Layer
from whet.core.recipe import Recipe, Step
from whet.device.targets import target

pytestmark = pytest.mark.usefixtures("one_torch_thread")
HOST = target("host")
KINDS = [(True, False), (True, True), (False, False)]  # symmetric, with scales of either sign
SHAPES = [(bits, block, *kind) for bits in (2, 3, 4, 8) for block in (0, 16) for kind in KINDS]


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def product(weight: Any, inputs: Any, exact: Any = None) -> Block:
    """A block that is one matrix product."""
    now, before = torch.tensor(inputs), torch.tensor(inputs if exact is None else exact)

    def run(given: Sequence[Tensor], weights: Mapping[str, Tensor], place: Callable[[str, Tensor], Tensor]) -> Tensor:
        return given[0] @ weights["one"].t()

    view = LayerView("one", "Linear", weight, scales="float16")
    return Block("block", {"one": view}, {}, (now,), (before,), before @ torch.tensor(weight).t(), run)


def moved(rounding: Rounding, seed: int = 1) -> Rounding:
    """With variables somewhere within their ends."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        rounding.v.copy_(torch.rand(rounding.v.shape, generator=generator) - 0.5)
        rounding.shares.copy_(0.5 + 0.5 * torch.rand(rounding.shares.shape, generator=generator))
    return rounding


def slow_copy(rounding: Rounding, weight: Any, either_sign: bool) -> slow.Matrix:
    matrix = slow.Matrix(weight, rounding.bits, rounding.block, rounding.symmetric, rounding.scales == "float16", either_sign)
    for row, groups in enumerate(matrix.groups):
        for index, group in enumerate(groups):
            group.v = rounding.v[row, index, : len(group.weights)].tolist()
            group.alpha, group.beta = rounding.shares[:, row, index, 0].tolist()
    return matrix


def error_of(block: Block, made: Quantised) -> float:
    with torch.no_grad():
        found = block.run(block.inputs, {"one": torch.tensor(made.values)}, lambda name, values: values)
        return float((found - block.targets).square().mean())


# -- one weight ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "block", "symmetric", "either_sign"), SHAPES)
def test_what_is_learned_is_what_is_stored(bits: int, block: int, symmetric: bool, either_sign: bool) -> None:
    rounding = moved(Rounding(numbers(6, 40), bits=bits, block=block, symmetric=symmetric, scales="float16", either_sign=either_sign))
    made = rounding.rounded()
    assert np.array_equal(made.values, rounding.values().detach().numpy())
    assert np.array_equal(made.grid.scale, made.grid.scale.astype(np.float16).astype(np.float32))
    assert made.codes.dtype == (np.int8 if symmetric else np.uint8)
    assert made.codes.min() >= made.grid.lowest
    assert made.codes.max() <= made.grid.highest
    assert made.grid.scale.shape == ((6, 3) if block else (6,))


@pytest.mark.parametrize(("bits", "block", "symmetric", "either_sign"), SHAPES)
def test_it_begins_with_plain_rounding(bits: int, block: int, symmetric: bool, either_sign: bool) -> None:
    weight = numbers(6, 40)
    weight[::2] *= -1
    weight[2, :16] = 0  # a group without width
    made = Rounding(weight, bits=bits, block=block, symmetric=symmetric, scales="float16", either_sign=either_sign).rounded()
    grid = weight_grid(weight, bits=bits, symmetric=symmetric, axis=1 if block else 0, block=block, scales="float16",
                       either_sign=either_sign)
    assert (grid.scale < 0).any() == either_sign
    assert np.array_equal(made.grid.scale, grid.scale)
    assert np.array_equal(made.grid.zero_point, grid.zero_point)
    assert np.array_equal(made.codes, quantise(weight, grid).codes)


@pytest.mark.parametrize("scales", ["float16", "float32"])
@pytest.mark.parametrize(("bits", "block", "symmetric", "either_sign"), SHAPES)
def test_values_and_gradients_agree_with_the_slow_paper(bits: int, block: int, symmetric: bool, either_sign: bool, scales: str) -> None:
    weight, upstream = numbers(5, 40), numbers(5, 40, seed=2)
    weight[::2] *= -1
    rounding = moved(Rounding(weight, bits=bits, block=block, symmetric=symmetric, scales=scales, either_sign=either_sign))
    matrix = slow_copy(rounding, weight, either_sign)
    found = rounding.values()
    torch.autograd.backward([found], [torch.tensor(upstream)])
    assert np.allclose(found.detach().numpy(), matrix.values, rtol=1e-5, atol=1e-6)
    wanted = [group.gradients(own, bits, symmetric, scales == "float16") for group, own in matrix.each(upstream)]
    assert rounding.v.grad is not None
    assert rounding.shares.grad is not None
    flat = rounding.v.grad.flatten(0, 1)
    for index, (of_v, of_alpha, of_beta) in enumerate(wanted):
        assert np.allclose(flat[index, : len(of_v)].numpy(), of_v, rtol=1e-4, atol=1e-5)
        assert np.allclose(rounding.shares.grad.reshape(2, -1)[:, index].numpy(), [of_alpha, of_beta], rtol=1e-3, atol=1e-3)


# -- learning --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "symmetric", "either_sign"), [(2, False, False), (3, True, False), (4, False, False), (2, True, True),
                                                                (3, True, True)])
def test_learning_agrees_with_the_slow_paper(bits: int, symmetric: bool, either_sign: bool) -> None:
    weight, inputs = numbers(3, 40), numbers(24, 40, seed=1)
    block, schedule = product(weight, inputs), Schedule(steps=12, batch=4, windows=20, rate=0.08, seed=3)
    begun = Rounding(weight, bits=bits, block=16, symmetric=symmetric, scales="float16", either_sign=either_sign)
    made = learn(block, {"one": begun}, schedule)["one"]
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randint(20, (4,), generator=generator).tolist() for _ in range(12)]
    codes, scales = slow.learned(slow.Matrix(weight, bits, 16, symmetric, True, either_sign), inputs.astype(np.float64),
                                 block.targets.numpy().astype(np.float64), batches=batches, rate=0.08, every=1,
                                 probe=np.linspace(0, 19, 8).round().astype(int).tolist())
    assert np.array_equal(made.grid.scale, scales.astype(np.float32))
    assert np.array_equal(made.codes, codes)


@pytest.mark.parametrize("moving", [False, True])
def test_learning_loses_less_than_plain_rounding_on_other_inputs(moving: bool) -> None:
    weight, seen, others = numbers(16, 32), numbers(256, 32, seed=1) + 1, numbers(256, 32, seed=2) + 1  # errors of a row add up
    rounding = Rounding(weight, bits=2, block=16, symmetric=False)
    plain = rounding.rounded()
    made = learn(product(weight, seen), {"one": rounding}, Schedule(200, 32, 256, 0.005, moving))["one"]
    assert error_of(product(weight, others), made) < 0.75 * error_of(product(weight, others), plain)


@pytest.mark.parametrize(("symmetric", "either_sign"), KINDS)
@pytest.mark.parametrize("block", [0, 16])
def test_it_goes_on_from_what_a_step_before_has_rounded(block: int, symmetric: bool, either_sign: bool) -> None:
    grid = searched_grid(numbers(6, 40), bits=3, symmetric=symmetric, axis=1 if block else 0, block=block, scales="float16",
                         either_sign=either_sign)
    codes = np.random.default_rng(3).integers(grid.lowest, grid.highest + 1, (6, 40))
    given = Quantised(codes.astype(np.int8 if symmetric else np.uint8), grid)
    rounding = Rounding.of(given, numbers(6, 40), "float16")
    made = rounding.rounded()
    assert np.array_equal(made.values, rounding.values().detach().numpy())
    assert np.array_equal(made.codes, given.codes)
    assert np.array_equal(made.grid.scale, grid.scale)
    assert np.array_equal(made.grid.zero_point, grid.zero_point)


def test_another_kind_of_grid_before_is_begun_anew() -> None:
    weight = numbers(4, 32)
    block = product(weight, np.zeros((4, 32), np.float32))  # nothing can be learned
    wide, narrow = (quantise(weight + 1, weight_grid(weight + 1, bits=bits, symmetric=False, axis=0, scales="float16")) for bits in (4, 3))
    found = [technique("autoround").apply(replace(block, rounded={"one": each}), HOST, bits=4, block=0, steps=1).weights["one"].values
             for each in (wide, narrow)]
    assert np.array_equal(found[0], wide.values)
    assert np.abs(found[1] - weight).max() < 0.5


def test_it_learns_on_what_the_rounded_blocks_before_give() -> None:
    """Inputs that came out twice as large want weights half as large, whatever they were in float."""
    weight, inputs = np.abs(numbers(4, 16)), numbers(128, 16, seed=1)
    rounding = Rounding(weight, bits=4, block=0, symmetric=False)
    made = learn(product(weight, 2 * inputs, inputs), {"one": rounding}, Schedule(300, 32, 128, 0.08, True))["one"]
    assert np.abs(made.values - weight / 2).max() < 0.15 * np.abs(weight).max()


@pytest.mark.parametrize("moving", [False, True])
def test_it_never_ends_worse_than_it_began(moving: bool) -> None:
    weight, inputs = numbers(4, 16), numbers(8, 16, seed=1)
    rounding = Rounding(weight, bits=8, block=0, symmetric=False)
    before = rounding.rounded()
    made = learn(product(weight, inputs), {"one": rounding}, Schedule(3, 8, 8, 1.0, moving))["one"]
    assert error_of(product(weight, inputs), made) <= error_of(product(weight, inputs), before)


def test_a_weight_goes_up_or_down_and_no_further_unless_weights_move() -> None:
    weight, inputs = numbers(8, 32), numbers(64, 32, seed=1)
    furthest = []
    for moving in (False, True):
        rounding = Rounding(weight, bits=8, block=0, symmetric=False)
        made = learn(product(weight, 0.9 * inputs, inputs), {"one": rounding}, Schedule(60, 16, 64, 0.2, moving))["one"]
        scale, zero = made.grid.scale[:, None], made.grid.zero_point[:, None]
        inside = (made.codes > 0) & (made.codes < 255)
        furthest.append(float(np.abs(weight / scale - (made.codes.astype(np.float32) - zero))[inside].max()))
    assert furthest[0] <= 1.0 + 1e-4
    assert furthest[1] > 1.5


def test_variables_stay_within_their_ends() -> None:
    weight, inputs = numbers(8, 32), numbers(64, 32, seed=1)
    rounding = Rounding(weight, bits=2, block=0, symmetric=False)
    learn(product(weight, 2 * inputs, inputs), {"one": rounding}, Schedule(30, 16, 64, 0.3))
    assert float(rounding.v.detach().abs().max()) == 0.5
    assert float(rounding.shares.detach().max()) <= 1.0
    assert float(rounding.shares.detach().min()) >= 0.01


@pytest.mark.parametrize(("bits", "widest"), [(2, 1.0), (3, 4 / 3), (4, 8 / 7)])
def test_a_grid_of_either_sign_widens_until_its_highest_code_reaches_as_far(bits: int, widest: float) -> None:
    weight, inputs = numbers(8, 32), numbers(64, 32, seed=1)
    rounding = Rounding(weight, bits=bits, block=0, symmetric=True, either_sign=True)
    learn(product(weight, 0.5 * inputs, inputs), {"one": rounding}, Schedule(30, 16, 64, 0.3))  # weights twice as large are wanted
    assert float(rounding.shares[0].detach().max()) == pytest.approx(widest)


def test_only_as_many_windows_as_were_asked_for_are_looked_at() -> None:
    weight, inputs = numbers(16, 32), numbers(32, 32, seed=1) + 1
    spoilt = inputs.copy()
    spoilt[8:] = np.nan
    begun = Rounding(weight, bits=2, block=16, symmetric=False).rounded().codes
    made = [learn(product(weight, each), {"one": Rounding(weight, bits=2, block=16, symmetric=False)}, Schedule(100, 8, 8, 0.005))["one"]
            for each in (inputs, spoilt)]
    assert np.array_equal(made[0].codes, made[1].codes)
    assert not np.array_equal(made[0].codes, begun)


# -- checkpoints -----------------------------------------------------------------------------------------------------------------

LAYERS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
QUICK: dict[str, Any] = {"bits": 3, "block": 32, "steps": 10, "batch": 4, "samples": 12}
TOKENS = np.random.default_rng(0).integers(3, 96, (12, 24))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(random_checkpoint(tmp_path_factory.mktemp("llama"), "llama", num_hidden_layers=2))


def applied(checkpoint: Checkpoint, out: Path, name: str = "autoround", layers: tuple[str, ...] = ("*",), **options: Any) -> Checkpoint:
    return apply_to_checkpoint(checkpoint, Recipe((Step(name, layers, options=options),)), HOST, out=out, calibration=TOKENS)


def first_block(checkpoint: Checkpoint, weights: Checkpoint) -> Tensor:
    """What the first block gives with the weights of ``weights``."""
    skeleton = Skeleton(checkpoint)
    hidden = skeleton.embed(torch.tensor(TOKENS))
    skeleton.block(0)
    block = BlockAtWork(skeleton, 0)
    return block.computed(hidden, {layer: weights.weight(block.whole(layer)) for layer in checkpoint.family.layers})


def test_a_block_of_a_checkpoint_keeps_more_of_its_output(llama: Checkpoint, tmp_path: Path) -> None:
    wanted = first_block(llama, llama)
    plain = applied(llama, tmp_path / "plain", "rtn", bits=3, block=32, symmetric=False)
    for options in ({"lr": 0.05}, {"move": True}, {"symmetric": True, "search": True}):
        made = applied(llama, tmp_path / "made", **{**QUICK, "steps": 40}, **options)
        assert (first_block(llama, made) - wanted).square().mean() < 0.9 * (first_block(llama, plain) - wanted).square().mean()


def test_what_is_written_is_what_was_foreseen(llama: Checkpoint, tmp_path: Path) -> None:
    made = applied(llama, tmp_path / "made", **QUICK)
    assert set(made.layouts) == {name for index in range(2) for name in llama.block_layers(index)}
    for layout in made.layouts.values():
        assert (layout.kind, layout.bits, layout.group, layout.symmetric) == ("int", 3, 32, False)
    again = applied(llama, tmp_path / "again", **QUICK)
    other = applied(llama, tmp_path / "other", **QUICK, seed=1)
    layer = "model.layers.1.mlp.down_proj"
    assert torch.equal(made.weight(layer), again.weight(layer))
    assert not torch.equal(made.weight(layer), other.weight(layer))


def test_layers_that_are_not_named_keep_their_weights(llama: Checkpoint, tmp_path: Path) -> None:
    made = applied(llama, tmp_path / "made", layers=("model.layers.1.mlp.*",), **QUICK)
    assert set(made.layouts) == {f"model.layers.1.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")}
    for name in (*llama.block_layers(0), "model.layers.1.self_attn.q_proj"):
        assert torch.equal(made.weight(name), llama.weight(name))


def test_weights_that_are_stored_the_other_way_round(tmp_path: Path) -> None:
    gpt2 = open_checkpoint(random_checkpoint(tmp_path / "gpt2", "gpt2", n_layer=1))
    made = applied(gpt2, tmp_path / "made", **{**QUICK, "bits": 8})
    for name in gpt2.block_layers(0):
        assert made.weight(name).shape == gpt2.weight(name).shape
        assert torch.allclose(made.weight(name), gpt2.weight(name), atol=0.05)


def test_gptq_before_it_is_where_it_begins(llama: Checkpoint, tmp_path: Path) -> None:
    kind = {"bits": 3, "block": 32, "symmetric": False}
    steps = (Step("gptq", options={**kind, "enough": 0.0}), Step("autoround", options={**QUICK, "lr": 1e-6, "steps": 1}))
    made = apply_to_checkpoint(llama, Recipe(steps), HOST, out=tmp_path / "made", calibration=TOKENS)
    alone = apply_to_checkpoint(llama, Recipe(steps[:1]), HOST, out=tmp_path / "alone", calibration=TOKENS)
    assert all(torch.equal(made.weight(name), alone.weight(name)) for name in llama.block_layers(0))


def test_weights_that_are_no_numbers_are_refused() -> None:
    weight = numbers(4, 32)
    weight[1, 2] = np.nan
    with pytest.raises(Refused, match="NaN"):
        Rounding(weight, bits=4, block=16, symmetric=False)


@pytest.mark.parametrize("op", ["Conv", "Gemm", "Embedding", "Head"])
def test_other_layers_are_left_alone_with_a_word(op: str) -> None:
    found = technique("autoround").foresee(Layer(name="x", op=op, weight_shape=(8, 8)), HOST)
    assert not found.applies
    assert "rtn" in found.note
