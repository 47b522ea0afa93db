"""Check the files of a base model that somebody else sent, before anything is built from them.

Names, keys, types and sizes must be on the lists below, and the weights must be as many as the
config describes, which is computed without memory for them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from boli.errors import ModelError
from boli.pretrained import (
    CODE_KEYS,
    CONFIG,
    INDEX,
    is_built_in,
    read_object,
    refuse_code,
    refused,
    shards_of,
)

LARGEST_BASE_BYTES = 64 << 30
MOST_FILES = 300
LARGEST_TOKENIZER_BYTES = 64 << 20  # tokenizer.json of a large vocabulary has 35 MB
LARGEST_HEADER_BYTES = 16 << 20  # of a safetensors file: 100,000 tensors
LARGEST_NUMBER = 1 << 24  # in a config; the largest vocabulary has 262,144, the longest text 10 M
MOST_LAYERS = 4096
MOST_ENTRIES = 100_000  # of a list

GENERATION, SPECIAL_TOKENS = "generation_config.json", "special_tokens_map.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
FILES = {CONFIG, GENERATION, INDEX, TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS} | {
    *("added_tokens.json", "vocab.json", "merges.txt", "boli.json")
}
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")

# Keys that many configs still have and no class names; transformers reads or overwrites them.
LEGACY_KEYS = {
    "model_type",
    "_name_or_path",
    "torch_dtype",
    "rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
    "head_dim",
    "use_cache",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "transformers_version",
}
TOKENIZER_KEYS = {
    *("add_bos_token", "add_eos_token", "add_prefix_space", "add_special_tokens"),
    *("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"),
    *("model_specific_special_tokens", "bos_token", "eos_token", "unk_token", "pad_token"),
    *("sep_token", "cls_token", "mask_token", "image_token", "audio_token", "backend"),
    *("clean_up_tokenization_spaces", "errors", "legacy", "model_max_length", "padding_side"),
    *("truncation_side", "split_special_tokens", "spaces_between_special_tokens"),
    *("tokenizer_class", "model_input_names", "use_default_system_prompt", "is_local"),
    "chat_template",  # text: nothing here renders it
}
SPECIAL_TOKEN_KEYS = {
    *("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"),
    *("additional_special_tokens", "extra_special_tokens"),
}
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes; parameters are of these alone
DTYPES = {**FLOATS, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
CONFIG_DTYPES = {"float32", "float16", "bfloat16"}


def is_allowed_name(name: str) -> bool:
    """Tell whether a file of this name may be part of a base that is sent."""
    return name in FILES or _WEIGHTS.fullmatch(name) is not None


def check_base(folder: Path, names: Collection[str]) -> None:
    """Refuse a base whose files, `names` in `folder`, are not all of what is known to be safe.

    Raises:
        ModelError: a file, a key or a number is not on the lists, or the weights are not what
            the config describes.
    """
    unknown = sorted(name for name in names if not is_allowed_name(name))
    if unknown:
        raise refused(f"a base may not have a file {unknown[0]!r}", f"allowed: {sorted(FILES)}")
    for name in (CONFIG, TOKENIZER):
        if name not in names:
            raise refused(f"the base has no {name}", "save model and tokenizer with transformers")
    try:
        _check_files(folder, names)
    except OSError as error:
        raise ModelError(f"cannot read the base: {error}", "copy the folder again") from None
    except ValueError as error:
        raise refused(f"a file of the base is damaged: {error}") from None


def _check_files(folder: Path, names: Collection[str]) -> None:
    refuse_code(folder)
    config = read_object(folder / CONFIG)
    _check_config(config)
    weights = {name for name in names if _WEIGHTS.fullmatch(name)}
    for name in names:
        if name not in weights and (folder / name).stat().st_size > LARGEST_TOKENIZER_BYTES:
            raise refused(f"{name} has more than {LARGEST_TOKENIZER_BYTES} bytes")
    if TOKENIZER_CONFIG in names:
        _check_tokenizer(folder / TOKENIZER_CONFIG)
    if SPECIAL_TOKENS in names:
        _allow_keys(folder / SPECIAL_TOKENS, SPECIAL_TOKEN_KEYS)
    if GENERATION in names:
        _check_generation(folder / GENERATION)
    if INDEX in names and shards_of(folder) != weights:
        raise refused(f"{INDEX} names other weights than the base has")
    if INDEX not in names and weights != {"model.safetensors"}:
        raise refused(f"the base has weights {sorted(weights)[:3]} and no {INDEX}")
    shapes: dict[str, int] = {}
    for name in sorted(weights):
        for tensor, count in _tensors(folder / name).items():
            if tensor in shapes:
                raise refused(f"the weights hold {tensor[:80]!r} twice")
            shapes[tensor] = count
    check_size(config, shapes)


def _allow_keys(path: Path, allowed: Collection[str]) -> dict[str, Any]:
    found = read_object(path)
    for key in found:
        if key not in allowed:
            raise refused(
                f"{path.name} of the base sets {key[:80]!r}, which is not on boli's list",
                "remove that key, if the base loads without it",
            )
    return found


def _check_tokenizer(path: Path) -> None:
    found = _allow_keys(path, TOKENIZER_KEYS)
    name = found.get("tokenizer_class")
    if found.get("backend", "tokenizers") != "tokenizers":
        raise refused(f"{path.name} asks for the backend {str(found['backend'])[:80]!r}")
    if name is not None:
        _check_tokenizer_class(name)


def _check_tokenizer_class(name: Any) -> None:
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    known = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_]{1,80}", name)
    found = tokenizer_class_from_name(name) if known else None
    if (
        found is None
        or not issubclass(found, TokenizersBackend)
        or not found.__module__.startswith("transformers.")
    ):
        raise refused(
            f"the base wants the tokenizer {str(name)[:80]!r}, which is none of transformers' "
            "fast ones",
            "save the tokenizer as tokenizer.json, with tokenizer_class PreTrainedTokenizerFast",
        )


def _check_generation(path: Path) -> None:
    from transformers import GenerationConfig

    known = {*GenerationConfig().to_dict(), *vars(GenerationConfig())}
    found = _allow_keys(path, known - CODE_KEYS)
    if any(isinstance(value, dict) for value in found.values()):
        raise refused(f"{path.name} of the base has a table; sites take numbers and words")


def _check_config(config: Mapping[str, Any]) -> None:
    """Refuse keys that the config's class does not know, and numbers beyond all models."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise refused(
            f"the base is a model of type {str(kind)[:80]!r}, which is no causal language model "
            "that transformers has built in",
            "choose one, or update transformers",
        )
    _check_table(config, CONFIG_MAPPING[kind], CONFIG)
    if config.get("tokenizer_class") is not None:
        _check_tokenizer_class(config["tokenizer_class"])


