"""Going through the stages: what is known by then decides what is tried next, and whether anything is.

A stage ends the search for its purpose: where plain int8 loses little enough, nothing is tried that only mends losses; where time is
what counts, nothing that only saves bytes. Where the drop itself is to be least, all that mends it is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter

from whet.compress.mixed.program import Point
from whet.compress.optimize import words
from whet.compress.optimize.blame import damage
from whet.compress.optimize.choose import closest, least_drop, winner
from whet.compress.optimize.mixing import Mixing
from whet.compress.optimize.screening import Screen
from whet.compress.optimize.search import INTEGER, PLAIN, Idea, Start, corrected, finely_rounded, other_ideas, other_ranges, rounded
from whet.compress.optimize.trials import Workshop
from whet.compress.technique import technique_names
from whet.core.errors import WhetError
from whet.core.gate import Gate
from whet.core.outcome import ORIGINAL, Stage, Trial
from whet.core.progress import task
from whet.core.recipe import Step

# Full evaluations of other ranges and of corrected models, the most promising first; and how much farther from the original than plain
# int8 the outputs may be on the calibration samples for that. On resnet8_mlperf_tiny ranges of equal divergence (0.0020 and 0.0019 nats)
# lose +0.4 and -0.15 points: the divergence sorts out what is hopeless and does not choose.
_RANGES, _CORRECTIONS = 4, 2
_HOPELESS = 2.0


class Search:
    """One search. damage: of each layer, once it was looked for. late: whether the time budget ended it. start: the full-integer model
    that mixed precision goes on from."""

    def __init__(self, workshop: Workshop, gates: tuple[Gate, ...], goal: str, began: float, budget_s: float | None) -> None:
        self.workshop, self.gates, self.goal, self.began, self.budget_s = workshop, gates, goal, began, budget_s
        self.damage: Mapping[str, float] | None = None
        self.late = False
        self.done: list[Trial] = []
        self.stages: list[Stage] = []
        self.start = PLAIN
        self.mixing: Mixing | None = None
        self.screen = Screen(workshop.bench.original, workshop.bench.target, workshop.calibration)

    def run(self) -> tuple[Trial, ...]:
        with task("trying", None) as self.progress:
            for name, stage in (("plain int8", self._plain), ("better ranges", self._ranges), ("equalise and correct", self._correct),
                                ("mixed precision", self._mix), ("learned rounding", self._round), ("other ways", self._others)):
                if not self.late:
                    self._go(name, stage)
        return tuple(self.done)

    def _go(self, name: str, stage: Callable[[], str]) -> None:
        began, before = perf_counter(), len(self.done)
        note = stage()
        best = winner(self.done, self.goal, ORIGINAL)
        made = tuple(trial.name for trial in self.done[before:])
        self.stages.append(Stage(name, made, best or closest(self.done, ORIGINAL), bool(best), note, round(perf_counter() - began, 1)))

    # -- the stages; each gives a note for the report ---------------------------------------------------------------------------------

    def _plain(self) -> str:
        self.tried((INTEGER,))
        return ""

    def _ranges(self) -> str:
        """The ranges that change the outputs least, on the calibration samples."""
        if not any(trial.status == "measured" for trial in self.done):
            return "no integer model could be made"
        plain = self.screen.divergence(INTEGER.recipe)
        found = {start: self.screen.divergence(start.idea.recipe) for start in other_ranges(technique_names())}
        best = sorted((start for start in found if found[start] <= _HOPELESS * plain), key=lambda start: found[start])
        best = best if self.goal == "drop" else best[:_RANGES]
        said = f"{words.divergence(plain)} with minimum and maximum; " + ", ".join(
            f"{found[start]:.2g} with {start.label}" for start in sorted(found, key=lambda start: found[start]))
        if self.goal != "drop" and not any(trial.passed or not within_drop(trial) for trial in self.done):
            self.start = best[0] if best and found[best[0]] < plain else PLAIN
            return f"{said}; plain int8 failed for its time, so the layers come first"
        self.tried(start.idea for start in best)
        self._start_from((PLAIN, *best))
        return said

    def _correct(self) -> str:
        if self._keeps_enough():
            return "not needed: an integer model keeps the drop"
        if not any(trial.status == "measured" for trial in self.done):
            return "no integer model could be made"
        before = self.screen.divergence(self.start.idea.recipe)
        found = {start: self.screen.divergence(start.idea.recipe) for start in corrected(self.start, technique_names())}
        promising = sorted((start for start in found if found[start] < before), key=lambda start: found[start])[:_CORRECTIONS]
        if not promising:
            return "equalising and correcting would not bring the outputs nearer"
        for start in promising:
            if not self._keeps_enough():
                self.tried((start.idea,))
        self._start_from((self.start, *promising))
        return f"{words.divergence(found[promising[0]])} {promising[0].label}, {words.divergence(before)} before"

    def _mix(self) -> str:
        if self.goal == "drop" and any(trial.passed and trial.name == least_drop(self.done) for trial in self.done):
            return "not needed: the integer model of least drop passed, and nothing cheaper is asked for"
        try:
            self.mixing = Mixing.of(self)
        except WhetError as error:
            return f"no mixed precision: {error}"
        return self.mixing.run()

    def _round(self) -> str:
        """Learned rounding, for the cheapest choice that lost too much without it, or of all weights where the drop is to be least."""
        mixing = self.mixing
        if self.goal == "drop":
            return self._finish(None if mixing is None else mixing.least_lossy)
        if mixing is None or mixing.cheapest_lossy is None:
            return "not needed: nothing cheaper was refused for its drop"
        if self.goal != "size" and self._integer_within_drop():
            return "not needed: an integer model keeps the drop"
        point = mixing.cheapest_lossy
        for start in rounded(self.start, mixing.problem, point.choice, technique_names()):
            made = self.tried((mixing.idea(point.choice, start),))
            if not made or within_drop(made[0]):
                break
        return ""

    def _finish(self, point: Point | None) -> str:
        """All else that may bring the drop down, on the mixture that passed where there is one."""
        known = technique_names()
        if point is None or self.mixing is None:
            self.tried(start.idea for start in finely_rounded(self.start, known))
            return ""
        layers = self.mixing.integers(point.choice)
        starts = (PLAIN, *other_ranges(known), *finely_rounded(self.start, known, layers))
        self.tried(self.mixing.idea(point.choice, start) for start in starts)
        return "other ranges and corrections with the layers of the mixture"

    def _others(self) -> str:
        bench = self.workshop.bench
        passed = any(trial.passed and is_integer(trial) for trial in self.done)
        self.tried(other_ideas(bench.inventory, bench.target, self.goal, integer_passed=passed))
        return ""

    # -- what they share ------------------------------------------------------------------------------------------------------------

    def tried(self, ideas: Iterable[Idea]) -> list[Trial]:
        """The trials of the ideas, as many as there is time for; a recipe that another idea had before is given back as it was."""
        made = []
        for idea in ideas:
            known = self.known(idea)
            if known is not None:
                made.append(known)
                continue
            if self.budget_s is not None and perf_counter() - self.began > self.budget_s:
                self.late = True
                break
            trial = self.workshop.trial(Idea(self._unique(idea.name), idea.recipe, idea.skip), self.gates)
            self.progress.advance(note=words.progress(trial))
            self.done.append(trial)
            made.append(trial)
        return made

    def known(self, idea: Idea) -> Trial | None:
        """The trial of the same steps."""
        return next((trial for trial in self.done if trial.recipe.steps == idea.recipe.steps), None)

    def _unique(self, name: str) -> str:
        names, number = {trial.name for trial in self.done}, 2
        if name not in names:
            return name
        while f"{name} ({number})" in names:
            number += 1
        return f"{name} ({number})"

    def _keeps_enough(self) -> bool:
        return self.goal != "drop" and self._integer_within_drop()

    def _integer_within_drop(self) -> bool:
        return any(is_integer(trial) and within_drop(trial) for trial in self.done)

    def _start_from(self, starts: Sequence[Start]) -> None:
        """Go on from the start that came out best, or closest; from the least drop, whatever its time, where that is the goal."""
        trials = {trial.name: start for start in starts if (trial := self.known(start.idea)) is not None}
        made = [trial for trial in self.done if trial.name in trials]
        name = least_drop(made) if self.goal == "drop" else winner(made, self.goal, ORIGINAL) or closest(made, ORIGINAL)
        self.start = trials.get(name, self.start)

    def find_damage(self, step: Step) -> Mapping[str, float]:
        """What each layer does to the output when it alone is quantised; found once."""
        if self.damage is None:
            bench = self.workshop.bench
            self.damage = damage(bench.original, step, bench.target, self.workshop.calibration)
        return self.damage

    def within(self, trial: Trial) -> bool:
        return within_drop(trial)


def is_integer(trial: Trial) -> bool:
    """Whether the trial is an integer model that could be made."""
    return trial.status == "measured" and any(step.technique == "static" for step in trial.recipe.steps)


def within_drop(trial: Trial) -> bool:
    """Whether the trial passed what was asked of its quality, whatever else it failed."""
    return trial.verdict is not None and trial.status == "measured" and all(
        reason.passed for reason in trial.verdict.reasons if reason.measurement == "drop")
