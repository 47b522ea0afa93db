"""Adapters in PEFT's own format: write one from a flat vector, and load one with its base."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from boli.durable import storage_error
from boli.errors import ModelError, StorageError
from boli.model.adapter import LoraLinear, adapter_layout, attach, target_modules
from boli.model.base import Base, best_device
from boli.model.layout import Vector
from boli.plan import AdapterPlan
from boli.pretrained import ADAPTER_CONFIG, CONVERT, folder_of, load_model, load_part, refused

WHOLE = "boli.json"  # beside a whole model: which base it was trained from


def export_adapter(theta: Vector, plan: AdapterPlan, base: Base, folder: Path) -> None:
    """Write `theta` (d,) as a PEFT LoRA adapter; for kind "full", as a whole model.

    `frozen_a` and `core` become plain LoRA: the fixed parts are written out, the
    core multiplied into A. The base is left as it was found.

    Raises:
        StorageError: the folder cannot be written.
    """
    try:
        if plan.kind == "full":
            _export_whole(theta, plan, base, folder)
        else:
            _export_lora(theta, plan, base, folder)
        base.tokenizer.save_pretrained(folder)
    except OSError as error:
        raise storage_error(folder, error) from error
    except SafetensorError as error:  # how it tells of a full disk
        raise StorageError(f"cannot write {folder}: {error}", "free some space there") from error


def _export_whole(theta: Vector, plan: AdapterPlan, base: Base, folder: Path) -> None:
    layout = adapter_layout(base.model, plan)
    trained = {name: torch.from_numpy(a.copy()) for name, a in layout.unpack(theta).items()}
    # Tied weights have several names in a state dict, and one in the layout.
    owners = {id(p): name for name, p in base.model.named_parameters()}
    state = {
        name: trained[owners[id(p)]] if id(p) in owners else p.detach()
        for name, p in base.model.state_dict(keep_vars=True).items()
    }
    base.model.save_pretrained(folder, state_dict=state)
    (folder / WHOLE).write_text(json.dumps({"base": base.origin}) + "\n", encoding="utf-8")


def _export_lora(theta: Vector, plan: AdapterPlan, base: Base, folder: Path) -> None:
    from peft import LoraConfig
    from safetensors.torch import save_file

    names = list(target_modules(base.model, plan))
    tensors = {}
    with _attached(base.model, plan, theta):
        for name in names:
            layer = base.model.get_submodule(name)
            a, b = layer.factors()
            key = f"base_model.model.{name}"
            tensors[f"{key}.lora_A.weight"] = a.detach().float().cpu().contiguous()
            tensors[f"{key}.lora_B.weight"] = b.detach().float().cpu().contiguous()
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    LoraConfig(
        base_model_name_or_path=base.origin,
        task_type="CAUSAL_LM",
        inference_mode=True,
        r=plan.rank,
        lora_alpha=plan.alpha,
        target_modules=names,
    ).save_pretrained(str(folder))


@contextlib.contextmanager
def _attached(model: Any, plan: AdapterPlan, theta: Vector) -> Iterator[None]:
    adapter = attach(model, plan)
    adapter.load(theta)
    try:
        yield
    finally:
        for name, module in list(model.named_modules()):
            if isinstance(module, LoraLinear):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, module.base)


@dataclass
class Adapted(Base):
    """A base with an adapter on it that can be put aside."""

    plain: Any = None  # the base alone, where the adapter is a whole model

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Make the model answer as its base does."""
        if self.plain is not None:
            adapted, self.model = self.model, self.plain
            try:
                yield
            finally:
                self.model = adapted
        else:
            with self.model.disable_adapter():
                yield


def load_adapter(folder: Path) -> Adapted:
    """Load an adapter with plain PEFT, on the base that it names.

    Raises:
        ModelError: the folder holds no adapter, or its base is gone.
    """
    import transformers
    from peft import PeftModel

    transformers.utils.logging.disable_progress_bar()
    whole = folder / WHOLE
    config = whole if whole.is_file() else folder / ADAPTER_CONFIG
    if not config.is_file():
        raise ModelError(
            f"there is no adapter in {folder}",
            "give the adapter/ folder of a finished run, or any PEFT adapter",
        )
    origin = "that its adapter_config.json names"
    try:
        named = json.loads(config.read_text(encoding="utf-8"))
        origin = str(named["base" if config == whole else "base_model_name_or_path"])
        place = folder_of(origin)
        plain = _in_float32(place)
        tokenizer = load_part(transformers.AutoTokenizer, place)
        if config == whole:
            model = _in_float32(folder)
            return Adapted(model, tokenizer, origin, plain)
        _refuse_adapter_code(folder, named)
        model = PeftModel.from_pretrained(plain, str(folder))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"cannot load {folder} on the base {origin}: {first}",
            "base_model_name_or_path in adapter_config.json must name the base",
        ) from error
    return Adapted(model, tokenizer, origin)


def _in_float32(folder: Path) -> Any:
    """Load a model in float32: in what it is kept in, it may overflow."""
    import transformers

    loaded = load_model(transformers.AutoModelForCausalLM, folder, dtype=torch.float32)
    return loaded.to(best_device())


def _refuse_adapter_code(folder: Path, config: dict[str, Any]) -> None:
    """Refuse an adapter that names modules for PEFT to import, or whose weights are pickled."""
    for key in ("auto_mapping", "megatron_config"):
        if config.get(key) is not None:
            raise refused(
                f"the adapter in {folder} sets {key}, which names code to import",
                f"remove {key} from its {ADAPTER_CONFIG}",
            )
    if not (folder / "adapter_model.safetensors").is_file():
        raise refused(f"the adapter in {folder} has no adapter_model.safetensors", CONVERT)
