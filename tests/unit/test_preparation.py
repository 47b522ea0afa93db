from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from boli.errors import ModelError
from boli.plan import Plan
from boli.preparation import Stage, prepare_base
from boli.run import check

PlanOf = Callable[..., Plan]


def base_of(folder: Path, least_lines: int = 2, **values: Any) -> dict[str, Any]:
    vocabulary = {"cut": "sites"} | values
    pieces = {"least_lines": least_lines, "least_documents": 1}
    # Without text of the base's language, all of whose pieces would be kept.
    base = {"path": str(folder), "micro": None, "text": []}
    return {"base": base | {"vocabulary": vocabulary, "pieces": pieces}}


def test_base_is_cut_to_what_the_sites_write(
    tiny_plan: PlanOf, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = family_folder("llama")
    plan = tiny_plan(tmp_path, model=base_of(whole))
    stages: list[Any] = []
    cut = Path(prepare_base(plan, stages.append))
    assert prepare_base(plan) == str(cut)
    assert [stage.name for stage in stages if isinstance(stage, Stage)] == [
        "counting the pieces of the sites' words",
        "cutting the vocabulary of the base",
    ]
    said = json.loads((cut / "boli.json").read_text())["vocabulary"]
    assert said["of"] == 320
    assert said["pieces"] < 320
    tokenizer = transformers.AutoTokenizer.from_pretrained(cut)
    before = transformers.AutoTokenizer.from_pretrained(whole)
    for name in ("bho.txt", "mag.txt"):
        line = (tmp_path / name).read_text().splitlines()[0]
        assert tokenizer.decode(tokenizer(line)["input_ids"]) == line
        assert len(tokenizer(line)["input_ids"]) <= len(before(line)["input_ids"]) + 2


def test_counts_that_somebody_else_made_decide_instead_of_the_text(
    tiny_plan: PlanOf, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    plan = tiny_plan(tmp_path, model=base_of(family_folder("llama")))
    (tmp_path / "bho.txt").unlink()  # at its site, and not here
    (tmp_path / "mag.txt").unlink()
    assert (Path(prepare_base(plan, counts=[{" राम": 16}])) / "config.json").is_file()


def test_cut_that_does_not_fit_a_sites_text_is_refused(
    tiny_plan: PlanOf, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = base_of(family_folder("llama"), least_lines=100_000, most_longer=0.0)
    with pytest.raises(ModelError, match="site arrah takes"):
        prepare_base(tiny_plan(tmp_path, model=model))


@pytest.mark.parametrize("cut", ["none", "sites"])
def test_base_that_is_not_there_is_refused_by_check_too(
    tiny_plan: PlanOf, tmp_path: Path, cut: str
) -> None:
    plan = tiny_plan(tmp_path, model=base_of(tmp_path / "none.gguf", cut=cut))
    with pytest.raises(ModelError, match="there is no base model at"):
        check(plan)


def test_check_looks_at_the_base_as_sites_will_load_it(
    tiny_plan: PlanOf, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    plan = tiny_plan(tmp_path, model=base_of(family_folder("llama")))
    uncut = {"base": {"path": plan.model.base.path, "micro": None, "text": []}}
    whole = check(tiny_plan(tmp_path, model=uncut))
    cut = check(plan)
    assert cut.base_parameters < whole.base_parameters
    assert cut.num_entries == whole.num_entries
    assert [note for note in cut.notes if "of 320 pieces" in note]
    assert not [note for note in whole.notes if "pieces" in note]
