"""Deliberate mistakes in scoring language models by tasks."""

from __future__ import annotations

from tests.sabotage.mistakes import Mistake

SPEAKER, HARNESS, TASKS, SKELETON = (f"compress/checkpoint/{name}.py" for name in ("speaker", "harness", "tasks", "skeleton"))
APPLY, CLI = "compress/checkpoint/apply.py", "checkpoint/test_languages_cli.py"
SAID, SCORED = "checkpoint/test_speaker.py", "checkpoint/test_tasks.py"

MISTAKES = (
    Mistake("answers read where the longest row ends", SPEAKER, "end = len(inputs) - (longest - kept)", "end = kept", SAID,
            "slow_way"),
    Mistake("one right token is greedy enough", SPEAKER, "(logits.argmax(-1) == tokens).all()", "(logits.argmax(-1) == tokens).any()", SAID,
            "are_those_of_the_slow_way"),
    Mistake("the end of a long text forgotten in place of its beginning", SPEAKER, "[-(self.room + 1) : -1]", "[: self.room]", SAID,
            "too_long"),
    Mistake("the last window with a token too few before it", SPEAKER, "text[end - length - 1 : done]", "text[end - length : done]", SAID,
            "rolling or windows_of"),
    Mistake("questions told apart by their context alone", SPEAKER,
            "rows.setdefault(tuple([*context, *wanted][-(self.room + 1) : -1]), [])",
            "rows.setdefault(tuple(context), [])", SAID, "are_those_of_the_slow_way"),
    Mistake("what stands behind the end of a text", SPEAKER, "text.split(stop, 1)[0]", "text.split(stop, 1)[-1]", SAID, "told_to"),
    Mistake("a tied head that is not the table", SKELETON, "weights[head] = weights[embedding]",
            "weights[head] = weights[embedding].flip(0)", SAID, "are_those_of_the_slow_way"),
    Mistake("answers of a document in the order of asking", HARNESS, "requests.sort(key=lambda request: request.idx)", "pass", SCORED,
            "in_order"),
    Mistake("answers of the model before", HARNESS, "        request.filtered_resps = {}  # of the model before\n", "", SCORED, "in_order"),
    Mistake("spaces left at the end of a context", HARNESS, "    if spaces:\n", "    if False:\n", SCORED, "belongs_to"),
    Mistake("less perplexity is worse", TASKS, '"higher" if one.higher else "lower"', '"higher"', SCORED,
            "positive_is_worse or over_documents"),
    Mistake("whatever comes first is gated", TASKS, "if each.lost is not None), None)", "), None)", SCORED, "is_gated"),
    Mistake("models drawn apart", TASKS,
            "[aggregate(rows) for aggregate in aggregates]", "[aggregates[0](rows), aggregates[1](everything)]",
            SCORED, "over_documents"),
    Mistake("tables that are not looked at", APPLY,
            "            _check_numbers(checkpoint, name)\n            destination.put(", "            destination.put(", CLI, "anywhere"),
    Mistake("no piece of a tensor looked at", APPLY, ".split(PIECE))", ".split(PIECE)[:0])", CLI, "anywhere"),
)
