"""Loading what others trained: no code, no pickles, and one place that loads."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from boli.errors import ModelError
from boli.pretrained import folder_of, load_config, load_model, load_part, refuse_code, revision_of

SOURCES = Path(__file__).parents[2] / "src" / "boli"
CODE = """
from pathlib import Path
Path({canary!r}).write_text("it ran")
from transformers import LlamaConfig
class EvilConfig(LlamaConfig):
    model_type = {kind!r}
"""


@pytest.fixture
def copied(family_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a copy of a small Llama that a test may spoil."""
    return Path(shutil.copytree(family_folder("llama"), tmp_path / "copy"))


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def with_code(folder: Path, kind: str) -> Path:
    """Let a base name a class of its own; return the file that shows that it ran."""
    canary = folder.parent / "canary"
    (folder / "evil.py").write_text(CODE.format(canary=str(canary), kind=kind))
    change(folder, model_type=kind, auto_map={"AutoConfig": "evil.EvilConfig"})
    return canary


def test_only_one_module_loads_what_others_trained() -> None:
    callers = {
        str(path.relative_to(SOURCES))
        for path in SOURCES.rglob("*.py")
        if re.search(r"\.from_pretrained\(|torch\.load\(|\bpickle\.load", path.read_text())
    }
    # PEFT's own loader reads an adapter; what it could import is refused before.
    assert callers == {"pretrained.py", "model/export.py"}
    assert (SOURCES / "model/export.py").read_text().count(".from_pretrained(") == 1


def test_code_of_a_base_never_runs_nor_is_anybody_asked(
    copied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    canary = with_code(copied, "evil")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    for load in (
        lambda: load_part(transformers.AutoConfig, copied),
        lambda: load_part(transformers.AutoTokenizer, copied),
        lambda: load_model(transformers.AutoModelForCausalLM, copied),
        lambda: load_config(str(copied)),
    ):
        with pytest.raises(ModelError, match="auto_map") as caught:
            load()
        assert caught.value.code == "model.refused"
    assert not canary.exists()
    transformers.AutoConfig.from_pretrained(copied, trust_remote_code=True)  # the control
    assert canary.exists()


def test_architecture_that_is_built_in_is_loaded_without_the_code_beside_it(copied: Path) -> None:
    canary = with_code(copied, "llama")
    model = load_model(transformers.AutoModelForCausalLM, copied)
    assert type(model).__module__.startswith("transformers.")
    assert not canary.exists()


@pytest.mark.parametrize(
    "values",
    [
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "evil/kernel"},
        {"use_kernels": True},
        {"transformers_weights": "adapter_model.bin"},
        {"text_config": {"deep": [{"attn_implementation": "evil/kernel"}]}},
    ],
)
def test_key_that_chooses_code_is_refused(copied: Path, values: dict[str, Any]) -> None:
    change(copied, **values)
    with pytest.raises(ModelError, match="chooses code"):
        load_model(transformers.AutoModelForCausalLM, copied)


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.write_text, (self.canary, "it ran")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.ckpt", "tf_model.h5"])
def test_pickled_weights_are_refused_with_a_way_to_convert_them(copied: Path, name: str) -> None:
    canary = copied.parent / "canary"
    (copied / "model.safetensors").unlink()
    (copied / name).write_bytes(pickle.dumps(Payload(canary)))
    with pytest.raises(ModelError, match=f"pickled weights, {name}") as caught:
        load_model(transformers.AutoModelForCausalLM, copied)
    assert "save_pretrained" in caught.value.hint
    assert not canary.exists()
    pickle.loads((copied / name).read_bytes())  # the control
    assert canary.exists()


def test_pickle_beside_safetensors_is_not_read(copied: Path) -> None:
    canary = copied.parent / "canary"
    (copied / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(canary)))
    load_model(transformers.AutoModelForCausalLM, copied)
    assert not canary.exists()


@pytest.mark.parametrize("target", ["../x.safetensors", "/x.safetensors", "x.bin", 7, None])
def test_index_that_names_other_than_safetensors_of_the_folder_is_refused(
    copied: Path, target: Any
) -> None:
    index = {"weight_map": {"w": target}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="no safetensors file"):
        refuse_code(copied)


def test_adapter_beside_a_model_is_refused(copied: Path) -> None:
    (copied / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter"):
        refuse_code(copied)


def test_nested_config_is_refused_and_ends_nothing(copied: Path) -> None:
    for text in ('{"a":' * 100_000 + "1" + "}" * 100_000, '{"a":' * 60 + "1" + "}" * 60):
        (copied / "config.json").write_text(text)
        with pytest.raises(ModelError, match="nested"):
            refuse_code(copied)


def test_folders_are_taken_as_they_are_and_snapshots_know_their_revision(tmp_path: Path) -> None:
    assert folder_of(str(tmp_path)) == tmp_path
    assert folder_of("/gone") == Path("/gone")
    assert revision_of(tmp_path) == ""
    assert revision_of(tmp_path / "snapshots" / ("a" * 40)) == "a" * 40


def test_hub_id_that_cannot_be_fetched_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="cannot load the base model nobody/nothing"):
        folder_of("nobody/nothing")


def test_no_compiled_code_is_fetched_for_layers(copied: Path) -> None:
    from transformers.integrations import hub_kernels

    load_model(transformers.AutoModelForCausalLM, copied)
    assert os.environ["USE_HUB_KERNELS"] == "NO"
    assert not hub_kernels._kernels_enabled
