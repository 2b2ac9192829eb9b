"""Linear layers whose weights become float32 only while they multiply, so that a block in memory is hardly larger than it is stored."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from whet.compress.codebook import Coded
from whet.compress.grid import Quantised


class LateWeight:
    """Takes over the forward pass of a linear layer (transposed: a Conv1D, whose weight is [in, out]).

    made: what the weight was rounded to; None where it is still the module's own, in whatever dtype that has.
    """

    def __init__(self, module: nn.Module, transposed: bool) -> None:
        self._module, self._transposed = module, transposed
        self.made: Quantised | Coded | None = None
        module.forward = self._forward

    def weight(self) -> Tensor:
        """[out, in] float32."""
        if self.made is not None:
            return torch.from_numpy(self.made.values)
        own: Tensor = self._module.weight  # type: ignore[assignment]
        return (own.t() if self._transposed else own).float()

    def round(self, made: Quantised | Coded) -> None:
        """From now on the weight is what these codes stand for, and the float one takes no memory."""
        self.made = made
        self._module.weight = nn.Parameter(torch.empty(0, device="meta"), requires_grad=False)

    def set(self, weight: Tensor) -> None:
        """From now on the weight is another float one [out, in]."""
        self.made = None
        self._module.weight = nn.Parameter(weight.t() if self._transposed else weight, requires_grad=False)

    def restore(self) -> None:
        """Give the module its own forward pass back."""
        del self._module.forward

    def _forward(self, inputs: Tensor) -> Tensor:
        bias: Tensor | None = self._module.bias  # type: ignore[assignment]
        if not self._transposed or bias is None:
            return linear(inputs, self.weight(), bias)
        flat = torch.addmm(bias, inputs.reshape(-1, inputs.shape[-1]), self.weight().t())
        return flat.view(*inputs.shape[:-1], -1)
