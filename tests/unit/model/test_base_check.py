"""A base that somebody else sent: what is on the lists is taken, all else is refused."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from boli.errors import ModelError
from boli.model import base_check
from boli.model.base_check import check_base, is_allowed_name


@pytest.fixture
def copied(family_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a copy of a small Llama that a test may spoil."""
    return Path(shutil.copytree(family_folder("llama"), tmp_path / "copy"))


def check(folder: Path) -> None:
    check_base(folder, [path.name for path in folder.iterdir()])


def change(folder: Path, name: str = "config.json", **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_every_family_passes(family: Path) -> None:
    check(family)


def test_base_that_boli_builds_passes(micro_base: Path) -> None:
    check(micro_base)


def test_sharded_base_passes(copied: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(copied)
    (copied / "model.safetensors").unlink()
    model.save_pretrained(copied, max_shard_size="20KB")
    assert len(list(copied.glob("model-*.safetensors"))) > 1
    check(copied)
    next(copied.glob("model-*.safetensors")).unlink()
    with pytest.raises(ModelError, match="names other weights"):
        check(copied)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3_text", "gpt2", "mistral"])
def test_config_that_transformers_writes_itself_passes(kind: str) -> None:
    form = CONFIG_MAPPING[kind]
    base_check._check_config(json.loads(form().to_json_string(use_diff=False)))


def test_most_configs_that_transformers_writes_pass() -> None:
    refused = {}
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            said = json.loads(CONFIG_MAPPING[kind]().to_json_string())
        except Exception:  # a class that has no defaults, or whose library is not installed
            continue
        try:
            base_check._check_config(said)
        except ModelError as error:
            refused[kind] = error.problem
    assert len(refused) < 20, refused


@pytest.mark.parametrize(
    "name",
    [
        *("model.bin", "pytorch_model.bin", "model.py", "chat_template.jinja", "tokenizer.model"),
        *("adapter_config.json", "../config.json", "config.json\n", "model-1-of-2.safetensors"),
        *("model.safetensors.bin", "CONFIG.JSON", "", "training_args.bin"),
    ],
)
def test_other_file_is_refused(name: str, copied: Path) -> None:
    assert not is_allowed_name(name)
    names = [path.name for path in copied.iterdir()]
    with pytest.raises(ModelError, match="may not have a file"):
        check_base(copied, [*names, name])


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_base_without_its_parts_is_refused(name: str, copied: Path) -> None:
    (copied / name).unlink()
    with pytest.raises(ModelError, match="has no"):
        check(copied)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"auto_map": {"AutoConfig": "a.B"}}, "auto_map"),
        ({"custom_pipelines": {}}, "custom_pipelines"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"quantization_config": {"quant_method": "x"}}, "quantization_config"),
        ({"name_or_path": "/etc"}, "name_or_path"),
        ({"never_heard_of": 1}, "never_heard_of"),
        ({"model_type": "vit"}, "no causal language model"),
        ({"model_type": ["llama"]}, "no causal language model"),
        ({"dtype": "__dict__"}, "dtype"),
        ({"torch_dtype": "load"}, "torch_dtype"),
        ({"tokenizer_class": "EvilTokenizer"}, "none of transformers"),
        ({"num_hidden_layers": 4000}, "more layers than"),
        ({"num_hidden_layers": 10**12}, "at most 4096"),
        ({"hidden_size": 10**6}, "the weights hold"),
        ({"vocab_size": 10**9}, "at most"),
        ({"max_position_embeddings": 10**300}, "at most"),
        ({"rope_parameters": {"attn_implementation": "x"}}, "attn_implementation"),
        ({"rope_parameters": {"a": {"b": {"c": {"d": 1}}}}}, "nested"),
        ({"architectures": ["x"] * 200_000}, "too long"),
        ({"architectures": ["x" * 2000]}, "characters"),
        ({"hidden_act": "evil"}, "describes no model"),
    ],
)
def test_other_config_is_refused(values: dict[str, Any], words: str, copied: Path) -> None:
    change(copied, **values)
    with pytest.raises(ModelError, match=words) as caught:
        check(copied)
    assert caught.value.code == "model.refused"