def _check_table(table: Mapping[str, Any], form: Any, where: str) -> None:
    """Check a table of a config against its class, and its tables against theirs."""
    known = known_keys(form)
    parts = form.sub_configs
    for key, value in table.items():
        if key not in known:
            raise refused(
                f"{where} of the base sets {key[:80]!r}, which {form.__name__} of transformers "
                "does not know",
                "remove that key, if the base loads without it",
            )
        if key in ("dtype", "torch_dtype") and value not in (None, *CONFIG_DTYPES):
            raise refused(f"{where} of the base has {key} {str(value)[:80]!r}")
        if key in parts and isinstance(value, dict):
            _check_table(value, _part_class(parts[key], value), f"{where}: {key}")
        else:
            _check_value(key, value, f"{where} of the base: {key}")


def known_keys(form: Any) -> set[str]:
    """Return the keys that a config's class declares, or writes by itself."""
    names = {field.name for field in dataclasses.fields(form)} | {"tokenizer_class"}
    names |= {*form.attribute_map, *form.attribute_map.values()} | LEGACY_KEYS
    with contextlib.suppress(Exception):  # a class that has no default
        names |= form().to_dict().keys()
    return names - CODE_KEYS


def _part_class(form: Any, table: Mapping[str, Any]) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

    if form is not AutoConfig:
        return form
    kind = table.get("model_type")
    if not isinstance(kind, str) or not is_built_in(kind):
        raise refused(f"a part of the base is of type {str(kind)[:80]!r}, which is not built in")
    return CONFIG_MAPPING[kind]


