"""Going through the ideas: what the first integer model shows decides what is tried next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter

from whet.compress.artifacts import load
from whet.compress.optimize import words
from whet.compress.optimize.blame import damage
from whet.compress.optimize.choose import winner
from whet.compress.optimize.kernels import kernels_of, layer_times
from whet.compress.optimize.search import INTEGER, Idea, faster_in_float, gentler, other_ideas, range_ideas
from whet.compress.optimize.trials import Workshop
from whet.core.gate import Gate
from whet.core.outcome import ORIGINAL, Trial
from whet.core.progress import task
from whet.core.recipe import Step


class Search:
    """One search. damage: of each layer, once it was looked for. late: whether the time budget ended it."""

    def __init__(self, workshop: Workshop, gates: tuple[Gate, ...], goal: str, began: float, budget_s: float | None) -> None:
        self.workshop, self.gates, self.goal, self.began, self.budget_s = workshop, gates, goal, began, budget_s
        self.damage: Mapping[str, float] | None = None
        self.late = False
        self.seen: list[tuple[Step, ...]] = []

    def run(self) -> tuple[Trial, ...]:
        bench = self.workshop.bench
        with task("trying", None) as self.progress:
            done = self._tried((INTEGER,))
            done += self._tried(self._slow_in_integers(done))
            done += self._tried(range_ideas(_float_layers(done, self.goal)))
            done += self._tried(other_ideas(bench.inventory, bench.target, self.goal))
            if not any(trial.passed and is_integer(trial) for trial in done):
                done += self._tried(self._harmful(done))
        return tuple(done)

    def _tried(self, ideas: Iterable[Idea]) -> list[Trial]:
        """The trials of the ideas, as many as there is time for; a recipe that another idea had before is not listed again."""
        done = []
        for idea in ideas:
            if idea.recipe.steps in self.seen:
                continue
            self.seen.append(idea.recipe.steps)
            if self.budget_s is not None and perf_counter() - self.began > self.budget_s:
                self.late = True
                break
            trial = self.workshop.trial(idea, self.gates)
            self.progress.advance(note=words.progress(trial))
            done.append(trial)
        return done

    def _slow_in_integers(self, done: Sequence[Trial]) -> tuple[Idea, ...]:
        """Layers that are slower in integers than in float stay in float."""
        bench = self.workshop.bench
        if not bench.target.here or not done or done[0].status != "measured":
            return ()
        made = load(self.workshop.model_of(done[0]).parent)
        before, after = (layer_times(graph, kernels_of(graph, bench.feeds, bench.target.threads))
                         for graph in (bench.original.folded(), made))
        weighted = [layer.name for layer in bench.inventory.layers if layer.op in ("Conv", "Gemm", "MatMul") and layer.weight_shape]
        return faster_in_float(before, after, weighted)

    def _harmful(self, done: Sequence[Trial]) -> tuple[Idea, ...]:
        """Where the integer models lose too much: the layers that do most harm stay in float."""
        lossy = [trial for trial in done if is_integer(trial) and trial.verdict is not None
                 and any(reason.measurement == "drop" and not reason.passed for reason in trial.verdict.reasons)]
        if not lossy:
            return ()
        step = min(lossy, key=lambda trial: trial.verdict.excess if trial.verdict else 0.0).recipe.steps[0]
        return gentler(self.find_damage(step), step.exclude, step.options)

    def find_damage(self, step: Step) -> Mapping[str, float]:
        """What each layer does to the output when it alone is quantised; found once."""
        if self.damage is None:
            bench = self.workshop.bench
            self.damage = damage(bench.original, step, bench.target, self.workshop.calibration)
        return self.damage


def is_integer(trial: Trial) -> bool:
    """Whether the trial is a full-integer model that could be made."""
    return trial.status == "measured" and trial.recipe.steps[0].technique == "static"


def _float_layers(done: Sequence[Trial], goal: str) -> tuple[str, ...]:
    """The layers that the best integer model so far leaves in float."""
    integer = [trial for trial in done if is_integer(trial)]
    best = winner(integer, goal, ORIGINAL)
    found = next((trial for trial in integer if trial.name == best), None)
    if found is None and integer:
        found = min(integer, key=lambda trial: trial.verdict.excess if trial.verdict else 0.0)
    return found.recipe.steps[0].exclude if found else ()