def test_number_that_is_none_is_refused(copied: Path) -> None:
    change(copied, rms_norm_eps=float("nan"))
    with pytest.raises(ModelError, match="NaN"):
        check(copied)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"auto_map": {"AutoTokenizer": ["a.B", None]}}, "auto_map"),
        ({"tokenizer_file": "/etc/passwd"}, "tokenizer_file"),
        ({"vocab_file": "/etc/passwd"}, "vocab_file"),
        ({"init_inputs": [1]}, "init_inputs"),
        ({"name_or_path": "x"}, "name_or_path"),
        ({"backend": "mistral_common"}, "backend"),
        ({"tokenizer_class": "ByT5Tokenizer"}, "none of transformers"),
        ({"tokenizer_class": "../x"}, "none of transformers"),
        ({"tokenizer_class": 7}, "none of transformers"),
    ],
)
def test_other_tokenizer_is_refused(values: dict[str, Any], words: str, copied: Path) -> None:
    change(copied, "tokenizer_config.json", **values)
    with pytest.raises(ModelError, match=words):
        check(copied)


def test_chat_template_of_a_tokenizer_is_text_and_passes(copied: Path) -> None:
    change(copied, "tokenizer_config.json", chat_template="{{ evil() }}")
    check(copied)


def test_generation_config_with_code_is_refused(copied: Path) -> None:
    change(copied, "generation_config.json", custom_generate="x")
    with pytest.raises(ModelError, match="custom_generate"):
        check(copied)


# Weights


def weights(folder: Path, header: Any, content: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    start = struct.pack("<Q", len(text) if length is None else length)
    (folder / "model.safetensors").write_bytes(start + text + content)


def tensor(shape: Any, begin: int, end: int, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "content", "length"),
    [
        pytest.param({}, b"", 1 << 62, id="endless header"),
        pytest.param({}, b"", 0, id="no header"),
        pytest.param(b"\xff" * 20, b"", None, id="no JSON"),
        pytest.param(b"[" * 100_000, b"", None, id="deep"),
        pytest.param([], b"", None, id="no object"),
        pytest.param({"a": 7}, b"", None, id="no entry"),
        pytest.param({"a": tensor([1 << 40], 0, 1 << 42)}, b"", None, id="terabytes"),
        pytest.param({"a": tensor([4], 0, 8)}, b"x" * 8, None, id="too few bytes"),
        pytest.param({"a": tensor([-2, -1], 0, 8)}, b"x" * 8, None, id="below zero"),
        pytest.param({"a": tensor([True, 2], 0, 8)}, b"x" * 8, None, id="truth"),
        pytest.param({"a": tensor([2.0], 0, 8)}, b"x" * 8, None, id="fraction"),
        pytest.param({"a": tensor([2], 0, 8, "F8_E4M3")}, b"x" * 8, None, id="other dtype"),
        pytest.param({"a": tensor([2], 0, 8, [])}, b"x" * 8, None, id="no dtype"),
        pytest.param({"a": tensor([2], 4, 12)}, b"x" * 12, None, id="gap"),
        pytest.param(
            {"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, b"x" * 12, None, id="overlap"
        ),
        pytest.param({"a": tensor([2], 0, 8)}, b"x" * 99, None, id="rest"),
        pytest.param({"a": tensor([1] * 9, 0, 4)}, b"x" * 4, None, id="many dimensions"),
        pytest.param({"a": tensor([2], 0, 8)}, b"x" * 8, None, id="too few for the config"),
        pytest.param(
            {"a": tensor([50_000], 0, 50_000, "U8")}, b"x" * 50_000, None, id="no parameters"
        ),
    ],
)
def test_weights_that_lie_are_refused(
    header: Any, content: bytes, length: int | None, copied: Path
) -> None:
    weights(copied, header, content, length)
    with pytest.raises(ModelError) as caught:
        check(copied)
    assert caught.value.code == "model.refused"
