"""Tuning from end to end: what is learned, what is stored, what it is learned from, and that it never ends worse than it began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoint.made_up_models import made_up
from tests.checkpoint.test_killed_runs import all_went_on, killed
from tests.compress.rounded_checkpoints import random_checkpoint
from tests.slow_papers import tune as slow
from torch import Tensor

from whet.compress.checkpoint import Checkpoint, open_checkpoint
from whet.compress.checkpoint.apply import apply_to_checkpoint
from whet.compress.checkpoint.compare import compare_checkpoints
from whet.compress.checkpoint.plan import plan_checkpoint
from whet.compress.checkpoint.skeleton import Skeleton
from whet.compress.checkpoint.text import windows_of
from whet.compress.checkpoint.tuning import in_memory
from whet.compress.distilling import Scaled, begun, distil, loss, parted
from whet.compress.grid import Quantised, quantise, weight_grid
from whet.compress.learned_grids import Schedule
from whet.compress.technique import technique
from whet.compress.views import Whole
from whet.core.errors import Refused, Unsupported
from whet.core.inventory import Layer
from whet.core.recipe import Recipe, Step
from whet.device.machine_limits import MachineLimits
from whet.device.targets import target

pytestmark = pytest.mark.usefixtures("one_torch_thread")
HOST = target("host")
SHAPES = [(bits, block, symmetric) for bits in (2, 4) for block in (0, 16) for symmetric in (True, False)]


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def plainly(weight: Any, bits: int, block: int, symmetric: bool = False) -> Quantised:
    """As language models are rounded: symmetric grids have scales of either sign."""
    return quantise(weight, weight_grid(weight, bits=bits, symmetric=symmetric, axis=1 if block else 0, block=block, scales="float16",
                                        either_sign=True))


def softmax_model(weight: Any, windows: Any, *, bits: int = 2, block: int = 16, symmetric: bool = False, exact: Any = None) -> Whole:
    """A model that is one matrix product. windows: [n, length, in]. exact: what the parent reads."""
    inputs, before = torch.tensor(windows), torch.tensor(windows if exact is None else exact)

    def run(chosen: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[chosen] @ weights["one"].t()

    def parent(chosen: Tensor) -> Tensor:
        return before[chosen] @ torch.tensor(weight).t()

    tokens = following(len(weight), windows)
    return Whole({"one": plainly(weight, bits, block, symmetric)}, "float16", lambda layer: weight, tokens, run, parent)


def following(words: int, windows: Any) -> Tensor:
    """[n, length] some text in the place of the windows, of so many words."""
    return torch.tensor(np.random.default_rng(5).integers(0, words, windows.shape[:2]))


def lost(view: Whole, made: Quantised) -> float:
    with torch.no_grad():
        answers = (torch.log_softmax(each, -1) for each in
                   (view.parent(torch.arange(view.windows)), view.run(torch.arange(view.windows), {"one": torch.tensor(made.values)})))
        p, q = answers
        return float((p.exp() * (p - q)).sum(-1).mean())


def nats(view: Whole, made: Quantised) -> float:
    """Of the text itself."""
    said = torch.log_softmax(view.run(torch.arange(view.windows), {"one": torch.tensor(made.values)}), -1)
    return -float(said[:, :-1].gather(-1, view.tokens[:, 1:, None]).mean())


# -- one weight ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "block", "symmetric"), SHAPES)
def test_it_begins_with_what_was_rounded_and_what_is_learned_is_what_is_stored(bits: int, block: int, symmetric: bool) -> None:
    floats = numbers(6, 40)
    floats[::2] *= -1
    given = plainly(floats, bits, block, symmetric)
    weight = Scaled(given, "float16")
    assert np.array_equal(weight.rounded().values, given.values)
    with torch.no_grad():
        weight.share.copy_(0.7 + 0.6 * torch.rand(weight.share.shape, generator=torch.Generator().manual_seed(1)))
    made = weight.rounded()
    assert np.array_equal(np.sign(made.grid.scale), np.sign(given.grid.scale))
    assert (made.grid.scale < 0).any() == symmetric
    assert np.array_equal(made.values, weight.values().detach().numpy())
    assert np.array_equal(made.codes, given.codes)
    assert np.array_equal(made.grid.zero_point, given.grid.zero_point)
    assert np.array_equal(made.grid.scale, made.grid.scale.astype(np.float16).astype(np.float32))
    assert made.grid.scale.shape == given.grid.scale.shape
    assert not np.array_equal(made.grid.scale, given.grid.scale)


@pytest.mark.parametrize("symmetric", [True, False])
def test_with_weights_it_begins_with_the_codes_that_were_there(symmetric: bool) -> None:
    weight = numbers(6, 40)
    view = softmax_model(weight, numbers(4, 3, 40, seed=1), bits=3, symmetric=symmetric)
    made = begun(view, True)["one"].rounded()
    assert np.array_equal(made.codes, view.rounded["one"].codes)
    assert np.array_equal(made.values, view.rounded["one"].values)


# -- learning --------------------------------------------------------------------------------------------------------------------


def slow_copy(made: Quantised) -> slow.Model:
    rows = len(made.codes)
    return slow.Model(made.codes, made.grid.scale.reshape(rows, -1), made.grid.zero_point.reshape(rows, -1), made.grid.block or 10**6,
                      made.grid.bits)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("block", "text"), [(0, 0.0), (16, 0.0), (16, 0.3), (0, 1.0)])
def test_loss_and_gradients_agree_with_the_slow_paper(block: int, text: float, symmetric: bool) -> None:
    weight, windows = numbers(7, 40), numbers(5, 3, 40, seed=1) / 4
    view = softmax_model(weight, windows, block=block, symmetric=symmetric)
    own, chosen = Scaled(view.rounded["one"], "float16"), torch.tensor([3, 1])
    found = loss(view, {"one": own}, chosen, text)
    torch.autograd.backward([found])
    tokens, wanted = windows[[3, 1]].reshape(-1, 40), view.parent(chosen).reshape(-1, 7).numpy()
    model = slow_copy(view.rounded["one"])
    words = view.tokens.tolist()
    follows = [*words[3][1:], -1, *words[1][1:], -1]
    assert found.item() == pytest.approx(model.loss(tokens, wanted, text, follows), rel=1e-4)
    assert own.share.grad is not None
    assert np.allclose(own.share.grad[..., 0].numpy(), model.gradients(tokens, wanted, text, follows), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("rate", "symmetric"), [(0.3, False), (4.0, False), (4.0, True)])
def test_tuning_agrees_with_the_slow_paper(rate: float, symmetric: bool) -> None:
    weight, windows = numbers(5, 40), (numbers(9, 2, 40, seed=1) + 1) / 4
    view = softmax_model(weight, windows, symmetric=symmetric)
    made = distil(view, begun(view, False), Schedule(steps=12, batch=3, windows=8, rate=rate, seed=3))["one"]
    generator, seen = torch.Generator().manual_seed(3), [1, 2, 3, 4, 5, 6, 7]
    order = [[seen[at] for at in torch.randperm(7, generator=generator).tolist()] for _ in range(4)]
    batches = [each[at : at + 3] for each in order for at in (0, 3, 6)]
    wanted = view.parent(torch.arange(9)).numpy()
    scales = slow.tuned(slow_copy(view.rounded["one"]), windows, wanted, batches=batches, held=[0], rate=rate, every=1)
    # float16 has 11 bits: one number may fall on the other side
    assert np.allclose(made.grid.scale, scales, rtol=1.1 * 2.0**-10)
    assert np.mean(made.grid.scale == np.float32(scales)) > 0.9
    assert not np.array_equal(made.grid.scale, view.rounded["one"].grid.scale)


@pytest.mark.parametrize("weights", [False, True])
def test_tuning_loses_less_on_other_text(weights: bool) -> None:
    weight = numbers(24, 32)
    view, others = (softmax_model(weight, (numbers(64, 8, 32, seed=seed) + 1) / 3) for seed in (1, 2))
    made = distil(view, begun(view, weights), Schedule(150, 4, 64, 0.3))["one"]
    assert lost(others, made) < (0.5 if weights else 0.8) * lost(others, view.rounded["one"])
    assert np.array_equal(made.codes, view.rounded["one"].codes) is not weights


def test_what_it_is_to_say_is_what_the_parent_said() -> None:
    """Inputs that came out twice as large want scales half as large, whatever the weights were in float."""
    weight, windows = np.abs(numbers(12, 16)), numbers(32, 4, 16, seed=1) / 2
    view = softmax_model(weight, 2 * windows, bits=4, exact=windows)
    made = distil(view, begun(view, False), Schedule(400, 8, 32, 2.0))["one"]
    assert lost(view, made) < 0.2 * lost(view, view.rounded["one"])
    assert np.median(made.grid.scale / view.rounded["one"].grid.scale) < 0.75


def test_with_text_it_says_what_comes_next_and_less_of_what_its_parent_says() -> None:
    weight, windows = numbers(12, 32), (numbers(64, 8, 32, seed=1) + 1) / 3
    view = softmax_model(weight, windows, bits=6)
    other = torch.tensor(windows) @ torch.tensor(weight + 0.7 * numbers(12, 32, seed=2)).t()
    view = replace(view, tokens=torch.cat([torch.zeros(64, 1, dtype=torch.int64), other.argmax(-1)[:, :-1]], 1))
    made = [distil(view, begun(view, True), Schedule(100, 4, 64, 5.0), text)["one"] for text in (0.0, 0.2)]
    assert nats(view, made[1]) < 0.9 * nats(view, made[0])
    assert lost(view, made[0]) < lost(view, made[1])


@pytest.mark.parametrize("weights", [False, True])
def test_it_never_ends_worse_than_it_began(weights: bool) -> None:
    view = softmax_model(numbers(4, 16), numbers(9, 3, 16, seed=1), bits=8)
    made = distil(view, begun(view, weights), Schedule(3, 4, 9, 5000.0))["one"]
    assert np.array_equal(made.values, view.rounded["one"].values)


def test_nothing_is_learned_from_the_windows_that_are_judged_by() -> None:
    for count in (2, 9, 40, 300):
        seen, held = (part.tolist() for part in parted(count))
        assert sorted(seen + held) == list(range(count))
        assert len(held) == max(1, min(24, count // 8))
    with pytest.raises(Refused, match="one window"):
        parted(1)


def test_only_as_many_windows_as_were_asked_for_are_looked_at() -> None:
    weight, windows = numbers(8, 32), numbers(16, 2, 32, seed=1)
    spoilt = windows.copy()
    spoilt[8:] = np.nan
    made = [distil(view, begun(view, False), Schedule(20, 2, 8, 0.3))["one"] for view in
            (softmax_model(weight, windows), softmax_model(weight, spoilt))]
    assert np.array_equal(made[0].grid.scale, made[1].grid.scale)


# -- checkpoints -----------------------------------------------------------------------------------------------------------------

QUICK: dict[str, Any] = {"steps": 20, "batch": 4, "samples": 48}
KIND = {"bits": 2, "block": 32, "symmetric": False}
TOKENS = np.random.default_rng(0).integers(3, 96, (48, 24))
RTN, TUNE = Step("rtn", options=KIND), Step("tune", options=QUICK)
CODES = Step("tune", options={**QUICK, "codes": True})


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(random_checkpoint(tmp_path_factory.mktemp("llama"), "llama", num_hidden_layers=2))


def applied(checkpoint: Checkpoint, out: Path, *steps: Step) -> Checkpoint:
    return apply_to_checkpoint(checkpoint, Recipe(steps), HOST, out=out, calibration=TOKENS)


def kl(checkpoint: Checkpoint, made: Checkpoint) -> float:
    return compare_checkpoints(checkpoint, made, TOKENS).kl.value or 0.0


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma"])
def test_the_model_answers_more_as_it_did(tmp_path: Path, kind: str) -> None:
    checkpoint = open_checkpoint(random_checkpoint(tmp_path / kind, kind, **({} if kind == "gpt2" else {"num_hidden_layers": 2})))
    plain = applied(checkpoint, tmp_path / "plain", RTN)
    for step, most in ((TUNE, 0.85), (CODES, 0.85)):
        made = applied(checkpoint, tmp_path / "made", RTN, step)
        assert kl(checkpoint, made) < most * kl(checkpoint, plain)


def test_only_scales_change_unless_weights_do(llama: Checkpoint, tmp_path: Path) -> None:
    plain, scaled, moved = (applied(llama, tmp_path / str(at), RTN, *more) for at, more in enumerate(((), (TUNE,), (CODES,))))
    changed = {name.rpartition(".")[2] for name in plain.entries if not torch.equal(plain.tensor(name), scaled.tensor(name))}
    assert changed == {"weight_scale"}
    changed = {name.rpartition(".")[2] for name in plain.entries if not torch.equal(plain.tensor(name), moved.tensor(name))}
    assert {"weight_scale", "weight_packed"} <= changed <= {"weight_scale", "weight_packed", "weight_zero_point"}
    assert plain.layouts == scaled.layouts == moved.layouts
    assert sorted(path.name for path in moved.folder.iterdir()) == sorted(path.name for path in plain.folder.iterdir())


def test_the_same_bytes_again_and_others_with_another_seed(llama: Checkpoint, tmp_path: Path) -> None:
    one, same, other = (applied(llama, tmp_path / str(at), RTN, Step("tune", options={**QUICK, "seed": seed}))
                        for at, seed in enumerate((0, 0, 1)))
    contents = [each.files[0].path.read_bytes() for each in (one, same, other)]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_behind_factors_that_were_moved(llama: Checkpoint, tmp_path: Path) -> None:
    """Norms are no longer those of the parent, and its weights not those that were rounded."""
    awq = Step("awq", options=KIND)
    before, made = applied(llama, tmp_path / "before", awq), applied(llama, tmp_path / "made", awq, TUNE)
    assert kl(llama, made) < 0.9 * kl(llama, before)


@pytest.mark.parametrize("moved", [False, True])
def test_what_is_shown_is_the_model_beside_its_parent(llama: Checkpoint, tmp_path: Path, moved: bool) -> None:
    tables = Step("rtn", ("op:Embedding", "op:Head"), options={"bits": 3, "block": 16})
    made = applied(llama, tmp_path / "made", Step("awq", options=KIND), tables)
    rounded = {name: found for name in llama.block_layers(1) if isinstance(found := made.rounded(name), Quantised)}
    with in_memory(llama, made, windows_of(llama, TOKENS), rounded, tmp_path, moved=moved) as view:
        chosen = torch.tensor([5, 40])
        answers = view.run(chosen, {name: torch.tensor(found.values) for name, found in rounded.items()}), view.parent(chosen)
        wanted = [rounded[name].values if moved else llama.weight(name).numpy() for name in rounded]
        assert all(np.array_equal(view.weight(name), each) for name, each in zip(rounded, wanted, strict=True))
        assert view.scales == "float16"
        assert torch.equal(view.tokens, torch.tensor(TOKENS))
    for found, checkpoint in zip(answers, (made, llama), strict=True):
        assert torch.allclose(found, logits(checkpoint, chosen), atol=1e-4)


def logits(checkpoint: Checkpoint, chosen: Tensor) -> Tensor:
    """Block after block."""
    skeleton = Skeleton(checkpoint)
    with torch.no_grad():
        hidden = skeleton.embed(torch.tensor(TOKENS)[chosen])
        for index in range(checkpoint.block_count):
            skeleton.block(index)
            hidden = skeleton.run(index, hidden)
        with skeleton.head() as head:
            return head(hidden)


def test_layers_that_no_step_rounded_keep_their_weights(llama: Checkpoint, tmp_path: Path) -> None:
    made = applied(llama, tmp_path / "made", Step("rtn", ("model.layers.1.*",), options=KIND), CODES)
    assert set(made.layouts) == set(llama.block_layers(1))
    assert all(torch.equal(made.weight(name), llama.weight(name)) for name in llama.block_layers(0))


@pytest.mark.parametrize("steps", [(TUNE,), (Step("nf4"), TUNE), (Step("rtn", ("op:Embedding",)), TUNE), (TUNE, RTN), (RTN, TUNE, TUNE),
                                   (RTN, TUNE, Step("gptq", ("model.layers.0.*",)))])
def test_it_is_the_last_step_behind_one_that_rounds(llama: Checkpoint, tmp_path: Path, steps: tuple[Step, ...]) -> None:
    with pytest.raises(Refused, match="apply tune"):
        applied(llama, tmp_path / "made", *steps)


def test_the_plan_is_that_of_the_step_before_with_all_of_the_model_in_memory(llama: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = MachineLimits(5e10, 2e11, 3e10, 1, "f", "d", onnxruntime="o", at="2026-11-01T00:00:00Z")
    monkeypatch.setattr("whet.device.machine_limits.machine_limits", lambda **named: limits)
    plain, scaled, moved = (plan_checkpoint(llama, Recipe((RTN, *more)), HOST) for more in ((), (TUNE,), (CODES,)))
    assert scaled.layers == moved.layers
    assert {layer.note for layer in scaled.layers if layer.technique} == {"its grid is tuned with those of all layers"}
    assert tuple(replace(layer, note="") for layer in scaled.layers) == plain.layers
    costs = [{each.name: each.value or 0.0 for each in found.costs} for found in (plain, scaled, moved)]
    weights = sum(llama.weight(name).numel() for index in range(2) for name in llama.block_layers(index))
    assert costs[0]["size_bytes"] == costs[2]["size_bytes"]
    assert costs[2]["working_bytes"] - costs[1]["working_bytes"] == 17 * weights
    assert costs[2]["working_s"] > costs[0]["working_s"]


KILLS: list[tuple[float, ...]] = [(0.7,), (0.88,), (0.975,)]  # while what was tuned is kept, while it is put in its place, and behind that


@pytest.mark.parametrize("kills", [KILLS, pytest.param([(at / 80,) for at in range(40, 81)], marks=pytest.mark.slow)])
def test_runs_that_are_killed_are_gone_on_with(tmp_path: Path, kills: list[tuple[float, ...]]) -> None:
    steps = [("gptq", {"bits": 2, "block": 16, "enough": 0.0}), ("tune", {"steps": 8, "samples": 12})]
    found = killed(made_up(tmp_path / "model", "llama", num_hidden_layers=2), tmp_path, steps, kills)
    all_went_on(found)
    assert {each["blocks"][0] for each in found["broken"]} >= {2, 3}  # before all that was tuned is in its place, and behind that


def test_an_encoder_answers_nothing(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="encoder"):
        applied(open_checkpoint(made_up(tmp_path / "bert", "bert")), tmp_path / "made", RTN, TUNE)


@pytest.mark.parametrize("op", ["Conv", "Gemm", "Embedding", "Head"])
def test_other_layers_are_left_alone_with_a_word(op: str) -> None:
    found = technique("tune").foresee(Layer(name="x", op=op, weight_shape=(8, 8)), HOST)
    assert not found.applies
    assert found.note
