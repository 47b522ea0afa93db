"""What `boli check` says of a plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from boli.errors import ModelError
from boli.evaluation.forecast import _memory, _notes, _notes_on_one_site, _of_muon, _site
from boli.model.adapter import adapter_layout
from boli.plan import AdapterPlan, LocalStepsPlan, Plan
from boli.preparation import check_text
from boli.run import check


@pytest.fixture
def plan(micro_base: Path, tmp_path: Path, tiny_plan: Callable[..., Plan]) -> Plan:
    """Return a plan on a base whose tokenizer a test may replace."""
    base = tmp_path / "base"
    base.mkdir()
    for path in micro_base.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    return tiny_plan(tmp_path, model={"base": {"path": str(base), "micro": None}})


def write_tokenizer(plan: Plan, alphabet: str) -> None:
    names = dict.fromkeys(["<unk>", "</s>", *alphabet])
    vocabulary = {name: number for number, name in enumerate(names)}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>"))
    inner.decoder = tokenizers.decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="</s>", bos_token="</s>"
    )
    assert plan.model.base.path is not None
    fast.save_pretrained(plan.model.base.path)


def test_base_that_loses_text_of_a_site_is_refused(plan: Plan) -> None:
    assert not [note for note in check(plan).notes if "alphabet" in note]
    write_tokenizer(plan, "abc")
    with pytest.raises(ModelError, match=r"loses \d+\.\d% of the text of site \w+ in \w+"):
        check(plan)


def test_what_little_is_lost_is_said(plan: Plan) -> None:
    texts = [
        line
        for split in check_text(plan).values()
        for part in split.values()
        for line in (*part.train, *part.tuning, *part.test)
    ]
    letters: Any = sorted(set("".join(texts)))
    write_tokenizer(plan, letters)
    assert not [note for note in check(plan).notes if "alphabet" in note]
    source = next(iter(plan.site)).text[0]
    assert source.path is not None
    path = plan.resolve(source.path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("\n", "ॐ\n", 1), encoding="utf-8")
    (note,) = (note for note in check(plan).notes if "alphabet" in note)
    assert "0.0" in note
    assert "8 bits" in note


ASYNCHRONOUS = {"mode": "asynchronous"}


@pytest.mark.parametrize(
    ("number", "changes", "told"),
    [
        (1, {}, []),
        (2, {}, ["nobody can tell which one is wrong"]),
        (3, {}, []),
        (3, {"codec": {"name": "sparse"}}, ["backdoor into entries that no other site sends"]),
        (3, {"rounds": {"norm_multiple": 2.0}}, ["lets one of 3 sites outweigh"]),
        (3, {"rounds": {"norm_multiple": math.inf}}, ["set it below 2"]),
        (3, {"rounds": {"norm_multiple": 1.9}}, []),
        (3, {"rounds": ASYNCHRONOUS}, []),
        (3, {"rounds": ASYNCHRONOUS | {"buffer_size": 3}}, ["waits for the slowest site"]),
        (3, {"rounds": ASYNCHRONOUS | {"buffer_size": 3, "most_share": 0.67}}, []),
        (3, {"rounds": ASYNCHRONOUS | {"most_share": 1.0}}, ["make every version alone"]),
    ],
)
def test_check_says_what_one_site_could_still_do(
    tiny_plan: Callable[..., Plan],
    tmp_path: Path,
    number: int,
    changes: dict[str, Any],
    told: list[str],
) -> None:
    site = {"language": "bho", "text": ["bho.txt"]}
    sites = [{"name": f"site-{i}", **site} for i in range(number)]
    notes = list(_notes_on_one_site(tiny_plan(tmp_path, site=sites, **changes)))
    assert len(notes) == len(told), notes
    assert all(part in note for part, note in zip(told, notes, strict=True))


@pytest.mark.parametrize(("every_rounds", "told"), [(3, False), (4, True), (9, True)])
def test_check_says_when_no_earlier_version_can_be_exported(
    tiny_plan: Callable[..., Plan], tmp_path: Path, every_rounds: int, told: bool
) -> None:
    plan = tiny_plan(tmp_path, rounds={"total": 4}, evaluation={"every_rounds": every_rounds})
    notes = "\n".join(_notes(plan, {site.name: {} for site in plan.site}))
    assert ("only the last version is judged" in notes) is told


SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30} | {
    **{"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49_152},
    **{"tie_word_embeddings": True},
}
GEMMA = {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18} | {
    **{"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256},
}


@pytest.mark.parametrize(
    ("form", "sizes", "measured"),
    [
        # Peaks of processes that took steps of 8 × 128 tokens with LoRA of rank 16:
        # benchmarks/real_base.py, weights in half precision on the disk.
        (transformers.LlamaConfig, SMOLLM2, 1.41e9),
        (transformers.Gemma3TextConfig, GEMMA | {"vocab_size": 11_240}, 1.30e9),
        (transformers.Gemma3TextConfig, GEMMA | {"vocab_size": 262_144}, 2.27e9),
    ],
)
def test_memory_of_real_bases_is_within_a_fifth_of_what_was_measured(
    form: Any, sizes: dict[str, Any], measured: float, plan: Plan
) -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(form(**sizes))
    base = plan.model.base.model_copy(update={"path": "of/a-hub"})
    steps = LocalStepsPlan()
    update = {"base": base, "local_steps": steps, "adapter": AdapterPlan()}
    plan = plan.model_copy(update={"model": plan.model.model_copy(update=update)})
    parameters = sum(p.numel() for p in model.parameters())
    layout = adapter_layout(model, plan.model.adapter)
    loaded, step = _memory(plan, model, parameters)
    site = _site(plan, plan.site[0], layout, {}, loaded, step, None)
    assert site.memory_bytes == pytest.approx(measured, rel=0.2)


def test_logits_that_are_not_made_in_blocks_are_counted(plan: Plan) -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.LlamaConfig(**SMOLLM2 | {"vocab_size": 262_144})
        )
    _, blocks = _memory(plan, model, 1)
    model.config.final_logit_softcapping = 30.0
    _, whole = _memory(plan, model, 1)
    assert whole - blocks > 4096 * 262_144 * 4


def test_test_parts_that_cannot_tell_noise_are_named(
    tiny_plan: Callable[..., Plan], tmp_path: Path, micro_base: Path
) -> None:
    (tmp_path / "articles").write_text("".join(f"{k // 10}\n" for k in range(160)))
    own = [{"path": "bho.txt", "held_out_by": "articles"}]
    sites = [
        {"name": "arrah", "language": "bho", "text": own},
        {"name": "gaya", "language": "mag", "text": ["mag.txt"]},
        {"name": "patna", "language": "mag", "text": [{"starter": "mag", "lines": 800}]},
    ]
    base = {"base": {"path": str(micro_base), "micro": None}}
    lines = {"max_lines": 400}
    plan = tiny_plan(
        tmp_path, site=sites, model=base, evaluation=lines,
        corpus={"held_out": {"test_percent": 25}},
    )  # fmt: skip
    few, unnamed = (
        note for note in check(plan).notes if "documents" in note or "held_out_by" in note
    )
    assert "arrah" in few
    assert "documents of bho" in few
    assert "test_percent, 25 now" in few
    assert "patna" not in few  # each of its lines was made by itself
    assert "which lines of gaya (mag) belong" in unnamed


def test_passes_over_the_text_are_told_and_many_are_warned_of(
    tiny_plan: Callable[..., Plan], tmp_path: Path, micro_base: Path
) -> None:
    plan = tiny_plan(tmp_path, model={"base": {"path": str(micro_base), "micro": None}})
    few = check(plan)
    # 2 rounds of 2 steps of 2 × 32 tokens; counted with the base's own tokenizer.
    lines = check_text(plan)["gaya"]["mag"].train
    tokenizer = PreTrainedTokenizerFast.from_pretrained(micro_base)
    tokens = sum(len(row) + 1 for row in tokenizer(lines, add_special_tokens=False)["input_ids"])
    (gaya,) = (site for site in few.sites if site.name == "gaya")
    assert gaya.passes == pytest.approx(256 / tokens, rel=0.01)
    assert not [note for note in few.notes if "is read" in note]
    steps = {"local_steps": 40 * 128}
    changed = {"rounds": steps, "model": {"base": {"path": str(micro_base), "micro": None}}}
    (note,) = (note for note in check(tiny_plan(tmp_path, **changed)).notes if "is read" in note)
    assert "model.local_steps.dropout" in note


def test_muon_needs_fewer_moments_and_more_for_a_step(
    tiny_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from boli.model.adapter import adapter_layout

    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    found = []
    for name in ("adamw", "muon"):
        steps = {"optimizer": name}
        plan = tiny_plan(tmp_path, model={"adapter": {"kind": "full"}, "local_steps": steps})
        found.append(_of_muon(plan, model, adapter_layout(model, plan.model.adapter)))
    square, tall = 3 * 4 * 32 * 32, 3 * 2 * 48 * 32
    assert found == [0, 4 * max(square, tall) - (square + tall + 3 * 48 * 32)]
