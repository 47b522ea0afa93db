from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from boli.errors import ModelError, StorageError
from boli.model.adapter import LoraLinear, adapter_layout, attach, initial_vector
from boli.model.export import export_adapter, load_adapter
from boli.plan import AdapterPlan

# PEFT 0.21 asks transformers 5 for a name that it has given up.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
Load = Callable[..., Any]
TOKENS = torch.arange(3, 3 + 2 * 12).view(2, 12) * 13 % 320


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS.to(model.device)).logits
    return found.cpu()  # load_adapter takes a GPU where there is one


def trained(model: Any, plan: AdapterPlan) -> Any:
    """Return a vector as it may be after training: every entry moved."""
    rng = np.random.default_rng(0)
    vector = initial_vector(model, plan)
    return vector + (rng.normal(size=vector.size) * 0.2).astype(np.float32)


def exported(folder: Path, plan: AdapterPlan, base: Any, target: Path) -> tuple[Any, torch.Tensor]:
    """Export to `target`; return the vector and the logits of the attached adapter."""
    theta = trained(base.model, plan)
    target.mkdir()
    export_adapter(theta, plan, base, target)
    attach(base.model, plan).load(theta)
    return theta, logits(base.model)


@pytest.mark.parametrize("kind", ["lora", "frozen_a", "core"])
def test_plain_peft_answers_as_the_attached_adapter(
    family: Path, load_tiny: Load, tmp_path: Path, kind: Any
) -> None:
    import transformers
    from peft import PeftModel

    plan = AdapterPlan(kind=kind, rank=3, alpha=7.5)
    _, expected = exported(family, plan, load_tiny(family), tmp_path / "adapter")
    base = transformers.AutoModelForCausalLM.from_pretrained(family)
    before = logits(base)
    found = logits(PeftModel.from_pretrained(base, str(tmp_path / "adapter")))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - before).abs().max() > 0.1


def test_some_layers_only_are_exported_only(
    family_folder: Callable[[str], Path], load_tiny: Load, tmp_path: Path
) -> None:
    import transformers
    from peft import PeftModel

    folder = family_folder("llama")
    plan = AdapterPlan(rank=2, targets=("v_proj", "layers.1.mlp.up_proj"))
    _, expected = exported(folder, plan, load_tiny(folder), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == [
        "model.layers.0.self_attn.v_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    found = logits(PeftModel.from_pretrained(base, str(tmp_path / "adapter")))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_export_of_every_weight_is_a_whole_model(
    family: Path, load_tiny: Load, tmp_path: Path
) -> None:
    import transformers

    plan = AdapterPlan(kind="full")
    _, expected = exported(family, plan, load_tiny(family, "full"), tmp_path / "adapter")
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(found), expected)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert tokenizer("गया")["input_ids"] == load_tiny(family).tokenizer("गया")["input_ids"]


@pytest.mark.parametrize(
    "kind",
    [
        "lora",
        "frozen_a",
        "core",
        pytest.param(
            "full",
        ),
    ],
)
def test_base_is_left_as_it_was_found(
    family_folder: Callable[[str], Path], load_tiny: Load, tmp_path: Path, kind: Any
) -> None:
    plan = AdapterPlan(kind=kind, rank=3)
    base = load_tiny(family_folder("qwen3"), kind)
    before, layout = logits(base.model), adapter_layout(base.model, plan)
    export_adapter(trained(base.model, plan), plan, base, tmp_path)
    assert torch.equal(logits(base.model), before)
    assert not any(isinstance(module, LoraLinear) for module in base.model.modules())
    assert adapter_layout(base.model, plan).digest == layout.digest


def test_config_says_what_a_reader_needs(
    family_folder: Callable[[str], Path], load_tiny: Load, tmp_path: Path
) -> None:
    folder = family_folder("llama")
    base = load_tiny(folder)
    plan = AdapterPlan(kind="frozen_a", rank=3, alpha=7.5)
    export_adapter(trained(base.model, plan), plan, base, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder)
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (3, 7.5, 0.0)
    assert config["inference_mode"] is True
    assert (tmp_path / "tokenizer.json").is_file()


def test_base_in_half_precision_is_computed_in_whole(
    family_folder: Callable[[str], Path], load_tiny: Load, tmp_path: Path
) -> None:
    import transformers

    half = transformers.AutoModelForCausalLM.from_pretrained(family_folder("gemma3")).half()
    half.save_pretrained(tmp_path / "base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(family_folder("gemma3"))
    tokenizer.save_pretrained(tmp_path / "base")
    base = load_tiny(tmp_path / "base")
    _, expected = exported(tmp_path / "base", AdapterPlan(rank=3), base, tmp_path / "adapter")
    adapted = load_adapter(tmp_path / "adapter")
    assert {p.dtype for p in adapted.model.parameters()} == {torch.float32}
    assert torch.allclose(logits(adapted.model), expected, rtol=1e-4, atol=1e-4)


def test_loaded_adapter_can_be_put_aside(
    family_folder: Callable[[str], Path], load_tiny: Load, tmp_path: Path
) -> None:
    folder = family_folder("llama")
    plan = AdapterPlan(rank=3)
    base = load_tiny(folder)
    before = logits(base.model)
    _, expected = exported(folder, plan, base, tmp_path / "adapter")
    adapted = load_adapter(tmp_path / "adapter")
    assert torch.allclose(logits(adapted.model), expected, rtol=1e-4, atol=1e-4)
    with adapted.without_adapter():
        assert torch.allclose(logits(adapted.model), before, rtol=1e-5, atol=1e-5)
    assert torch.allclose(logits(adapted.model), expected, rtol=1e-4, atol=1e-4)
    assert adapted.origin == str(folder)
    assert adapted.max_length == 64


def test_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"there is no adapter in {tmp_path}") as caught:
        load_adapter(tmp_path)
    assert "adapter/" in caught.value.hint


def test_adapter_whose_base_is_gone_names_it(
    family_folder: Callable[[str], Path], load_tiny: Load, tmp_path: Path
) -> None:
    base = load_tiny(family_folder("llama"))
    plan = AdapterPlan(rank=2)
    base.origin = str(tmp_path / "gone")
    (tmp_path / "adapter").mkdir()
    export_adapter(trained(base.model, plan), plan, base, tmp_path / "adapter")
    with pytest.raises(ModelError, match=str(tmp_path / "gone")) as caught:
        load_adapter(tmp_path / "adapter")
    assert "base_model_name_or_path" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_model.safetensors", None),
        pytest.param("adapter_model.safetensors", b"torn"),
        pytest.param("adapter_config.json", b"{}"),
        pytest.param("adapter_config.json", b"torn"),
        pytest.param("adapter_config.json", b"[]"),
    ],
)
def test_spoilt_adapter_is_a_model_error(
    family_folder: Callable[[str], Path],
    load_tiny: Load,
    tmp_path: Path,
    name: str,
    content: bytes | None,
) -> None:
    base = load_tiny(family_folder("llama"))
    plan = AdapterPlan(rank=2)
    export_adapter(trained(base.model, plan), plan, base, tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError):
        load_adapter(tmp_path)


@pytest.mark.root
def test_full_disk_during_an_export_is_a_storage_error(
    family_folder: Callable[[str], Path], load_tiny: Load, tiny_disk: Callable[[int], Path]
) -> None:
    base = load_tiny(family_folder("llama"))
    plan = AdapterPlan(rank=16)
    folder = tiny_disk(32)
    with pytest.raises(StorageError, match="No space left"):
        export_adapter(trained(base.model, plan), plan, base, folder)
