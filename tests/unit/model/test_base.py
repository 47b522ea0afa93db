from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from boli.durable import locked
from boli.errors import ModelError, SiteError, StorageError
from boli.model.base import (
    Base,
    build_micro,
    home,
    load_base,
    micro_digest,
    micro_model,
)
from boli.plan import BasePlan, LocalStepsPlan, MicroPlan

CPU = torch.device("cpu")
TINY = MicroPlan(
    vocabulary_size=300,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    intermediate_size=16,
    max_length=32,
    steps=3,
    batch_sequences=2,
    sequence_length=16,
)
Lines = Callable[[str, int], list[str]]


def load(folder: Path, kind: str = "lora", **values: Any) -> Base:
    plan = BasePlan(path=str(folder), language="hin", **values)
    return load_base(str(folder), plan, LocalStepsPlan(precision="fp32"), kind, CPU)


@pytest.fixture
def copied(family_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a copy of a small Llama that a test may spoil."""
    return Path(shutil.copytree(family_folder("llama"), tmp_path / "copy"))


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a BOLI_HOME in which nothing was built yet."""
    monkeypatch.setenv("BOLI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("boli.model.base.best_device", lambda: CPU)  # where sums are repeatable
    return tmp_path / "home"


# --- loading


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "qwen2",
        "qwen3",
        pytest.param(
            "bloom",
        ),
    ],
)
def test_every_family_loads_from_a_folder(family_folder: Callable[[str], Path], name: str) -> None:
    import transformers

    base = load(family_folder(name))
    reference = transformers.AutoModelForCausalLM.from_pretrained(family_folder(name))
    tokens = base.tokenizer("गया जाइब", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(base.model(tokens).logits, reference.eval()(tokens).logits)
    assert base.origin == str(family_folder(name))
    assert {p.dtype for p in base.model.parameters()} == {torch.float32}


def test_base_is_half_precision_unless_all_of_it_is_trained(
    family_folder: Callable[[str], Path],
) -> None:
    folder = family_folder("llama")
    plan = BasePlan(path=str(folder), language="hin")
    half = LocalStepsPlan(precision="bf16")
    for kind, dtype in (("lora", torch.bfloat16), ("full", torch.float32)):
        base = load_base(str(folder), plan, half, kind, CPU)
        assert base.model.dtype == dtype
    auto = load_base(str(folder), plan, LocalStepsPlan(), "lora", CPU)
    assert auto.model.dtype == torch.float32  # on a CPU


def test_longest_text_is_the_one_that_the_model_can_read(micro_base: Path, load_tiny: Any) -> None:
    base = load_tiny(micro_base)
    assert base.max_length == 64
    del base.model.config.max_position_embeddings
    assert base.max_length == 2048


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ModelError, match=f"there is no base model at {path}") as caught:
            load(path)
        assert "config.json" in caught.value.hint


def spoil(folder: Path, name: str, content: bytes | None) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{}"),
        ("config.json", b'{"model_type": "never-heard-of"}'),
        ("config.json", b"{"),
        ("model.safetensors", None),
        pytest.param("model.safetensors", b"torn"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"torn"),
    ],
)
def test_spoilt_folder_is_a_model_error(copied: Path, name: str, content: bytes | None) -> None:
    spoil(copied, name, content)
    with pytest.raises(ModelError, match=r"cannot (load the base model|read .*config.json)"):
        load(copied)


def test_torn_weights_are_a_model_error(copied: Path) -> None:
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot load the base model"):
        load(copied)


def test_model_that_is_no_causal_lm_is_refused(copied: Path) -> None:
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot load the base model"):
        load(copied)


