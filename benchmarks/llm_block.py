"""GPTQ of one block of a language model, with random weights and inputs of its shapes: what each stage takes, and the peak of memory.

    .venv/bin/python benchmarks/llm_block.py                        # a block of Llama-7B, 4096 tokens, 4 bits, group 128
    .venv/bin/python benchmarks/llm_block.py --hidden 1024 --intermediate 2816 --tokens 1024

Beside it, on one smaller layer and in the same run, GPTQ as the paper's algorithm box has it: the inverse, its Cholesky factor, blocks of
128 columns. Seconds depend on who else works on the machine: the speed of a plain matrix product, taken before and after, says how
much of it there was, and the last line says what the block takes in units of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from whet.compress.column_rounding import moments_of, solve
from whet.compress.grid import Grid, weight_grid
from whet.compress.weight_search import searched_grid

LIMIT_SECONDS, LIMIT_BYTES, LIMIT_SPEED = 25.0, 2e9, 185e9  # the target, and the speed of the machine that it was set for, in FLOP/s
BITS, GROUP, PANEL = 4, 128, 128
Result = TypeVar("Result")


def main() -> None:
    asked = arguments()
    hidden, wide = asked.hidden, asked.intermediate
    readers = {"attention": (hidden, (hidden,) * 3), "attention's output": (hidden, (hidden,)), "gate and up": (hidden, (wide,) * 2),
               "down": (wide, (hidden,))}
    libraries, speeds = status("VmRSS"), [product_speed()]
    forget_peak()
    total = dict.fromkeys(("moments", "search", "solve"), 0.0)
    print("| layers | second moments, s | search, s | columns, s |\n|---|---|---|---|")
    for name, (width, outputs) in readers.items():
        spent = one_input(width, outputs, asked.tokens)
        total = {stage: total[stage] + spent[stage] for stage in total}
        print(f"| {name} | {spent['moments']:.1f} | {spent['search']:.1f} | {spent['solve']:.1f} |", flush=True)
    seconds, peak = sum(total.values()), status("VmHWM")
    speeds.append(product_speed())
    print(f"| all | {total['moments']:.1f} | {total['search']:.1f} | {total['solve']:.1f} |\n")
    print(f"time      {seconds:.1f} s, {seconds / LIMIT_SECONDS:.2f} of the limit of {LIMIT_SECONDS:.0f} s")
    print(f"memory    {peak / 1e9:.2f} GB at the peak, {peak / LIMIT_BYTES:.2f} of the limit; {libraries / 1e9:.2f} GB of it libraries")
    print(f"products  {speeds[0] / 1e9:.0f} GFLOP/s before, {speeds[1] / 1e9:.0f} after, with {torch.get_num_threads()} threads")
    print(f"          at {LIMIT_SPEED / 1e9:.0f} GFLOP/s the same would take {seconds * sum(speeds) / 2 / LIMIT_SPEED:.1f} s")
    ours, textbook = against_the_textbook(asked.side)
    print(f"textbook  [{asked.side}, {asked.side}] in {textbook:.2f} s, ours {ours:.2f} s: {textbook / ours:.2f} times as fast")


def arguments() -> argparse.Namespace:
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("hidden", 4096), ("intermediate", 11008), ("tokens", 4096), ("side", 3072)):
        found.add_argument(f"--{name}", type=int, default=default)
    return found.parse_args()


def one_input(width: int, outputs: tuple[int, ...], tokens: int) -> dict[str, float]:
    """Seconds of each stage for the layers that read one tensor of ``width`` channels."""
    spent = {"search": 0.0, "solve": 0.0}
    spent["moments"], gram = timed(lambda: moments_of(torch.randn(tokens, width)), without=lambda: torch.randn(tokens, width))
    for rows in outputs:
        weight = torch.randn(rows, width).mul_(0.02)
        seconds, grid = timed(lambda weight=weight: searched_grid(weight.numpy(), bits=BITS, axis=1, block=GROUP, scales="float16",
                                                                     either_sign=True))
        spent["search"] += seconds
        seconds, codes = timed(lambda weight=weight, grid=grid: solve(weight, gram, grid))
        spent["solve"] += seconds
        assert codes.shape == weight.shape
    return spent


def against_the_textbook(side: int) -> tuple[float, float]:
    """Seconds of both on a layer [side, side], the least of two."""
    weight, inputs = torch.randn(side, side) * 0.02, torch.randn(2 * side, side)
    gram, grid = inputs.t() @ inputs / (2 * side), weight_grid(weight.numpy(), bits=BITS, axis=1, block=GROUP)
    ours = [timed(lambda: solve(weight, gram, grid, order="none")) for _ in range(2)]
    theirs = [timed(lambda: textbook_gptq(weight, gram, grid)) for _ in range(2)]
    agreement = float((ours[0][1] == theirs[0][1]).float().mean())
    assert agreement > 0.98, f"only {agreement:.1%} of the codes agree"
    return min(seconds for seconds, _ in ours), min(seconds for seconds, _ in theirs)


def textbook_gptq(weight: Tensor, gram: Tensor, grid: Grid, damping: float = 0.01) -> Tensor:
    """Codes [out, in]: algorithm 1 of Frantar et al. 2022."""
    w, hessian = weight.clone(), gram.clone()
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    codes, scales = torch.empty_like(w), torch.from_numpy(grid.scale)
    for first in range(0, w.shape[1], PANEL):
        last = min(first + PANEL, w.shape[1])
        block, errors, factor = w[:, first:last].clone(), torch.empty(len(w), last - first), upper[first:last, first:last]
        for j in range(last - first):
            column, scale = block[:, j], scales[:, (first + j) // grid.block]
            code = torch.clamp(torch.round(column / scale), grid.lowest, grid.highest)
            errors[:, j] = (column - code * scale) / factor[j, j]
            block[:, j:] -= errors[:, j : j + 1] @ factor[j : j + 1, j:]
            codes[:, first + j] = code
        w[:, last:] -= errors @ upper[first:last, last:]
    return codes


def product_speed(side: int = 3072) -> float:
    """FLOP/s of a float32 matrix product, the best of three."""
    a = torch.randn(side, side)
    return 2.0 * side**3 / min(timed(lambda: a @ a)[0] for _ in range(3))


def timed(work: Callable[[], Result], without: Callable[[], object] | None = None) -> tuple[float, Result]:
    """Seconds and result; the seconds of ``without`` are taken off."""
    start = time.perf_counter()
    if without:
        without()
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin - (begin - start if without else 0.0), result


def status(field: str) -> float:
    """A number of bytes from the kernel's account of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return float(line.split()[1]) * 1024


def forget_peak() -> None:
    """Set the high-water mark of memory back to what is in use."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
