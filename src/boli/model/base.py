"""Load the frozen base and its tokenizer, or build a micro-LLM of the plan's own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch

from boli.corpus.pieces import as_text
from boli.durable import locked, storage_error, sync_folder, sync_tree
from boli.errors import ModelError, StorageError
from boli.model import memory
from boli.model.adapter import attach
from boli.model.local_steps import LocalSteps, PackedText, computes_in_half, token_lines
from boli.model.tokenizer import tokenizer_from_counts, train_tokenizer, words_in
from boli.plan import AdapterPlan, BasePlan, LocalStepsPlan, MicroPlan
from boli.pretrained import CONFIG, find_gguf, folder_of, load_model, load_part, load_tokenizer

BUILD_SECONDS = 3600.0  # that a process waits while another builds the same base
MICRO_FORMAT = 2  # of the folder that a micro-LLM is cached in; part of its hash


@dataclass
class Base:
    """A base model and its tokenizer, ready for an adapter."""

    model: Any  # a causal LM of transformers
    tokenizer: Any
    origin: str  # folder or hub id

    @property
    def max_length(self) -> int:
        """Tokens that the model can read at once."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 2048)


def home() -> Path:
    """Return where built bases and settings live: BOLI_HOME, or ~/.boli."""
    return Path(os.environ.get("BOLI_HOME") or Path.home() / ".boli")


def best_device() -> torch.device:
    """Return the first GPU where there is one, and the CPU elsewhere."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_base(
    origin: str,
    plan: BasePlan,
    steps: LocalStepsPlan,
    kind: str,
    device: torch.device,
    placed: bool = True,
) -> Base:
    """Load a causal LM from a folder or a hub id, in the precision that the plan asks for.

    Without `placed` its weights stay in main memory, in what `device` computes in.

    Raises:
        ModelError: it is not there, is not a causal LM, or its quantization cannot run here.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # The masters of `full` stay float32; everything else is frozen and can be half.
    half = kind != "full" and computes_in_half(steps, device)
    dtype = torch.bfloat16 if half else torch.float32
    options: dict[str, Any] = {"dtype": dtype}
    if plan.quantize == "4bit":
        options["quantization_config"] = _four_bits(dtype)
        options["device_map"] = {"": device}
    check_origin(origin)
    folder = folder_of(origin)
    try:
        tokenizer = load_part(transformers.AutoTokenizer, folder)
        model, found = load_model(
            transformers.AutoModelForCausalLM, folder, output_loading_info=True, **options
        )
    except ModelError:
        raise
    except Exception as error:  # they have no common kind
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"cannot load the base model {origin}: {first}",
            "model.base.path needs a folder with config.json, weights and a tokenizer, or a hub "
            "id that this machine can download",
        ) from error
    if found["missing_keys"]:  # they would be random numbers, others at every site
        first = min(found["missing_keys"])
        raise ModelError(f"the weights of {origin} lack {first}", "copy the whole folder again")
    if plan.quantize == "none":
        model = model.to(device) if placed else model
    else:
        _keep_weights_as_they_are(model)
    memory.return_what_is_free(model)
    return Base(model, tokenizer, origin)


def check_length(base: Base, steps: LocalStepsPlan) -> None:
    """Refuse sequences that are longer than the base can read.

    Raises:
        ModelError: they are.
    """
    if steps.sequence_length > base.max_length:
        raise ModelError(
            f"model.local_steps.sequence_length {steps.sequence_length} is above the "
            f"{base.max_length} tokens that {base.origin} can read",
            "lower it",
        )


def check_origin(origin: str) -> None:
    """Refuse a path that cannot be a base model's folder; a hub id is not looked up.

    Raises:
        ModelError: there is no model there.
    """
    if not origin.startswith(("/", ".", "~")) or (Path(origin) / "config.json").is_file():
        return
    if find_gguf(origin) is None:
        raise ModelError(
            f"there is no base model at {origin}",
            "model.base.path needs a folder with config.json, a GGUF file, or the id of a model "
            "hub",
        )


def _four_bits(dtype: torch.dtype) -> Any:
    """Return the QLoRA quantization: NF4 with double quantization.

    Source: Dettmers et al. 2023. https://arxiv.org/abs/2305.14314
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ModelError(
            'model.base.quantize = "4bit" needs bitsandbytes, which is not installed',
            "pip install 'boli[qlora]'",
        ) from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _keep_weights_as_they_are(model: Any) -> None:
    """Stop bitsandbytes from repacking the weights of a CPU when a model is judged.

    Some CPUs have a faster product for a packed form; it cannot be trained on,
    is not the same bit for bit, and fails for rows shorter than a block.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def micro_digest(
    plan: MicroPlan,
    lines: Sequence[str],
    counts: Sequence[Mapping[str, int]] = (),  # of pieces, by site
) -> str:
    """Return the hash of everything that a micro-LLM is made from.

    Raises:
        ModelError: there is no tokenizer where the plan says that there is one.
    """
    # Where a tokenizer lies is nothing of what it is; whose words it is of is seen by `counts`.
    described = plan.model_dump_json(exclude={"tokenizer"})
    digest = hashlib.sha256(f"{MICRO_FORMAT}\n{described}\n".encode())
    if plan.tokenizer_folder is not None:
        try:
            digest.update((Path(plan.tokenizer_folder) / "tokenizer.json").read_bytes())
        except OSError as error:
            raise ModelError(
                f"cannot read a tokenizer.json in {plan.tokenizer_folder}: {error.strerror}",
                "model.base.micro.tokenizer needs a folder with a tokenizer, as transformers "
                'saves it; or "auto", "sites" or "base"',
            ) from error
    digest.update("\n".join(lines).encode())
    for text in sorted(map(as_text, counts)):
        digest.update(f"\0{text}".encode())
    return digest.hexdigest()[:16]


