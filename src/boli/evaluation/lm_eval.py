"""Tests as task files of lm-evaluation-harness: a cross-check by another program.

Its rule differs: a line is scored from the tokenizer's begin token, its end is not scored, and its
bytes are counted without one for the end. So its bits per byte are not equal to those of
`boli evaluate`, but two models should compare alike.

Source: Gao et al., lm-evaluation-harness, https://github.com/EleutherAI/lm-evaluation-harness
    (docs/task_guide.md; output_type loglikelihood_rolling)
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from boli.durable import write_file
from boli.evaluation.suites import SuiteTest

NOTE = """\
# Run it in this folder, where the text lies:
#   lm_eval --model hf --model_args pretrained=BASE,peft=ADAPTER --tasks {task} --include_path .
# A line's end is not scored here, and boli scores it: compare models, not the figures of both.
"""


def write_lm_eval(tests: Sequence[SuiteTest], folder: Path) -> list[Path]:
    """Write a task file and its text for each test; return the task files. The text is copied.

    Raises:
        StorageError: the disk is full or refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, test in enumerate(tests):
        name = re.sub(r"[^a-z0-9]+", "_", f"boli_{number}_{test.language}_{Path(test.name).stem}")
        text = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in test.lines)
        write_file(folder / f"{name}.jsonl", text.encode())
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
            "output_type": "loglikelihood_rolling",
            "test_split": "test",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}],
            "metadata": {"version": 1.0},
        }
        # JSON is YAML, line by line.
        lines = [f"{key}: {json.dumps(value)}\n" for key, value in task.items()]
        path = folder / f"{name}.yaml"
        write_file(path, (NOTE.format(task=name) + "".join(lines)).encode())
        written.append(path)
    return written
