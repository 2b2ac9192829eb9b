"""The smallest version of a language model, or encoder, that loses no more than was asked, measured on text and told with the reasons."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from whet.compress.artifacts import code_version, tool_versions
from whet.compress.checkpoint.apply import apply_to_checkpoint
from whet.compress.checkpoint.checkpoint import Checkpoint, open_checkpoint
from whet.compress.checkpoint.compare import Judge, judging
from whet.compress.checkpoint.plan import plan_checkpoint
from whet.compress.checkpoint.search import RUNGS, Idea, averages_below, idea, learning, smallest_passing
from whet.compress.checkpoint.text import Windows, windows_of
from whet.compress.checkpoint.turned import rotation_for
from whet.compress.optimize.choose import closest, winner, with_front
from whet.compress.optimize.place import taken, written
from whet.core.artifact import MANIFEST_NAME, Artifact
from whet.core.document import FrozenMap, digest
from whet.core.errors import Refused, Untrusted, WhetError
from whet.core.gate import Gate, judge
from whet.core.outcome import ORIGINAL, Outcome, Stage, Trial
from whet.core.recipe import Recipe, Step
from whet.core.target import Target
from whet.device.machine import describe, stamp

EXACT_BITS = 8  # from which on there is next to nothing that a rotation could save
FEWEST_WINDOWS = 8  # below, an interval over windows says nothing
METRICS = {False: "nats_per_token", True: "cosine"}  # what the drop is a drop of: of an encoder, True
LONGEST_TRIAL_S = 3600.0  # a candidate that the plan says takes longer is left out, and the user told


def optimize_checkpoint(checkpoint: Checkpoint, *, data: Any, calibration: Any, out: Path, target: Target, gate: Gate,
                        confidence: float = 0.95, seed: int = 0, time_budget_s: float | None = None, command: str = "") -> Outcome:
    """Find the smallest version that passes ``gate``, of the divergence ("kl") or the nats lost ("drop"), of an encoder of the cosine
    similarity lost ("drop", "sentence_drop"); its upper bound at ``confidence`` must lie below the limit.

    data, calibration: text as ``windows_of`` takes it; no window of one may be among the other's. Writes best/, recipe.toml, report.html,
    report.json and trials/ into ``out``; trials that are there already are not made again. Raises Refused where there is too little text.
    """
    began, at = perf_counter(), stamp().at
    evaluation = windows_of(checkpoint, data)
    calibrating = _calibration(checkpoint, evaluation, calibration)
    gates = (gate, Gate("size_bytes", float(checkpoint.size_bytes), " B", proven=False, reason="not larger than the original"))
    with taken(out) as folder, judging(checkpoint, evaluation, confidence=confidence, seed=seed) as judged:
        search = _Search(checkpoint, calibrating, target, gates, folder / "trials", judged,
                         None if time_budget_s is None else began + time_budget_s)
        first = Trial(ORIGINAL, Recipe(), measurements=FrozenMap(judged(checkpoint).measurements))
        search.run()
        trials = with_front((replace(first, verdict=judge(gates, first.measurements)), *search.trials))
        best = winner(trials, "size", ORIGINAL)
        outcome = Outcome(
            str(checkpoint.folder), target.name, "size", METRICS[checkpoint.family.encoder], gates, trials, best,
            _headline(trials, best, evaluation, gate),
            closest="" if best else closest(trials, ORIGINAL), data=FrozenMap(_described(evaluation, calibrating)),
            machine=describe().to_plain(), tools=tool_versions(), command=command, began=at,
            stages=tuple(search.stages), seconds=round(perf_counter() - began, 1))
        return written(outcome, folder)


@dataclass
class _Search:
    """Goes through the stages; each knows what the one before it brought."""

    parent: Checkpoint
    calibration: Windows
    target: Target
    gates: tuple[Gate, ...]
    folder: Path
    judged: Judge
    until: float | None
    trials: list[Trial] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    front: tuple[Step, ...] = ()  # what stands before all other steps: a rotation that was of use

    def run(self) -> None:
        """All stages, or as many as the time allows."""
        found: list[int | None] = []
        self._stage("one width for all layers", lambda: found.append(self._bisected()))
        rung = found[0] if found else None
        if rung is None:
            return
        bits, group = RUNGS[rung]
        if bits < EXACT_BITS and not self.parent.family.encoder:
            self._stage("rotation", lambda: self._rotated(bits, group))
        self._stage("bits by layer", lambda: self._each("mixed", averages_below(bits), group))
        below = [RUNGS[index] for index in range(rung - 1, -1, -1)][:2]
        self._stage("learned rounding", lambda: self._downwards(below))

    def _bisected(self) -> int | None:
        return smallest_passing(len(RUNGS), lambda index: self._try(self._idea("gptq", *RUNGS[index])))

    def _rotated(self, bits: int, group: int) -> None:
        """A rotation in front, which stays there where the model loses less for it."""
        step = rotation_for(self.parent, self.target)
        if step is None:
            return
        plain = self._idea("gptq", bits, group)
        self.front = (step,)
        if not self._loss(self._idea("gptq", bits, group)) < self._loss(plain):
            self.front = ()

    def _loss(self, tried: Idea) -> float:
        """What the first gate asks for, of an idea that is made now if it was not before."""
        self._try(tried)
        lost = next(trial for trial in self.trials if trial.name == tried.name).value(self.gates[0].measurement)
        return math.inf if lost is None else lost

    def _each(self, technique: str, averages: Any, group: int) -> None:
        for average in averages:
            if not self._try(self._idea(technique, average, group)):
                return

    def _downwards(self, rungs: list[tuple[int, int]]) -> None:
        for rung in rungs:
            if not any(self._try(self._idea(technique, *rung)) for technique in learning(encoder=self.parent.family.encoder)):
                return

    def _idea(self, technique: str, bits: float, group: int) -> Idea:
        return idea(technique, bits, group, head=bool(self.parent.family.head) and not self.parent.tied, front=self.front)

    def _stage(self, name: str, work: Callable[[], None]) -> None:
        began, before = perf_counter(), len(self.trials)
        if self.until is None or began < self.until:
            work()
        made = self.trials[before:]
        best = winner(self.trials, "size", ORIGINAL)
        note = "" if made else "nothing smaller was worth trying" if self.until is None or began < self.until else "the time was up"
        self.stages.append(Stage(name, tuple(trial.name for trial in made), best or closest(self.trials, ORIGINAL), bool(best), note,
                                 round(perf_counter() - began, 1)))

    def _try(self, tried: Idea) -> bool:
        """Make and measure it, once; whether it passed."""
        known = next((trial for trial in self.trials if trial.name == tried.name), None)
        if known is None:
            try:
                known = self._made(tried)
            except Untrusted:
                raise
            except WhetError as error:
                known = Trial(tried.name, tried.recipe, "failed", str(error))
            self.trials.append(known)
        return known.passed

    def _made(self, tried: Idea) -> Trial:
        began = perf_counter()
        if (needed := self._seconds(tried)) > (room := self._room()):
            note = f"it would take about {needed / 60:.0f} minutes, and {room / 60:.0f} are left"
            return Trial(tried.name, tried.recipe, "skipped", note)
        parts = [code_version(), self.parent.identity, tried.recipe.to_plain(), self.target.digest, self.calibration.content_hash]
        place = self.folder / digest(parts)[:16]
        if not (place / MANIFEST_NAME).is_file():
            apply_to_checkpoint(self.parent, tried.recipe, self.target, calibration=self.calibration, out=place)
        made = open_checkpoint(place)
        found = self.judged(made).measurements
        artifact = Artifact.from_json((place / MANIFEST_NAME).read_bytes())
        return Trial(tried.name, tried.recipe, artifact=artifact, path=f"trials/{place.name}/model.safetensors",
                     measurements=FrozenMap(found), verdict=judge(self.gates, found), seconds=round(perf_counter() - began, 1))

    def _seconds(self, tried: Idea) -> float:
        """About how long it takes, by the plan."""
        costs = {cost.name: cost.value for cost in plan_checkpoint(self.parent, tried.recipe, self.target).costs}
        return costs["working_s"] or 0.0

    def _room(self) -> float:
        return LONGEST_TRIAL_S if self.until is None else max(0.0, min(LONGEST_TRIAL_S, self.until - perf_counter()))


def _calibration(checkpoint: Checkpoint, evaluation: Windows, text: Any) -> Windows:
    """The windows to calibrate with. Raises Refused where no verdict could be trusted."""
    if text is None:
        raise Refused("optimise a language model", found="no calibration text", do="give some with --calibration")
    if len(evaluation) < FEWEST_WINDOWS:
        raise Refused("optimise a language model", found=f"{len(evaluation)} windows of {evaluation.length} tokens to judge by",
                      do=f"give text for {FEWEST_WINDOWS} or more")
    found = windows_of(checkpoint, text)
    own = {tuple(window.tolist()) for window in evaluation.tokens}
    if any(tuple(window.tolist()) in own for window in found.tokens):
        raise Refused("optimise a language model", found="the same text in --data and in --calibration", do="keep them apart")
    return found


def _headline(trials: tuple[Trial, ...], best: str, evaluation: Windows, gate: Gate) -> str:
    won = next((trial for trial in trials if trial.name == best), None)
    before = trials[0].value("size_bytes") or 0.0
    if won is None:
        near = next((trial for trial in trials if trial.name == closest(trials, ORIGINAL)), None)
        said = "" if near is None or near.verdict is None else f"; {near.name} came closest: {'; '.join(near.verdict.refusals)}"
        return f"refused: nothing passed{said}"
    lost = won.measurements[gate.measurement]
    high = lost.interval.high if lost.interval else lost.value or 0.0
    word = {"kl": "KL divergence", "sentence_drop": "cosine of sentences lost"}.get(
        gate.measurement, "cosine lost" if METRICS[True] in won.measurements else "nats lost")
    return (f"{best}: {before / (won.value('size_bytes') or 1.0):.3g}x smaller, {word} {lost.value:.4f} (at most {high:.4f}) on "
            f"{len(evaluation)} windows of {evaluation.length} tokens")


def _described(evaluation: Windows, calibration: Windows) -> dict[str, Any]:
    return {name: {"source": each.source, "samples": len(each), "sha256": each.content_hash, "labels": False}
            for name, each in (("evaluation", evaluation), ("calibration", calibration))}
