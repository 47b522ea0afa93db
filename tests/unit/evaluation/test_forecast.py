"""What `boli check` says of a plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from boli.errors import ModelError
from boli.evaluation.forecast import _notes, _notes_on_one_site
from boli.plan import Plan
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
