"""What a site is told of a run: its own part of the plan, and nothing of anybody else's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boli.errors import CorruptFileError
from boli.plan import Plan
from boli.plan_file import load_plan
from boli.site.kit import BaseFile, Kit, SiteFolder, kit_of
from boli.site.limits import Limits

LENIENT = Limits(min_tokens=1, min_judged_lines=1)
PLANS = sorted((Path(__file__).resolve().parents[3] / "plans").glob("*.toml"))


def bare_kit(plan: Plan) -> Kit:
    return Kit(run="run", plan=json.loads(plan.model_dump_json()))


def told(kit: Kit, site: str) -> str:
    return json.dumps(kit.for_site(site).facts(), ensure_ascii=False)


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_each_site_is_told_its_own_part_of_a_plan_and_can_work_by_it(
    path: Path, tmp_path: Path
) -> None:
    plan = load_plan(path)
    kit = bare_kit(plan)
    for site in plan.site:
        facts = told(kit, site.name)
        others = [one for one in plan.site if one.name != site.name]
        own = {source.path for source in site.text}
        for other in others:
            assert f'"{other.name}"' not in facts
            for source in other.text:
                assert source.path is None or source.path in own or source.path not in facts
        assert plan.corpus.root not in facts
        for source in plan.model.base.text:
            assert source.path is None or source.path in own or source.path not in facts
        received = Kit.model_validate_json(facts)
        state, limits = tmp_path / "state", Limits(min_tokens=1, text=("**",))
        here, section = SiteFolder(site.name, tmp_path, state, None, limits).plan_here(received)
        assert section == site
        assert received.num_sites == len(plan.site)
        assert here.model.local_steps == plan.model.local_steps
        assert here.model.adapter == plan.model.adapter
        assert (here.codec, here.evaluation, here.engine) == (
            plan.codec,
            plan.evaluation,
            plan.engine,
        )
        assert here.rounds.total == plan.rounds.total


def test_no_path_of_the_coordinator_reaches_a_site(
    tiny_plan: Callable[..., Plan], tmp_path: Path, micro_base: Path
) -> None:
    place = tmp_path / "canary-coordinator"
    place.mkdir()
    plan = tiny_plan(place)
    base = shutil.copytree(micro_base, place / "canary-base")
    kit = kit_of("run", plan, base, str(base))
    assert "canary" in json.dumps(kit.facts())  # the control: it is in what the kit is made from
    for site in ("arrah", "gaya"):
        assert "canary" not in told(kit, site)


def test_a_part_of_a_part_is_the_same(tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    kit = bare_kit(tiny_plan(tmp_path)).for_site("gaya")
    assert kit.for_site("gaya") == kit


def test_clip_norm_of_dgc_follows_the_number_of_sites_that_the_kit_names(
    tiny_plan: Callable[..., Plan], tmp_path: Path, micro_base: Path
) -> None:
    from boli.site.work import open_work

    dgc: dict[str, Any] = {
        "codec": {"name": "dgc"},
        "rounds": {"local_steps": 1},
        "model": {"local_steps": {"beta1": 0.0}},
    }
    plan = tiny_plan(tmp_path, **dgc)
    whole = open_work(plan, plan.site[1], str(micro_base)).steps.plan.clip_norm
    kit = bare_kit(plan).for_site("gaya")
    folder = SiteFolder("gaya", tmp_path, tmp_path / "state", None, LENIENT)
    here, section = folder.plan_here(kit)
    assert len(here.site) == 1
    part = open_work(here, section, str(micro_base), kit.num_sites)
    assert part.steps.plan.clip_norm == whole


def test_base_that_comes_with_more_bytes_than_the_kit_names_is_dropped(tmp_path: Path) -> None:
    file = BaseFile(name="model.safetensors", size=4, sha256="0" * 64)
    kit = Kit(run="run", plan={}, files=(file,))
    folder = SiteFolder("gaya", tmp_path, tmp_path / "state")
    folder.add_piece(kit, file, b"abc")
    assert folder.fetched_bytes(kit, file) == 3
    with pytest.raises(CorruptFileError, match="longer than it is"):
        folder.add_piece(kit, file, b"de")
    assert folder.fetched_bytes(kit, file) == 0
