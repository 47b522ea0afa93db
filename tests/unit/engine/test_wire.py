"""What a node and its coordinator say: whatever comes is read or refused, and errors are codes."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pydantic import ValidationError

from boli import errors
from boli.engine.flower_node import FlowerLink
from boli.engine.flower_site import answer
from boli.engine.flower_wire import Asked, Hello, Part, Pieces, pack
from boli.engine.local_node import LocalLink
from boli.engine.nats_node import NatsLink
from boli.engine.wire import (
    Failing,
    Joining,
    failing_facts,
    instruction_of,
    pack_message,
    read_joining,
    unpack_message,
    unsound,
)
from boli.errors import PUBLIC_WORDS, BoliError, SiteError, TransportError, public_words
from boli.plan import Plan
from boli.rounds.transport import Failed, Malformed, Version
from boli.rounds.update import Order, UpdateHeader, Verdict
from boli.site.kit import Kit

SOURCES = Path(__file__).parents[3] / "src" / "boli"
CANARY = "verma_hiv_1987"
ORDER = Order(
    order="run-gaya-1", site="gaya", sequence=1, base_version=0, layout="ab", local_steps=1
)
VERDICT = Verdict(order="run-gaya-1", site="gaya", sequence=1, accepted=True)
HEADER = UpdateHeader(
    order="run-gaya-1",
    site="gaya",
    sequence=1,
    base_version=0,
    layout="ab",
    local_steps=1,
    tokens=9,
)


# Newer peers


def test_fields_that_only_a_newer_peer_knows_are_ignored() -> None:
    later = {"added_later": {"a": [1]}}
    assert instruction_of(pack_message("order", {**ORDER.facts(), **later})) == ORDER
    assert instruction_of(pack_message("verdict", {**VERDICT.facts(), **later})) == VERDICT
    assert instruction_of(pack_message("delta", {"version": 3, **later}, b"x")) == Version(
        3, False, b"x"
    )
    assert UpdateHeader.model_validate({**HEADER.facts(), **later}) == HEADER
    joining = {"layout": [], "num_lines": {}, "held_version": 0, "held_digest": 0}
    assert read_joining({**joining, **later}) == Joining.model_validate(joining)


def test_what_a_site_says_beyond_the_form_is_not_kept() -> None:
    copy = {"pool": "a" * 32, "version": 1, "taken": "b" * 32, "path": f"/home/{CANARY}"}
    joining = {"layout": [], "num_lines": {}, "held_version": 0, "held_digest": 0}
    found = read_joining({**joining, "copies": [copy], "path": CANARY}).joined("gaya", 0)
    assert len(found.copies) == 1
    assert CANARY not in repr(found)


def test_names_that_a_site_says_are_no_command_for_a_terminal() -> None:
    said = {"layout": [["a\x1b[2J", [1], "x\x07"]], "num_lines": {"\x1b": {"\x1b": 1}}}
    found = read_joining({**said, "held_version": 0, "held_digest": 0})
    assert not re.search(
        r"[\x00-\x1f]", repr(found.joined("gaya", 0)).encode().decode("unicode_escape")
    )


def test_site_of_another_protocol_is_told_apart_from_a_wrong_one() -> None:
    joining = {"layout": [], "num_lines": {}, "held_version": 0, "held_digest": 0}
    with pytest.raises(TransportError) as caught:
        read_joining({**joining, "protocol": 2})
    found = unsound("gaya", caught.value)
    assert isinstance(found, Failed)
    assert found.problem == "the site speaks protocol 2, this boli speaks 1"
    with pytest.raises(ValidationError) as wrong:
        read_joining({"protocol": 1})
    assert isinstance(unsound("gaya", wrong.value), Malformed)


# Whatever comes

Wrong = some.recursive(
    some.none()
    | some.booleans()
    | some.integers()
    | some.floats()
    | some.text(max_size=20)
    | some.sampled_from([2**70, 10**400, math.nan, -math.inf, "x" * 10**4]),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=9), inner),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("order", ORDER.facts()),
        ("verdict", VERDICT.facts()),
        ("delta", {"version": 1}),
        ("snapshot", {"version": 1}),
    ],
)
@given(data=some.data())
def test_whatever_a_coordinator_says_is_an_instruction_or_refused(
    kind: str, facts: dict[str, Any], data: some.DataObject
) -> None:
    keys = data.draw(some.sets(some.sampled_from([*facts, "kind", "support", "rank", "evaluate"])))
    spoiled = {**facts, **{key: data.draw(Wrong) for key in keys}}
    said = {"kind": kind, **spoiled}
    kind = said.pop("kind")
    with contextlib.suppress(TransportError):
        instruction_of(pack_message(kind, said, data.draw(some.binary(max_size=9))))


@given(data=some.binary(max_size=200))
def test_any_bytes_are_an_instruction_or_refused(data: bytes) -> None:
    with contextlib.suppress(TransportError):
        instruction_of(data)


def test_nested_message_is_refused() -> None:
    deep: Any = 1
    for _ in range(600):
        deep = [deep]
    with pytest.raises(TransportError):
        instruction_of(pack_message("order", {**ORDER.facts(), "evaluate": deep}))


# Errors


def kinds_of_errors() -> list[type[BoliError]]:
    found = (kind for kind in vars(errors).values() if isinstance(kind, type))
    return [kind for kind in found if issubclass(kind, BoliError)]


def literal_codes() -> set[str]:
    """Return the codes that the source gives to errors, by keyword or as the third argument."""
    found = set()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                given_ = [word.value for word in node.keywords if word.arg in ("code", "lost")]
                name = getattr(node.func, "id", "")
                if name.endswith("Error"):
                    given_ += node.args[2:3]
                found |= {one.value for one in given_ if isinstance(one, ast.Constant)}
    return found


def test_every_code_has_words_of_our_own_and_is_one_that_travels() -> None:
    codes = {kind.code for kind in kinds_of_errors()}
    used = literal_codes()
    assert "text.column" in used  # the search finds them
    for code in codes | used - {""}:
        assert code in PUBLIC_WORDS, code
    for code, words in PUBLIC_WORDS.items():
        assert Failing(code=code).failed("gaya") == Failed("gaya", *words)
        assert not re.search(r"[{}%]", "".join(words)), "a value could get in"


@pytest.mark.parametrize("code", ["", "x" * 50, "Text", "a b", "\x1b[2J", "text\n", 7, None, ["a"]])
def test_what_is_no_code_is_no_failure(code: Any) -> None:
    with pytest.raises(ValidationError):
        Failing.model_validate({"code": code})


def test_words_of_an_older_site_are_not_taken() -> None:
    found = Failing.model_validate({"problem": CANARY, "hint": CANARY}).failed("gaya")
    assert found == Failed("gaya", *public_words("error"))


def test_code_of_a_newer_site_is_told_without_its_words() -> None:
    found = Failing.model_validate({"code": "added.later", "problem": CANARY}).failed("gaya")
    assert "newer boli" in found.problem
    assert CANARY not in found.problem + found.hint


def by_local(error: BoliError) -> bytes:
    link, said = object.__new__(LocalLink), list[bytes]()  # without its thread
    link._line = SimpleNamespace(send_bytes=said.append)  # type: ignore[assignment]
    link.fail(error)
    return said[0]


def by_nats(error: BoliError) -> bytes:
    line: Any = SimpleNamespace(soon=lambda _: None)
    link, said = NatsLink("gaya", line), list[bytes]()
    link.sender = SimpleNamespace(replace=said.append)  # type: ignore[assignment]
    link.fail(error)
    return said[0]


def by_flower(error: BoliError, monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setattr("boli.engine.flower_node.IDLE_SECONDS", 0.01)
    link = FlowerLink()
    link.fail(error)
    return link._to_say[0]


@pytest.mark.parametrize("kind", kinds_of_errors(), ids=lambda kind: kind.__name__)
def test_of_an_error_only_its_code_leaves_the_site(
    kind: type[BoliError], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = kind(f"cannot read /home/{CANARY}", f"columns: {CANARY}")
    for said in (by_local(error), by_nats(error), by_flower(error, monkeypatch)):
        assert unpack_message(said) == ("failed", {"code": kind.code}, b"")
    assert failing_facts(error) == {"code": kind.code}


@pytest.mark.parametrize(
    "data",
    [
        pack_message("update", {CANARY: CANARY}),
        pack_message("failed", {"code": CANARY.upper()}),
        pack_message(CANARY, {}),
        CANARY.encode(),
    ],
)
def test_what_cannot_be_read_is_journaled_without_a_value_of_it(data: bytes) -> None:
    """The coordinator's journal is kept, and read by others."""
    with pytest.raises((TransportError, ValidationError)) as caught:
        UpdateHeader.model_validate(unpack_message(data)[1])
    found = unsound("gaya", caught.value)
    assert isinstance(found, Malformed | Failed)
    assert found.detail if isinstance(found, Malformed) else found.problem
    assert CANARY not in repr(found)


