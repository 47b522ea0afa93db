"""A base from a GGUF file: looked at as data, dequantized, and kept as safetensors.

Nothing of the file is believed before it was held against the file's own size: counts, lengths
and offsets are bounded, so that a file that was cut short or made up is refused, not loaded.

Source: the GGUF format, versions 2 and 3, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boli.errors import ModelError
from boli.model.base import built, save_base
from boli.model.base_check import check_base, check_size, is_allowed_name, known_keys
from boli.model.framing import framing_of
from boli.pretrained import load_gguf, load_part, refused

FORMAT = 2  # of what a file is converted to; part of the cache's name
# What general.architecture may be, and which models have it.
ARCHITECTURES = {
    "llama": "Llama, Mistral, SmolLM2",
    "mistral": "Mistral",
    "gemma3": "Gemma 3",
    "qwen2": "Qwen 2 and 2.5",
    "qwen3": "Qwen 3",
    "bloom": "BLOOM",
}
LARGEST_GGUF_BYTES = 64 << 30
LARGEST_HEADER_BYTES = 256 << 20  # Gemma 3 has 6 MB: 262,144 pieces with scores
MOST_KEYS = 4096
MOST_TENSORS = 100_000
MOST_VALUES = 1 << 22  # of an array; the most merges known are 514,906
LONGEST_STRING = 1 << 20  # bytes; chat templates are the longest
LARGEST_HALF = 60_000.0
BLOCK_BYTES = 1 << 20

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"} | {
    12: "d"
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufHeader:
    """What a sound GGUF file says of itself."""

    architecture: str
    facts: Mapping[str, Any]  # numbers and short strings of its metadata
    tensors: Mapping[str, int]  # name to number of parameters

    @property
    def num_parameters(self) -> int:
        """Entries of all tensors."""
        return sum(self.tensors.values())


class _Reader:
    """Reads the header; every read is held against the end of the file."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self.data, self.name, self.position = data, name, 0
        self.end = min(len(data), LARGEST_HEADER_BYTES)

    def _advance(self, size: int) -> int:
        start = self.position
        if size > self.end - start:
            raise _cut_short(self.name, f"its header goes on behind byte {self.end}")
        self.position += size
        return start

    def number(self, code: str) -> Any:
        start = self._advance(struct.calcsize(f"<{code}"))
        return struct.unpack_from(f"<{code}", self.data, start)[0]

    def string(self) -> str:
        length = self.number("Q")
        if length > LONGEST_STRING:
            raise refused(f"{self.name} has a string of {length} bytes; at most {LONGEST_STRING}")
        start = self._advance(length)
        return self.data[start : start + length].decode("utf-8", "replace")

    def value(self) -> Any:
        """Return a number or a string; of an array its length."""
        kind = self.number("I")
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise refused(f"{self.name} has metadata of type {kind}, which GGUF does not have")
        kind, count = self.number("I"), self.number("Q")
        if count > MOST_VALUES:
            raise refused(f"{self.name} has an array of {count} values; at most {MOST_VALUES}")
        if kind == _STRING:
            for _ in range(count):
                self.string()
        elif kind in _SCALARS:
            self._advance(count * struct.calcsize(f"<{_SCALARS[kind]}"))
        else:
            raise refused(f"{self.name} has an array of type {kind}, which no base needs")
        return count


def _cut_short(name: str, why: str) -> ModelError:
    return refused(f"{name} was cut short: {why}", "copy or download it again, and compare sizes")


def read_header(path: Path) -> GgufHeader:
    """Read what a GGUF file says of itself, and hold it against the file's size.

    Raises:
        ModelError: it is no GGUF file, was cut short, is beyond what bases have, or is of an
            architecture that is not on the list.
    """
    try:
        size = path.stat().st_size
        if not 24 <= size <= LARGEST_GGUF_BYTES:
            raise refused(f"{path.name} has {size} bytes, which no GGUF base has")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Reader(data, path.name), size)
    except OSError as error:
        raise ModelError(
            f"cannot read {path}: {error.strerror}", "model.base.path needs a file that is there"
        ) from error


