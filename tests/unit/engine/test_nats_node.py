"""A site's agent, by itself: what the coordinator says while a run is about to be served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from boli.engine.identities import Access, Address, Identities, new_seed
from boli.engine.nats_node import Agent
from boli.engine.wire import unpack_message
from boli.errors import CorpusError, LimitError, NotAcceptedError
from boli.site.kit import BaseFile, Kit, SiteFolder

KIT = Kit(run="run", plan={})


@dataclass(frozen=True)
class HeardMeanwhile(SiteFolder):
    """A site that hears something while it looks for what lacks, and counts its nodes."""

    hear: list[Callable[[], Any]] = field(default_factory=list)
    served: list[str] = field(default_factory=list)
    refusals: list[LimitError] = field(default_factory=list)

    def missing(self, kit: Kit) -> list[BaseFile]:
        for one in self.hear:
            one()
        return []

    def admit(self, kit: Kit, accept: Any) -> None:
        for error in self.refusals:
            raise error

    def open_node(self, kit: Kit, link: Any, restarts: int = 0) -> Any:
        self.run_folder(kit).mkdir(parents=True, exist_ok=True)
        work = SimpleNamespace(layout=SimpleNamespace(size=4))
        return SimpleNamespace(run=lambda: self.served.append(kit.run), work=work)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    identities = Identities(tmp_path / "coordinator")
    identities.make()
    access = Access("gaya", Address("127.0.0.1", 1), new_seed(), identities.authority)
    found = Agent(access, HeardMeanwhile("gaya", tmp_path, tmp_path / "state"))
    yield found
    found._line.loop.close()  # nothing ran in it


def hear(agent: Agent, **said: str) -> None:
    message: Any = SimpleNamespace(data=json.dumps(said).encode())
    asyncio.run(agent._on_hello(message))


@pytest.mark.parametrize(
    ("said", "served"),
    [
        pytest.param([{"stop": "run"}], [], id="it is over"),
        pytest.param([{"hello": "next"}], [], id="there is another"),
        pytest.param([{"stop": "run"}, {"hello": "run"}], [], id="to be asked again"),
        pytest.param([{"hello": "run"}], ["run"], id="it goes on"),
        pytest.param([{"stop": "before"}], ["run"], id="an older one is over"),
    ],
)
def test_what_is_said_before_a_run_is_served_is_heard(
    agent: Agent, said: list[dict[str, str]], served: list[str]
) -> None:
    """Else the node would wait for orders of a run that is over, until the next hello."""
    folder: Any = agent._folder
    folder.hear.extend(lambda one=one: hear(agent, **one) for one in said)
    agent._serve_run(KIT)
    assert folder.served == served
    assert agent._called.is_set() == any("hello" in one for one in said)


def test_run_that_was_paused_is_served_when_the_coordinator_says_so(agent: Agent) -> None:
    folder: Any = agent._folder
    hear(agent, stop="run")
    assert asyncio.run(agent._ask_for_kit()) == b""  # the answer is not the point here
    agent._serve_run(KIT)
    assert folder.served == ["run"]


class Sender:
    """Keeps the last word of a site."""

    num_waiting = 0

    def __init__(self) -> None:
        self.said: list[bytes] = []

    def replace(self, message: bytes) -> None:
        self.said.append(message)


def refusing(agent: Agent, error: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a site refuse a run; return what it tells the coordinator."""
    for name in ("PAUSE_SECONDS", "AGAIN_SECONDS"):
        monkeypatch.setattr(f"boli.engine.nats_node.{name}", 0.0)
    sender: Any = Sender()
    agent.link.sender = sender
    folder: Any = agent._folder
    folder.refusals.append(error)
    agent._serve_kit(KIT)
    assert not folder.served
    return [unpack_message(message)[1]["code"] for message in sender.said]


def test_run_beyond_the_limits_is_refused_once_and_waited_out(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = LimitError("10 steps", "ask for fewer", "limits.max-local-steps")
    assert refusing(agent, error, monkeypatch) == ["limits.max-local-steps"]
    assert not agent._called.is_set()  # asking again does not change it
    assert not agent._stopping.is_set()


def test_other_problem_is_tried_again(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(agent, CorpusError("no text"), monkeypatch)
    assert agent._called.is_set()


def test_site_whose_people_do_not_accept_ends_and_says_so(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refusing(agent, NotAcceptedError("they did not"), monkeypatch)
    assert said == ["limits.declined"]
    assert agent._stopping.is_set()
    assert isinstance(agent._declined, NotAcceptedError)
