"""Load what others trained, without running anything of theirs: the one caller of from_pretrained.

Models of transformers may bring code (`auto_map`), choose compiled code to fetch (kernels), or
hold pickled weights, which can run code when they are read. None of the three is taken, whoever
asks, and nobody is asked whether it should be.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boli.errors import ModelError

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
LARGEST_CONFIG_BYTES = 8 << 20  # also of a tokenizer's settings
LARGEST_INDEX_BYTES = 64 << 20
DEEPEST = 20  # tables in tables
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".pkl")
_FETCHED = ("*.json", "model*.safetensors", "*.txt", "*.model", "*.jinja")

# Keys of a config.json that choose code, or further files, wherever they stand.
CODE_KEYS = frozenset(
    {
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
        "_experts_implementation",
        "_experts_implementation_internal",
        "use_kernels",
        "kernel_config",
        "transformers_weights",
        "trust_remote_code",
    }
)
CONVERT = (
    "load it where it is trusted, and write it again with transformers: "
    "model.save_pretrained(FOLDER) makes safetensors"
)


def refused(problem: str, hint: str = "") -> ModelError:
    """Return the error that says why a model is not loaded, though it could be."""
    return ModelError(problem, hint, code="model.refused")


def load_model(kind: Any, folder: Path | str, **options: Any) -> Any:
    """Load a model by one of transformers' classes.

    Raises:
        ModelError: its folder asks for code of its own, or has pickled weights.
        Exception: whatever transformers raises; its errors have no common kind.
    """
    refuse_code(Path(folder))
    return kind.from_pretrained(
        str(folder),
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
        **options,
    )


def load_part(kind: Any, folder: Path | str) -> Any:
    """Load a tokenizer, a processor or a config by one of transformers' classes.

    Raises:
        ModelError: its folder asks for code of its own, or has pickled weights.
        Exception: whatever transformers raises; its errors have no common kind.
    """
    refuse_code(Path(folder))
    return kind.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)


def load_gguf(kind: Any, folder: Path, name: str, **options: Any) -> Any:
    """Load a model, tokenizer or config from a GGUF file, which lies alone in its folder.

    Alone, because transformers would take other files of the folder along.

    Raises:
        Exception: whatever transformers raises; its errors have no common kind.
    """
    _no_hub_kernels()
    return kind.from_pretrained(
        str(folder), gguf_file=name, trust_remote_code=False, local_files_only=True, **options
    )


def load_config(origin: str) -> Any:
    """Load the config of a model, from a folder or by its id at a hub.

    Raises:
        ModelError: its folder asks for code of its own, or has pickled weights.
        Exception: whatever transformers raises; its errors have no common kind.
    """
    _no_hub_kernels()
    from transformers import AutoConfig

    return _load_from(AutoConfig, origin)


def load_tokenizer(origin: str) -> Any:
    """Load the tokenizer of a model, from a folder or by its id at a hub.

    Raises:
        ModelError: its folder asks for code of its own, or has pickled weights.
        Exception: whatever transformers raises; its errors have no common kind.
    """
    _no_hub_kernels()
    from transformers import AutoTokenizer

    return _load_from(AutoTokenizer, origin)


def _load_from(kind: Any, origin: str) -> Any:
    if Path(origin).is_dir():
        return load_part(kind, origin)
    return kind.from_pretrained(origin, trust_remote_code=False)


def find_gguf(origin: str) -> Path | None:
    """Return the GGUF file that a path names: itself, or the one in a folder without a config.

    Raises:
        ModelError: the folder has several, or a part of one.
    """
    path = Path(origin).expanduser()
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if not path.is_dir() or (path / CONFIG).is_file():
        return None
    found = sorted(file for file in path.glob("*.gguf") if not file.name.startswith("mmproj"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:5])
        raise ModelError(
            f"{path} holds {len(found)} GGUF files: {names}",
            "name one of them; parts of one are put together by llama-gguf-split --merge",
        )
    return found[0] if found else None


def folder_of(origin: str) -> Path:
    """Return the folder of a model; the id of one at a hub is fetched, or found where it was kept.

    Raises:
        ModelError: it can neither be fetched nor found.
    """
    if Path(origin).is_dir() or origin.startswith(("/", ".", "~")):
        return Path(origin)
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(origin, allow_patterns=list(_FETCHED), ignore_patterns=["*/*"])
    except Exception as error:  # the hub's errors have no common kind
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"cannot load the base model {origin}: {first}",
            "model.base.path needs a folder with config.json, weights and a tokenizer, or a hub "
            "id that this machine can download",
        ) from error
    return Path(found)


def revision_of(folder: Path) -> str:
    """Return the commit of a hub's model, from the folder that `folder_of` found; else nothing."""
    is_snapshot = folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name)
    return folder.name if is_snapshot else ""


