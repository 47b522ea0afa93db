"""Send updates that keep the coordinator's only loop busy: few bytes, very much work.

A sparse payload says itself how many entries it holds, and the range decoder finds symbols past
the end of its words. The attacker writes payloads that are sound in themselves, with a checksum
that fits: as many entries as a few megabytes can state; a gap before the last entry, for which
the decoder is called once for every 24 entries that are skipped; a scale for every 64 entries;
and a dense frame where the plan says sparse.

Work is counted, not timed: symbols that the range decoder is asked for, and how often.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from attack import Outcome

from boli.codec import entropy
from boli.codec.codec import HEADER_BYTES, DenseCodec, codec_for, decode_frame, encode_frame
from boli.codec.entropy import encode_positions
from boli.codec.sparse import _FIELDS, SparseCodec
from boli.plan_rounds import CodecPlan
from boli.rounds.buffer import BufferedStrategy
from boli.rounds.outer import Sgd
from boli.rounds.transport import Delivery
from boli.rounds.update import Order, ServerState, SiteProgress, Update, UpdateHeader

PROMISE = (
    "an update takes the coordinator no more than a few times the work of an honest one: what "
    "the plan's codec would not have made is refused before it is decoded."
)
LAYOUT = "0" * 32
PLAN = CodecPlan(name="sparse", density=1 / 64)
MOST_TIMES = 4  # the work of an honest update


def attack(folder: Path, *, fast: bool) -> Outcome:
    length = 2_000_000 if fast else 40_000_000
    honest = encode_frame(
        codec_for(PLAN),
        np.random.default_rng(0).standard_normal(length, np.float32),
        LAYOUT,
        None,
        0,
    )
    frames = {
        "every entry": hostile(length, length // 4, packed=True),
        "the last entry far away": hostile(length, length // 4),
        "the last entry far away, as many as honest": hostile(length, length // 64, chunk=4096),
        "a scale for every 64 entries": hostile(length, length // 64, scale_chunks=1),
        "dense": encode_frame(DenseCodec(), np.ones(length, np.float32), LAYOUT, None, 0),
    }
    with counted_work() as calls:
        assert fold(length, honest)  # it is accepted
    most = MOST_TIMES * (sum(calls) + entropy.AHEAD), MOST_TIMES * (len(calls) + 1)
    worked: dict[str, tuple[int, int, bool]] = {}
    for name, frame in frames.items():
        with counted_work() as calls:
            accepted = fold(length, frame)
        worked[name] = sum(calls), len(calls), accepted
    over = [name for name, (symbols, times, _) in worked.items() if (symbols, times) > most]
    over += [name for name, (_, times, _) in worked.items() if times > most[1]]
    refused = [name for name, (*_, accepted) in worked.items() if not accepted]
    with counted_work() as calls:  # a reader that knows of no plan decodes it
        decode_frame(frames["every entry"], LAYOUT, length)
    return Outcome(
        refused=not over and len(refused) == len(frames) - 1,
        observed=(
            f"{len(refused)} of {len(frames)} hostile payloads refused unread; the one within the "
            f"plan's bounds took {worked['the last entry far away, as many as honest'][1]} calls "
            "of the decoder"
        ),
        control=(
            f"read without a plan, {len(frames['every entry'])} bytes make the decoder find "
            f"{sum(calls)} symbols, {sum(calls) * MOST_TIMES // most[0]} times an honest update's"
            if sum(calls) > most[0]
            else ""
        ),
        figures={
            "entries": length,
            "honest_bytes": len(honest),
            "hostile_bytes": max(len(frame) for frame in frames.values()),
            "most_symbols": max(symbols for symbols, *_ in worked.values()),
            "most_calls": max(times for _, times, _ in worked.values()),
        },
    )


def hostile(
    length: int, count: int, *, scale_chunks: int = 16, chunk: int = 64, packed: bool = False
) -> bytes:
    """Return a frame whose entries are the first ones, and the last one; or all in a row."""
    positions = np.arange(count, dtype=np.int64)
    if not packed:
        positions[-1] = length - 1
    words = encode_positions(positions, length).astype("<u4").tobytes()
    groups = -(-length // (chunk * scale_chunks))
    fields = _FIELDS.pack(count, 2, scale_chunks, chunk // 64, len(words) // 4, 0)
    often = np.array([65535, 0], "<u2").tobytes()
    payload = fields + words + bytes(-(-count // 8)) + bytes(4 * groups) + often
    small = encode_frame(SparseCodec(), np.zeros(length, np.float32), LAYOUT, None, 0)
    header = small[: HEADER_BYTES - 12] + len(payload).to_bytes(8, "little")
    return header + zlib.crc32(payload, zlib.crc32(header)).to_bytes(4, "little") + payload


def fold(length: int, frame: bytes) -> bool:
    """Give the coordinator a frame as the answer of a site; tell whether it was accepted."""
    order = Order(
        order="run-site-1", site="site", sequence=1, base_version=0, layout=LAYOUT,
        local_steps=1, at_most=1,
    )  # fmt: skip
    progress = SiteProgress(sequence=1, outstanding=order)
    state = ServerState("run", LAYOUT, np.zeros(length, np.float32), {"site": progress})
    strategy = BufferedStrategy(
        buffer_size=1, max_staleness=0, staleness_power=0.5, token_power=1.0, norm_multiple=10.0,
        reference_tokens=100, max_tokens_per_step=100, outer=Sgd(np.float32(1)),
        spans={"site": ((0, length),)}, uplink=codec_for(PLAN),
    )  # fmt: skip
    header = UpdateHeader(
        order="run-site-1", site="site", sequence=1, base_version=0, layout=LAYOUT, local_steps=1,
        tokens=100,
    )  # fmt: skip
    _, (verdict,), _ = strategy.fold(state, [Delivery("site", Update(header, frame))])
    return bool(verdict.accepted)


@contextmanager
def counted_work() -> Iterator[list[int]]:
    """Note how many symbols each call of the range decoder is asked for."""
    calls: list[int] = []
    take = entropy._Decoder.take

    def counted(decoder: Any, count: int) -> Any:
        calls.append(count)
        return take(decoder, count)

    entropy._Decoder.take = counted  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        entropy._Decoder.take = take  # type: ignore[method-assign]
