"""Deliberate mistakes in the body of language models. See mistakes.py."""

from __future__ import annotations

from tests.sabotage.mistakes import Mistake

PLACE = "compress/checkpoint"
FILES, WRITER, STORED = (f"checkpoint/test_{name}.py" for name in ("tensor_files", "tensor_writer", "stored"))
OPEN, SKELETON, TEXT, HIDDEN = (f"checkpoint/test_{name}.py" for name in ("open_checkpoint", "skeleton", "text", "hidden"))
APPLY, PLAN, COMPARE = (f"checkpoint/test_{name}.py" for name in ("apply_checkpoint", "plan_checkpoint", "compare_checkpoints"))
KILLED = "checkpoint/test_killed_runs.py"

MISTAKES = (
    # -- files
    Mistake(
        "offsets from the start of the file",
        f"{PLACE}/tensor_files.py",
        "shape, path, start + int(begin))",
        "shape, path, int(begin))",
        FILES,
        "every_dtype or odd_places",
    ),
    Mistake(
        "the end of a file that was cut short not looked at",
        f"{PLACE}/tensor_files.py",
        "    if end > size:",
        "    if end > 2 * size + 99:",
        FILES,
        "cut_short",
    ),
    Mistake(
        "negative sizes that multiply to a positive one",
        f"{PLACE}/tensor_files.py",
        " and all(size >= 0 for size in shape)",
        "",
        FILES,
        "makes_no_sense",
    ),
    Mistake(
        "files mapped so that writing reaches them",
        f"{PLACE}/tensor_files.py",
        """        with path.open("rb") as file:
            # Copy on write: torch wants memory that may be written to, and the file must stay as it is.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)""",
        """        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)""",
        FILES,
        "writing_into",
    ),
    Mistake("memory never given back", f"{PLACE}/tensor_files.py", "mmap.MADV_DONTNEED", "mmap.MADV_NORMAL", FILES, "forgotten"),
    Mistake(
        "a header of any length",
        f"{PLACE}/tensor_writer.py",
        '    text += b" " * (-len(text) % 8)  # so that',
        '    text += b""  # so that',
        WRITER,
        "multiple_of_eight",
    ),
    Mistake(
        "the rest of a tensor forgotten behind the first write",
        f"{PLACE}/tensor_writer.py",
        "            begin, data = begin + written, data[written:]",
        "            data = data[written:]",
        WRITER + " " + APPLY,
        "short_writes",
    ),
    Mistake(
        "columns of a transposed tensor as they lie",
        f"{PLACE}/tensor_writer.py",
        "tensor.detach().contiguous().reshape(-1)",
        "tensor.detach().as_strided((tensor.numel(),), (1,))",
        WRITER,
        "row_by_row",
    ),
    Mistake(
        "an index whose total counts the headers",
        f"{PLACE}/tensor_writer.py",
        "shard.size_bytes - len(shard.header) for",
        "shard.size_bytes for",
        WRITER,
        "shards_hold",
    ),
    Mistake(
        "a shard closed one tensor late",
        f"{PLACE}/tensor_writer.py",
        "+ tensor.size_bytes > most_bytes",
        "> most_bytes",
        WRITER,
        "shards_hold",
    ),
    # -- layouts
    Mistake(
        "the part of a code in the next word lost",
        f"{PLACE}/stored.py",
        "found[..., word + 1] |= groups[..., index].astype(np.uint32) >> np.uint32(32 - offset)",
        "pass",
        STORED,
        "slow_paper or by_hand",
    ),
    Mistake(
        "zero points packed along the groups",
        f"{PLACE}/stored.py",
        ".astype(np.uint8).T), grid.bits).T",
        ".astype(np.uint8)), grid.bits)",
        STORED,
        "slow_paper or goes_in",
    ),
    Mistake(
        "codes counted from the lowest that is used",
        f"{PLACE}/stored.py",
        "+ np.uint8(-lowest)",
        "+ np.uint8(-lowest - 1)",
        STORED,
        "slow_paper",
    ),
    Mistake(
        "a ragged group not counted",
        f"{PLACE}/stored.py",
        "block_count(columns, layout.group) if",
        "columns // layout.group if",
        STORED,
        "goes_in",
    ),
    # -- opening
    Mistake(
        "GPT-2's weights taken as they lie",
        f"{PLACE}/checkpoint.py",
        "return plain.t().contiguous() if self.is_transposed(layer) else plain",
        "return plain",
        OPEN,
        "out_by_in",
    ),
    Mistake(
        "the second of two tensors of one name",
        f"{PLACE}/checkpoint.py",
        "                if whole in found:",
        "                if not whole:",
        OPEN,
        "two_files",
    ),
    Mistake(
        "a hole between blocks overlooked",
        f"{PLACE}/checkpoint.py",
        "if numbers != set(range(made.block_count)):",
        "if max(numbers) + 1 != made.block_count:",
        OPEN,
        "hole",
    ),
    Mistake(
        "a head of its own taken for the embedding",
        f"{PLACE}/checkpoint.py",
        "return bool(head) and not any(",
        "return bool(head) or not any(",
        OPEN,
        "tied_where",
    ),
    # -- skeleton
    Mistake(
        "blocks left in memory", f"{PLACE}/skeleton.py", '        self.blocks[index].to("meta")\n', "", SKELETON, "what_transformers_gives"
    ),
    Mistake(
        "every block called as the first",
        f"{PLACE}/skeleton.py",
        "call = self.calls(hidden.shape[1])[index]",
        "call = self.calls(hidden.shape[1])[0]",
        SKELETON,
        "what_transformers_gives",
    ),
    Mistake(
        "calls of another length",
        f"{PLACE}/skeleton.py",
        "        if length not in self._calls:",
        "        if not self._calls:",
        SKELETON,
        "another_length",
    ),
    Mistake(
        "rows of the table in the order of the numbers",
        f"{PLACE}/skeleton.py",
        ".rows(embedding, used)}",
        ".rows(embedding, used.flip(0))}",
        SKELETON,
        "what_transformers_gives",
    ),
    Mistake(
        "zero points of the first rows for those of the chosen ones",
        f"{PLACE}/stored.py",
        "layout.bits, rows).T[chosen]",
        "layout.bits, rows).T[: len(scale)]",
        "checkpoint/test_stored.py",
        "some_rows",
    ),
    Mistake(
        "calibrated behind the float table",
        f"{PLACE}/apply.py",
        "_enter(skeleton, windows, flows[0], table)",
        "_enter(skeleton, windows, flows[0], checkpoint)",
        APPLY,
        "table_as_it_was_rounded",
    ),
    Mistake(
        "the float flow behind the rounded table",
        f"{PLACE}/apply.py",
        "_enter(skeleton, windows, file, checkpoint)",
        "_enter(skeleton, windows, file, table)",
        APPLY,
        "table_as_it_was_rounded",
    ),
    Mistake(
        "rotary tables without memory",
        f"{PLACE}/skeleton.py",
        "    with _parameters_on_meta():",
        '    with torch.device("meta"):',
        SKELETON,
        "what_transformers_gives",
    ),
    Mistake(
        "shapes not compared", f"{PLACE}/skeleton.py", "if found != tuple(parameter.shape):", "if found is None:", SKELETON, "contradicts"
    ),
    # -- text and hidden states
    Mistake(
        "two marks at the beginning", f"{PLACE}/text.py", "    ids = ids[len(first) :]", "    ids = ids[0:]", TEXT, "follow_each_other"
    ),
    Mistake(
        "windows of the beginning alone",
        f"{PLACE}/text.py",
        "torch.linspace(0, len(windows) - 1, most).round().long()",
        "torch.arange(most)",
        TEXT,
        "spread",
    ),
    Mistake(
        "windows one token too long", f"{PLACE}/text.py", "    step = length - len(first)", "    step = length", TEXT, "follow_each_other"
    ),
    Mistake(
        "windows written from the first on",
        f"{PLACE}/hidden.py",
        "4 * begin * math.prod(self.shape[1:])",
        "4 * 0 * begin",
        HIDDEN,
        "stays_for",
    ),
    # -- applying
    Mistake(
        "blocks calibrated on what the float model gives",
        f"{PLACE}/shows.py",
        "        moments = Moments(block, readers, flow.now)\n        for layer in chosen:",
        "        moments = Moments(block, readers, flow.now) if readers is block.readers[0] else moments\n        for layer in chosen:",
        APPLY,
        "follows_what or simulated",
    ),
    Mistake(
        "the first step that names a layer wins",
        f"{PLACE}/apply.py",
        "for each in steps if layer in each.options][-1]",
        "for each in steps if layer in each.options][0]",
        APPLY,
        "last_step",
    ),
    Mistake(
        "tensors outside the blocks forgotten",
        f"{PLACE}/apply.py",
        "        if name not in taken and not name.startswith(inside):",
        '        if name not in taken and not name.startswith(inside) and "." in name:',
        APPLY,
        "no_module_has",
    ),
    Mistake(
        "what is excepted called rounded", f"{PLACE}/apply.py", "if name not in rounded)\n", "if name in rounded)\n", APPLY, "excepted"
    ),
    Mistake("the recipe no part of the key", f"{PLACE}/apply.py", "[recipe.to_plain() for recipe in recipes], ", "", APPLY, "other_work"),
    Mistake("the text no part of the key", f"{PLACE}/apply.py", 'if windows else ""', 'if windows is None else ""', APPLY, "other_work"),
    Mistake(
        "a file taken for a folder",
        "compress/artifacts.py",
        "    if folder.exists() and not folder.is_dir():",
        "    if folder.exists() and not folder:",
        APPLY,
        "nothing_else",
    ),
    Mistake(
        "blocks begun again",
        f"{PLACE}/apply.py",
        "range(destination.done, checkpoint.block_count)",
        "range(checkpoint.block_count)",
        APPLY,
        "goes_on_behind",
    ),
    Mistake(
        "no lock",
        f"{PLACE}/destination.py",
        "            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            pass\n",
        APPLY,
        "two_runs",
    ),
    Mistake(
        "the lock gone before the folder moves",
        f"{PLACE}/destination.py",
        "    (beside / JOURNAL_NAME).unlink(missing_ok=True)\n",
        '    (beside / JOURNAL_NAME).unlink(missing_ok=True)\n    (beside / "lock").unlink()\n',
        APPLY,
        "in_its_place",
    ),
    Mistake(
        "what a killed run was writing kept",
        f"{PLACE}/destination.py",
        '    for path in beside.glob(".*"):',
        '    for path in beside.glob("?.*"):',
        KILLED,
        "rtn",
    ),
    Mistake(
        "a block said to be done before it is",
        f"{PLACE}/apply.py",
        "            _through(block, now, then)\n            destination.finished(index + 1)\n",
        "            destination.finished(index + 1)\n            destination.settle()\n            _through(block, now, then)\n",
        APPLY,
        "goes_on_behind",
    ),
    # -- plan and compare
    Mistake(
        "words of codes rounded down",
        f"{PLACE}/stored.py",
        "    return -(-count * bits // 32)",
        "    return count * bits // 32",
        STORED + " " + PLAN,
        "goes_in or exact",
    ),
    Mistake(
        "biases left out of what remains",
        f"{PLACE}/plan.py",
        "return checkpoint.entries[bias][1].size_bytes if bias in",
        "return 0 if bias in",
        PLAN,
        "exact",
    ),
    Mistake(
        "tensors of an earlier layout kept",
        f"{PLACE}/resolve.py",
        "        shape.name: layer for layer in found if layer in checkpoint.layouts",
        "        shape.name: layer for layer in () if layer in checkpoint.layouts",
        APPLY + " " + PLAN,
        "again or earlier",
    ),
    Mistake(
        "divergence the other way round",
        f"{PLACE}/compare.py",
        "(one.exp() * (one - other)).sum(1)",
        "(other.exp() * (other - one)).sum(1)",
        COMPARE,
        "slow_way",
    ),
    Mistake(
        "answers one token early",
        f"{PLACE}/compare.py",
        "answers = tokens[skip + 1 :]",
        "answers = tokens[skip : length - 1]",
        COMPARE,
        "slow_way",
    ),
    Mistake(
        "what nothing is known of counted too", f"{PLACE}/compare.py", "skip = 1 if windows.starts else 0", "skip = 0", COMPARE, "mark_for"
    ),
    Mistake(
        "a quantile of windows",
        f"{PLACE}/compare.py",
        "np.quantile(scores.kl, 0.999)",
        "np.quantile(scores.kl.mean(1), 0.999)",
        COMPARE,
        "slow_way",
    ),
    Mistake(
        "a bias left out where weights come late",
        f"{PLACE}/late.py",
        "return linear(inputs, self.weight(), bias)",
        "return linear(inputs, self.weight())",
        APPLY,
        "computes_what_was_simulated or each_layer",
    ),
    Mistake(
        "what was rounded goes on in float",
        f"{PLACE}/late.py",
        "        if self.made is not None:\n            return torch.from_numpy(self.made.values)",
        "        if self.made is not None:\n            return torch.from_numpy(self.made.values).round(decimals=2)",
        APPLY,
        "what_it_reads or reads or each_layer or simulated",
    ),
    Mistake(
        "rows of the next piece",
        f"{PLACE}/rows.py",
        "weight[begin : begin + rows]",
        "weight[-rows:]",
        "checkpoint/test_hf_export.py",
        "pieces",
    ),
    Mistake(
        "bisection that goes the wrong way",
        f"{PLACE}/search.py",
        "low = middle + 1",
        "low = middle + 2",
        "checkpoint/test_optimize_checkpoint.py",
        "bisection",
    ),
    Mistake(
        "layers with ragged groups packed for transformers",
        f"{PLACE}/hf_export.py",
        "if layout.kind == \"int\" and layout.group and columns % layout.group:",
        "if layout.kind == \"int\" and layout.group and columns < layout.group:",
        "checkpoint/test_hf_export.py",
        "cannot_read",
    ),
)