def _check_value(key: str, value: Any, where: str, depth: int = 0) -> None:
    """Refuse what is nested deeply, very long, or so large that building it would take all."""
    match value:
        case bool() | None:
            return
        case int() | float():
            most = MOST_LAYERS if "layers" in key or key == "n_layer" else LARGEST_NUMBER
            if not -most <= value <= most:  # also where it is no number
                raise refused(f"{where[:120]} is {str(value)[:20]}; at most {most} is taken")
        case str():
            if len(value) > 1000:
                raise refused(f"{where[:120]} has {len(value)} characters")
        case list() | dict():
            if depth > 2 or len(value) > MOST_ENTRIES:
                raise refused(f"{where[:120]} is nested too deeply, or too long")
            if isinstance(value, dict):
                for name in value.keys() & (CODE_KEYS | {"auto_map", "quantization_config"}):
                    raise refused(f"{where[:120]} sets {name}")
                for name, inner in value.items():
                    _check_value(name, inner, f"{where}.{name}", depth + 1)
            else:
                for inner in value:
                    _check_value(key, inner, where, depth + 1)


def _tensors(path: Path) -> dict[str, int]:
    """Return the tensors of a safetensors file with their numbers of parameters, from its header.

    Nothing is allocated for what a header claims: it has to fit into the file.

    Raises:
        ModelError: it does not, or a type or a shape is none that a base has.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(LARGEST_HEADER_BYTES, size - 8):
            raise refused(f"{path.name} has a header of {length} bytes in a file of {size}")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise refused(f"the header of {path.name} is not a JSON object")
    header.pop("__metadata__", None)
    end, counts = 0, {}
    for name, entry in sorted(header.items(), key=_offsets):
        counts[name] = _count(path.name, name, entry, end)
        end = entry["data_offsets"][1]
    if end != size - 8 - length:
        raise refused(f"{path.name} holds {size - 8 - length} bytes of weights and names {end}")
    return counts


def _offsets(item: tuple[str, Any]) -> tuple[int, int]:
    try:
        begin, end = item[1]["data_offsets"]
        return int(begin), int(end)
    except (KeyError, TypeError, ValueError, OverflowError):
        return -1, -1


def _count(file: str, name: str, entry: Any, start: int) -> int:
    """Return the parameters in a tensor whose bytes begin at `start`."""
    try:
        width, shape = DTYPES[entry["dtype"]], entry["shape"]
        begin, end = entry["data_offsets"]
        sound = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        count = math.prod(shape) if sound and len(shape) <= 8 else -1
    except (KeyError, TypeError, ValueError):
        raise refused(f"the header of {file} says nothing sound of {name[:80]!r}") from None
    if count < 0 or begin != start or end - begin != count * width:
        raise refused(f"the header of {file} claims bytes for {name[:80]!r} that it has not")
    return count if entry["dtype"] in FLOATS else 0


class _TooManyError(Exception):
    """A model has more modules than its weights can be for."""


def check_size(
    config: Mapping[str, Any],
    counts: Mapping[str, int],  # tensor to its number of parameters
) -> None:
    """Refuse a config that describes more parameters than the weights hold.

    The model is built without memory, and no further than its weights can reach.

    Raises:
        ModelError: it does, or it describes no model.
    """
    import torch
    from torch.nn.modules import module as hooks
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    most, seen, weights = 10 * len(counts) + 1000, 0, sum(counts.values())

    def count(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen > most:
            raise _TooManyError

    registration = hooks.register_module_module_registration_hook(count)
    try:
        form = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(form, trust_remote_code=False)
    except _TooManyError:
        raise refused(
            f"the config describes more layers than {len(counts)} tensors can be for"
        ) from None
    except Exception as error:  # transformers and torch have no common kind
        raise refused(f"the config describes no model: {type(error).__name__}: {error}") from error
    finally:
        registration.remove()
    described = sum(parameter.numel() for parameter in model.parameters())
    tables = sum(buffer.numel() for buffer in model.buffers())
    if described > weights or tables > weights + LARGEST_NUMBER:
        raise refused(
            f"the config describes {max(described, tables):,} entries, the weights hold "
            f"{weights:,}",
            "config.json and weights have to be of one model",
        )
