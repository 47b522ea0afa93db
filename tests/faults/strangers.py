"""A coordinator, its server and honest sites on loopback, and those who should not get in.

`Guest` is a site's key in wrong hands: it speaks the protocol by itself, over nats-py.
`knock` is a stranger at the door, over bare sockets.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import secrets
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import edge
import nats
import nkeys
import numpy as np
import over_nats
from over_nats import free_port
from quadratic import LAYOUT, TOKENS_A_STEP, Job, synchronous_reference, write_job

from boli.codec.codec import DenseCodec, encode_frame
from boli.codec.facts import pack_facts
from boli.engine.identities import (
    SERVER_NAME,
    Access,
    Address,
    Identities,
    inbox_of,
    new_seed,
    public_key,
    write_invitation,
)
from boli.engine.parts import Assembler, Label, parts_of
from boli.engine.wire import pack_message, unpack_message
from boli.journal import Event, read_journal
from boli.rounds.update import Order, UpdateHeader

LARGEST_MESSAGE_BYTES = 4 << 20


@dataclass
class Fort:
    """The coordinator's process and one for each honest site; all else is the attackers'."""

    folder: Path
    job: Job
    honest: tuple[str, ...]
    programs: dict[str, str] = field(default_factory=dict)  # by site, another one than over_nats
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Fort:
        self.address = Address("127.0.0.1", free_port())
        write_job(self.job, self.folder)
        for site in self.job.ranks:
            write_invitation(
                self.identities.invite(site, self.address), self.folder / f"{site}.boli"
            )
        self._start("coordinator", edge.__file__, "coordinate", self.folder, self.address.port)
        for site in self.honest:
            self.start_site(site)
        return self

    def start_site(self, site: str) -> None:
        program = self.programs.get(site, over_nats.__file__)
        self._start(site, program, self.folder, site)

    def _start(self, name: str, *arguments: object) -> None:
        paths = [str(Path(over_nats.__file__).parent), os.environ.get("PYTHONPATH", "")]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            )

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        with contextlib.suppress(OSError, ValueError):
            os.kill(self.server_pid, signal.SIGKILL)

    @property
    def identities(self) -> Identities:
        return Identities(self.folder / "coordinator")

    @property
    def server_pid(self) -> int:
        return int((self.folder / "coordinator" / "server.pid").read_text())

    def access(self, site: str) -> Access:
        return over_nats.Invitation.read(self.folder / f"{site}.boli").access

    def events(self) -> list[Event]:
        """Return what the journal holds by now."""
        path = self.folder / "journal.jsonl"
        return [entry.event for entry in read_journal(path)] if path.exists() else []

    def wait_for(self, is_there: Callable[[list[Event]], object], seconds: float = 120.0) -> None:
        """Wait for what the journal is to tell.

        Raises:
            AssertionError: it does not.
        """
        deadline = time.monotonic() + seconds
        while not is_there(self.events()):
            assert time.monotonic() < deadline, self.story()
            time.sleep(0.05)

    def finish(self, seconds: float = 120.0) -> None:
        """Wait for the end of the run.

        Raises:
            AssertionError: it fails, or takes longer.
        """
        try:
            code = self.processes["coordinator"].wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.story()) from None
        assert code == 0, self.story()

    def check_bits(self) -> None:
        """Check that the run came to what it comes to without anybody else."""
        found = np.load(self.folder / "theta.npy")
        assert found.tobytes() == synchronous_reference(self.job).tobytes()

    def memory(self) -> dict[str, int]:
        """Return the bytes that coordinator and server hold now, and held at most."""
        found = {}
        for name, pid in (
            ("coordinator", self.processes["coordinator"].pid),
            ("server", self.server_pid),
        ):
            lines = dict(
                line.split(":", 1)
                for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                if ":" in line
            )
            found[name] = 1024 * int(lines["VmRSS"].split()[0])
            found[f"{name} at most"] = 1024 * int(lines["VmHWM"].split()[0])
        return found

    def story(self) -> str:
        """Return the last lines of all, for the message of a test that fails."""
        found = []
        for log in sorted(self.folder.rglob("*.log")):
            found += [f"== {log.name}", *log.read_text(errors="replace").splitlines()[-8:]]
        return "\n".join([*found, *(str(event)[:200] for event in self.events()[-12:])])


def trust(access: Access) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=access.authority)


@contextlib.contextmanager
def in_background(*acts: Callable[[], Awaitable[Any]]) -> Iterator[list[Any]]:
    """Let acts go on meanwhile; at the end, wait for them and give what each came to."""
    results: list[Any] = []

    async def all_of_them() -> None:
        results.extend(await asyncio.gather(*(act() for act in acts), return_exceptions=True))

    thread = threading.Thread(target=lambda: asyncio.run(all_of_them()), daemon=True)
    thread.start()
    yield results
    thread.join(120.0)
    assert not thread.is_alive(), "an attacker is not done"


@dataclass
class Guest:
    """A site's key, and whoever has it."""

    access: Access
    complaints: list[str] = field(default_factory=list)  # of the server
    orders: asyncio.Queue[Order] = field(default_factory=asyncio.Queue)
    _assembler: Assembler = field(default_factory=lambda: Assembler(LARGEST_MESSAGE_BYTES))

    async def enter(self, seed: str | None = None) -> None:
        """Connect, as the site or with another key."""

        async def complain(error: Exception) -> None:
            self.complaints.append(str(error))

        self.client = nats.NATS()
        try:
            await self.client.connect(
                [f"tls://{self.access.address}"],
                tls=trust(self.access),
                tls_hostname=SERVER_NAME,
                tls_handshake_first=True,
                nkeys_seed_str=seed or self.access.seed,
                inbox_prefix=inbox_of(self.access.name),
                allow_reconnect=False,
                connect_timeout=10,
                error_cb=complain,
            )
        except BaseException:  # nats-py leaves the connection open
            writer = getattr(self.client._transport, "_io_writer", None)
            if writer is not None:
                writer.transport.abort()
            await self.leave()
            raise
        # nats-py says nothing when the server's last word was lost, and only the end came.
        if not self.client.is_connected:
            await self.leave()
            raise ConnectionResetError("closed")

    async def join(self, **values: Any) -> None:
        """Take a site's seat, and its orders."""
        site = self.access.name
        await self.client.subscribe(f"boli.deliver.{site}", cb=self._on_message)
        said = {
            "layout": LAYOUT.describe(),
            "num_lines": {"bho": {"train": 10}},
            "held_version": -1,
            "held_digest": 0,
        }
        # The coordinator may not be there yet.
        for _ in range(100):
            with contextlib.suppress(nats.errors.NoRespondersError):
                await self.client.request(
                    f"boli.join.{site}", pack_facts(said | values), timeout=20
                )
                return
            await asyncio.sleep(0.1)

    async def _on_message(self, message: Any) -> None:
        label = Label.of((message.headers or {}).get("Nats-Msg-Id"))
        whole, _ = self._assembler.add(label, message.data, None)
        await message.ack()
        if whole is not None:
            kind, body, _ = unpack_message(whole)
            if kind == "order":
                self.orders.put_nowait(Order.model_validate(body))

    async def send(self, message: bytes) -> None:
        """Send a message as an update's parts."""
        for label, part in parts_of(message):
            await self.send_part(str(label), part)

    async def send_part(self, label: str, part: bytes) -> None:
        await self.client.request(
            f"boli.up.{self.access.name}", part, timeout=20, headers={"Nats-Msg-Id": label}
        )

    async def leave(self) -> None:
        with contextlib.suppress(Exception):
            await self.client.close()


