"""A language model whole in memory: how likely it finds a text behind another, and what it writes on.

It takes 4 bytes a parameter, for its weights are float32 whatever they are stored as; that is what is simulated everywhere here. What goes
in is tokens. Nothing is drawn: the likeliest token is written, so that two models differ by their weights alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.hidden import TOKENS_AT_ONCE
from whet.compress.checkpoint.layers import inventory
from whet.compress.checkpoint.skeleton import Skeleton
from whet.compress.checkpoint.text import room_of, special_tokens, tokenizer_of
from whet.compress.threads import one_thread
from whet.core.errors import Refused, Unsupported
from whet.core.progress import task
from whet.device.machine import describe

LOGITS = 1 << 26  # numbers of answers that are in memory at a time, 256 MB; one sequence may need more

Tokens = Sequence[int]
Row = tuple[tuple[int, ...], list[int]]
"""Tokens that go in together, and the questions that they answer."""


class Speaker:
    """The model and its tokenizer. room: how many tokens it can see at once. name: what progress calls it.

    Raises Unsupported for an encoder, Refused where there is no tokenizer.
    """

    def __init__(self, checkpoint: Checkpoint, name: str = "model") -> None:
        self.name, self.room, self.tokenizer = name, room_of(checkpoint), _reader(checkpoint)
        self._work = TOKENS_AT_ONCE * checkpoint.size(checkpoint.family.embedding)[1] ** 2
        self._width = checkpoint.size(checkpoint.family.embedding)[0]
        self._ends = _ends(checkpoint, self.tokenizer.eos_token_id)
        self._model = Skeleton(checkpoint).fill()

    @property
    def start(self) -> int:
        """The token that stands before a text without context: that for the beginning, else that for the end."""
        known = [token for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if token is not None]
        if not known:
            raise Refused("score a text without context", found="a tokenizer without a token for the beginning or the end of a text",
                          do="name one in tokenizer_config.json")
        return int(known[0])

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """special: with what the tokenizer puts around a text, unless the text begins with it already."""
        first = self.tokenizer.bos_token
        given = special and not (first and text.startswith(first))
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=given, verbose=False)
        return found

    def likelihoods(self, asked: Sequence[tuple[Tokens, Tokens]]) -> list[tuple[float, bool]]:
        """For each (context, continuation), in tokens: the log-likelihood of the continuation in nats, and whether it is what the model
        would write itself. A context that is too long loses its beginning. What several questions have in common runs once.
        """
        rows: dict[tuple[int, ...], list[int]] = {}
        for at, (context, wanted) in enumerate(asked):
            if not wanted:
                continue  # nothing is certain
            if not context or len(wanted) > self.room:
                raise Refused("score a text", do="choose another task",
                              found=f"{len(context)} tokens of context and {len(wanted)} to score; the model sees {self.room} at once")
            rows.setdefault(tuple([*context, *wanted][-(self.room + 1) : -1]), []).append(at)
        found = [(0.0, True)] * len(asked)
        with task(f"{self.name}: likelihoods", len(asked)) as progress, torch.no_grad(), one_thread(self._work):
            for batch in self._batches(rows, [len(wanted) for _, wanted in asked]):
                for at, answer in self._answers(batch, [wanted for _, wanted in asked]):
                    if not math.isfinite(answer[0]):
                        raise Refused(f"score the {self.name}", found="answers that are no numbers",
                                      do="look for NaN or infinity in its weights")
                    found[at] = answer
                    progress.advance()
        return found

    def rolling(self, texts: Sequence[Tokens], *, length: int) -> list[float]:
        """The log-likelihood of all tokens of each text, in windows of at most ``length`` tokens."""
        windows = [windows_in(text, self.start, min(length, self.room)) for text in texts]
        answers = iter(self.likelihoods([window for own in windows for window in own]))
        return [sum(next(answers)[0] for _ in own) for own in windows]

    def written(self, prompts: Sequence[Tokens], *, most: int, until: Sequence[str] = ()) -> list[str]:
        """What the model writes on behind each prompt: at most ``most`` tokens, up to the end of the text or the first of ``until``."""
        if not 0 < most < self.room:
            raise Refused(f"write {most} tokens", found=f"a model that sees {self.room} at once", do="choose another task")
        cut = [tuple(prompt)[-(self.room - most) :] for prompt in prompts]
        alike: dict[int, list[int]] = {}
        for at, prompt in enumerate(cut):
            alike.setdefault(len(prompt), []).append(at)
        found = [""] * len(prompts)
        with task(f"{self.name}: writing", len(prompts)) as progress, torch.no_grad(), one_thread(self._work):
            for length, places in sorted(alike.items(), reverse=True):
                together = max(1, TOKENS_AT_ONCE // (length + most))
                for begin in range(0, len(places), together):
                    some = places[begin : begin + together]
                    for at, text in zip(some, self._written([cut[at] for at in some], most, until), strict=True):
                        found[at] = text
                    progress.advance(len(some))
        return found

    def _batches(self, rows: dict[tuple[int, ...], list[int]], lengths: Sequence[int]) -> Iterator[list[Row]]:
        """Rows of nearly one length, the longest first, as many as memory is given for. lengths: of each question's continuation."""
        batch: list[Row] = []
        for inputs, questions in sorted(rows.items(), key=lambda row: -len(row[0])):
            grown = [*batch, (inputs, questions)]
            size = len(grown) * len(grown[0][0])
            if batch and (size > TOKENS_AT_ONCE or len(grown) * _kept(grown, lengths) * self._width > LOGITS):
                yield batch
                grown = grown[-1:]
            batch = grown
        if batch:
            yield batch

    def _answers(self, batch: list[Row], wanted: Sequence[Tokens]) -> Iterator[tuple[int, tuple[float, bool]]]:
        """(question, answer) for every question of a batch. Rows are filled up behind their ends, which no token before sees."""
        longest = len(batch[0][0])
        kept = _kept(batch, [len(each) for each in wanted])
        tokens = torch.tensor([[*inputs, *[0] * (longest - len(inputs))] for inputs, _ in batch])
        logits = self._model(tokens, use_cache=False, logits_to_keep=kept).logits  # [n, kept, vocabulary]
        for row, (inputs, questions) in enumerate(batch):
            end = len(inputs) - (longest - kept)
            for at in questions:
                yield at, _answer(logits[row, end - len(wanted[at]) : end], wanted[at])

    def _written(self, prompts: Sequence[Tokens], most: int, until: Sequence[str]) -> list[str]:
        """The same for prompts of one length."""
        tokens, past = torch.tensor([list(prompt) for prompt in prompts]), None
        found: list[list[int]] = [[] for _ in prompts]
        texts, running = [""] * len(prompts), set(range(len(prompts)))
        for _ in range(most):
            output = self._model(tokens, past_key_values=past, use_cache=True, logits_to_keep=1)
            past, tokens = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
            for row in sorted(running):
                token = int(tokens[row])
                if token in self._ends:
                    running.discard(row)
                    continue
                found[row].append(token)
                texts[row] = self.tokenizer.decode(found[row], skip_special_tokens=True)
                if any(stop and stop in texts[row] for stop in until):
                    running.discard(row)
            if not running:
                break
        return [_before(text, until) for text in texts]


