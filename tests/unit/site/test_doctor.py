"""What the doctor says of a machine, a disk and a folder of text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from boli.plan import Plan
from boli.site import doctor
from boli.site.kit import Kit, SiteFolder
from boli.site.limits import Limits


def test_disk_with_room_is_fine_and_nothing_stays_there(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert doctor.look_at_disk(state).level == "ok"
    assert not list(state.iterdir())


def test_disk_too_small_for_the_base_is_a_problem(tmp_path: Path) -> None:
    found = doctor.look_at_disk(tmp_path, base_bytes=1 << 60)
    assert found.level == "problem"
    assert "--state" in found.advice


def test_slow_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SLOW_WRITE_SECONDS", 0.0)
    found = doctor.look_at_disk(tmp_path)
    assert (found.level, found.advice) == ("warning", "a slow disk delays each answer; try another")


def test_state_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert doctor.look_at_disk(tmp_path / "file" / "state").level == "problem"


def test_memory_that_may_not_do_is_told() -> None:
    assert doctor.look_at_machine().level == "ok"
    found = doctor.look_at_machine(base_bytes=1 << 50)
    assert found.level == "warning"
    assert "is needed" in found.advice


def test_missing_torch_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    found = doctor.look_at_machine()
    assert (found.level, found.advice) == ("problem", "pip install boli")


def test_folder_of_text_is_counted_or_missed(tmp_path: Path) -> None:
    (tmp_path / "bho.txt").write_text("एक\n", encoding="utf-8")
    assert doctor.look_at_folder(tmp_path).value.endswith("1 file")
    assert doctor.look_at_folder(tmp_path / "other").level == "problem"


def test_text_is_read_as_the_plan_wants_it(tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    kit = Kit(run="run", plan=json.loads(tiny_plan(tmp_path).model_dump_json()))
    state, allowing = tmp_path / "state", Limits(min_tokens=1, min_judged_lines=1)
    (found,) = doctor.look_at_text(SiteFolder("gaya", tmp_path, state), kit)
    assert "limits have" in found.value  # the plan is within no usual limits
    (found,) = doctor.look_at_text(SiteFolder("gaya", tmp_path, state, None, allowing), kit)
    assert found.level == "ok"
    assert found.value.startswith("mag: ")
    (found,) = doctor.look_at_text(SiteFolder("patna", tmp_path, tmp_path / "state"), kit)
    assert found.level == "problem"
    assert "has no site patna" in found.value