# In a Flower federation, whose own replies carry the words of an exception


def wrong_hello(plan: Plan, folder: Path) -> bytes:
    tables = json.loads(plan.model_dump_json())
    return pack("hello", Hello(kit=Kit(run="run", plan={**tables, "name": 7})))


def outside(plan: Plan, folder: Path) -> bytes:
    tables = json.loads(plan.model_dump_json())
    tables["site"][1]["text"] = [{"path": f"../{CANARY}"}]
    return pack("hello", Hello(kit=Kit(run="run", plan=tables)))


def unknown_run(plan: Plan, folder: Path) -> bytes:
    return pack("pieces", Pieces(run="other", parts=(), sizes=()))


def torn_kit(plan: Plan, folder: Path) -> bytes:
    path = folder / "state" / "runs" / "run" / "kit.json"
    path.parent.mkdir(parents=True)
    path.write_text(f"{{{CANARY}")
    return pack("pieces", Pieces(run="run", parts=(Part(file="config.json"),), sizes=(0,)))


def no_state(plan: Plan, folder: Path) -> bytes:
    (folder / "state").write_text("a file is in the way")
    kit = Kit(run="run", plan=json.loads(plan.model_dump_json()))
    return pack("hello", Hello(kit=kit))


def no_node(plan: Plan, folder: Path) -> bytes:
    return pack("asked", Asked(run="run", line=1, hold_seconds=0.0))


