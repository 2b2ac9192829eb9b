"""``whet targets``: the devices that are known, and what each really executes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from whet.cli import options
from whet.cli.screen import Column, Screen

if TYPE_CHECKING:
    from whet.core.target import Target


@click.command(short_help="Devices, and what each really executes.")
@click.argument("name", required=False, metavar="[NAME]", shell_complete=options.complete_target)
@options.standard
def command(screen: Screen, name: str | None) -> None:
    """List the targets; with NAME (or a TOML file) show all that is known of one: what its runtime really executes in integers, its
    speeds, its limits, and where each figure comes from.

    \b
    whet targets
    whet targets pi5
    """
    import whet

    if name is not None:
        found = whet.target(name)
        return screen.document(found.to_plain()) if screen.as_json else _show(screen, found)
    every = whet.targets()
    if screen.as_json:
        return screen.document([each.to_plain() for each in every])
    columns = (Column("name"), Column("integers"), Column("threads", right=True), Column("memory", right=True),
               Column("what", flexible=True, keep="start"))  # fmt: skip
    screen.table(columns, [[each.name, _integers(each), str(each.threads), _bytes(each.memory_bytes), each.title] for each in every])
    screen.remark("integers: activations x weights that run fast. Only on host are latency, memory and energy measured; elsewhere "
                  "they are estimates. whet targets NAME shows what a target executes.")  # fmt: skip


def _show(screen: Screen, found: Target) -> None:
    facts = {
        "name": found.name, "what": found.title, "runtime": f"{found.runtime} ({', '.join(found.providers)})", "instructions": found.isa,
        "threads": str(found.threads), "memory": _bytes(found.memory_bytes), "storage": _bytes(found.storage_bytes),
        "integers": _integers(found) + (", symmetric activations" if found.symmetric_activations else ""),
        "in integers": ", ".join(found.fused_ops) or "-", "moves codes": ", ".join(found.moving_ops) or "-",
        "in float16": ", ".join(found.float16_ops) or "none gains time", "packed 4-bit": ", ".join(found.nbits_ops) or "-",
        "limits": ", ".join(f"{name} at most {limit:g}" for name, limit in found.limits.items()) or "-",
    }  # fmt: skip
    screen.facts(facts)
    if screen.quiet:
        return
    if found.speeds:
        screen.gap()
        columns = (Column("technique"), Column("operator"), Column("speed", right=True), Column(""),
                   Column("source", flexible=True, keep="start"))  # fmt: skip
        screen.table(columns, [[each.technique, each.op, f"{each.ratio:g}x", "measured" if each.measured else "stated", each.source]
                               for each in found.speeds])  # fmt: skip
    for fact in found.facts:
        screen.line(f"- {fact.claim} ({'measured' if fact.measured else 'stated'}: {fact.source})")


def _integers(found: Target) -> str:
    bits = "" if found.weight_bits == 8 else f", {found.weight_bits} bits"
    return f"{found.activation_dtype} x {found.weight_dtype}{bits}"


def _bytes(size: int | None) -> str:
    if size is None:
        return "-"
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB" if size >= 2**20 else f"{size / 2**10:.3g} KiB"
