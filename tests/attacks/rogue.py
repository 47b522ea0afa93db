"""A coordinator that its own people, or whoever took its machine, turned against its sites.

It is the real server and the real transport on loopback; only what it answers to a site's
questions is the attacker's. The site is the real `boli join`, on a terminal of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from boli.engine.identities import Address, Identities, write_invitation
from boli.engine.nats import NatsTransport
from boli.engine.nats_server import Server
from boli.rounds.update import Order, Release
from boli.site.kit import BaseFile, Kit, kit_of, sha256_of

SITE = "gaya"
PATIENCE_SECONDS = 120.0


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def lines_of_text(count: int = 60) -> str:
    """Return made-up text that no two lines of are the same."""
    return "".join(
        f"यह पंक्ति {number} है और {number * 7 % 97} बार लिखी गई।\n" for number in range(count)
    )


def plan_tables(**site: Any) -> dict[str, Any]:
    """Return a plan for one site; `site` changes the site's own section."""
    text = site.pop("text", ["text.txt"])
    return {
        "name": "tiny",
        "corpus": {"held_out": {"test_percent": 20, "tuning_percent": 20}},
        "model": {
            "base": {"path": "base", "language": "hin"},
            "adapter": {"kind": "lora", "rank": 2, "alpha": 4.0},
            "local_steps": {"batch_sequences": 2, "sequence_length": 16, "compile": "off"},
        },
        "evaluation": {"max_lines": 2},
        "engine": {"threads_per_site": 1},
        "site": [{"name": SITE, "language": "mag", "text": text, **site}],
    }


def tiny_base(folder: Path) -> Path:
    """Write a very small Llama of random weights, with its tokenizer, as transformers saves it."""
    import transformers

    from boli.model.tokenizer import train_tokenizer

    transformers.utils.logging.disable_progress_bar()
    tokenizer = train_tokenizer(lines_of_text().splitlines(), 300)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain_kit(base: Path, run: str = "honest", plan: dict[str, Any] | None = None) -> Kit:
    """Return the kit of whatever lies in a folder, as a coordinator without scruples makes it."""
    files = [
        BaseFile(name=path.name, size=path.stat().st_size, sha256=sha256_of(path))
        for path in sorted(base.iterdir())
        if path.is_file()
    ]
    return Kit(run=run, plan=plan or plan_tables(), files=tuple(files))


def honest_kit(base: Path, plan: dict[str, Any] | None = None) -> Kit:
    """Return the kit that boli itself makes of a base."""
    from boli.plan_file import plan_from_tables

    return kit_of("honest", plan_from_tables(plan or plan_tables()), base)


class _Transport(NatsTransport):
    """The coordinator's side, with answers of the attacker's."""

    answer: Callable[[Any], bytes | None]  # to a question; None: the honest answer
    heard: list[bytes]  # all that came from sites

    def _piece(self, site: str, wanted: Any) -> bytes:
        found = self.answer(wanted)
        return super()._piece(site, wanted) if found is None else found

    async def _connected(self, client: Client) -> None:
        async def note(message: Msg) -> None:
            self.heard.append(message.subject.encode() + b" " + bytes(message.data))

        for subject in ("boli.up.>", "boli.join.>", "boli.live.>", "boli.fetch.>"):
            await client.subscribe(subject, cb=note)
        await super()._connected(client)


