"""A coordinator sends a base model that runs code at the site, or unpickles its weights.

`config.json` may name a class in a file of its own (`auto_map`); transformers then asks on the
terminal whether to run it. Weights may be a pickle. A config may choose compiled code to fetch,
another folder, or a model that takes all memory. Whoever sits at the terminal says y to all.
"""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attack import Outcome
from rogue import Rogue, lines_of_text, plain_kit, tiny_base

PROMISE = "Nothing that a coordinator sends runs as code at a site, or takes all of its memory."

CODE = """
from pathlib import Path
Path({canary!r}).write_text("code of the base ran")
from transformers import LlamaConfig
class EvilConfig(LlamaConfig):
    model_type = "evil"
"""


class _Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.canary, "a pickle of the base ran")


def change(name: str, **values: Any) -> Callable[[Path, Path], None]:
    """Return what sets keys of a JSON file of a base."""

    def apply(base: Path, _: Path) -> None:
        path = base / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return apply


def code_beside_config(base: Path, canary: Path) -> None:
    """Name a class in evil.py, for config, model and tokenizer."""
    (base / "evil.py").write_text(CODE.format(canary=str(canary)))
    change("config.json", model_type="evil", auto_map={"AutoConfig": "evil.EvilConfig"})(
        base, canary
    )


def code_by_name_only(base: Path, _: Path) -> None:
    """Name a class in a repository elsewhere; all files have names that a base may have."""
    change("config.json", auto_map={"AutoConfig": "evil/repository--evil.EvilConfig"})(base, base)


def pickled(base: Path, canary: Path) -> None:
    """Give the weights as a pickle alone."""
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(_Payload(canary)))


def index_of_pickles(base: Path, canary: Path) -> None:
    """Let a sharded index, which has a good name, point to a pickle elsewhere."""
    (base / "model.safetensors").unlink()
    canary.with_suffix(".bin").write_bytes(pickle.dumps(_Payload(canary)))
    weights = {"model.embed_tokens.weight": f"../{canary.with_suffix('.bin').name}"}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


def header_of_terabytes(base: Path, _: Path) -> None:
    """Claim 4 TB of weights in the header of a small file."""
    entry = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}
    header = json.dumps({"model.embed_tokens.weight": entry}).encode()
    (base / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


BAD: dict[str, tuple[Callable[[Path, Path], None], str]] = {  # and a word of the refusal
    "auto_map with code": (code_beside_config, "evil.py"),
    "auto_map elsewhere": (code_by_name_only, "auto_map"),
    "pickled weights": (pickled, "pytorch_model.bin"),
    "index to a pickle": (index_of_pickles, "safetensors"),
    "kernels": (change("config.json", attn_implementation="evil/kernel"), "attn_implementation"),
    "other weights": (change("config.json", transformers_weights="x.bin"), "transformers_weights"),
    "quantization": (
        change("config.json", quantization_config={"quant_method": "x"}),
        "quantization_config",
    ),
    "unknown type": (change("config.json", model_type="never-heard-of"), "never-heard-of"),
    "width": (change("config.json", hidden_size=1 << 20), "the weights hold"),
    "layers": (change("config.json", num_hidden_layers=4000), "more layers"),
    "numbers": (change("config.json", num_hidden_layers=10**12), "at most"),
    "header": (header_of_terabytes, "bytes of weights"),
    "tokenizer code": (
        change("tokenizer_config.json", auto_map={"AutoTokenizer": ["a.B", None]}),
        "auto_map",
    ),
    "tokenizer file": (
        change("tokenizer_config.json", tokenizer_file="/etc/passwd"),
        "tokenizer_file",
    ),
}
QUICK = ("auto_map with code", "auto_map elsewhere", "pickled weights", "width")


def attack(folder: Path, *, fast: bool) -> Outcome:
    """Offer one base after the other; then an honest one."""
    base, canary = tiny_base(folder / "base"), folder / "canary"
    (folder / "data").mkdir()
    (folder / "data" / "text.txt").write_text(lines_of_text(), encoding="utf-8")
    wrong = []
    with Rogue(folder / "rogue", base) as rogue:
        rogue.join(folder / "data")
        for number, name in enumerate(QUICK if fast else BAD):
            spoil, word = BAD[name]
            bad = folder / f"bad-{number}"
            shutil.copytree(base, bad)
            spoil(bad, canary)
            kit = plain_kit(bad, f"bad-{number}")
            files = {file.sha256: bad / file.name for file in kit.files}
            rogue.pieces = lambda wanted, files=files: piece(files, wanted)
            rogue.offer(kit, word)
            if canary.exists() or "trust_remote_code" in rogue.said or "Traceback" in rogue.said:
                wrong.append(name)
        honest = rogue.serve_honestly()
    control = without_boli(folder / "bad-0", canary, fast=fast)
    count = len(QUICK if fast else BAD)
    observed = f"{count - len(wrong)} of {count} bases refused with a reason; {honest}"
    if wrong:
        observed += f"; not: {', '.join(wrong)}"
    return Outcome(not wrong, observed, control, {"bases": count})


def piece(files: dict[str, Path], wanted: Any) -> bytes | None:
    """Return what a coordinator answers to a question for a piece of a file."""
    if wanted.get("file") not in files:
        return None
    return files[wanted["file"]].read_bytes()[wanted["offset"] :][: 32 << 10]


def without_boli(base: Path, canary: Path, *, fast: bool) -> str:
    """Load the first base as transformers does for who says y; its code runs."""
    if fast:
        import transformers

        transformers.AutoConfig.from_pretrained(base, trust_remote_code=True)
        return f"transformers alone, where it is trusted: {canary.read_text()}"
    code = f"import transformers; transformers.AutoConfig.from_pretrained({str(base)!r})"
    subprocess.run(
        [sys.executable, "-c", code],
        input="y\n",
        text=True,
        capture_output=True,
        env={"HF_HOME": str(base.parent / "hub"), "PATH": ""},
        check=False,
    )
    if not canary.exists():
        return ""
    return f"transformers alone, and y at its question: {canary.read_text()}"