def refuse_code(folder: Path) -> None:
    """Refuse a folder that would run code, or unpickle weights, when it is loaded.

    Raises:
        ModelError: it would.
        OSError: its config cannot be read.
        ValueError: its config is not JSON.
    """
    _no_hub_kernels()
    config = read_object(folder / CONFIG)
    for key in sorted(CODE_KEYS & set(_keys(config))):
        raise refused(
            f"{folder / CONFIG} sets {key}, which chooses code or files to load",
            "remove that key: boli runs what transformers has built in",
        )
    if "auto_map" in config and not is_built_in(config.get("model_type")):
        raise refused(
            f"{folder} needs code of its own (auto_map in {CONFIG}), which boli does not run",
            "choose a model whose architecture transformers has built in",
        )
    if (folder / ADAPTER_CONFIG).exists():
        raise refused(
            f"{folder} holds an adapter beside its model",
            f"merge it into the model first, or remove {ADAPTER_CONFIG}",
        )
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
        if pickled:
            raise refused(
                f"{folder} has pickled weights, {pickled[0]}, which can run code when they are "
                "read",
                CONVERT,
            )
    if (folder / INDEX).is_file():
        shards_of(folder)


def _no_hub_kernels() -> None:
    """Keep transformers from fetching compiled code for layers, which some choose by themselves."""
    os.environ["USE_HUB_KERNELS"] = "NO"  # it looks when it is imported
    loaded = sys.modules.get("transformers.integrations.hub_kernels")
    if loaded is not None:
        vars(loaded)["_kernels_enabled"] = False


def is_built_in(model_type: object) -> bool:
    """Tell whether transformers has this architecture itself."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return isinstance(model_type, str) and model_type in CONFIG_MAPPING_NAMES


def shards_of(folder: Path) -> set[str]:
    """Return the files that the index of sharded weights names.

    Raises:
        ModelError: one is no safetensors file of the folder itself.
    """
    table = read_object(folder / INDEX, LARGEST_INDEX_BYTES).get("weight_map")
    names = set()
    for name in table.values() if isinstance(table, dict) else [None]:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9._-]+\.safetensors", name):
            raise refused(
                f"{folder / INDEX} names {str(name)[:80]!r}, which is no safetensors file of its "
                "folder",
                CONVERT,
            )
        names.add(name)
    return names


def read_object(path: Path, largest_bytes: int = LARGEST_CONFIG_BYTES) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: it is larger, or nested very deeply.
        OSError: it cannot be read.
        ValueError: it is something else.
    """

    def no_number(text: str) -> Any:
        raise ValueError(f"{text} is no JSON")

    size = path.stat().st_size
    if size > largest_bytes:
        raise refused(f"{path} has {size} bytes; at most {largest_bytes} are read")
    try:
        found = json.loads(path.read_bytes(), parse_constant=no_number)
    except RecursionError:
        raise refused(f"{path} is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds a {type(found).__name__}, not an object")
    return found


def _keys(value: Any, depth: int = 0) -> Iterator[str]:
    """Yield the keys of nested tables."""
    if depth > DEEPEST:
        raise refused(f"a config of the model is nested deeper than {DEEPEST}")
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _keys(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner, depth + 1)
