"""Trials out of thin air, for the tests of what is decided from them."""

from __future__ import annotations

from hypothesis import strategies as st

from whet.core.gate import Gate, judge
from whet.core.measurement import Interval, Measurement
from whet.core.outcome import Trial
from whet.core.recipe import Recipe, Step

GATES = (Gate("drop", 0.01, reason="the default"), Gate("latency_ratio", 1.0, reason="not slower than the original"),
         Gate("size_bytes", 1000.0, " B", proven=False, reason="not larger than the original"))
UNITS = {"size_bytes": " B", "model_rss_bytes": " B", "energy_mj": " mJ"}


def measured(name: str, *, gates: tuple[Gate, ...] = GATES, spread: float = 0.0, **values: float | None) -> Trial:
    """A trial with these values, judged; no two names run the same kernels. spread: of the interval around the drop, to both sides."""
    found = {key: Measurement(key, value, UNITS.get(key, ""), n=400, why="" if value is not None else "the process was killed")
             for key, value in values.items()}
    drop = values.get("drop")
    if spread and drop is not None:
        found["drop"] = Measurement("drop", drop, interval=Interval(drop - spread, drop + spread, 0.9), n=400)
    return Trial(name, Recipe((Step("static", exclude=(name,)),)), measurements=found, verdict=judge(gates, found))


def original(**values: float | None) -> Trial:
    return measured("original", **{"drop": 0.0, "latency_ratio": 1.0, "size_bytes": 1000.0, **values})


# Few different values, so that there are ties; some beyond the gates, some missing.
RATIOS = st.one_of(st.none(), st.sampled_from([0.3, 0.305, 0.31, 0.5, 0.99, 1.0, 1.2]))
SIZES = st.one_of(st.none(), st.sampled_from([250.0, 255.0, 300.0, 999.0, 1001.0]))
DROPS = st.one_of(st.none(), st.sampled_from([-0.001, 0.0, 0.005, 0.01, 0.02]))
MEMORY = st.one_of(st.none(), st.sampled_from([10.0, 10.2, 20.0]))


@st.composite
def trials(draw: st.DrawFn) -> tuple[Trial, ...]:
    """The original and up to seven others: measured, skipped, failed."""
    found = [original(model_rss_bytes=draw(MEMORY), energy_mj=draw(MEMORY))]
    for number in range(draw(st.integers(0, 7))):
        name, status = f"trial {number}", draw(st.sampled_from(["measured", "measured", "measured", "skipped", "failed"]))
        if status == "measured":
            found.append(measured(name, drop=draw(DROPS), latency_ratio=draw(RATIOS), size_bytes=draw(SIZES),
                                  model_rss_bytes=draw(MEMORY), energy_mj=draw(MEMORY)))
        else:
            found.append(Trial(name, Recipe((Step("static"),)), status, "no kernel"))
    return tuple(found)