def answered(data: bytes, settings: dict[str, str]) -> bytes:
    """Return all that leaves the site: an answer, or the words that Flower sends of an error."""
    try:
        said = answer(data, settings)
    except TransportError as error:
        return f"{error!r} {error}".encode()
    return said + repr(unpack_message(said)).encode()


@pytest.mark.parametrize(
    "ask",
    [wrong_hello, outside, unknown_run, torn_kit, no_state, no_node],
    ids=lambda f: f.__name__,
)
def test_no_name_of_a_flower_site_leaves_with_its_failures(
    ask: Callable[[Plan, Path], bytes],
    tiny_plan: Callable[..., Plan],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / CANARY
    folder.mkdir()
    settings = {"site": "gaya", "data": str(folder), "state": str(folder / "state")}
    data = ask(tiny_plan(tmp_path), folder)
    said = answered(data, settings)
    assert CANARY.encode() not in said
    assert str(tmp_path).encode() not in said
    assert caplog.text, "the site's own log says what happened"


def test_exception_without_words_of_ours_is_a_code_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError(CANARY)

    monkeypatch.setattr("boli.engine.flower_site._answer", broken)
    with pytest.raises(TransportError) as caught:
        answer(b"", {})
    assert caught.value.code == "unexpected"
    assert CANARY not in str(caught.value)


def test_error_says_all_of_it_at_home() -> None:
    error = SiteError(f"cannot read /home/{CANARY}", "mend it", "text.column")
    assert str(error) == f"cannot read /home/{CANARY}\n  mend it"
