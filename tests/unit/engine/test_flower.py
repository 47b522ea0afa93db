"""What travels in a Flower federation, and whom it counts for: no Flower and no process needed."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flower_quadratic import LoopbackPost
from quadratic import LAYOUT, LENIENT, Job, layout_of

from boli.durable import write_file
from boli.engine import flower_greeter
from boli.engine.flower import PART_BYTES, GridPost, from_record, to_record
from boli.engine.flower_app import write_app
from boli.engine.flower_greeter import Greeter, Reply
from boli.engine.flower_node import FlowerLink
from boli.engine.flower_seat import Pace
from boli.engine.flower_site import answer, site_folder, socket_path
from boli.engine.flower_transport import FlowerTransport
from boli.engine.flower_wire import (
    Asked,
    Greeting,
    Hello,
    Part,
    Pieces,
    Told,
    UnheardError,
    pack,
    read_told,
    split,
)
from boli.engine.wire import pack_message, unpack_message
from boli.errors import RunError, SiteError, TransportError, public_words
from boli.plan_file import plan_from_tables
from boli.rounds.transport import Delivery, Failed, Joined, Left, Malformed
from boli.rounds.update import Order, Release, UpdateHeader
from boli.site.kit import BaseFile, Kit

JOB = Job(ranks={"arrah": None, "gaya": None})
BARE_KIT = Kit(run="run", plan={}, origin="none")


# Bytes in Flower's records


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 7])
def test_record_gives_back_the_bytes(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    record = to_record(data)
    assert from_record(record) == data
    assert len(record) == max(1, -(-size // PART_BYTES))


def test_update_of_common_size_is_one_value() -> None:
    assert len(to_record(b"x" * 50_000)) == 1


@pytest.mark.parametrize("keys", [["1"], ["0", "2"], ["x"]])
def test_record_of_something_else_is_refused(keys: list[str]) -> None:
    from flwr.app import ConfigRecord, RecordDict

    record = RecordDict({key: ConfigRecord({"b": b"x"}) for key in keys})
    with pytest.raises(TransportError):
        from_record(record)
    with pytest.raises(TransportError):
        from_record(RecordDict({"0": ConfigRecord({"b": 5})}))


def test_bundle_gives_back_its_messages() -> None:
    messages = [b"one", b"", b"three"]
    told, found = read_told(pack("told", Told(line=3, life="a"), messages))
    assert (found, told.line, told.life) == (messages, 3, "a")


@pytest.mark.parametrize("sizes", [(5,), (-1, 4), (1, 1)])
def test_bundle_whose_sizes_lie_is_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(UnheardError):
        split(sizes, b"abc")


# The coordinator


def joining(version: int = 0) -> bytes:
    facts = {"layout": layout_of().describe(), "num_lines": {}, "held_digest": 0}
    return pack_message("join", {**facts, "held_version": version})


def update(site: str, sequence: int = 1) -> bytes:
    header = UpdateHeader(
        order=f"run-{site}-{sequence}",
        site=site,
        sequence=sequence,
        base_version=0,
        layout=LAYOUT.digest,
        local_steps=1,
        tokens=8,
    )
    return pack_message("update", header.facts(), b"payload")


@dataclass
class ScriptedPost:
    """Nodes that answer what a test says; each message gets the next answer of its node."""

    names: dict[int, str]  # node to the site that it claims to be
    answers: dict[int, list[Any]] = field(default_factory=dict)  # told bundles, or problems
    greetings: dict[int, list[bytes]] = field(default_factory=dict)  # before the usual ones
    poses: dict[int, int] = field(default_factory=dict)  # node to the one that Flower says it is
    asked: list[tuple[int, Asked, list[bytes]]] = field(default_factory=list)
    _replies: dict[str, Reply] = field(default_factory=dict)
    _numbers: Any = field(default_factory=itertools.count)

    def node_ids(self) -> set[int]:
        return set(self.names)

    def send(self, node: int, data: bytes, ttl_seconds: float) -> str:
        message, source = str(next(self._numbers)), self.poses.get(node, node)
        kind, body, payload = unpack_message(data)
        if kind == "hello":
            usual = pack("greeting", Greeting(site=self.names[node]))
            scripted = self.greetings.get(node)
            self._replies[message] = Reply(node, scripted.pop(0) if scripted else usual)
            return message
        asked = Asked.model_validate(body)
        self.asked.append((node, asked, split(asked.sizes, payload)))
        rest = self.answers.get(node, [])
        if rest:
            found = rest.pop(0)
            match found:
                case str():
                    self._replies[message] = Reply(source, problem=found)
                case bytes():
                    self._replies[message] = Reply(source, found)
                case (life, messages):
                    told = pack("told", Told(line=asked.line, life=life), messages)
                    self._replies[message] = Reply(source, told)
        return message

    def fetch(self, message: str) -> Reply | None:
        return self._replies.pop(message, None)


@pytest.fixture
def transport_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:  # (post, kit) -> FlowerTransport
    monkeypatch.setattr("boli.engine.flower_transport.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("boli.engine.flower_transport.AGAIN_SECONDS", 0.05)
    opened: list[FlowerTransport] = []

    def make(post: Any, kit: Kit = BARE_KIT) -> FlowerTransport:
        one = FlowerTransport(post, kit, tmp_path, pace=Pace(0.1, 0.2, 60.0))
        theta = np.zeros(LAYOUT.size, np.float32)
        one.start(JOB.views, Release(0, LAYOUT.digest, theta))
        opened.append(one)
        return one

    yield make
    for one in opened:
        one._closed.set()


def arrivals_until(transport: FlowerTransport, kind: type, seconds: float = 60.0) -> list[Any]:
    seen: list[Any] = []
    deadline = time.monotonic() + seconds
    while not any(isinstance(one, kind) for one in seen):
        assert time.monotonic() < deadline, seen
        seen += transport.receive(0.1)
    return seen


def order(site: str, sequence: int = 1) -> Order:
    return Order(
        order=f"run-{site}-{sequence}",
        site=site,
        sequence=sequence,
        base_version=0,
        layout=LAYOUT.digest,
        local_steps=1,
    )


def test_update_counts_for_the_node_that_sent_it_whatever_name_it_holds(
    transport_over: Callable[[Any], FlowerTransport],
) -> None:
    post = ScriptedPost({7: "gaya"}, {7: [("a", [joining()]), ("a", [update("arrah")])]})
    transport = transport_over(post)
    arrivals_until(transport, Joined)
    transport.send_order(order("gaya"))
    (delivery,) = arrivals_until(transport, Delivery)
    assert (delivery.site, delivery.update.header.site) == ("gaya", "arrah")


def test_reply_from_another_node_than_the_one_asked_counts_for_nobody(
    transport_over: Callable[[Any], FlowerTransport],
) -> None:
    post = ScriptedPost({7: "gaya"}, {7: [("a", [joining()]), ("a", [update("gaya")])] * 9})
    transport = transport_over(post)
    arrivals_until(transport, Joined)
    post.poses[7] = 8
    transport.send_order(order("gaya"))
    seen = arrivals_until(transport, Left)
    assert "was not asked" in seen[0].reason
    assert not any(isinstance(one, Delivery) for one in seen)


def test_second_node_that_claims_a_site_gets_no_orders_while_the_first_is_there(
    transport_over: Callable[[Any], FlowerTransport],
) -> None:
    post = ScriptedPost({7: "gaya"}, {7: [("a", [joining()])]})
    transport = transport_over(post)
    arrivals_until(transport, Joined)
    post.names[9] = "gaya"
    post.answers[9] = [("b", [joining()])]
    for _ in range(5):
        assert not transport.receive(0.1)
    assert 9 not in {node for node, _, _ in post.asked}
    del post.names[7]  # only now it may sit down
    seen = arrivals_until(transport, Joined)
    assert [type(one) for one in seen] == [Left, Joined]


def test_node_of_no_site_of_the_plan_is_left_alone(
    transport_over: Callable[[Any], FlowerTransport],
) -> None:
    post = ScriptedPost({7: "", 8: "patna"})
    transport = transport_over(post)
    for _ in range(5):
        assert not transport.receive(0.1)
    assert not post.asked


@pytest.mark.parametrize(
    "problem", ["error 5: node unavailable", "error 8: crashed", "error 3: expired"]
)
def test_lost_reply_breaks_the_line_and_the_site_is_asked_again(
    transport_over: Callable[[Any], FlowerTransport], problem: str
) -> None:
    answers: list[Any] = [("a", [joining()]), problem, ("a", [joining()]), ("a", [update("gaya")])]
    post = ScriptedPost({7: "gaya"}, {7: answers})
    transport = transport_over(post)
    arrivals_until(transport, Joined)
    transport.send_order(order("gaya"))
    assert [type(one) for one in arrivals_until(transport, Joined)] == [Left, Joined]
    transport.send_order(order("gaya"))
    assert arrivals_until(transport, Delivery)
    lines = [asked.line for _, asked, _ in post.asked]
    assert lines[0] == lines[1] < lines[2] == lines[3]


def test_order_travels_with_the_versions_that_its_site_lacks(
    transport_over: Callable[[Any], FlowerTransport],
) -> None:
    answers: list[Any] = [("a", [joining()]), ("a", [update("gaya")])]
    post = ScriptedPost({7: "gaya"}, {7: answers})
    transport = transport_over(post)
    arrivals_until(transport, Joined)
    step = np.ones(LAYOUT.size, np.float32)
    transport.publish(Release(1, LAYOUT.digest, -step, step))
    transport.send_order(order("gaya"))
    arrivals_until(transport, Delivery)
    kinds = [unpack_message(message)[0] for message in post.asked[1][2]]
    assert kinds == ["snapshot", "order"]  # it said to hold other bits than version 0 has
    assert transport.bytes_down("gaya") == sum(map(len, post.asked[1][2]))


@pytest.mark.parametrize("data", [b"", b"\xff" * 50, pack("told", Told(), [b"x"])[:-1]])
def test_answer_that_is_none_is_malformed(
    transport_over: Callable[[Any], FlowerTransport], data: bytes
) -> None:
    post = ScriptedPost({7: "gaya"}, {7: [("a", [joining()]), data]})
    transport = transport_over(post)
    arrivals_until(transport, Joined)
    transport.send_order(order("gaya"))
    assert [type(one) for one in arrivals_until(transport, Left)] == [Malformed, Left]


def test_node_that_ends_again_and_again_fails(
    transport_over: Callable[[Any], FlowerTransport],
) -> None:
    lost = pack("told", Told(lost="node.ended"))
    post = ScriptedPost({7: "gaya"}, {7: [lost] * 20})
    (failed,) = arrivals_until(transport_over(post), Failed)
    assert "over 5 times without an update" in failed.problem
    assert failed.hint == public_words("node.ended")[0]


# Nodes with bad intent, and sites that are mended


HUGE = int("9" * 4300)  # the longest that Python reads: a digit more, and it raises
ESCAPE = "\x1b[2J\x07" + "x" * 9000


def joins_beside(transport: FlowerTransport) -> None:
    """Check that the other site takes part."""
    while not any(one.site == "arrah" for one in arrivals_until(transport, Joined)):
        pass


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({"site": "gaya", "have": {"model.safetensors": -1}}, id="before its start"),
        pytest.param({"site": "gaya", "have": {"model.safetensors": HUGE}}, id="beyond its end"),
        pytest.param({"site": "patna", "have": {"model.safetensors": -1}}, id="of no site"),
        pytest.param({"site": "gaya", "have": {"../plan.json": 0}}, id="of another folder"),
        pytest.param({"site": 5}, id="no name"),
    ],
)
def test_greeting_that_is_none_costs_its_node_the_greeting_and_nobody_the_run(
    transport_over: Callable[..., FlowerTransport], facts: dict[str, Any], tmp_path: Path
) -> None:
    post = ScriptedPost({7: "gaya", 8: "arrah"}, {8: [("a", [joining()])] * 20})
    post.greetings[7] = [pack_message("greeting", facts)] * 99
    post.greetings[8] = [pack("greeting", Greeting(site="arrah"))] * 99
    transport = transport_over(post, kit_with_base(tmp_path))
    joins_beside(transport)
    for _ in range(5):
        transport.receive(0.1)
    assert 7 not in {node for node, _, _ in post.asked}


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({"line": 1, "sizes": [HUGE, HUGE]}, id="sizes whose sum cannot be written"),
        pytest.param({"line": HUGE}, id="a line that cannot be counted on"),
        pytest.param({"line": 2**53}, id="a line that no coordinator had"),
        pytest.param({"line": 1, "sizes": [0] * 33}, id="more messages than any node says"),
    ],
)
def test_answer_with_figures_out_of_bounds_is_malformed_and_the_site_is_asked_on(
    transport_over: Callable[[Any], FlowerTransport], facts: dict[str, Any]
) -> None:
    answers: list[Any] = [("a", [joining()]), pack_message("told", facts), ("a", [joining()])]
    post = ScriptedPost({7: "gaya"}, {7: answers})
    transport = transport_over(post)
    arrivals_until(transport, Joined)
    transport.send_order(order("gaya"))
    assert [type(one) for one in arrivals_until(transport, Left)] == [Malformed, Left]
    arrivals_until(transport, Joined)
    assert post.asked[-1][1].line < 2**53


def test_words_of_a_node_are_cut_and_no_command_for_a_terminal(
    transport_over: Callable[[Any], FlowerTransport], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flwr.boli")
    post = ScriptedPost({6: "", 7: "gaya", 8: "arrah"})
    said = {"site": "gaya", "code": ESCAPE}
    post.greetings[6] = [pack_message("greeting", {"site": ESCAPE})]
    post.greetings[7] = [pack_message("greeting", said)]
    post.answers[8] = [("a", [joining()]), ESCAPE, ("a", [joining()]), ESCAPE]
    transport = transport_over(post)
    found: list[Any] = []
    while sum(isinstance(one, Left) for one in found) < 2 or "no site" not in caplog.text:
        new = transport.receive(0.1)
        if any(isinstance(one, Joined) for one in new):
            transport.send_order(order("arrah"))
        found += new
    words = [one.reason for one in found if isinstance(one, Left)]
    words += [word for one in found if isinstance(one, Failed) for word in (one.problem, one.hint)]
    words += [record.getMessage() for record in caplog.records]
    assert sum("xxx" in word for word in words) >= 4
    assert not [word for word in words if "\x1b" in word or "\x07" in word or len(word) > 600]


@pytest.mark.parametrize("code", ["text.column", "from.a-newer.boli"])
def test_site_says_its_failure_by_a_code_and_the_words_are_our_own(
    transport_over: Callable[[Any], FlowerTransport], code: str
) -> None:
    words = {"code": code, "problem": "the column patient_verma", "hint": "of /home/verma"}
    for said in ("greeting", "failed"):
        post = ScriptedPost({7: "gaya"}, {7: [("a", [pack_message("failed", words)])]})
        if said == "greeting":
            post.greetings[7] = [pack_message("greeting", {"site": "gaya", **words})]
        (failed,) = arrivals_until(transport_over(post), Failed)
        assert (failed.problem, failed.hint) == public_words(code)


def test_site_whose_problem_was_mended_takes_part_again(
    transport_over: Callable[[Any], FlowerTransport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boli.engine.flower_transport.MEND_SECONDS", 0.2)
    failing = pack_message("failed", {"code": "text.missing"})
    answers: list[Any] = [("a", [failing]), ("b", [failing, joining()]), ("c", [joining()])]
    post = ScriptedPost({7: "gaya"}, {7: [*answers, ("c", [update("gaya")])]})
    bad = pack("greeting", Greeting(site="gaya", code="storage"))
    post.greetings[7] = [bad, bad]
    transport = transport_over(post)
    found = arrivals_until(transport, Joined)
    told = [one.problem if isinstance(one, Failed) else type(one) for one in found]
    reasons = [public_words(code)[0] for code in ("storage", "text.missing")]
    assert told == [*reasons, Joined], "what did not change was told again"
    transport.send_order(order("gaya"))
    assert arrivals_until(transport, Delivery)


def test_site_that_cannot_take_part_is_not_asked_all_the_time(
    transport_over: Callable[[Any], FlowerTransport],
) -> None:
    post = ScriptedPost({7: "gaya"})
    post.greetings[7] = [pack("greeting", Greeting(site="gaya", code="storage"))] * 9
    transport = transport_over(post)
    arrivals_until(transport, Failed)
    for _ in range(5):
        transport.receive(0.1)
    assert len(post.greetings[7]) == 8


def test_line_that_breaks_at_once_is_not_made_again_at_once(
    transport_over: Callable[[Any], FlowerTransport], monkeypatch: pytest.MonkeyPatch
) -> None:
    post = ScriptedPost({7: "gaya"}, {7: [("a", [joining()]), "error 5: gone"] * 9})
    transport = transport_over(post)
    monkeypatch.setattr("boli.engine.flower_transport.AGAIN_SECONDS", 60.0)
    arrivals_until(transport, Joined)
    transport.send_order(order("gaya"))
    arrivals_until(transport, Left)
    for _ in range(5):
        assert not transport.receive(0.1)
    assert len(post.asked) == 2


class BadReplyGrid:
    """A Grid over which a reply came that Flower cannot read, or that is gone itself."""

    def __init__(self, is_there: bool) -> None:
        self.is_there = is_there

    def get_node_ids(self) -> list[int]:
        if not self.is_there:
            raise ConnectionError("gone")
        return [7]

    def pull_messages(self, ids: list[str]) -> list[Any]:
        raise KeyError("NoSuchRecord")


def test_reply_that_flower_cannot_read_is_its_nodes_fault_and_not_the_superlinks() -> None:
    bad: Any = BadReplyGrid(is_there=True)
    reply = GridPost(bad).fetch("message")
    assert reply is not None
    assert "cannot be read: KeyError" in reply.problem
    gone: Any = BadReplyGrid(is_there=False)
    with pytest.raises(TransportError, match="SuperLink does not answer"):
        GridPost(gone).fetch("message")


# A node's link


def ask(link: FlowerLink, line: int, hold_seconds: float = 0.0) -> tuple[Told, list[bytes]]:
    asked = Asked(run="run", line=line, life=link.life, hold_seconds=hold_seconds)
    return read_told(link.exchange(asked, []))


def test_what_a_node_said_on_an_older_line_is_dropped_and_the_older_line_hears_nothing() -> None:
    link = FlowerLink()
    link._say(b"before")
    assert ask(link, 5)[1] == []  # whoever was to hear it may not have
    link._say(b"now")
    told, said = ask(link, 4)
    assert (told.line, said) == (5, [])
    assert ask(link, 5)[1] == [b"now"]
    assert ask(link, 5)[1] == []


def test_node_with_much_to_say_says_no_more_at_once_than_a_coordinator_takes() -> None:
    link = FlowerLink()
    assert ask(link, 1)[1] == []
    for number in range(40):
        link._say(b"%d" % number)
    link.measure({"step": 1.0})
    first, rest = ask(link, 1)[1], ask(link, 1)[1]
    assert (len(first), len(rest)) == (32, 9)
    assert [*first[:31], *rest] == [b"%d" % number for number in range(40)]


# A site


def settings_for(folder: Path) -> dict[str, Any]:
    (folder / "limits.toml").write_text(LENIENT)
    places = {"data": str(folder), "state": str(folder / "state")}
    return {"site": "gaya", **places, "limits": str(folder / "limits.toml"), "accept": True}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"site": "Gaya!"}, "is no name"),
        ({"data": None}, "has no data"),
        ({"state": "here"}, "absolute"),
    ],
)
def test_node_config_that_is_wrong_says_what_to_change(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    settings = {**settings_for(tmp_path), **change}
    with pytest.raises(SiteError) as caught:
        site_folder({key: value for key, value in settings.items() if value is not None})
    assert words in str(caught.value)


def test_node_without_a_site_takes_no_part() -> None:
    kit = Kit(run="run", plan={}, origin="none")
    kind, body, _ = unpack_message(answer(pack("hello", Hello(kit=kit)), {"partition-id": 1}))
    assert (kind, body) == ("greeting", {})


def test_state_folder_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="shorter state folder"):
        socket_path(tmp_path / ("x" * 90))


@pytest.mark.parametrize("run", ["../other", "a/b", "", "A"])
def test_run_that_is_no_name_of_a_folder_is_refused(run: str, tmp_path: Path) -> None:
    facts = {"run": run, "line": 1, "hold_seconds": 0.0}
    with pytest.raises(TransportError, match="cannot exchange messages"):
        answer(pack_message("asked", facts), settings_for(tmp_path))


def is_gaya(site: str) -> bool:
    return site == "gaya"


@dataclass
class NeverWholePost:
    """A node that lacks all of the base, and says of what it is sent what a test says."""

    sites: list[str]
    had: list[dict[str, int]] = field(default_factory=list)
    num_pieces: int = 0
    _replies: dict[str, Reply] = field(default_factory=dict)

    def node_ids(self) -> set[int]:
        return {7}

    def send(self, node: int, data: bytes, ttl_seconds: float) -> str:
        kind, _, _ = unpack_message(data)
        if kind == "hello":
            said = Greeting(site=self.sites[0], have={"model.safetensors": 0})
            self._replies["m"] = Reply(node, pack("greeting", said))
        else:
            self.num_pieces += 1
            self._replies["m"] = Reply(node, pack_message("had", {"have": self.had.pop(0)}))
        return "m"

    def fetch(self, message: str) -> Reply | None:
        return self._replies.pop(message, None)


def kit_with_base(folder: Path) -> Kit:
    write_file(folder / "model.safetensors", b"abc")
    sha256 = hashlib.sha256(b"abc").hexdigest()
    files = (BaseFile(name="model.safetensors", size=3, sha256=sha256),)
    return Kit(run="run", plan={}, files=files)


def greeter_over(post: NeverWholePost, folder: Path) -> Greeter:
    return Greeter(post, kit_with_base(folder), folder, 5.0, is_gaya)


def test_base_arrives_in_pieces_and_an_interrupted_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower_greeter, "PIECES_BYTES", 1000)
    base, files = tmp_path / "base", []
    for name, size in (("config.json", 300), ("merges.txt", 0), ("model.safetensors", 4100)):
        content = np.random.default_rng(size).bytes(size)
        write_file(base / name, content)
        files.append(BaseFile(name=name, size=size, sha256=hashlib.sha256(content).hexdigest()))
    plan = json.loads(JOB.plan.model_dump_json())
    kit = Kit(run="run", plan=plan, files=tuple(files))
    settings = settings_for(tmp_path)
    sent: list[int] = []

    class CountedPost(LoopbackPost):
        def send(self, node: int, data: bytes, ttl_seconds: float) -> str:
            sent.append(node)
            return super().send(node, data, ttl_seconds)

    greeter = Greeter(CountedPost({7: settings}), kit, base, 5.0, is_gaya)
    with pytest.raises(flower_greeter.LineLost):
        greeter.greet(7, lambda: len(sent) < 4)
    greeting = greeter.greet(7, lambda: True)
    assert greeting.site == "gaya"
    assert sum(greeting.have.values()) > 0, "it began from nothing again"
    folder = site_folder(settings)
    assert folder is not None
    assert not folder.missing(kit)
    assert not list(folder.base_folder(kit).glob(".*"))
    assert not greeter.greet(7, lambda: True).have


def test_node_is_told_of_a_run_only_once_it_said_which_site_it_is(tmp_path: Path) -> None:
    """And then of its own part: what other sites read is nothing of its business."""
    heard: list[bytes] = []

    class Heard(LoopbackPost):
        def send(self, node: int, data: bytes, ttl_seconds: float) -> str:
            heard.append(data)
            return super().send(node, data, ttl_seconds)

    kit = Kit(run="run", plan=json.loads(JOB.plan.model_dump_json()), origin="none")
    greeter = Greeter(Heard({7: settings_for(tmp_path)}), kit, tmp_path, 5.0, is_gaya)
    assert greeter.greet(7, lambda: True).site == "gaya"
    bodies = [unpack_message(data)[1] for data in heard]
    assert bodies[0] == {}
    (section,) = bodies[1]["kit"]["plan"]["site"]
    assert section["name"] == "gaya"
    assert bodies[1]["kit"]["num_sites"] == 2
    assert not any(b"arrah" in data for data in heard)


@pytest.mark.parametrize("change", [{"accept": False}, {"accept": "true"}, {}])
def test_node_whose_people_do_not_accept_takes_no_part(
    change: dict[str, Any], tmp_path: Path
) -> None:
    settings = settings_for(tmp_path)
    del settings["accept"]
    kit = Kit(run="run", plan=json.loads(JOB.plan.model_dump_json()), origin="none")
    found = unpack_message(answer(pack("hello", Hello(kit=kit)), settings | change))[1]
    assert found["code"] == "limits.declined"
    assert not (tmp_path / "state" / "runs").exists()


def test_node_whose_limits_the_plan_is_beyond_takes_no_part(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    del settings["limits"]  # the usual ones hold
    kit = Kit(run="run", plan=json.loads(JOB.plan.model_dump_json()), origin="none")
    found = unpack_message(answer(pack("hello", Hello(kit=kit)), settings))[1]
    assert found["code"] == "limits.min-tokens"
    assert (tmp_path / "state" / "limits.toml").exists()


def test_node_that_names_no_site_of_the_run_is_not_sent_the_base(tmp_path: Path) -> None:
    post = NeverWholePost(["patna"])
    assert greeter_over(post, tmp_path).greet(7, lambda: True).site == "patna"
    assert not post.num_pieces


@pytest.mark.parametrize(
    "had",
    [
        pytest.param([{"model.safetensors": 1}, {"model.safetensors": 0}] * 9, id="less"),
        pytest.param([{f"file-{i}": i} for i in range(99)], id="other files"),
        pytest.param([{"model.safetensors": -1}], id="below zero"),
        pytest.param([{"model.safetensors": 10**4000}], id="beyond all"),
    ],
)
def test_node_that_does_not_keep_what_it_is_sent_is_left(
    had: list[dict[str, int]], tmp_path: Path
) -> None:
    post = NeverWholePost(["gaya"], had)
    with pytest.raises(flower_greeter.LineLost):
        greeter_over(post, tmp_path).greet(7, lambda: True)
    assert post.num_pieces <= 2


def test_altered_piece_is_not_kept(tmp_path: Path) -> None:
    file = BaseFile(name="model.safetensors", size=3, sha256=hashlib.sha256(b"abc").hexdigest())
    kit = Kit(run="run", plan=json.loads(JOB.plan.model_dump_json()), files=(file,))
    settings = settings_for(tmp_path)
    answer(pack("hello", Hello(kit=kit)), settings)
    pieces = Pieces(run="run", parts=(Part(file=file.name),), sizes=(3,))
    with pytest.raises(TransportError) as caught:
        answer(pack("pieces", pieces, [b"abd"]), settings)
    assert caught.value.code == "storage.corrupt"
    folder = site_folder(settings)
    assert folder is not None
    assert [one.name for one in folder.missing(kit)] == [file.name]


# The app


def test_app_holds_the_whole_plan_and_belongs_to_one_run(tmp_path: Path) -> None:
    import tomllib

    run = write_app(JOB.plan, tmp_path / "app", tmp_path / "runs")
    tables = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())
    config = tables["tool"]["flwr"]["app"]["config"]
    assert plan_from_tables(json.loads(config["plan"])) == JOB.plan
    assert (config["run"], config["runs"]) == (run, str(tmp_path / "runs"))
    assert [path.name for path in (tmp_path / "app").iterdir()] == ["pyproject.toml"]
    with pytest.raises(RunError, match="holds an app already"):
        write_app(JOB.plan, tmp_path / "app", tmp_path / "runs")
