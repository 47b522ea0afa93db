"""What the attacks on a site share: its folder, a hostile coordinator's plan and base, a link."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from boli.plan import Plan
from boli.rounds.transport import Stop
from boli.rounds.update import Order, UpdateHeader
from boli.site.kit import Kit, SiteFolder, kit_of
from boli.site.limits import Limits

LENIENT = Limits(
    adapters=("lora", "frozen_a", "core", "full"),
    min_tokens=1,
    min_tokens_full=1,
    min_judged_lines=1,
    text=("**",),
)


def lines(number: int = 400) -> list[str]:
    """Return the private text of a site: made-up words, many and evenly spread."""
    draw = np.random.default_rng(7)
    words = ["".join(draw.choice(list("aeioukhgnmtrslpbd"), 5)) for _ in range(300)]
    return [" ".join(draw.choice(words, 12)) for _ in range(number)]


def make_base(folder: Path) -> Path:
    """Write a base as a curious coordinator likes it: untied, so that rows name input tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from boli.model.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(lines(), 512)
    torch.manual_seed(1)
    end = tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=end,
        eos_token_id=end,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plan_of(base: Path, **sections: Any) -> Plan:
    """Return a hostile coordinator's plan over one site, gaya."""
    tables: dict[str, Any] = {
        "name": "curious",
        "model": {
            "base": {"path": str(base), "language": "hin"},
            "adapter": {"kind": "full"},
            "local_steps": {
                "batch_sequences": 1,
                "sequence_length": 8,
                "keep_moments": False,
                "schedule": "constant",
                "warmup": 0.0,
            },
        },
        "rounds": {"total": 5, "local_steps": 1},
        "engine": {"threads_per_site": 1},
        "site": [{"name": "gaya", "language": "mag", "text": ["mag.txt"]}],
    }
    for name, section in sections.items():
        tables[name] = tables[name] | section if isinstance(tables.get(name), dict) else section
    return Plan.model_validate(tables)


def site_in(folder: Path, limits: Limits, name: str = "site") -> SiteFolder:
    """Return an honest site with text of its own."""
    data = folder / "text"
    data.mkdir(exist_ok=True)
    (data / "mag.txt").write_text("\n".join(lines()) + "\n", encoding="utf-8")
    return SiteFolder("gaya", data, folder / name, None, limits)


def bring_base(site: SiteFolder, kit: Kit, base: Path) -> None:
    """Let a site fetch the base of a kit."""
    for file in site.missing(kit):
        site.add_piece(kit, file, (base / file.name).read_bytes())
        site.finish_file(kit, file)


def kit_for_gaya(plan: Plan, base: Path) -> Kit:
    """Return what the coordinator tells the site."""
    kit = kit_of("curious-1", plan, base).for_site("gaya")
    return Kit.model_validate_json(json.dumps(kit.facts()))


class CuriousLink:
    """The coordinator's end of a line: gives orders, and keeps what the site answers."""

    def __init__(self, *instructions: Any, later: Any = None) -> None:
        self.waiting, self.later = [*instructions, Stop()], later
        self.answers: list[tuple[UpdateHeader, bytes]] = []
        self.layout: Any = None

    def join(self, joined: Any) -> None:
        self.layout = joined.layout

    def receive(self, timeout_seconds: float | None) -> Any:
        if timeout_seconds == 0:  # between two local steps
            found, self.later = self.later, None
            return found
        return self.waiting.pop(0)

    def send_update(self, header: UpdateHeader, payload: bytes) -> None:
        self.answers.append((header, payload))

    def measure(self, values: Mapping[str, float]) -> None:
        pass


def order(sequence: int, layout: str, **values: Any) -> Order:
    """Return an order for gaya."""
    facts = {
        "order": f"curious-1-gaya-{sequence}",
        "site": "gaya",
        "sequence": sequence,
        "base_version": 0,
        "layout": layout,
        "local_steps": 1,
        "at_most": values.get("local_steps", 1),
    }
    return Order.model_validate(facts | values)


def start(*arguments: str | Path, home: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start the real command in the background, without a terminal."""
    import os

    with log.open("ab") as output:
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("boli")), *map(str, arguments)],
            cwd=home,
            env={**os.environ, "BOLI_HOME": str(home / "home"), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a command that was started."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for(sign: Callable[[], object], seconds: float = 120.0) -> bool:
    """Wait until something is there; tells whether it came."""
    deadline = time.monotonic() + seconds
    while not sign():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
