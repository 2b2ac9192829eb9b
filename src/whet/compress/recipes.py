"""What callers may say for a recipe or a target: the thing itself, its name, or a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whet.compress.technique import technique, technique_names
from whet.core.document import FrozenMap
from whet.core.errors import Refused
from whet.core.recipe import Recipe, Step
from whet.core.target import Target
from whet.device.targets import target as find_target


def as_recipe(recipe: Recipe | Step | str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Recipe:
    """A Recipe as it is, a Step as a recipe of one, a technique's name (with ``options``), or the path of a TOML file.

    Raises Refused where there is no such technique or file, where the file is no recipe, or where it has no steps.
    """
    if isinstance(recipe, Step):
        return Recipe((recipe,))
    if isinstance(recipe, Recipe):
        found = recipe
    elif isinstance(recipe, str) and recipe in technique_names():
        return Recipe((Step(recipe, options=FrozenMap(options or {})),))
    else:
        found = _from_file(Path(recipe))
    if options:
        raise Refused("give options beside a recipe", found=", ".join(options), do="write them into its steps, as `with`")
    for step in found.steps:
        technique(step.technique).checked(step.options)
    return found


def as_target(target: Target | str) -> Target:
    """A Target as it is, or by its name or TOML file."""
    return target if isinstance(target, Target) else find_target(target)


def _from_file(path: Path) -> Recipe:
    if not path.is_file():
        raise Refused(f"find the recipe {os.fspath(path)!r}", found="there is no such technique and no such file",
                      do=f"the techniques are {', '.join(technique_names())}; a recipe is a TOML file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"read {path}", found="it is not text", do="a recipe is a TOML file") from error
    recipe = Recipe.from_text(text, what=str(path))
    if not recipe.steps:
        raise Refused(f"read {path}", found="a recipe without steps", do='add a [[step]] with apply = "static", say')
    return recipe
