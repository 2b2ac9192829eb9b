"""Deliberate mistakes in comparing, searching and exporting encoders. See mistakes.py."""

from __future__ import annotations

from tests.sabotage.mistakes import Mistake

COMPARE, BITS, TEXT = (f"checkpoint/test_{name}.py" for name in ("compare_encoders", "mixed_bits", "text"))
ONNX, OPEN, SKELETON = "compress/test_onnx_encoder.py", "checkpoint/test_open_checkpoint.py", "checkpoint/test_skeleton.py"
AT, STATES = "compress/checkpoint/onnx_export", "compress/checkpoint/states.py"

MISTAKES = (
    # -- comparing
    Mistake("states compared with their lengths", STATES, "each / each.norm(dim=-1, keepdim=True).clamp_min(1e-30)", "each", COMPARE,
            "less_the_cosine or slow_way"),
    Mistake("twice what the cosine lost", STATES, "return (one - other).square().sum(-1) / 2", "return (one - other).square().sum(-1)",
            COMPARE, "less_the_cosine or slow_way"),
    Mistake("a sentence is its first token", STATES, "lost(parent.mean(0), candidate.mean(0))", "lost(parent[0], candidate[0])", COMPARE,
            "slow_way"),
    Mistake("noise beside the noisy signal", STATES, "/ parent.square().sum()", "/ candidate.square().sum()", COMPARE, "slow_way"),
    Mistake("the worst of windows' means", STATES, "np.quantile(moved.drops, 0.999)", "np.quantile(moved.drops.mean(1), 0.999)", COMPARE,
            "slow_way"),
    Mistake("ends of a cosine's interval exchanged", STATES, "Interval(1 - drop.interval.high, 1 - drop.interval.low,",
            "Interval(1 - drop.interval.low, 1 - drop.interval.high,", COMPARE, "intervals"),
    Mistake("states of NaN taken as they are", STATES, "if not np.isfinite(moved.energies).all():", "if False:", COMPARE, "cannot_be"),
    Mistake("an encoder beside a decoder", "compress/checkpoint/compare.py", "if first.family.encoder != second.family.encoder:",
            "if False:", COMPARE, "cannot_be"),
    Mistake("sentences judged by tokens", "core/gate.py", '"sentence": "sentence_drop"', '"sentence": "drop"', COMPARE, "limits"),
    Mistake("a divergence asked of an encoder", "core/gate.py", "True: STATE_LOSSES, False: LOSSES}", "True: LOSSES, False: STATE_LOSSES}",
            COMPARE, "limits or gates"),
    # -- text, files, bits
    Mistake("windows of an encoder without their end", "compress/checkpoint/text.py", "torch.cat([before, cut, behind], 1)",
            "torch.cat([before, cut, before[:, : len(last)]], 1)", TEXT, "all_marks"),
    Mistake("texts run into each other", "compress/checkpoint/text.py", "between, marks = last or first,", "between, marks = first,", TEXT,
            "all_marks"),
    Mistake("gamma and beta exchanged", "compress/checkpoint/checkpoint.py", '("LayerNorm.gamma", "LayerNorm.weight")',
            '("LayerNorm.gamma", "LayerNorm.bias")', OPEN, "first_encoders"),
    Mistake("a pooler asked for", "compress/checkpoint/skeleton.py", '{"add_pooling_layer": False} if encoder', '{} if encoder', SKELETON,
            "no_pooler"),
    Mistake("states that grow counted as turned", "compress/checkpoint/sensitivity.py",
            "return (signs - unit * (unit * signs).sum(-1, keepdim=True)) / size", "return signs", BITS, "cosines_lost"),
    # -- ONNX
    Mistake("padding is looked at", f"{AT}/encoder.py", "[*made, None, seen]", "[*made, None]", ONNX, "padding or transformers_computes"),
    Mistake("positions begin at 1", f"{AT}/encoder.py", '[first, count, step], "positions"',
            '[step, drawing.one("Add", [count, step], "tokens.end"), step], "positions"', ONNX, "transformers_computes"),
    Mistake("all tokens are of the first kind", f"{AT}/encoder.py", "kinds = self._products.table(types, _TYPES)",
            "kinds = self._products.table(first, _TYPES)", ONNX, "transformers_computes"),
    Mistake("an encoder's attention is not added", f"{AT}/encoder.py",
            'hidden, _ = self._norms.added(hidden, attended, f"{name}.attention.output.LayerNorm")',
            'hidden = self._norms.norm(attended, f"{name}.attention.output.LayerNorm")', ONNX, "transformers_computes"),
    Mistake("the epsilon of decoders", f"{AT}/encoder.py", 'kind="layer", epsilon=encoder.epsilon', 'kind="layer", epsilon=1e-5', ONNX,
            "transformers_computes"),
    Mistake("an encoder's activation is always gelu", f"{AT}/encoder.py", "ACTIVATIONS[config.hidden_act])", '"gelu")', ONNX,
            "transformers_computes"),
    Mistake("an encoder that decodes is drawn as if it did not", f"{AT}/encoder.py", '_SWITCHES = ("is_decoder", "add_cross_attention")',
            '_SWITCHES = ("add_cross_attention",)', ONNX, "refused_by_name"),
)
