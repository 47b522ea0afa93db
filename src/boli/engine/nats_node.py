"""A node's side over NATS JetStream, and the agent that a site's people start once.

The agent dials out only. It asks which run there is, fetches the base if the site
lacks it, and lets a node serve that run; then it waits for the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from boli.codec.facts import pack_facts
from boli.durable import locked, storage_error
from boli.engine.identities import Access
from boli.engine.nats_line import Line
from boli.engine.nats_sender import Sender
from boli.engine.nats_way import QUIET_ERRORS
from boli.engine.parts import FETCH_BYTES, Assembler, Label
from boli.engine.wire import (
    failing_facts,
    harmless,
    instruction_of,
    joining_facts,
    pack_message,
)
from boli.errors import (
    BoliError,
    CorruptFileError,
    LimitError,
    ModelError,
    NotAcceptedError,
    SiteError,
    StorageError,
)
from boli.evaluation.units import size
from boli.rounds.transport import Instruction, Joined, Rejoin, Stop
from boli.rounds.update import UpdateHeader
from boli.site.kit import TRIES, Accept, BaseFile, Kit, SiteFolder, read_kit

HEADERS_BYTES = 1 << 20  # more than any header needs; a version comes on top
WARN_SECONDS = 20.0  # between two warnings of messages that cannot be read
JOIN_SECONDS = 20.0  # until it is said again that the node is there
FETCH_SECONDS = 60.0
FETCHES_AT_ONCE = 8
PAUSE_SECONDS = 1.0  # at least, after a node could not do its work
AGAIN_SECONDS = 10.0  # after a node could not do its work
MEASURE_SECONDS = 10.0  # between two measurements that travel: 20 bytes a second
LEAVE_SECONDS = 10.0  # for the last word of a site that takes no part
MOST_HEARD = 100  # of what a coordinator says to all
MOST_LINES = 20  # of one thing that is said to the site's people
SHOW_SECONDS = 60.0  # between two lines of how training goes

log = logging.getLogger("boli.site")


class NatsLink:
    """A node's side: messages are stored by the server until they are taken."""

    def __init__(self, site: str, line: Line) -> None:
        self.site, self._line = site, line
        self.sender = Sender(line, f"boli.up.{site}", refused=log.info)
        self._arrived: queue.SimpleQueue[Instruction] = queue.SimpleQueue()
        self._assembler = Assembler(HEADERS_BYTES)
        self._seen = -1  # number in the stream of the last message taken
        self._sending = b""  # the last update
        self._start = ""  # the message that the stream began with
        self._joining: bytes | None = None  # what the node says, until it is heard
        self._said = asyncio.Event()
        self.serving = False  # a node takes instructions
        self.show: Callable[[Mapping[str, float]], None] = lambda _: None  # live figures, here
        self._gap_at = self._measured_at = 0.0
        self._warned_at = -math.inf

    # The node

    def join(self, joined: Joined) -> None:
        body = joining_facts(joined)

        def say() -> None:
            self._joining = pack_facts(body)
            self._said.set()

        self._line.soon(say)

    def receive(self, timeout_seconds: float | None) -> Instruction | None:
        try:
            if timeout_seconds == 0:
                return self._arrived.get_nowait()
            return self._arrived.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    def send_update(self, header: UpdateHeader, payload: bytes) -> None:
        # Only the last answer counts: one that the server does not have yet is void. An order
        # that comes again, as after every cut, does not make what is under way begin anew.
        message = pack_message("update", header.facts(), payload)
        if not (self.sender.num_waiting and message == self._sending):
            self._sending = message
            self.sender.replace(message)

    def measure(self, values: Mapping[str, float]) -> None:
        self.show(values)

        async def say(client: Client) -> None:
            with contextlib.suppress(*QUIET_ERRORS):
                await client.publish(f"boli.live.{self.site}", pack_facts(dict(values)))

        client, now = self._line.client, time.monotonic()
        # Never in an update's way; and in hours of training they add up to more than all updates.
        if client and not self.sender.num_waiting and now - self._measured_at > MEASURE_SECONDS:
            self._measured_at = now
            self._line.call(say(client))

    def fail(self, error: BoliError) -> None:
        """Say that this node cannot go on, and by a code why."""
        self.sender.replace(pack_message("failed", failing_facts(error)))

    # The agent, in the line's thread

    async def listen(self, client: Client) -> None:
        """Take what the coordinator sends, on a new connection."""
        await client.subscribe(
            f"boli.deliver.{self.site}",
            cb=self._on_message,
            pending_msgs_limit=-1,
            pending_bytes_limit=-1,
        )
        self.rejoin()

    def rejoin(self) -> None:
        """Let the node say what it holds, if there is one."""
        if self.serving:
            self._arrived.put(Rejoin())

    def expect(self, entries: int) -> None:
        """Take messages as large as a version of so many entries is, and no larger ones."""
        self._assembler.largest_bytes = HEADERS_BYTES + 8 * entries

    def put(self, instruction: Instruction) -> None:
        """Give the node an instruction of the agent's own."""
        self._arrived.put(instruction)

    def clear(self) -> None:
        """Forget what was for a node before."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._arrived.get_nowait()

    async def keep_joining(self) -> None:
        """Say that the node is there until the coordinator has heard it."""
        while True:
            await self._said.wait()
            self._said.clear()
            client, said = await self._line.ready(), self._joining
            if said is None:
                continue
            try:
                await client.request(f"boli.join.{self.site}", said, timeout=JOIN_SECONDS)
            except nats.errors.NoRespondersError:
                continue  # the coordinator is away; it says hello when it comes
            except QUIET_ERRORS:
                self._said.set()
                await asyncio.sleep(0.1)
            else:
                if self._joining is said:
                    self._joining = None

    async def _on_message(self, message: Msg) -> None:
        try:
            number = int(message.metadata.sequence.stream)
            label = Label.of((message.headers or {}).get("Nats-Msg-Id"))
            starts = label.starts and label.message != self._start
            if starts or number > self._seen:
                if not starts and number > self._seen + 1 and self._seen >= 0:
                    self._miss()
                    return
                self._seen = number
                self._start = label.message if starts else self._start
                whole, _ = self._assembler.add(label, message.data, None)
                if whole is not None:
                    self._arrived.put(instruction_of(whole))
        except Exception as error:
            # Whatever cannot be read is not worth a node.
            if time.monotonic() - self._warned_at > WARN_SECONDS:
                self._warned_at = time.monotonic()
                log.warning("a message that cannot be read: %s", harmless(str(error)))
        with contextlib.suppress(*QUIET_ERRORS):
            await message.ack()

    def _miss(self) -> None:
        """Let all be sent again that was missed."""
        now = time.monotonic()
        if now - self._gap_at > JOIN_SECONDS:
            self._gap_at = now
            self.rejoin()


class Agent:
    """What `boli join` runs: one site's line to its coordinator, and a node for each run."""

    def __init__(
        self,
        access: Access,
        folder: SiteFolder,
        say: Callable[[str], None] = log.info,
        accept: Accept = lambda _words, _refusal: False,  # by the site's people, or for them
    ) -> None:
        self._folder, self._print, self._accept = folder, say, accept
        self._line = Line(access, self._connected, on_trouble=self._tell)
        self.link = NatsLink(access.name, self._line)
        self._called = threading.Event()  # there may be something to do
        self._ask_at = math.inf  # monotonic seconds: when to ask without being called
        self._stopping = threading.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._run = ""  # that the node serves
        # Hello and stop, since the last question: what the last ones said is what counts.
        self._heard: deque[Mapping[str, Any]] = deque(maxlen=MOST_HEARD)
        self._greeted = asyncio.Event()  # a coordinator came
        self._told = ""  # of the line
        self.link.show = self._show
        self._shown_at = 0.0
        self._declined: LimitError | None = None
        self.is_asking = False  # the site's people

    def serve(self) -> None:
        """Serve run after run until told to stop.

        Raises:
            LimitError: the site's people did not accept what is asked of them.
        """
        self._say(self._line.trouble)
        self._line.open()
        try:
            while not self._stopping.is_set():
                self._line.check()
                if not self._called.wait(2.0) and time.monotonic() < self._ask_at:
                    continue
                self._called.clear()
                answer = self._ask()
                # A question may be lost, and so may a hello.
                self._ask_at = math.inf if answer else time.monotonic() + FETCH_SECONDS
                if answer and not self._stopping.is_set():
                    with self._survived("the coordinator's kit"):
                        self._serve_kit(read_kit(answer))
            self._let_leave()
        finally:
            self._line.close()
        if self._declined is not None:
            raise self._declined

    def _let_leave(self) -> None:
        """Wait a moment until the server has the reason why this site takes no part."""
        deadline = time.monotonic() + (LEAVE_SECONDS if self._declined else 0.0)
        time.sleep(0.2 if self._declined else 0.0)  # it was handed to the line's thread
        while self.link.sender.num_waiting and time.monotonic() < deadline:
            time.sleep(0.05)

    def _ask_people(self, words: str, refusal: LimitError | None) -> bool:
        self.is_asking = True
        try:
            return self._accept(words, refusal)
        finally:
            self.is_asking = False

    @contextlib.contextmanager
    def _survived(self, what: str) -> Iterator[None]:
        """Say what ends the block, here in full and to the coordinator by a code; then go on."""
        try:
            yield
        except BoliError as found:
            error = found
        except OSError as found:
            error = storage_error(self._folder.state, found)
        except MemoryError:
            error = SiteError("the memory is full", "end other programs", code="memory")
        except Exception as found:
            # Whatever a coordinator sends, and whatever a library makes of it: the agent lives.
            log.exception("%s", what)
            problem = f"{type(found).__name__}: {found}"
            error = SiteError(problem, "report this", code="unexpected")
        else:
            return
        self._say(f"{what}: {error}")
        # A full disk is for the site's people to mend; the coordinator need not give it up.
        if not isinstance(error, StorageError):
            self.link.fail(error)
        if isinstance(error, NotAcceptedError):
            self._declined = error
            self._stopping.set()
        if isinstance(error, LimitError):  # asking again changes nothing: wait for another run
            return
        self._stopping.wait(PAUSE_SECONDS)
        self._called.wait(AGAIN_SECONDS)  # or until a coordinator says hello
        self._called.set()

    def _say(self, text: str) -> None:
        """Tell the site's people, in lines that no terminal takes for a command."""
        self._print("\n".join(map(harmless, text.splitlines()[:MOST_LINES])))

    def _tell(self, trouble: str) -> None:
        """Say what the line's trouble is, once for as long as it stays so."""
        if trouble != self._told:
            self._told = trouble
            self._say(f"{trouble}; trying again (boli doctor says more)")

    def _show(self, values: Mapping[str, float]) -> None:
        """Say now and then how training goes."""
        now = time.monotonic()
        if now - self._shown_at > SHOW_SECONDS:
            self._shown_at = now
            self._say(
                f"training from version {values.get('version', 0):.0f}: "
                f"loss {values.get('loss', math.nan):.3f}, "
                f"{values.get('tokens_per_second', 0):,.0f} tokens/s"
            )

    def stop(self) -> None:
        """End, at a point from which everything goes on; for signal handlers."""
        self._stopping.set()
        self.link.put(Stop())
        self._called.set()
        self._line.soon(self._greeted.set)  # no need to wait for an answer

    def _serve_kit(self, kit: Kit) -> None:
        self._say(f"run {kit.run}")
        with self._survived(f"run {kit.run}"):
            self._serve_run(kit)

    def _serve_run(self, kit: Kit) -> None:
        """Fetch what lacks, and let a node work until the run is over."""
        link = self.link
        try:
            self._folder.admit(kit, self._ask_people)
            if not self._fetch_base(kit):
                return
            link.clear()
            self._run = kit.run
            is_over = any(map(self._is_over, self._heard))
            self._heard.clear()
            if not is_over:
                with locked(self._folder.run_folder(kit), "the run of this site", 5.0):
                    node = self._folder.open_node(kit, link)
                    link.expect(node.work.layout.size)
                    link.serving = True
                    if self._stopping.is_set():
                        node.work.close()
                    else:
                        node.run()
            self._say(f"run {kit.run} is over, or paused at the coordinator; waiting")
        finally:
            link.serving, self._run = False, ""
            link.expect(0)
            link.clear()

    def _is_over(self, said: Mapping[str, Any]) -> bool:
        """Tell whether what the coordinator said ends the run that the node serves."""
        return said.get("stop") == self._run or (said.get("hello") or self._run) != self._run

    def _ask(self) -> bytes:
        """Return what the coordinator says there is to do; empty while it is away."""
        return bytes(self._line.call(self._ask_for_kit()).result())

    async def _ask_for_kit(self) -> bytes:
        """Ask what there is to do; a coordinator that says hello meanwhile has not heard it."""
        self._greeted.clear()
        self._heard.clear()  # what it said before, the answer takes into account
        asking = asyncio.ensure_future(self._ask_for({"kit": True}, FETCH_SECONDS))
        greeted = asyncio.ensure_future(self._greeted.wait())
        await asyncio.wait([asking, greeted], return_when=asyncio.FIRST_COMPLETED)
        greeted.cancel()
        if asking.done():
            return asking.result()
        asking.cancel()
        return b""

    async def _ask_for(self, wanted: Mapping[str, Any], seconds: float) -> bytes:
        """Ask the coordinator for something; empty while it is away."""
        client = self._line.client
        if client is None:
            return b""
        subject, asked = f"boli.fetch.{self.link.site}", json.dumps(wanted).encode()
        with contextlib.suppress(*QUIET_ERRORS):
            return bytes((await client.request(subject, asked, timeout=seconds)).data)
        return b""

    def _fetch_base(self, kit: Kit) -> bool:
        """Fetch the files of the base; False if it has to be asked first whether they are wanted.

        It goes on where it was, over however many connections it takes.
        """
        folder = self._folder
        lacking = folder.missing(kit)
        altered = 0
        if lacking:
            folder.make_room(kit, lacking)
            self._say(f"fetching the base, {size(sum(file.size for file in lacking))}")
        for file in lacking:
            while True:
                if self._stopping.is_set() or self._called.is_set():
                    return False
                offset = folder.fetched_bytes(kit, file)
                try:
                    if offset >= file.size:
                        folder.finish_file(kit, file)
                        break
                    pieces = self._line.call(self._fetch(file, offset)).result()
                    for piece in pieces:
                        folder.add_piece(kit, file, piece)
                except CorruptFileError as error:
                    altered += 1
                    if altered == TRIES:
                        raise ModelError(
                            f"{file.name} of the base arrived altered {TRIES} times",
                            "tell the coordinator's people",
                            code="model.refused",
                        ) from error
                    self._say(str(error))
                else:
                    if not pieces:
                        self._stopping.wait(1.0)
        return True

    async def _fetch(self, file: BaseFile, offset: int) -> list[bytes]:
        """Return the next few pieces of a file, or as many of them as came."""
        wanted = [
            self._ask_for({"file": file.sha256, "offset": at}, FETCH_SECONDS)
            for at in range(offset, file.size, FETCH_BYTES)[:FETCHES_AT_ONCE]
        ]
        pieces = await asyncio.gather(*wanted)
        return list(itertools.takewhile(bool, pieces))

    async def _connected(self, client: Client) -> None:
        for task in self._tasks:
            task.cancel()
        self._told = ""
        self._say("connected")
        await client.subscribe("boli.hello", cb=self._on_hello)
        await self.link.listen(client)
        tasks = (self.link.keep_joining(), self.link.sender.run())
        self._tasks = [asyncio.ensure_future(task) for task in tasks]
        self._called.set()

    async def _on_hello(self, message: Msg) -> None:
        """Take note that a coordinator is there with a run, or that a run is over."""
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            heard = json.loads(message.data)
            said = {word: str(heard[word])[:100] for word in ("hello", "stop") if heard.get(word)}
            is_hello = "hello" in said
            if not self.link.serving:
                self._heard.append(said)  # first: a run may be about to be served
            if is_hello and said["hello"] == self._run:
                self.link.rejoin()
            elif self._run and self._is_over(said):
                self.link.put(Stop())
            if is_hello:  # also of the same run: the node may be about to stop
                self._greeted.set()
                self._called.set()