def _parse(reader: _Reader, size: int) -> GgufHeader:
    magic, version = reader.number("4s"), reader.number("I")
    if magic != b"GGUF" or version not in (2, 3):
        raise refused(
            f"{reader.name} is no GGUF file of version 2 or 3 (it begins with {magic!r}, {version})"
        )
    num_tensors, num_keys = reader.number("Q"), reader.number("Q")
    if num_keys > MOST_KEYS or not 1 <= num_tensors <= MOST_TENSORS:
        raise refused(
            f"{reader.name} claims {num_keys} keys and {num_tensors} tensors; at most {MOST_KEYS} "
            f"and {MOST_TENSORS} are taken"
        )
    facts = {}
    for _ in range(num_keys):
        key = reader.string()
        facts[key] = reader.value()
    architecture = facts.get("general.architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(f"{name} ({models})" for name, models in ARCHITECTURES.items())
        raise refused(
            f"{reader.name} is of the architecture {str(architecture)[:80]!r}, which boli does not "
            "load",
            f"choose a base of one of these: {known}",
        )
    if facts.get("split.count", 1) not in (0, 1):
        raise refused(
            f"{reader.name} is one of {facts['split.count']} parts",
            "put them together: llama-gguf-split --merge",
        )
    tensors = _tensors(reader, num_tensors, facts.get("general.alignment", 32), size)
    return GgufHeader(str(architecture), facts, tensors)


def _tensors(reader: _Reader, number: int, alignment: Any, size: int) -> dict[str, int]:
    sizes = {int(kind): pair for kind, pair in _library().GGML_QUANT_SIZES.items()}
    counts: dict[str, int] = {}
    end = 0
    for _ in range(number):
        name, num_dimensions = reader.string(), reader.number("I")
        if num_dimensions > 4 or name in counts:
            raise refused(f"{reader.name} has a tensor {name[:80]!r} twice, or of strange shape")
        shape = [reader.number("Q") for _ in range(num_dimensions)]
        kind, offset = reader.number("I"), reader.number("Q")
        if kind not in sizes:
            raise refused(f"{reader.name} has weights of type {kind}, which is not known")
        block, width = sizes[kind]
        counts[name] = math.prod(shape)
        if counts[name] % block:
            raise refused(f"{reader.name}: {name[:80]!r} is not made of whole blocks")
        end = max(end, offset + counts[name] // block * width)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16:
        raise refused(f"{reader.name} aligns its weights to {str(alignment)[:20]} bytes")
    start = -(-reader.position // alignment) * alignment
    if start + end > size:
        raise _cut_short(reader.name, f"it has {size} bytes, and names {start + end}")
    return counts


def _library() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ModelError(
            "a base from a GGUF file needs the package gguf, which is not installed",
            "pip install 'boli[gguf]'",
        ) from error
    return gguf


def build_from_gguf(path: Path) -> Path:
    """Return the folder of a GGUF file's base as transformers has it; converted once a content.

    Raises:
        ModelError: the file is not sound, or too large for this machine's memory.
        StorageError: the cache cannot be written.
    """
    header = read_header(path)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * header.num_parameters > memory:
        raise ModelError(
            f"{path.name} has {header.num_parameters:,} parameters, which take "
            f"{4 * header.num_parameters:,} bytes; this machine has {memory:,}",
            "choose a smaller base, or convert it on a larger machine and give the folder",
        )
    digest = hashlib.sha256(f"{FORMAT}\n".encode())
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return built(digest.hexdigest()[:16], lambda folder: _convert(path, header, folder))


def _convert(path: Path, header: GgufHeader, folder: Path) -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    link = folder / "weights.gguf"
    link.symlink_to(path.resolve())
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars that nothing else turns off
            config = load_gguf(transformers.AutoConfig, folder, link.name)
            check_size(config.to_dict(), header.tensors)
            tokenizer = load_gguf(transformers.AutoTokenizer, folder, link.name)
            model, found = load_gguf(
                transformers.AutoModelForCausalLM,
                folder,
                link.name,
                dtype="float32",
                output_loading_info=True,
            )
    except ModelError:
        raise
    except Exception as error:  # they have no common kind
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise refused(f"cannot load {path.name}: {first[:300]}") from error
    finally:
        link.unlink()
    lacking = set(found["missing_keys"]) - set(getattr(model, "_tied_weights_keys", None) or ())
    if lacking:  # they would be random numbers
        raise refused(f"the weights of {path.name} lack {min(lacking)}")
    _save(model, tokenizer, folder)
    if framing_of(load_part(transformers.AutoTokenizer, folder)) != framing_of(tokenizer):
        raise ModelError(
            f"the tokenizer of {path.name} begins texts otherwise once it was saved",
            "convert it with transformers, and give the folder",
        )
    about = {"gguf": path.name, "architecture": header.architecture}
    (folder / "boli.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
    check_base(folder, [file.name for file in folder.iterdir() if is_allowed_name(file.name)])


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a dequantized model as if it had never been anything else."""
    import torch

    model.is_quantized, model.hf_quantizer = False, None
    for key in model.config.to_dict().keys() - known_keys(type(model.config)):
        if hasattr(model.config, key):  # quantization_config, and what GGUF alone knows
            delattr(model.config, key)
    # Blocks of a few bits have 16-bit scales: half precision holds what they say.
    largest = max(float(p.detach().abs().max()) for p in model.parameters())
    model = model.to(torch.float16) if largest < LARGEST_HALF else model
    save_base(model, folder)
    tokenizer.init_kwargs.pop("local_files_only", None)  # how it was loaded, not what it is
    tokenizer.save_pretrained(folder)