def check_speaks(checkpoint: Checkpoint) -> None:
    """Raises what ``Speaker`` would, before any work."""
    _reader(checkpoint)


def _reader(checkpoint: Checkpoint) -> Any:
    """The tokenizer of a model that predicts the next token and fits into memory."""
    asked = f"have {checkpoint.folder} say how likely a text is"
    if checkpoint.family.encoder:
        raise Unsupported(asked, found="an encoder, which predicts no next token", do="judge it by your own task, with transformers")
    needed, there = 4 * (inventory(checkpoint).parameters or 0), describe().memory_bytes
    if needed > there:
        raise Refused(asked, found=f"{needed / 1e9:.1f} GB of weights in float32, and {there / 1e9:.1f} GB of memory",
                      do="compare the models on a text, block by block, with --data")
    return tokenizer_of(checkpoint)


def windows_in(text: Tokens, start: int, length: int) -> list[tuple[list[int], list[int]]]:
    """(context, tokens to score) so that each token of a text is scored once, with as much before it as ``length`` tokens that go in
    allow. The first one is scored behind ``start``.
    """
    text, found, done = list(text), [], 0
    while done < len(text):
        end = min(done + length, len(text))
        before = text[end - length - 1 : done] if done else [start]
        found.append((before, text[done:end]))
        done = end
    return found


def _kept(batch: Sequence[Row], lengths: Sequence[int]) -> int:
    """For how many of the last places answers are needed, counted from the end of the longest row."""
    longest = len(batch[0][0])
    return max(longest - len(inputs) + max(lengths[at] for at in questions) for inputs, questions in batch)


def _answer(logits: Tensor, wanted: Tokens) -> tuple[float, bool]:
    """logits: [n, vocabulary] of the n places before the tokens ``wanted``."""
    tokens = torch.tensor(list(wanted), dtype=torch.int64)
    nats = log_softmax(logits.double(), -1).gather(1, tokens[:, None])
    return float(nats.sum()), bool((logits.argmax(-1) == tokens).all())


def _before(text: str, until: Sequence[str]) -> str:
    """What stands before the first of some strings."""
    for stop in until:
        text = text.split(stop, 1)[0] if stop else text
    return text


def _ends(checkpoint: Checkpoint, told: int | None) -> frozenset[int]:
    """The tokens behind which nothing more is written: the tokenizer's, and those that the model's configs name."""
    said = special_tokens(checkpoint)["eos_token_id"]
    return frozenset(token for token in (told, *(said if isinstance(said, list) else [said])) if token is not None)
