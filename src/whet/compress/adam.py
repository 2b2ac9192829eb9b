"""Adam, without what ``torch.optim`` brings with it: its first optimiser imports the compiler, which takes seconds."""

from __future__ import annotations

import torch
from torch import Tensor

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1, for one tensor."""

    def __init__(self, parameter: Tensor, rate: float) -> None:
        self.parameter, self.rate, self.steps = parameter, rate, 0
        self.mean, self.square = torch.zeros_like(parameter), torch.zeros_like(parameter)

    def step(self) -> None:
        """One step along the gradient, which is forgotten afterwards."""
        gradient, self.parameter.grad = self.parameter.grad, None
        assert gradient is not None
        self.steps += 1
        with torch.no_grad():
            adam_step_(self.parameter, gradient, self.mean, self.square, self.rate, self.steps)


def adam_step_(parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, rate: float, steps: int) -> None:
    """The step number ``steps`` (from 1) of a tensor or a part of one, in place: of the parameter and of both moments."""
    mean.lerp_(gradient, 1 - BETA_1)
    square.mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
    size = (square / (1 - BETA_2**steps)).sqrt_().add_(EPSILON)
    parameter.addcdiv_(mean, size, value=-rate / (1 - BETA_1**steps))
