"""How fast 4-bit exports decode: a Llama of 134 million random parameters, exported by Whet, in several runtimes that take turns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import whet
from whet.core.document import FrozenMap
from whet.core.recipe import Recipe, Step

ROOT = Path(__file__).resolve().parent
TOKENIZER = ROOT.parents[1] / "shared" / "assets" / "stories260K"
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048,
    "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 64, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 1,
    "eos_token_id": 2, "torch_dtype": "float32"}  # fmt: skip
GROUPS, THREADS, TOKENS = (32, 128), 2, 64
BASELINE = "torch float32"
Said = Callable[[str], None]


@dataclass
class Contender:
    """A runtime with a model. own: whether it is ``whet run``. rates: tokens a second, of each round; failure: why there are none."""

    name: str
    own: bool
    kind: str
    model: Path
    python: Path | str
    search: Path | None = None
    rates: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    ratios_to_best: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    failure: str = ""

    @property
    def middle(self) -> float:
        return median(self.rates)


@dataclass(frozen=True)
class Speeds:
    """What came of it. model: in words. best: the name of the fastest runtime that is not ``whet run``."""

    model: str
    best: str
    contenders: tuple[Contender, ...]
    rounds: int
    tokens: int = TOKENS
    threads: int = THREADS
    baseline: str = BASELINE

    def to_plain(self) -> dict[str, Any]:
        ways = [{"way": each.name, "tokens_per_s": each.rates, "ratios": each.ratios, "ratios_to_best": each.ratios_to_best,
                 "peak_bytes": each.peak_bytes or None, "failure": each.failure} for each in self.contenders]
        return {"model": self.model, "best": self.best, "rounds": self.rounds, "tokens": self.tokens, "threads": self.threads, "ways": ways}


def measured(folder: Path, genai: Path | str, llama_cpp: Path | None, rounds: int, said: Said) -> Speeds:
    """Make the models in ``folder`` and let all decode in turns."""
    said("making a model of 134 million random parameters")
    floating = folder / "float32"
    count = make(floating)
    ways = [Contender(BASELINE, False, "torch", floating, Path(sys.executable))]
    for group in GROUPS:
        said(f"rounding to 4 bits, group {group}, and exporting")
        ways += _exported(floating, folder / f"group{group}", group, genai, llama_cpp)
    in_turns(ways, rounds, said)
    best = compared(ways)
    words = f"A Llama of {count / 1e6:.0f} million random parameters (12 blocks of 768, vocabulary 32,000), all its matrices in 4 bits"
    return Speeds(words, best, tuple(ways), rounds)


def make(folder: Path) -> int:
    """The float32 checkpoint, with stories260K's tokenizer filled up to 32,000 tokens; how many parameters it has."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{name: value for name, value in CONFIG.items() if name not in ("architectures", "torch_dtype")}))
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    place = Path(os.environ.get("WHET_ASSETS", TOKENIZER.parent)).resolve() / "stories260K"
    tokenizer = json.loads((place / "tokenizer.json").read_text(encoding="utf-8"))
    known = tokenizer["model"]["vocab"]
    known |= {f"filler{index}": index for index in range(len(known), CONFIG["vocab_size"])}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_bytes((place / "tokenizer_config.json").read_bytes())
    return sum(tensor.numel() for tensor in model.parameters())


def _exported(floating: Path, place: Path, group: int, genai: Path | str, llama_cpp: Path | None) -> list[Contender]:
    """Whet's ONNX and GGUF exports, in ``whet run`` and in the runtimes that also read them."""
    here, text = Path(sys.executable), f"group {group}"
    onnx, gguf = place / "onnx", place / "model.gguf"
    ways = [Contender(f"whet run, ONNX, {text}", True, "whet", onnx, here),
            Contender(f"onnxruntime-genai, the same, {text}", False, "genai", onnx, genai),
            Contender(f"whet run, GGUF, {text}", True, "whet", gguf, here, llama_cpp),
            Contender(f"llama.cpp, the same, {text}", False, "llama_cpp", gguf, here, llama_cpp)]
    place.mkdir()
    step = Step("rtn", layers=("op:Linear", "op:Embedding", "op:Head"), options=FrozenMap({"bits": 4, "block": group}))
    whet.apply(str(floating), Recipe((step,)), out=place / "rounded")
    for form, path in (("onnx", onnx), ("gguf", gguf)):
        try:
            whet.export(str(place / "rounded"), path, format=form)
        except Exception as error:  # the others are worth having
            for way in (way for way in ways if way.model == path):
                way.failure = f"not exported: {error}"
    return ways


def in_turns(ways: list[Contender], rounds: int, said: Said) -> None:
    """Every one decodes once a round, after a round that does not count. Who fails is out."""
    with ExitStack() as stack:
        started: dict[str, subprocess.Popen[str]] = {}
        for way in ways:
            if not way.failure and isinstance(way.python, str):
                way.failure = way.python
            if not way.failure:
                started[way.name] = stack.enter_context(_process(way))
                _asked(way, started[way.name])
                said(f"{way.name}: {way.failure or 'ready'}")
        for turn in range(rounds + 1):
            for way in ways:
                found = None if way.failure else _asked(way, started[way.name], tokens=TOKENS)
                if found and turn:
                    way.rates.append(float(found["tokens_per_s"]))
                    way.peak_bytes = int(found["peak_bytes"])
            said(f"round {turn} of {rounds}: " + ", ".join(f"{way.rates[-1]:.0f}" if way.rates else "-" for way in ways))


def compared(ways: list[Contender]) -> str:
    """Ratios within each round: to the baseline, and to the fastest runtime that is not ``whet run``, whose name is given back."""
    whole = [way for way in ways if way.rates and not way.failure]
    floor = next((way for way in whole if way.name == BASELINE), None)
    best = max((way for way in whole if not way.own and way.name != BASELINE), key=lambda way: way.middle, default=None)
    for way in whole:
        if floor:
            way.ratios = [rate / other for rate, other in zip(way.rates, floor.rates, strict=True)]
        if best:
            way.ratios_to_best = [rate / other for rate, other in zip(way.rates, best.rates, strict=True)]
    return best.name if best else "the fastest other runtime"


@contextmanager
def _process(way: Contender) -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if way.search:
        environment["PYTHONPATH"] = str(way.search)
    command = [str(way.python), str(ROOT / "llm_decoder.py"), way.kind, str(way.model), str(THREADS)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                               env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _asked(way: Contender, process: subprocess.Popen[str], *, tokens: int = 0) -> dict[str, Any] | None:
    """The answer of a decoder: to being started (0 tokens), or to so many tokens. Between its turns it is stopped: threads of some runtimes
    spin on after a run, and would slow down whoever comes next.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.send_signal(signal.SIGCONT)
        if tokens:
            process.stdin.write(f"{tokens}\n")
            process.stdin.flush()
        for line in process.stdout:  # a library may talk on it too
            if line.startswith('{"decoder"'):
                found = dict(json.loads(line))
                process.send_signal(signal.SIGSTOP)
                way.failure = str(found.get("failure", ""))
                return None if way.failure else found
    except OSError:
        pass
    way.failure = f"ended with status {process.wait()}"
    return None