@dataclass
class Rogue:
    """The hostile coordinator, and one site that joined it in good faith."""

    folder: Path
    base: Path  # an honest one
    kit: bytes = b""  # that it answers with; empty: none
    pieces: Callable[[Any], bytes | None] = lambda _: None  # of files
    heard: list[bytes] = field(default_factory=list)
    said: str = ""  # on the site's terminal
    asked: int = 0  # for the kit
    _kit: Kit = field(init=False)
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Rogue:
        from boli.model.adapter import adapter_layout, initial_vector
        from boli.plan_file import plan_from_tables
        from boli.preparation import open_base

        self.folder.mkdir(parents=True, exist_ok=True)
        address = Address("127.0.0.1", free_port())
        self.server = Server(self.folder / "coordinator", address)
        identities = Identities(self.folder / "coordinator")
        write_invitation(identities.invite(SITE, address), self.folder / f"{SITE}.boli")
        self.server.write_settings()
        self.server.start()
        self._kit = honest_kit(self.base)
        plan = plan_from_tables(plan_tables())
        loaded = open_base(plan, str(self.base), lambda _: None)
        layout = adapter_layout(loaded.model, plan.model.adapter)
        self.layout = layout.digest
        theta = initial_vector(loaded.model, plan.model.adapter)
        self.transport = _Transport(identities.access(address), self._kit, self.base)
        self.transport.answer, self.transport.heard = self._answer, self.heard
        self.transport.start({SITE: (None, ((0, layout.size),))}, Release(0, layout.digest, theta))
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self.transport.hang_up()
        self.server.stop()

    def _answer(self, wanted: Any) -> bytes | None:
        if wanted.get("kit"):
            self.asked += 1
            return self.kit
        return self.pieces(wanted)

    def join(self, data: Path) -> None:
        """Start `boli join` on a terminal, where whatever asks is answered with y."""
        leader, follower = pty.openpty()
        program = str(Path(sys.executable).with_name("boli"))
        words = [
            "join",
            self.folder / f"{SITE}.boli",
            "--data",
            data,
            "--state",
            self.folder / "state",
            "--accept",
            "--limits",
            self.folder / "limits.toml",
        ]
        # What limits stop is not the point of these attacks: a step of them is tiny.
        (self.folder / "limits.toml").write_text("min_tokens = 1\nmin_judged_lines = 1\n")
        home = str(self.folder / "home")
        self._process = subprocess.Popen(
            [program, *map(str, words)],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env={**os.environ, "BOLI_HOME": home, "HF_HOME": home, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        os.close(follower)
        threading.Thread(target=self._watch, args=(leader,), daemon=True).start()

    def _watch(self, leader: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                ready, _, _ = select.select([leader], [], [], 0.5)
                if ready:
                    self.said += os.read(leader, 65536).decode(errors="replace")
                    if self.said.rstrip().endswith(("?", "N]", ")", ":")):
                        os.write(leader, b"y\n")

    @property
    def is_alive(self) -> bool:
        """Whether the site's agent runs, and never ended with a traceback."""
        return self._process is not None and self._process.poll() is None

    def offer(self, kit: Kit | dict[str, Any] | bytes, word: str = "") -> str:
        """Offer a kit, until the site has said a word about it; return all that it said."""
        facts = kit.facts() if isinstance(kit, Kit) else kit
        self.kit = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
        before, asked = len(self.said), self.asked
        for _ in self._wait(lambda: self.asked > asked):
            self.say_hello()
        self.wait_for(lambda: word in self.said[before:] and "\n" in self.said[before:])
        return self.said[before:]

    def wait_for(self, sign: Callable[[], bool]) -> None:
        """Wait for a sign.

        Raises:
            AssertionError: it does not come.
        """
        for _ in self._wait(sign):
            pass

    def _wait(self, sign: Callable[[], bool]) -> Iterator[None]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not sign():
            assert time.monotonic() < deadline, self.said[-4000:]
            assert self.is_alive, f"the site's agent ended: {self.said[-4000:]}"
            yield
            time.sleep(0.2)

    def arrivals(self, wanted: Any) -> list[Any]:
        """Return what came of one kind, as soon as there is some."""
        found: list[Any] = []

        def look() -> bool:
            found.extend(one for one in self.transport.receive(0.05) if isinstance(one, wanted))
            return bool(found)

        self.wait_for(look)
        return found

    def serve_honestly(self) -> str:
        """Offer an honest run, and ask for one step; return what the site did, or raise."""
        from boli.rounds.transport import Joined

        self.pieces = lambda _: None
        self.offer(self._kit)
        (joined, *_) = self.arrivals(Joined)
        tokens = self.ask_for_a_step(1)
        return f"an honest run was served: {tokens} tokens, {joined.site}"

    def fetch_honestly(self) -> str:
        """Offer an honest run, until the site has all of its base."""
        self.pieces = lambda _: None
        self.offer(self._kit)
        folder = self.folder / "state" / "bases" / self._kit.base_digest
        names = {file.name for file in self._kit.files}
        self.wait_for(lambda: folder.is_dir() and {path.name for path in folder.iterdir()} == names)
        return f"an honest base of {len(names)} files was fetched"

    def say_hello(self) -> None:
        """Let the site say what it holds, or ask again what there is to do."""
        self.transport._line.call(self.transport._say("hello"))

    def ask_for_a_step(self, sequence: int) -> int:
        """Ask for one local step, also of a node that was started again; return its tokens."""
        from boli.rounds.transport import Delivery, Joined

        order = Order(
            order=f"honest-{SITE}-{sequence}",
            site=SITE,
            sequence=sequence,
            base_version=0,
            layout=self.layout,
            local_steps=1,
        )
        self.transport.send_order(order)
        if sequence > 1:
            self.say_hello()
        while True:
            for arrival in self.arrivals(Joined | Delivery):
                if isinstance(arrival, Joined):
                    self.transport.send_order(order)
                elif arrival.update.header.sequence == sequence:
                    return int(arrival.update.header.tokens)
