"""Tokens per second of boli's inner loop against transformers.Trainer.

Same base, same text, same batches of packed sequences, same threads and
precision, alternating in one process, each compiled and not. The Trainer is
tuned too: fused AdamW, no logging, no saving, packed blocks and no padding.
LoRA is PEFT's. `recipe` is what the plans of micro-LLMs take, every weight,
Muon and dropout; the Trainer there has torch's own Muon beside its AdamW, and
no dropout, which Llamas lack; `full` is AdamW alone on both sides. On a GPU
the base is a randomly initialised Llama of about 1 B parameters in bf16, and
model FLOP utilisation is printed as well.

    python benchmarks/local_steps.py [--rounds 5] [--steps 40] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import peft
import torch
import transformers

from boli.model.adapter import attach
from boli.model.base import micro_model
from boli.model.local_steps import LocalSteps, PackedText
from boli.plan import AdapterPlan, LocalStepsPlan, MicroPlan

HERE = Path(__file__).parent
WARM_UP = 8  # steps, not timed
H200_PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bf16, operations a second


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Case:
    """What both sides train."""

    make: Callable[[], Any]  # the model
    length: int = 128  # tokens of a sequence
    kind: Literal["lora", "full"] = "lora"
    muon: bool = False
    dropout: float = 0.0  # on boli's side alone
    batch: int = 8  # sequences


def cases() -> dict[str, Case]:
    if device().type == "cuda":
        return {"llama-1b": Case(llama_1b, 2048)}
    wide = MicroPlan(
        vocabulary_size=8192, hidden_size=384, num_layers=8, num_heads=6, intermediate_size=1024
    )
    return {
        "micro-1.4M": Case(micro),
        "micro-1.4M full": Case(micro, kind="full"),
        "micro-1.4M recipe": Case(micro, kind="full", muon=True, dropout=0.1),
        "llama-18M": Case(lambda: micro_model(wide)),
    }


def micro() -> Any:
    return micro_model(MicroPlan())


def llama_1b() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=32768,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=20,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        try:
            return transformers.LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(torch.float32)


def token_stream(vocabulary: int, length: int) -> np.ndarray:
    """Return the same skewed random tokens for both; speed does not depend on which."""
    draw = np.random.default_rng(0)
    return (vocabulary * draw.random(length) ** 3).astype(np.uint32)


class Ours:
    """boli's local steps, warm."""

    def __init__(self, case: Case, compiled: bool) -> None:
        model = case.make().to(device())
        plan = LocalStepsPlan(
            batch_sequences=case.batch,
            sequence_length=case.length,
            compile="on" if compiled else "off",
            optimizer="muon" if case.muon else "adamw",
            dropout=case.dropout,
        )
        stream = token_stream(model.config.vocab_size, case.batch * case.length * 64)
        adapter = attach(model, AdapterPlan(kind=case.kind))
        text = PackedText([stream], case.length, 0)
        self.steps = LocalSteps(model, adapter, text, plan, own_tokens=case.kind == "full")
        self.run(WARM_UP)

    def run(self, count: int) -> float:
        """Return the seconds of `count` steps."""
        started = time.perf_counter()
        self.steps.run(lambda: count, 0.5, 0.0)
        return time.perf_counter() - started


