"""``whet run``: a language model writes on from a prompt."""

from __future__ import annotations

import re
import sys
from itertools import chain
from typing import TYPE_CHECKING

import click

from whet.cli import options
from whet.cli.screen import Screen

if TYPE_CHECKING:
    from whet.device.language import Generation, Writing

# A model may write anything, and a terminal would obey some of it: letters that steer it or turn the direction of text.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_WHY = {"end": "the model ended the text", "length": "--max-tokens reached", "context": "the model holds no more tokens"}


@click.command(short_help="A language model writes on from a prompt.")
@options.model
@click.option("--prompt", required=True, metavar="TEXT", help="What the text begins with.")
@click.option("--max-tokens", type=click.IntRange(1), default=128, show_default=True, metavar="N", help="The most tokens to write.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, metavar="T",
              help="0 takes the likeliest token each time; 1 draws from the model's own distribution.")  # fmt: skip
@click.option("--top-k", type=click.IntRange(0), default=0, show_default=True, metavar="K",
              help="Draw from the K likeliest only; 0: from all.")  # fmt: skip
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, metavar="P",
              help="Draw from the likeliest that share P of the probability.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Of the drawing.")
@options.threads
@click.option("--wait", type=click.Choice(("auto", "awake", "asleep")), default="auto", show_default=True,
              help="How threads wait for each other: awake is faster where nothing else runs, asleep where something does.")  # fmt: skip
@options.standard
def command(screen: Screen, model: str, prompt: str, max_tokens: int, temperature: float, top_k: int, top_p: float, seed: int,
            threads: int | None, wait: str) -> None:  # fmt: skip
    """Have the language model MODEL write on from a prompt, and tell how fast it did.

    MODEL is a folder that `whet export --to onnx` wrote, or a .gguf file. It runs without PyTorch.

    \b
    whet run out/ --prompt "Once upon a time"
    whet run out/ --prompt "Once upon a time" --temperature 0.8 --top-k 40
    """
    from whet.device.language import generate

    with screen.working():
        writing = generate(model, prompt, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
                           threads=threads, wait=wait)  # fmt: skip
    if screen.as_json:
        text = "".join(writing)
        return screen.document({"prompt": prompt, "text": text, **writing.generation.to_plain()})
    _stream(prompt, writing)
    screen.remark(_told(writing.generation))


def _stream(prompt: str, writing: Writing) -> None:
    """The prompt, and each piece as it comes."""
    for piece in chain((prompt,), writing):
        sys.stdout.write(_UNFIT.sub("\ufffd", piece))
        sys.stdout.flush()
    sys.stdout.write("\n")


def _told(found: Generation) -> str:
    rates = [f"{count:,} tokens of {what}" + (f" at {rate:,.0f} a second" if rate else "")
             for what, count, rate in (("prompt", found.prompt_tokens, found.prompt_tokens_per_s),
                                       ("text", found.tokens, found.decode_tokens_per_s))]  # fmt: skip
    memory = f"peak memory {found.peak_rss_bytes / 1e6:,.0f} MB" if found.peak_rss_bytes else "peak memory not known"
    return "; ".join([*rates, memory, _WHY.get(found.ended, "stopped")])
