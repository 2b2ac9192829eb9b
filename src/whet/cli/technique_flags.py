"""Flags that come from a technique's own file: ``whet apply static --ranges mse``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from whet.compress.technique import Option, Technique

_CHOSEN, _PREFIX = "whet.technique", "option_of_technique_"


class OptionValue(click.ParamType):  # type: ignore[type-arg]  # older versions of click have it without arguments
    """The value of a technique's option: of its kind, and one of its values where no others exist."""

    def __init__(self, option: Option) -> None:
        self.name, self._option = option.kind.__name__, option

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        option = self._option
        try:
            found = option.kind(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is no {option.kind.__name__}", param, ctx)
        if option.search.only and found not in option.search.values:
            self.fail(f"{value!r} is not one of {', '.join(map(str, option.search.values))}", param, ctx)
        return found

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[click.shell_completion.CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(str(value)) for value in self._option.search.values if str(value).startswith(incomplete)]


class TechniqueCommand(click.Command):
    """A command that has, beside its own flags, those of the technique that is named on its line.

    The technique is the first word that is the name of one, or the value of --technique where the command has that flag. The
    values that were typed arrive as ``values``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_CHOSEN] = self._named(args)
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise _with_list(error, ctx) from error
        typed = {name: ctx.params.pop(name) for name in list(ctx.params) if name.startswith(_PREFIX)}
        ctx.params["values"] = {name.removeprefix(_PREFIX): value for name, value in typed.items()
                                 if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}  # fmt: skip
        return rest

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Where no technique is named, the flags of all of them are taken, so that a misspelt technique is what is complained of."""
        own = super().get_params(ctx)
        name = ctx.meta.get(_CHOSEN)
        return [*own, *(_flags(name) if name else _flags_of_all())]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = _help_rows(super().get_params(ctx), ctx)
        name = ctx.meta.get(_CHOSEN)
        if name:
            self._format_technique(name, ctx, formatter)
        with formatter.section("Options"):
            formatter.write_dl(rows)
        if not name:
            with formatter.section("Techniques (name one before --help to see its options)"):
                formatter.write_dl([(each, _technique(each).sentence) for each in names()])

    def _format_technique(self, name: str, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found = _technique(name)
        with formatter.section(name):
            formatter.write_text(found.sentence)
            formatter.write_paragraph()
            formatter.write_dl(sections(found))
        if _flags(name):
            with formatter.section(f"Options of {name}"):
                formatter.write_dl(_help_rows(_flags(name), ctx))

    def _named(self, args: Sequence[str]) -> str | None:
        by_flag = any("--technique" in parameter.opts for parameter in self.params)
        words = _values_of("--technique", args) if by_flag else self._words(args)
        return next((word for word in words if word in names()), None)

    def _words(self, args: Sequence[str]) -> Iterator[str]:
        """The words that are neither flags nor the values of this command's own flags."""
        valued = {flag for option in self.params if isinstance(option, click.Option) and not option.is_flag for flag in option.opts}
        skip = False
        for word in args:
            if not skip and not word.startswith("-"):
                yield word
            skip = not skip and word in valued


def _help_rows(parameters: Sequence[click.Parameter], ctx: click.Context) -> list[tuple[str, str]]:
    rows = [each.get_help_record(ctx) for each in parameters if isinstance(each, click.Option)]
    return [row for row in rows if row is not None]


@cache
def names() -> tuple[str, ...]:
    """The names of all techniques."""
    from whet.compress.technique import technique_names

    return technique_names()


def sections(found: Technique) -> list[tuple[str, str]]:
    """What a technique's file says of it, beside the first sentence."""
    parts = {"Paper": found.paper, "Needs": f"{found.needs}.", "Cost": found.cost, "Limits": found.limits}
    return [(title, text) for title, text in parts.items() if text]


def flag_of(option: Option) -> str:
    """ "--per-channel / --no-per-channel", "--bits [8|4]"."""
    word = option.name.replace("_", "-")
    return f"--{word} / --no-{word}" if option.kind is bool else f"--{word} {_metavar(option)}"


def _metavar(option: Option) -> str:
    return f"[{'|'.join(map(str, option.search.values))}]" if option.search.only else option.kind.__name__.upper()


def _technique(name: str) -> Technique:
    from whet.compress.technique import technique

    return technique(name)


@cache
def _flags(name: str) -> tuple[click.Option, ...]:
    """Click's options for those of a technique. The same objects each time: click compares them."""
    return tuple(_flag(option) for option in _technique(name).options)


@cache
def _flags_of_all() -> tuple[click.Option, ...]:
    found: dict[str, click.Option] = {}
    for name in names():
        for option in _technique(name).options:
            found.setdefault(option.name, _flag(option))
    return tuple(found.values())


def _flag(option: Option) -> click.Option:
    word, dest = option.name.replace("_", "-"), f"{_PREFIX}{option.name}"
    said = option.search.help + ("" if option.search.only else f" (usual: {', '.join(map(str, option.search.values))})")
    if option.kind is bool:
        return click.Option([f"--{word}/--no-{word}", dest], default=option.default, show_default=True, help=said)
    other = ["--group"] if word == "block" else []  # what the papers on language models call it
    return click.Option([f"--{word}", *other, dest], type=OptionValue(option), metavar=_metavar(option), default=option.default,
                        show_default=True, help=said)  # fmt: skip


def _values_of(flag: str, args: Sequence[str]) -> Iterator[str]:
    for at, word in enumerate(args):
        if word == flag and at + 1 < len(args):
            yield args[at + 1]
        elif word.startswith(f"{flag}="):
            yield word.partition("=")[2]


def _with_list(error: click.NoSuchOption, ctx: click.Context) -> click.UsageError:
    name = ctx.meta.get(_CHOSEN)
    if not name:
        return error
    options: Mapping[str, Any] = {flag_of(option): option for option in _technique(name).options}
    return click.UsageError(f"{name} has no option {error.option_name}; its options are: {', '.join(options) or 'none'}.", ctx)