def micro_config(plan: MicroPlan, end: int = 0) -> Any:
    """Return the Llama configuration of a micro-LLM."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=plan.vocabulary_size,
        hidden_size=plan.hidden_size,
        intermediate_size=plan.intermediate_size,
        num_hidden_layers=plan.num_layers,
        num_attention_heads=plan.num_heads,
        num_key_value_heads=plan.num_heads,
        max_position_embeddings=plan.max_length,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        initializer_range=0.02,
    )


def micro_model(plan: MicroPlan, end: int = 0) -> Any:
    """Return a micro-LLM with random weights that depend only on the plan's seed."""
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        return LlamaForCausalLM(micro_config(plan, end))


def micro_tokenizer(
    plan: MicroPlan, lines: Sequence[str], counts: Sequence[Mapping[str, int]] = ()
) -> Any:
    """Return the tokenizer of a micro-LLM: the one that the plan names, or one of these words.

    Raises:
        ModelError: it has no end token, or more pieces than the model.
    """
    folder = plan.tokenizer_folder
    if folder is None and counts:
        return tokenizer_from_counts([words_in(lines), *counts], plan.vocabulary_size)
    if folder is None:
        return train_tokenizer(lines, plan.vocabulary_size)
    found = load_tokenizer(folder)
    if found.eos_token_id is None:
        raise ModelError(
            f"the tokenizer in {folder} has no end token",
            "set eos_token in its tokenizer_config.json",
        )
    if len(found) > plan.vocabulary_size:
        raise ModelError(
            f"the tokenizer in {folder} has {len(found)} pieces, above "
            f"model.base.micro.vocabulary_size {plan.vocabulary_size}",
            f"set it to {len(found)}",
        )
    return found


def build_micro(
    plan: MicroPlan,
    lines: Sequence[str],
    progress: Callable[[int, int, float], None] = lambda _step, _of, _loss: None,
    counts: Sequence[Mapping[str, int]] = (),  # of pieces of words, by site
) -> Path:
    """Return the folder of a pre-trained micro-LLM; built once, then found by content hash.

    `progress` gets the step, their number, and the loss. The tokenizer is made from the words
    of `lines`, and of the pieces that sites have sent, if there are any.

    Raises:
        StorageError: the cache cannot be written.
    """
    return built(
        micro_digest(plan, lines, counts),
        lambda folder: _pretrain(plan, lines, folder, progress, counts),
    )


def built(name: str, build: Callable[[Path], None]) -> Path:
    """Return the folder of a base in the cache; `build` fills it, once for all processes.

    Raises:
        StorageError: the cache cannot be written.
    """
    bases = home() / "bases"
    folder = bases / name
    if (folder / "config.json").is_file():
        return folder
    unfinished = bases / f".building-{name}"
    with locked(bases / f".{name}", "the base that is built in", BUILD_SECONDS):
        if (folder / "config.json").is_file():  # another process built it meanwhile
            return folder
        try:
            shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
            unfinished.mkdir()
            build(unfinished)
            sync_tree(unfinished)
            unfinished.rename(folder)
            sync_folder(bases)
        except OSError as error:
            raise storage_error(folder, error) from error
        except safetensors.SafetensorError as error:  # how it tells of a full disk
            raise StorageError(f"cannot write {unfinished}: {error}", "free some space") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def save_base(model: Any, folder: Path) -> None:
    """Write a model as transformers has it, to be computed in float32 if it is kept in float16.

    Whoever loads it takes the precision that its config names. In float16 what passes between
    the layers of Gemma 3 overflows, though its weights do not.
    """
    half = model.dtype == torch.float16
    model.save_pretrained(folder)
    if half:
        path = folder / CONFIG
        config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def kept_in(folder: Path) -> torch.dtype | str:
    """Return float16 where all weights of a folder are kept in it, and "auto" elsewhere."""
    found = set()
    for path in folder.glob("*.safetensors"):
        with safetensors.safe_open(str(path), "pt") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return torch.float16 if found == {"F16"} else "auto"


def _pretrain(
    plan: MicroPlan,
    lines: Sequence[str],
    folder: Path,
    progress: Callable[[int, int, float], None],
    counts: Sequence[Mapping[str, int]],
) -> None:
    import transformers

    tokenizer = micro_tokenizer(plan, lines, counts)
    model = micro_model(plan, tokenizer.eos_token_id).to(best_device())
    adapter = attach(model, AdapterPlan(kind="full"))
    steps_plan = LocalStepsPlan(
        batch_sequences=plan.batch_sequences,
        sequence_length=plan.sequence_length,
        optimizer=plan.optimizer,
        learning_rate=plan.learning_rate,
        muon_learning_rate=plan.muon_learning_rate,
        beta2=0.95 if plan.optimizer == "muon" else 0.99,
        weight_decay=0.01,
        final_learning_rate=0.05,
        compile="off",
    )
    text = PackedText(list(token_lines(tokenizer, lines)), plan.sequence_length, plan.seed)
    steps = LocalSteps(model, adapter, text, steps_plan)

    def after_step(done: int, loss: float) -> bool:
        progress(done, plan.steps, loss)
        return True

    steps.run(lambda: plan.steps, 0.0, 1.0 / plan.steps, after_step)
    transformers.utils.logging.disable_progress_bar()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # its own storage, not a part of the flat one
    model.eval().cpu().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "boli.json").write_text(
        json.dumps({"micro": plan.model_dump(), "lines": len(lines)}, indent=2) + "\n"
    )
