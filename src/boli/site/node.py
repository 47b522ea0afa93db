"""What a node does with an order, so that each answer counts exactly once.

Everything that an answer changes at the site (optimizer state, data cursor,
residual, and the answer itself) becomes durable in one file *before* the answer
is sent. A node that is cut off at any moment either never did the work, or sends
the very same bytes again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from boli.codec.codec import (
    EXACT,
    Codec,
    Decay,
    DenseCodec,
    at_density,
    codec_for,
    decay_for,
    decode_frame,
    encode_frame,
)
from boli.codec.public import PublicCodec
from boli.durable import Generations
from boli.errors import LayoutError
from boli.model.layout import Layout, Vector
from boli.plan import Plan
from boli.rounds.transport import Joined, NodeLink, Rejoin, Stop, Version, held_digest
from boli.rounds.update import (
    Copy,
    Difference,
    Judgement,
    Order,
    Update,
    UpdateHeader,
    Verdict,
    copies_digest,
    norm_of,
)
from boli.site.limits import OrderCheck

MEASURE_EVERY_SECONDS = 0.25
AGAIN_SECONDS = 60.0  # between two looks at whether a day is over


@dataclass(frozen=True)
class Done:
    """The outcome of one order."""

    pseudo_gradient: Vector | None  # (m,) start minus local; None where only judged
    local_steps: int = 0
    tokens: int = 0
    loss: float = 0.0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    judgements: tuple[Judgement, ...] = ()
    six_gram: tuple[Judgement, ...] = ()  # of the same lines, with the first judgements
    ppmd: tuple[Judgement, ...] = ()
    mixed: tuple[Judgement, ...] = ()  # of the same lines, with those of the last version
    differences: tuple[Difference, ...] = ()  # beside other rows, of the last version
    content: bytes = b""  # the payload as it is, of work that trains nothing


class Work(Protocol):
    """Trains and judges at one site; its state is arrays and facts."""

    layout: Layout  # of the site's own rank
    full_layout: Layout  # that all sites share
    rank: int | None
    first: Vector  # (m,) version 0, which every site makes by itself
    num_lines: Mapping[str, Mapping[str, int]]
    copies: Sequence[Copy]  # of pools, that its text lies in

    def perform(
        self,
        order: Order,
        theta: Vector,
        start: Vector,
        steps_wanted: Callable[[], int],
        after_step: Callable[[int, float, float], bool],
    ) -> Done | None:
        """Judge version `theta` (m,), train from `start` (m,); None if `after_step` said no.

        `after_step` gets steps done, last loss, and tokens per second.
        """
        ...

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return all that the next order depends on, as copies."""
        ...

    def restore(self, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
        """Go back to what `state` returned."""
        ...

    def close(self) -> None:
        """End what was started for the work; nothing is asked of it any more."""
        ...


@dataclass
class Node:
    """One process at one site."""

    site: str
    link: NodeLink
    work: Work
    store: Generations
    full_digest: str  # of the layout that all sites share
    codec: Codec = field(default_factory=DenseCodec)
    residual_decay: Decay = field(default_factory=Decay)
    from_residual: bool = False  # train on from the version and what is not in it yet
    momentum: float = 0.0  # of pseudo-gradients on their way into the residual (DGC)
    slowdown: float = 1.0
    restarts: int = 0
    check: OrderCheck | None = None  # by the site's limits; None: the site has none
    version: int = -1  # held; -1: none
    theta: Vector | None = None  # (m,)
    residual: Vector | None = None  # (m,) left unsent, or given back; None: zero
    velocity: Vector | None = None  # (m,) of `momentum`; None: zero
    answer: UpdateHeader | None = None  # the last one, until the next is made
    payload: bytes = b""
    content: bytes = b""  # of the payload, in a frame that says all by itself
    _work_state: tuple[dict[str, NDArray[Any]], dict[str, Any]] | None = None  # between orders
    _pending: Order | None = None
    _newest: int = 0  # sequence of the newest order that came
    _stopping: bool = False
    _unsent: bool = False  # the answer waits for the next day
    _idle_since: float | None = None

    @classmethod
    def of(
        cls,
        plan: Plan,
        site: str,
        link: NodeLink,
        work: Work,
        store: Generations,
        restarts: int = 0,
        check: OrderCheck | None = None,
    ) -> Node:
        """Return the node of one of a plan's sites."""
        codec = plan.codec
        return cls(
            site,
            link,
            work,
            store,
            work.full_layout.digest,
            codec_for(codec),
            decay_for(codec, plan.rounds.total),
            codec.train_from_residual,
            codec.momentum if codec.name == "dgc" else 0.0,
            next(one.slowdown for one in plan.site if one.name == site),
            restarts,
            check,
        )

    def run(self) -> None:
        """Serve until told to stop; then the work is closed.

        Raises:
            CodecError: training diverged, or what came cannot be read.
            LayoutError: an order is for other parameters.
            LimitError: an order asks for more than the site allows.
            StorageError: the site's state cannot be written.
        """
        with contextlib.closing(self.work):
            self._serve()

    def _serve(self) -> None:
        self._restore()
        self.link.join(self.joined())
        while not self._stopping:
            order = self._pending
            if order is not None and self.theta is not None and self.version >= order.base_version:
                self._pending = None
                self._perform(order, self.theta)
            else:  # nothing to do, or for a version that is still on its way
                self._take(self.link.receive(AGAIN_SECONDS if self._unsent else None))
            if self._unsent:
                self._send()

    def joined(self) -> Joined:
        """Return what the node, as it is now, says of itself when it joins."""
        return Joined(
            self.site,
            self.work.layout.describe(),
            self.work.num_lines,
            self.version,
            held_digest(self.theta),
            self.restarts,
            self.work.copies,
        )

    def _take(self, instruction: object) -> None:
        match instruction:
            case Rejoin():
                self.link.join(self.joined())
            case Stop():
                self._stopping = True
            case Version():
                self._apply(instruction)
            case Verdict():
                if instruction.keep and not instruction.accepted:
                    self._take_back(instruction.sequence)
            case Order():
                self._consider(instruction)

    def _apply(self, version: Version) -> None:
        """Hold a new version, bit for bit the coordinator's; a delta out of turn is left."""
        length = self.work.layout.size
        if version.snapshot:
            self.theta = decode_frame(version.frame, self.full_digest, length).vector
        elif self.theta is not None and version.version == self.version + 1:
            self.theta = self.theta - decode_frame(version.frame, self.full_digest, length).vector
        else:
            return
        self.version = version.version

    def _take_back(self, sequence: int) -> None:
        """Return an answer that was refused but sound to the residual, once."""
        if self.answer is not None and sequence == self.answer.sequence and self.payload:
            content = self.content or self.payload
            given_back = decode_frame(content, self.full_digest, self.work.layout.size).vector
            self.residual = given_back if self.residual is None else self.residual + given_back
            self.payload = b""  # so that a second word on it finds nothing to give back
            self._save()

    def _consider(self, order: Order) -> None:
        if order.site != self.site or order.layout != self.full_digest:
            raise LayoutError(
                f"order {order.order} is not for the parameters that site {self.site} trains",
                "tell the coordinator's people",
            )
        if order.copies != copies_digest(self.work.copies):
            return  # for a node before, with other text; it comes again once this one was heard
        self._take_back(order.returned)
        if order.sequence < self._newest:
            return  # an old one that came again late; what superseded it may be half done
        self._newest = order.sequence
        if self.answer is None or order.sequence > self.answer.sequence:
            self._pending = order
        elif order.sequence == self.answer.sequence and (self.payload or not order.local_steps):
            self._send()

    def _send(self) -> None:
        """Send the answer, at once or on the day on which the site lets it leave."""
        assert self.answer is not None
        update = Update(self.answer, self.payload)
        self._unsent = self.check is not None and not self.check.may_send(update.num_bytes)
        if not self._unsent:
            self.link.send_update(self.answer, self.payload)

    def _perform(self, order: Order, theta: Vector) -> None:
        """Work from the version that is held, which may be newer than the order, and answer."""
        version = self.version
        idle = 0.0 if self._idle_since is None else time.monotonic() - self._idle_since
        started = time.monotonic()
        if self._work_state is None:
            self._work_state = self.work.state()
        if self.check is not None:
            self.check.begin(order, self._expected_bytes(order, version))
        watch = _Watch(self, order)
        carried = self.residual_decay.of(self.residual, version) if self.from_residual else None
        start = theta if carried is None else theta - carried
        done = self.work.perform(order, theta, start, watch.steps_wanted, watch.after_step)
        if done is None:
            self.work.restore(*self._work_state)
            return
        self._work_state = self.work.state()
        payload = self._encode(order, done, version, theta)
        self.answer = UpdateHeader(
            order=order.order,
            site=self.site,
            sequence=order.sequence,
            attempt=watch.attempt,
            base_version=version,
            layout=order.layout,
            rank=order.rank,
            local_steps=done.local_steps,
            tokens=done.tokens,
            loss=_brief(done.loss),
            train_seconds=_brief(done.train_seconds),
            evaluate_seconds=_brief(done.evaluate_seconds),
            work_seconds=_brief(time.monotonic() - started),
            idle_seconds=_brief(idle),
            residual_norm=0.0 if self.residual is None else _brief(norm_of(self.residual)),
            judgements=done.judgements,
            six_gram=done.six_gram,
            ppmd=done.ppmd,
            mixed=done.mixed,
            differences=done.differences if self._tells_intervals else (),
        )
        self.payload = payload
        if self.check is not None:
            self.check.end(order, Update(self.answer, payload).num_bytes)
        self._save()
        self._send()
        self._idle_since = time.monotonic()

    @property
    def _tells_intervals(self) -> bool:
        return self.check is None or self.check.limits.tell_intervals

    def _expected_bytes(self, order: Order, version: int) -> int:
        codec = at_density(self.codec, order.density)
        return codec.expected_bytes(self.work.layout.size, version) if order.local_steps else 0

    def _encode(self, order: Order, done: Done, version: int, theta: Vector) -> bytes:
        """Return the payload; what it does not carry is the next residual."""
        self.content = b""
        if done.pseudo_gradient is None:
            return done.content
        moved = self._with_momentum(done.pseudo_gradient)
        carried = self.residual_decay.of(self.residual, version)
        error = moved if carried is None else moved + carried
        codec = self._codec_for(order, theta)
        frame = encode_frame(codec, error, order.layout, order.rank, version)
        sent = decode_frame(frame, order.layout, error.size, codec).vector
        if order.support is not None:
            self.content = encode_frame(EXACT, sent, order.layout, order.rank, version)
        left = error - sent
        self.residual = left if left.any() else None
        if self.momentum:  # what was sent was stale: its momentum would push the same way again
            self.velocity = np.where(sent == 0, moved, np.float32(0))
        return frame

    def _with_momentum(self, pseudo_gradient: Vector) -> Vector:
        """Return the velocity, a running mean: momentum goes in before the largest are chosen.

        Source: Lin et al. 2018, Deep Gradient Compression, sections 3.2 and 3.3.
        https://arxiv.org/abs/1712.01887
        """
        if not self.momentum:
            return pseudo_gradient
        fresh = np.float32(1 - self.momentum) * pseudo_gradient
        if self.velocity is None:
            return fresh
        velocity: Vector = np.float32(self.momentum) * self.velocity + fresh
        return velocity

    def _codec_for(self, order: Order, theta: Vector) -> Codec:
        """Return the codec, with the density or the cohort's support that the order names."""
        if order.support is None or not isinstance(self.codec, PublicCodec):
            return at_density(self.codec, order.density)
        full, moved = self.work.full_layout, theta - self.work.first
        spans = full.view(self.work.rank).spans
        return self.codec.on(order.support, moved, spans, full.size, order.order)

    def _save(self) -> None:
        assert self._work_state is not None
        work, facts = self._work_state
        arrays = {f"work.{name}": array for name, array in work.items()}
        arrays["payload"] = np.frombuffer(self.payload, np.uint8)
        if self.content:
            arrays["content"] = np.frombuffer(self.content, np.uint8)
        if self.theta is not None:
            arrays["theta"] = self.theta
        if self.residual is not None:
            arrays["residual"] = self.residual
        if self.velocity is not None:
            arrays["velocity"] = self.velocity
        self.store.save(
            arrays,
            {
                "version": self.version,
                "work": facts,
                "layout": self.full_digest,
                "answer": None if self.answer is None else self.answer.model_dump(mode="json"),
            },
        )

    def _restore(self) -> None:
        found = self.store.load()
        if found is None or found[1]["layout"] != self.full_digest:
            self.version, self.theta = 0, self.work.first
            return
        arrays, facts, _ = found
        self.version = facts["version"]
        self.theta = arrays.get("theta")
        self.residual = arrays.get("residual")
        self.velocity = arrays.get("velocity")
        self.payload = arrays["payload"].tobytes()
        self.content = arrays["content"].tobytes() if "content" in arrays else b""
        self.answer = UpdateHeader.model_validate(facts["answer"]) if facts["answer"] else None
        work = {name[5:]: array for name, array in arrays.items() if name.startswith("work.")}
        self.work.restore(work, facts["work"])
        self._work_state = work, facts["work"]


def _brief(figure: float) -> float:
    """Return a figure in six digits: more would travel for nothing."""
    return float(f"{figure:.6g}")


class _Watch:
    """Listens between local steps: a shorter attempt, a newer order, or the end."""

    def __init__(self, node: Node, order: Order) -> None:
        self.node, self.order = node, order
        self.wanted, self.attempt = order.local_steps, order.attempt
        self._measured = self._last = time.monotonic()
        self._losses, self._counted = 0.0, 0
        self._loss: float | None = None

    def steps_wanted(self) -> int:
        """Return how many local steps are wanted by now."""
        return self.wanted

    def after_step(self, done: int, loss: float, tokens_per_second: float) -> bool:
        """Take in instructions; False abandons the work."""
        node = self.node
        now = time.monotonic()
        if node.slowdown > 1:
            time.sleep((node.slowdown - 1) * (now - self._last))
            now = time.monotonic()
        self._last = now
        while (instruction := node.link.receive(0.0)) is not None:
            node._take(instruction)
        newer = node._pending
        if newer is not None and newer.sequence == self.order.sequence:
            self.wanted, self.attempt = self._fewer(newer.local_steps, done), newer.attempt
            node._pending = newer = None
        if node.check is not None and done < self.wanted and node.check.is_late(self.order, done):
            self.wanted = done
        self._take_loss(loss)
        if now - self._measured >= MEASURE_EVERY_SECONDS or done >= self.wanted:
            self._measured = now
            node.link.measure(
                {
                    "step": done,
                    "of": self.wanted,
                    **({} if self._loss is None else {"loss": self._loss}),
                    "tokens_per_second": tokens_per_second / node.slowdown,
                    "version": self.order.base_version,
                }
            )
        return not node._stopping and newer is None

    def _fewer(self, asked: int, done: int) -> int:
        """Return how many steps a shorter attempt takes; not fewer than the site's limits need."""
        wanted = min(self.wanted, max(asked, done))
        check = self.node.check
        return wanted if check is None else check.steps_for(self.order, wanted)

    def _take_loss(self, loss: float) -> None:
        """Take the next step's loss; what is shown is the mean over the steps that limits want."""
        self._losses, self._counted = self._losses + loss, self._counted + 1
        if self.node.check is None or self.node.check.tells_loss(self._counted):
            self._loss = self._losses / self._counted
            self._losses, self._counted = 0.0, 0