def test_four_bits_without_bitsandbytes_name_the_extra(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    with pytest.raises(ModelError, match="bitsandbytes, which is not installed") as caught:
        load(copied, quantize="4bit")
    assert "boli[qlora]" in caught.value.hint


@pytest.mark.filterwarnings("ignore")  # bitsandbytes says what it lacks on a CPU
def test_adapter_trains_on_a_four_bit_base(copied: Path) -> None:
    import numpy as np

    from boli.evaluation.metrics import bits_per_byte
    from boli.model.adapter import attach
    from boli.model.local_steps import LocalSteps, PackedText
    from boli.plan import AdapterPlan, LocalStepsPlan

    base = load(copied, quantize="4bit")
    assert any("4bit" in type(module).__name__ for module in base.model.modules())
    adapter = attach(base.model, AdapterPlan(rank=4))
    before = adapter.read()
    packed = {n: p.clone() for n, p in base.model.named_parameters() if p.dtype == torch.uint8}
    bits_per_byte(base.model, base.tokenizer, ["judged before it trains"], 64)
    text = PackedText([np.arange(640, dtype=np.uint32) % 300], 32, 0)
    settings = LocalStepsPlan(sequence_length=32, batch_sequences=2, learning_rate=1e-2)
    done = LocalSteps(base.model, adapter, text, settings).run(lambda: 4, 0.5, 0.0)
    assert done is not None
    assert done.count == 4
    assert not np.array_equal(adapter.read(), before)
    assert packed
    for name, parameter in base.model.named_parameters():
        assert name not in packed or torch.equal(parameter, packed[name]), name


# --- micro-LLMs


def test_random_start_depends_on_the_seed_of_the_plan_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = micro_model(TINY)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    two, other = micro_model(TINY), micro_model(TINY.model_copy(update={"seed": 1}))
    mine, theirs = (m.model.embed_tokens.weight for m in (one, two))
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine, other.model.embed_tokens.weight)


def test_micro_base_of_a_plan_is_a_folder_that_loads(micro_base: Path, load_tiny: Any) -> None:
    assert micro_base.parent == home() / "bases"
    base = load_tiny(micro_base)
    assert type(base.model).__name__ == "LlamaForCausalLM"
    assert base.model.config.vocab_size == 320
    assert base.model.config.eos_token_id == base.tokenizer.eos_token_id
    assert base.model.lm_head.weight is base.model.model.embed_tokens.weight
    size = (micro_base / "model.safetensors").stat().st_size
    entries = sum(p.numel() for p in base.model.parameters())
    assert 4 * entries < size < 4 * entries + 10_000  # each weight once, in its own storage
    assert {path.name for path in micro_base.parent.iterdir() if path.is_dir()} >= {micro_base.name}
    assert not list(micro_base.parent.glob(".building-*"))


def test_pretraining_learns_the_text(
    empty_home: Path, made_up_lines: Lines, load_tiny: Any
) -> None:
    from boli.evaluation.metrics import bits_per_byte

    lines = made_up_lines("hin", 100)
    plan = TINY.model_copy(update={"steps": 40})
    seen: list[tuple[int, int, float]] = []
    folder = build_micro(plan, lines, lambda *step: seen.append(step))
    assert [(step, of) for step, of, _ in seen] == [(number, 40) for number in range(1, 41)]
    assert seen[-1][2] < seen[0][2] - 0.3
    trained, fresh = load_tiny(folder), micro_model(plan)
    after, before = (
        bits_per_byte(model, trained.tokenizer, lines[:20], 32).per_byte
        for model in (trained.model, fresh)
    )
    assert after < 0.95 * before


def test_same_plan_and_text_are_built_once(empty_home: Path, made_up_lines: Lines) -> None:
    lines = made_up_lines("hin", 30)
    folder = build_micro(TINY, lines)
    weights = (folder / "model.safetensors").read_bytes()
    steps: list[int] = []
    assert build_micro(TINY, lines, lambda step, _of, _loss: steps.append(step)) == folder
    assert steps == []
    shutil.rmtree(folder)
    assert build_micro(TINY, lines) == folder
    assert (folder / "model.safetensors").read_bytes() == weights  # and bit for bit again


