"""``optimize``: the best version of a model for a device, measured, gated and explained."""

from whet.compress.optimize.run import optimize

__all__ = ["optimize"]
