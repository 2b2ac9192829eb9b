"""Tasks of lm_eval over sentences of the stories, in local files: a document is a sentence that was cut, and three wrong endings."""

from __future__ import annotations

import json
import re
from pathlib import Path

FORMS = {
    "endings": '''output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc}, {metric: acc_norm}]''',
    "last_words": '''output_type: loglikelihood
doc_to_text: "{{start}}"
doc_to_target: "{{' ' + last}}"
metric_list: [{metric: perplexity}, {metric: acc}]''',
    "pages": '''output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]''',
    "written": '''output_type: generate_until
doc_to_text: "{{start}}"
doc_to_target: "{{last}}"
generation_kwargs: {until: ["."], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, ignore_case: true, ignore_punctuation: true}]
filter_list:
  - {name: all, filter: [{function: take_first}]}
  - {name: word, filter: [{function: regex, regex_pattern: "([A-Za-z]+)"}, {function: take_first}]}''',
}


def documents(text: str, count: int) -> list[dict[str, object]]:
    sentences = [each.strip() for each in re.split(r"(?<=[.!?])\s+", text) if 40 < len(each) < 120]
    found: list[dict[str, object]] = []
    for at in range(count):
        words = sentences[at].split()
        cut = len(words) // 2
        choices = [" ".join(words[cut:]), *(" ".join(sentences[(at + step) % len(sentences)].split()[cut - len(words):])
                                            for step in (31, 57, 83))]
        label = at % 4
        choices[0], choices[label] = choices[label], choices[0]
        found.append({"question": " ".join(words[:cut]), "choices": choices, "label": label, "last": words[-1].strip(".!?"),
                      "start": " ".join(words[:-1]), "page": " ".join(sentences[at : at + 12])})
    return found


def made_up_tasks(folder: Path, text: str, *, count: int = 40) -> Path:
    """A folder with a YAML file for each form, and a group of two of them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "documents.json").write_text("\n".join(map(json.dumps, documents(text, count))))
    data = (f'dataset_path: json\ntest_split: test\n'
            f'dataset_kwargs: {{data_files: {{test: "{folder}/documents.json"}}, cache_dir: "{folder}/cache"}}\n')
    for name, form in FORMS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{data}{form}\n")
    (folder / "both.yaml").write_text("group: both\ntask: [endings, last_words]\n")
    return folder