def test_digest_changes_with_every_setting_and_with_the_text(tmp_path: Path) -> None:
    lines = ["एक", "दू"]
    digests = {micro_digest(TINY, lines), micro_digest(TINY, ["एक", "तीन"])}
    digests.add(micro_digest(TINY, ["दू", "एक"]))
    settings = TINY.model_dump(exclude={"tokenizer"})
    changes: dict[str, Any] = {name: value * 2 if value else 1 for name, value in settings.items()}
    changes |= {"optimizer": "adamw", "tokenizer": str(tmp_path)}
    (tmp_path / "tokenizer.json").write_text("{}")
    for name, value in changes.items():
        digests.add(micro_digest(TINY.model_copy(update={name: value}), lines))
    assert len(digests) == 3 + len(changes)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "tokenizer.json").write_text("{}")
    moved = TINY.model_copy(update={"tokenizer": str(tmp_path / "elsewhere")})
    assert micro_digest(moved, lines) in digests  # where it lies is nothing of what it is
    with pytest.raises(ModelError, match=r"cannot read a tokenizer\.json"):
        micro_digest(TINY.model_copy(update={"tokenizer": str(tmp_path / "none")}), lines)


def test_digest_changes_with_what_sites_sent_whoever_sent_it() -> None:
    lines, one, two = ["एक", "दू"], {" राम": 11}, {" काम": 16}
    digests = {micro_digest(TINY, lines, counts) for counts in ([], [one], [two], [one, two])}
    digests.add(micro_digest(TINY, lines, [{" राम": 16}]))
    assert len(digests) == 5
    assert micro_digest(TINY, lines, [one, two]) == micro_digest(TINY, lines, [two, one])


def test_words_of_the_sites_are_in_the_tokenizer_of_the_base(
    empty_home: Path, made_up_lines: Lines
) -> None:
    import transformers

    counts = [{" गइल": 64, " बानी": 45}, {"रहल": 32}]
    folder = build_micro(
        TINY.model_copy(update={"vocabulary_size": 340}),
        made_up_lines("hin", 30),
        counts=counts,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for piece in (" गइल", " बानी"):
        assert len(tokenizer(piece, add_special_tokens=False)["input_ids"]) <= 2


def test_interrupted_build_leaves_nothing_behind_and_can_be_repeated(
    empty_home: Path, made_up_lines: Lines
) -> None:
    lines = made_up_lines("hin", 30)

    def interrupt(step: int, of: int, loss: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_micro(TINY, lines, interrupt)
    bases = empty_home / "bases"
    assert [path.name for path in bases.iterdir()] == [f".{micro_digest(TINY, lines)}"]
    assert (build_micro(TINY, lines) / "config.json").is_file()


def test_build_that_diverges_leaves_nothing_behind(empty_home: Path, made_up_lines: Lines) -> None:
    plan = TINY.model_copy(update={"learning_rate": 1e30, "steps": 9})
    with pytest.raises(SiteError, match="the loss is"):
        build_micro(plan, made_up_lines("hin", 30))
    assert not [path for path in (empty_home / "bases").iterdir() if path.name[0] != "."]
    assert not list((empty_home / "bases").glob(".building-*"))


def test_base_that_is_being_built_is_not_built_twice(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch, made_up_lines: Lines
) -> None:
    monkeypatch.setattr("boli.model.base.BUILD_SECONDS", 0.2)
    lines = made_up_lines("hin", 30)
    folder = empty_home / "bases" / f".{micro_digest(TINY, lines)}"
    with locked(folder, "test"), pytest.raises(StorageError, match="the base that is built in"):
        build_micro(TINY, lines)


def test_home_that_cannot_be_written_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_up_lines: Lines
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BOLI_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageError):
        build_micro(TINY, made_up_lines("hin", 30))


def test_home_is_below_the_users_where_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BOLI_HOME")
    assert home() == Path.home() / ".boli"
    monkeypatch.setenv("BOLI_HOME", "")
    assert home() == Path.home() / ".boli"


@pytest.mark.root
def test_full_disk_during_a_build_leaves_no_half_base(
    tiny_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, made_up_lines: Lines
) -> None:
    disk = tiny_disk(32)
    monkeypatch.setenv("BOLI_HOME", str(disk))
    with pytest.raises(StorageError):
        build_micro(TINY, made_up_lines("hin", 30))
    assert not list((disk / "bases").glob("[!.]*"))
    assert not list((disk / "bases").glob(".building-*"))