def answer_to(order: Order) -> tuple[UpdateHeader, bytes]:
    """Return a sound answer to an order: training that came to nothing."""
    header = UpdateHeader(
        order=order.order,
        site=order.site,
        sequence=order.sequence,
        attempt=order.attempt,
        base_version=order.base_version,
        layout=order.layout,
        local_steps=order.local_steps,
        tokens=order.local_steps * TOKENS_A_STEP,
    )
    zeros = np.zeros(LAYOUT.size, np.float32)
    frame = encode_frame(DenseCodec(), zeros, order.layout, None, order.base_version)
    return header, frame if order.local_steps else b""


def as_message(header: UpdateHeader, payload: bytes) -> bytes:
    return pack_message("update", header.facts(), payload)


Knock = Literal["silence", "garbage", "no key", "unknown key"]


async def knock(access: Access, how: Knock, context: ssl.SSLContext) -> bytes:
    """Try to come in; return the server's last words."""
    where = access.address.host, access.address.port
    if how in ("silence", "garbage"):
        reader, writer = await asyncio.open_connection(*where)
        if how == "garbage":
            writer.write(b"GET / HTTP/1.1\r\nHost: boli\r\n\r\n" + secrets.token_bytes(100))
    else:
        reader, writer = await asyncio.open_connection(
            *where, ssl=context, server_hostname=SERVER_NAME
        )
    try:
        if how in ("no key", "unknown key"):
            writer.write(_greeting(await reader.readline(), how))
        if how == "silence":
            await asyncio.sleep(0.2)
            return b""
        return await asyncio.wait_for(reader.read(), 30.0)
    finally:
        writer.transport.abort()


def _greeting(info: bytes, how: Knock) -> bytes:
    """Return how a client without a key, or with its own, answers the server's first line."""
    said = {"verbose": False, "pedantic": False, "lang": "x", "version": "1", "protocol": 1}
    nonce = json.loads(info.removeprefix(b"INFO "))["nonce"]
    if how == "unknown key":
        seed = new_seed()
        signed = nkeys.from_seed(bytearray(seed.encode())).sign(nonce.encode())
        sig = base64.urlsafe_b64encode(signed).decode().rstrip("=")
        said |= {"nkey": public_key(seed), "sig": sig}
    return b"CONNECT " + json.dumps(said).encode() + b"\r\nPING\r\n"


async def flood(access: Access, num: int, at_once: int) -> dict[str, int]:
    """Knock very often, in every way; return how often each answer came."""
    ways: tuple[Knock, ...] = ("silence", "garbage", "no key", "unknown key")
    context, gate = trust(access), asyncio.Semaphore(at_once)
    heard: dict[str, int] = {}

    async def one(how: Knock) -> None:
        async with gate:
            try:
                said = await knock(access, how, context)
            except (OSError, asyncio.IncompleteReadError, ValueError):
                said = b"closed"  # the server has too many connections to begin with
            word = "PONG" if b"PONG" in said else said.decode(errors="replace").strip() or "closed"
            heard[word] = heard.get(word, 0) + 1

    await asyncio.gather(*(one(ways[number % len(ways)]) for number in range(num)))
    return heard
