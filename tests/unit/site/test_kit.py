"""What a site makes of a kit: other protocols, unknown fields, sizes, and room on its disk."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from boli.errors import BoliError, CorruptFileError, ModelError, SiteError, StorageError
from boli.plan import Plan
from boli.rounds import update
from boli.site import kit as kits
from boli.site.kit import BaseFile, Kit, SiteFolder, kit_of, read_kit
from boli.site.limits import Limits

LENIENT = Limits(min_tokens=1, min_judged_lines=1)
ABC = BaseFile(name="config.json", size=3, sha256=hashlib.sha256(b"abc").hexdigest())


def facts(plan: Plan, /, **changes: Any) -> dict[str, Any]:
    kit = Kit(run="run", plan=json.loads(plan.model_dump_json()), files=(ABC,))
    return {**kit.facts(), **changes}


def read(said: Any) -> Kit:
    return read_kit(json.dumps(said).encode())


@pytest.fixture
def plan(tiny_plan: Callable[..., Plan], tmp_path: Path) -> Plan:
    return tiny_plan(tmp_path)


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    return SiteFolder("gaya", tmp_path, tmp_path / "state", None, LENIENT)


def test_unknown_fields_of_kit_and_plan_are_ignored(plan: Plan, site: SiteFolder) -> None:
    said = facts(plan, added_later={"a": 1})
    said["files"][0]["added_later"] = 1
    said["plan"] |= {"added_later": 1}
    said["plan"]["rounds"]["added_later"] = 1
    said["plan"]["site"][0]["added_later"] = [1]
    found = read(said)
    assert found == read(facts(plan)).model_copy(update={"plan": said["plan"]})
    here, section = site.plan_here(found)
    assert section.name == "gaya"
    assert here.rounds == plan.rounds


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (2, "this coordinator speaks protocol 2, this boli speaks 1\n  update boli here"),
        (0, "speaks protocol 0, this boli speaks 1\n  update boli there"),
        ("1", "speaks protocol an unknown one"),
        (10**400, "speaks protocol an unknown one"),
        (None, "speaks protocol an unknown one"),
    ],
)
def test_other_protocol_is_refused_before_the_rest_is_read(theirs: Any, words: str) -> None:
    with pytest.raises(BoliError) as caught:
        read({"protocol": theirs, "all": "else", "is": "other"})
    assert words in str(caught.value)
    assert caught.value.code == "protocol"


def test_kit_says_its_protocol_only_once_there_is_another(
    plan: Plan, micro_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "protocol" not in kit_of("run", plan, micro_base).facts()
    monkeypatch.setattr(kits, "PROTOCOL", 2)
    monkeypatch.setattr(update, "PROTOCOL", 2)
    said = kit_of("run", plan, micro_base).facts()
    assert said["protocol"] == 2
    assert read(said).protocol == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"origin": "/srv/models/x"}, "origin"),
        ({"origin": "../x"}, "origin"),
        ({"origin": "~/x"}, "origin"),
        ({"origin": "a/b/c"}, "origin"),
        ({"origin": "a/.."}, "origin"),
        ({"revision": "main"}, "revision"),
        ({"run": "../x"}, "run"),
        ({"run": "x\n"}, "run"),
        ({"run": 7}, "run"),
        ({"plan": []}, "plan"),
        ({"files": [{"name": "config.json"}]}, "files.0"),
        ({"files": [ABC.facts()] * 2}, "twice"),
        ({"files": [ABC.facts(), {**ABC.facts(), "name": "CONFIG.json"}]}, "twice"),
        ({"files": [{**ABC.facts(), "size": -1}]}, "size"),
        ({"files": [{**ABC.facts(), "size": 10**15}]}, "size"),
        ({"files": [{**ABC.facts(), "name": "../config.json"}]}, "name"),
        ({"files": [{**ABC.facts(), "name": "config.json\n"}]}, "name"),
        ({"files": [ABC.facts()] * 301}, "files"),
    ],
)
def test_kit_that_no_site_follows_is_refused_with_a_reason(
    plan: Plan, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(SiteError, match=words):
        read(facts(plan, **change))


def test_origin_at_a_hub_with_its_revision_is_read(plan: Plan) -> None:
    found = read(facts(plan, origin="some/base", revision="a" * 40))
    assert (found.origin, found.revision) == ("some/base", "a" * 40)


@pytest.mark.parametrize("data", [b"", b"{", b"7", b"[]", b"\xff", b"[" * 10**6, b'{"a":' * 10**5])
def test_what_is_no_kit_is_refused(data: bytes) -> None:
    with pytest.raises(SiteError, match="kit is not valid"):
        read_kit(data)


Wrong = some.recursive(
    some.none()
    | some.booleans()
    | some.integers()
    | some.floats()
    | some.text(max_size=20)
    | some.sampled_from([10**400, "x" * 10**5, "\x1b[2J", math.nan]),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=9), inner),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def honest(tiny_plan: Callable[..., Plan], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return facts(tiny_plan(tmp_path_factory.mktemp("fuzz")))


@given(data=some.data())
def test_whatever_a_kit_says_is_followed_or_refused_by_an_error_of_ours(
    honest: Any, data: some.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    said = copy.deepcopy(honest)
    place: Any = said
    while True:
        key = data.draw(
            some.sampled_from(list(place) if isinstance(place, dict) else range(len(place)))
        )
        if isinstance(place[key], dict | list) and place[key] and data.draw(some.booleans()):
            place = place[key]
            continue
        if data.draw(some.booleans()):
            place[key] = data.draw(Wrong)
        else:
            del place[key]
        break
    folder = SiteFolder("gaya", Path("data"), Path("state"))
    with contextlib.suppress(BoliError):
        found = read_kit(json.dumps(said).encode())
        folder.plan_here(found)
        folder.missing(found)


# Room


def test_file_that_no_base_may_have_is_refused_before_it_is_fetched(
    plan: Plan, site: SiteFolder
) -> None:
    found = read(facts(plan, files=[{**ABC.facts(), "name": "setup.py"}]))
    with pytest.raises(ModelError, match=r"setup\.py") as caught:
        site.missing(found)
    assert caught.value.code == "model.refused"


def test_run_without_digests_of_a_base_is_refused(plan: Plan, site: SiteFolder) -> None:
    with pytest.raises(ModelError, match="names no files"):
        site.open_node(read(facts(plan, files=[])), Any)  # type: ignore[arg-type]


def test_bases_take_no_more_room_than_they_may(plan: Plan, tmp_path: Path) -> None:
    site = SiteFolder("gaya", tmp_path, tmp_path / "state", None, Limits(max_base_bytes=1000))
    large = {"name": "model.safetensors", "size": 998, "sha256": "0" * 64}
    small, both = read(facts(plan)), read(facts(plan, files=[ABC.facts(), large]))
    site.make_room(small, small.files)
    with pytest.raises(ModelError, match="in use") as caught:
        site.make_room(both, both.files)
    assert caught.value.code == "model.size"
    fits = read(facts(plan, files=[{**large, "size": 997}]))
    site.add_piece(small, ABC, b"abc")
    site.finish_file(small, ABC)
    site.make_room(fits, fits.files)
    too_large = read(facts(plan, files=[large]))
    with pytest.raises(ModelError, match="delete what no run needs"):
        site.make_room(too_large, too_large.files)


def test_unfinished_bases_of_before_are_dropped_and_ones_own_is_kept(
    plan: Plan, site: SiteFolder
) -> None:
    mine, other = read(facts(plan)), read(facts(plan, files=[{**ABC.facts(), "size": 4}]))
    site.add_piece(mine, mine.files[0], b"ab")
    site.add_piece(other, other.files[0], b"ab")
    site.make_room(mine, mine.files)
    assert site.fetched_bytes(mine, mine.files[0]) == 2
    assert site.fetched_bytes(other, other.files[0]) == 0


def test_disk_is_not_filled_by_a_base(
    plan: Plan, site: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read(facts(plan))
    monkeypatch.setattr(kits, "SPARE_DISK_BYTES", 1 << 60)
    with pytest.raises(StorageError, match="free"):
        site.make_room(found, found.files)


def test_file_that_arrives_longer_than_it_is_is_dropped(plan: Plan, site: SiteFolder) -> None:
    found = read(facts(plan))
    site.add_piece(found, ABC, b"ab")
    with pytest.raises(CorruptFileError, match="longer"):
        site.add_piece(found, ABC, b"cd")
    assert site.fetched_bytes(found, ABC) == 0


def test_coordinator_hears_itself_that_sites_would_refuse_its_base(
    plan: Plan, micro_base: Path, tmp_path: Path
) -> None:
    for path in micro_base.iterdir():
        (tmp_path / "base").mkdir(exist_ok=True)
        (tmp_path / "base" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "base" / "README.md").write_text("left out")
    (tmp_path / "base" / "chat_template.jinja").write_text("left out")
    names = {file.name for file in kit_of("run", plan, tmp_path / "base").files}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"README.md", "chat_template.jinja"}
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": {}}))
    with pytest.raises(ModelError, match="auto_map"):
        kit_of("run", plan, tmp_path / "base")


def test_base_larger_than_the_memory_is_refused(
    plan: Plan, site: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kits, "_memory_bytes", lambda: 2)
    with pytest.raises(ModelError, match="memory") as caught:
        site.open_node(read(facts(plan)), Any)  # type: ignore[arg-type]
    assert caught.value.code == "model.size"


def test_kit_larger_than_any_is_not_read() -> None:
    with pytest.raises(SiteError, match="bytes"):
        read_kit(b" " * (5 << 20) + b"{}")
