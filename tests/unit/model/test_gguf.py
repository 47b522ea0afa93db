from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from boli.errors import ModelError
from boli.model.base import check_origin, kept_in
from boli.model.framing import framing_of
from boli.model.gguf import build_from_gguf, read_header
from boli.pretrained import find_gguf

gguf = pytest.importorskip("gguf", reason="gguf is not installed")

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers.": "blk.",
}


def write_gguf(path: Path, folder: Path, architecture: str = "qwen2", **changed: Any) -> Path:
    """Write a saved tiny Qwen 2 as GGUF; `changed` replaces numbers of its metadata."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    numbers = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
    }
    for name, value in (numbers | changed).items():
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32(f"{architecture}.rope.freq_base", config.rope_parameters["rope_theta"])
    inner = tokenizer.backend_tokenizer
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])[: config.vocab_size]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([piece for piece, _ in pieces])
    special = set(tokenizer.all_special_tokens)
    writer.add_token_types([3 if piece in special else 1 for piece, _ in pieces])
    merges = json.loads(inner.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    for name, parameter in model.named_parameters():
        for old, new in NAMES.items():
            name = name.replace(old, new)
        writer.add_tensor(name, parameter.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def small(
    family_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Return a GGUF file, and the folder that it was made from."""
    folder = family_folder("qwen2")
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", folder), folder


def test_gguf_becomes_a_folder_that_plain_transformers_loads(small: tuple[Path, Path]) -> None:
    path, origin = small
    folder = build_from_gguf(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = transformers.AutoModelForCausalLM.from_pretrained(origin, dtype=torch.float32)
    tokens = torch.arange(40).view(2, 20)
    # Half precision on the disk, and yet not what it is computed in.
    assert kept_in(folder) == torch.float16
    assert transformers.AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32
    assert torch.allclose(model(tokens).logits, before(tokens).logits, atol=2e-2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("गया, पटना")["input_ids"]) == "गया, पटना"
    assert framing_of(tokenizer).begin == (0,)
    assert not list(folder.glob("*.gguf"))
    assert build_from_gguf(path) == folder  # found again, by its content


def test_header_says_what_the_file_holds(small: tuple[Path, Path]) -> None:
    path, origin = small
    header = read_header(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(origin)
    assert header.architecture == "qwen2"
    assert header.num_parameters == sum(p.numel() for p in model.parameters())
    assert header.facts["qwen2.block_count"] == 2


@pytest.mark.parametrize("share", [0.0001, 0.02, 0.3, 0.7, 0.9999])
def test_file_that_was_cut_short_is_refused(
    small: tuple[Path, Path], tmp_path: Path, share: float
) -> None:
    data = small[0].read_bytes()
    path = tmp_path / "short.gguf"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match=r"cut short|no GGUF"):
        read_header(path)


@pytest.mark.parametrize(
    ("offset", "value", "problem"),
    [
        (0, b"GGUX", "no GGUF file of version 2 or 3"),
        (4, struct.pack("<I", 9), "no GGUF file of version 2 or 3"),
        (8, struct.pack("<Q", 1 << 60), "tensors; at most"),
        (16, struct.pack("<Q", 1 << 60), "keys and"),
        (24, struct.pack("<Q", 1 << 60), "a string of"),
    ],
)
def test_made_up_numbers_are_refused_before_anything_is_allocated(
    small: tuple[Path, Path], tmp_path: Path, offset: int, value: bytes, problem: str
) -> None:
    data = bytearray(small[0].read_bytes())
    data[offset : offset + len(value)] = value
    path = tmp_path / "wrong.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=problem):
        read_header(path)


def test_random_damage_of_the_header_is_refused_or_read(
    small: tuple[Path, Path], tmp_path: Path
) -> None:
    data = np.frombuffer(small[0].read_bytes(), np.uint8)
    draw = np.random.default_rng(0)
    path = tmp_path / "damaged.gguf"
    for _ in range(200):
        damaged = data.copy()
        damaged[draw.integers(0, 9000, 3)] = draw.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        with contextlib.suppress(ModelError):
            read_header(path)


def test_unknown_architecture_is_refused_with_the_list_of_known_ones(
    small: tuple[Path, Path], tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "other.gguf", small[1], architecture="mamba")
    with pytest.raises(ModelError, match="architecture 'mamba'") as caught:
        read_header(path)
    assert "Gemma 3" in caught.value.hint
    assert "BLOOM" in caught.value.hint


def test_metadata_that_describes_a_larger_model_is_refused(
    small: tuple[Path, Path], tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "deep.gguf", small[1], block_count=4000)
    with pytest.raises(ModelError, match="describes more"):
        build_from_gguf(path)


def test_part_of_a_split_file_is_refused(small: tuple[Path, Path], tmp_path: Path) -> None:
    data = small[0].read_bytes()
    key, number = b"split.count", len(b"split.count")
    head = struct.unpack_from("<IQQ", data, 4)
    entry = struct.pack("<Q", number) + key + struct.pack("<IH", 2, 3)
    path = tmp_path / "part.gguf"
    path.write_bytes(
        b"GGUF" + struct.pack("<IQQ", head[0], head[1], head[2] + 1) + entry + data[24:]
    )
    with pytest.raises(ModelError, match="one of 3 parts"):
        read_header(path)


def test_gguf_is_found_by_its_path_or_in_its_folder(
    small: tuple[Path, Path], tmp_path: Path
) -> None:
    path, origin = small
    assert find_gguf(str(path)) == path
    assert find_gguf(str(path.parent)) == path
    assert find_gguf(str(origin)) is None  # it has a config.json
    assert find_gguf("someone/model") is None
    check_origin(str(path))
    (tmp_path / "a.gguf").touch()
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ModelError, match="holds 2 GGUF files"):
        find_gguf(str(tmp_path))