class MuonAndAdamW(torch.optim.Optimizer):
    """Torch's own Muon for the matrices of the layers, and its fused AdamW for the rest."""

    def __init__(self, model: Any) -> None:
        tokens = model.get_input_embeddings().weight
        parameters = list(model.parameters())
        matrices = [p for p in parameters if p.ndim == 2 and p is not tokens]
        rest = [p for p in parameters if p.ndim != 2 or p is tokens]
        super().__init__(parameters, {})
        muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0)
        self.both = (muon, torch.optim.AdamW(rest, lr=1e-3, weight_decay=0.0, fused=True))
        self.param_groups = [group for one in self.both for group in one.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for one in self.both:
            one.step(closure)


class Trainer:
    """transformers.Trainer; a new call of train() continues the same model."""

    def __init__(self, case: Case, compiled: bool) -> None:
        model = case.make().to(device())
        stream = token_stream(model.config.vocab_size, case.batch * case.length * 64)
        blocks = stream.reshape(-1, case.length).astype(np.int64)
        self.data = [{"input_ids": block, "labels": block} for block in blocks]
        self.model, self.case, self.compiled = model, case, compiled
        if case.kind == "lora":
            lora = peft.LoraConfig(
                r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
            )
            self.model = peft.get_peft_model(model, lora)

    def run(self, count: int) -> float:
        """Return the seconds of `count` steps, between callbacks, without start-up."""
        marks: list[float] = []

        class Clock(transformers.TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                if device().type == "cuda":
                    torch.cuda.synchronize()
                marks.append(time.perf_counter())

        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                folder,
                per_device_train_batch_size=self.case.batch,
                max_steps=count + WARM_UP,
                learning_rate=1e-3,
                optim="adamw_torch_fused",
                max_grad_norm=1.0,
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=device().type == "cpu",
                bf16=device().type == "cuda",
                torch_compile=self.compiled,
            )
            transformers.Trainer(
                model=self.model,
                args=arguments,
                train_dataset=self.data,
                data_collator=transformers.default_data_collator,
                callbacks=[Clock()],
                optimizers=(MuonAndAdamW(self.model) if self.case.muon else None, None),
            ).train()
        return marks[-1] - marks[WARM_UP - 1]


def utilisation(model: Any, tokens_per_second: float, length: int) -> float | None:
    """Return model FLOP utilisation: 4 operations a frozen weight and token, plus attention."""
    name = torch.cuda.get_device_name()
    peak = next((rate for part, rate in H200_PEAK.items() if part in name), None)
    if peak is None:
        return None
    config = model.config
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    attention = 6 * config.num_hidden_layers * config.hidden_size * length  # causal, fwd + bwd
    return tokens_per_second * (4 * frozen + attention) / peak


def compare(name: str, rounds: int, count: int) -> dict[str, Any]:
    case = cases()[name]
    tokens = case.batch * case.length * count
    result: dict[str, Any] = {"tokens_a_step": case.batch * case.length}
    for compiled in (False, True):
        kind = "compiled" if compiled else "eager"
        ours, trainer = (side(case, compiled) for side in (Ours, Trainer))
        rates: dict[str, list[float]] = {"boli": [], "trainer": []}
        for number in range(rounds):
            sides = [("boli", ours), ("trainer", trainer)]
            for label, side in sides if number % 2 else reversed(sides):
                rates[label].append(tokens / side.run(count))
        ratios = [a / b for a, b in zip(rates["boli"], rates["trainer"], strict=True)]
        result[kind] = {
            label: {"tokens_per_second": [round(r) for r in found]}
            for label, found in rates.items()
        } | {"ratio_median": statistics.median(ratios), "ratios": ratios}
        if device().type == "cuda":
            rate = statistics.median(rates["boli"])
            result[kind]["boli"]["utilisation"] = utilisation(ours.steps.model, rate, case.length)
        print(
            f"{name:18} {kind:9} boli {statistics.median(rates['boli']):9,.0f} tokens/s   "
            f"Trainer {statistics.median(rates['trainer']):9,.0f}   "
            f"ratio {result[kind]['ratio_median']:.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )
    best = max(statistics.median(result[k]["trainer"]["tokens_per_second"]) for k in MODES)
    ours_best = max(statistics.median(result[k]["boli"]["tokens_per_second"]) for k in MODES)
    result["best_against_best"] = ours_best / best
    return result


MODES = ("eager", "compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    kind = device().type
    name = torch.cuda.get_device_name() if kind == "cuda" else platform.processor() or "CPU"
    results = {
        "device": name,
        "threads": options.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "models": {name: compare(name, options.rounds, options.steps) for name in cases()},
    }
    out = options.out or HERE / "results" / f"local_steps_{kind}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
