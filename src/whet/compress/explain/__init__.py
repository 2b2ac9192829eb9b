"""Blame: which layer does the damage of a recipe, why, and what would mend it at which price."""

from whet.compress.explain.run import explain

__all__ = ["explain"]
