"""Bytes of every format version that ever left a machine: old files always load.

Each format has a list of files; today's program writes the last one. Where a
change is meant, keep the old files, add a name to the list, and write the new
file with `python tests/golden/test_formats.py`, which never overwrites one.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors

from boli import journal as journal_module
from boli.codec.codec import Codec, DenseCodec, decode_frame, encode_frame
from boli.codec.public import PublicCodec
from boli.codec.sparse import SparseCodec
from boli.codec.support import Support
from boli.durable import read_tensors, write_tensors
from boli.journal import (
    AttemptsRefused,
    CopyRead,
    DifferenceJudged,
    Evaluated,
    Event,
    Journal,
    MixedEvaluated,
    OrderSent,
    PiecesMissed,
    PiecesTaken,
    PpmdEvaluated,
    RoundStepped,
    RunFailed,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    SiteBenched,
    SiteForgiven,
    SiteJoined,
    SiteLeft,
    SixGramEvaluated,
    UpdateAccepted,
    UpdateRejected,
    UpdateWeighed,
    VersionExported,
    VersionJudged,
    VersionRestored,
    read_journal,
)
from boli.rounds.best import JudgedVersion, Selection
from boli.rounds.checkpoint import from_parts, to_parts
from boli.rounds.update import Folded, Order, ServerState, SiteProgress

FOLDER = Path(__file__).parent
SUPPORT = Support(seed=5, start=2, blocks=3, above=0.5, unit=-3)
MOVED = np.linspace(-1, 1, 300, dtype=np.float32)
CODECS: dict[str, Codec] = {
    "fp32": DenseCodec("fp32"),
    "fp16": DenseCodec("fp16"),
    "sparse2": SparseCodec(0.5, 2),
    "sparse4": SparseCodec(0.5, 4, chunk=0),
    "sparse8": SparseCodec(0.5, 8, chunk=64, scale_chunks=1),
    "sparse32": SparseCodec(1.0, 32),
    # Multiples of a level are sent: how others are rounded is no matter of the format.
    "public2": PublicCodec(value_bits=2).on(SUPPORT, MOVED, ((0, 300),), 300),
    "public4": PublicCodec(value_bits=4).on(SUPPORT, MOVED, ((0, 300),), 300),
    "public8": PublicCodec(value_bits=8).on(SUPPORT, MOVED, ((0, 300),), 300),
}
FRAMES = {name: [f"frame-v1-{name}.bin"] for name in CODECS}
JOURNALS = [
    "journal-v1.jsonl",
    "journal-v1-copies.jsonl",
    "journal-v2.jsonl",
    "journal-v2-ngram.jsonl",
    "journal-v2-pieces.jsonl",
    "journal-v2-differences.jsonl",
]
ADDED: dict[str, set[type[Event]]] = {  # kinds that the journal of that name was the first to have
    "journal-v1-copies.jsonl": {CopyRead},
    "journal-v2.jsonl": {
        SiteForgiven,
        UpdateWeighed,
        VersionExported,
        VersionJudged,
        VersionRestored,
    },
    "journal-v2-ngram.jsonl": {SixGramEvaluated, MixedEvaluated},
    "journal-v2-pieces.jsonl": {PiecesMissed, PiecesTaken},
    "journal-v2-differences.jsonl": {DifferenceJudged, PpmdEvaluated},
}
CHECKPOINTS = [
    "checkpoint-v1.safetensors",
    "checkpoint-v1-support.safetensors",
    "checkpoint-v1-guarded.safetensors",
    "checkpoint-v1-average.safetensors",
    "checkpoint-v1-rows.safetensors",
]

ANCHOR = "ab" * 32
LAYOUT = "0123456789abcdef0123456789abcdef"
VECTOR = np.array([0.0, 1.0, -1.5, 0.25, 1024.0, -(2.0**-14)], np.float32)
SELECTION = Selection(
    base={"gaya": 2.5, "patna": 0.0},
    open=JudgedVersion(version=2, ratios={"gaya": 0.5}),
    open_theta=VECTOR * 5,
    kept=(JudgedVersion(version=1, ratios={"gaya": 0.75}),),
    best_theta=VECTOR * 6,
    restored={2: 1},
)
EVENTS: list[Event] = [
    RunStarted("first-1", "a1b2c3d4e5f60718", "0.1.0", LAYOUT, 6, {"gaya": "mag"}),
    PiecesTaken("gaya", 3310, 13778, "d4" * 32),
    PiecesMissed("patna", "the site sends no counts of pieces of words"),
    SiteJoined("gaya", {"mag": {"train": 90, "tuning": 5, "test": 5}}, 0),
    CopyRead("gaya", "a1" * 16, 7, "b2" * 16, 4000, "c3" * 32),
    OrderSent("first-1-gaya-1", "gaya", 0, 20, 0, 1234),
    Evaluated("gaya", "mag", "tuning", 0, 812.5, 400),
    SixGramEvaluated("gaya", "mag", "tuning", 412.25, 400),
    PpmdEvaluated("gaya", "mag", "test", 416.0, 390),
    UpdateAccepted(
        order="first-1-gaya-1",
        site="gaya",
        base_version=0,
        staleness=0,
        local_steps=20,
        tokens=20480,
        weight=1.0,
        loss=2.75,
        norm=0.1,
        scaled=1.0,
        train_seconds=3.5,
        evaluate_seconds=0.5,
        work_seconds=4.25,
        idle_seconds=0.0,
        bytes_up=80,
        residual_norm=0.75,
    ),
    UpdateRejected("first-1-gaya-2", "gaya", "stale", "4 rounds behind"),
    RoundStepped(1, 1, 20480, 0.1, 5.5),
    VersionJudged(1, {"gaya": 0.75}, 0.75, True),
    VersionRestored(2, 1, 0.5),
    VersionExported(2, 1, 20, None, 0, 1),
    MixedEvaluated("gaya", "mag", "test", 2, 350.5, 390),
    DifferenceJudged("gaya", "mag", 2, "model", "ppmd", 9, -0.125, 0.0625),
    DifferenceJudged("gaya", "mag", 2, "model", "base", None, None, None),
    SiteLeft("gaya", "signal 9"),
    UpdateWeighed("gaya", 1, 1, 1.0, 0.1, 0.05, 0.5, -0.25, "direction"),
    SiteBenched("gaya", "3 updates in a row were refused"),
    SiteForgiven("gaya"),
    AttemptsRefused("no key", "", 12, 60.0, "10.0.0.9:40000: authentication error"),
    RunInterrupted(1),
    RunFailed("cannot write runs/first-1/checkpoints: No space left on device"),
    RunResumed(1, ["000000002.safetensors"], 7),
    RunFinished(2, 12.5, "adapter"),
]


def events_of(name: str) -> list[Event]:
    """Return what a journal tells: the kinds that there were when it was written."""
    later = JOURNALS[JOURNALS.index(name) + 1 :]
    unknown = {kind for other in later for kind in ADDED[other]}
    return [event for event in EVENTS if type(event) not in unknown]


def vector_of(name: str) -> Any:
    """Return what the frame of that codec holds: some of it, where the codec is sparse."""
    if name.startswith("public"):
        return (np.arange(300) % 23 - 11).astype(np.float32) * np.float32(2.0**SUPPORT.unit)
    if not name.startswith("sparse"):
        return VECTOR
    vector = np.zeros(300, np.float32)
    vector[7:300:11] = np.linspace(-2, 2, 27, dtype=np.float32)
    return vector


def frame(name: str) -> bytes:
    return encode_frame(CODECS[name], vector_of(name), LAYOUT, 4, 7)


def write_journal(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        times = iter(range(1_700_000_000, 1_800_000_000))
        patch.setattr(journal_module, "time", SimpleNamespace(time=lambda: next(times) + 0.25))
        journal = Journal(path)
        for event in EVENTS:
            journal.append(event)
        journal.close()


def server_state(name: str = CHECKPOINTS[-1]) -> ServerState:
    """Return what the checkpoint of that name holds: the fields that there were by then."""
    written = CHECKPOINTS.index(name)
    support = SUPPORT if written >= 1 else None
    order = Order(
        order="first-1-gaya-3",
        site="gaya",
        sequence=3,
        attempt=1,
        base_version=2,
        layout=LAYOUT,
        rank=4,
        local_steps=20,
        at_most=40,
        position=0.5,
        position_step=0.0125,
        evaluate=("tuning",),
        support=support,
    )
    state = ServerState(
        run="first-1",
        layout=LAYOUT,
        theta=VECTOR,
        sites={
            "gaya": SiteProgress(
                rank=4, sequence=3, outstanding=order, accepted=(1, 2), judged=2, rejections=1
            ),
            "patna": SiteProgress(
                sequence=2, accepted=(2,), finished=True, steps_per_second=2.5, benched="why"
            ),
        },
        version=2,
        outer={"velocity": VECTOR * 2},
        outer_round=2,
        unsent=VECTOR / 4,
        first=None if support is None else VECTOR * 3,
        support=support,
        partial_sum=np.arange(-3, 3, dtype=np.int64) << 40,
        coverage={"": 2**20, "4": 2**19},
        folded=(
            Folded(site="patna", sequence=2, staleness=1, norm=0.5, left=0.25 if support else 0.0),
        ),
        tokens=40960,
        journal_seq=7,
        journal_hash=ANCHOR if written >= 2 else "",
        selection=SELECTION if written >= 2 else Selection(),
        average=VECTOR * 7 if written >= 3 else None,
        moved_rows={"gaya": np.array([0b10100000], np.uint8)} if written >= 4 else {},
    )
    return with_frames(state) if written >= 2 else state


def with_frames(state: ServerState) -> ServerState:
    """Return the state with what came with kept frames, shares and suspicion."""
    kept = Folded(
        site="gaya",
        sequence=2,
        staleness=0,
        norm=3.0,
        left=0.5,
        base_version=2,
        size=6,
        weight=1.5,
        rate=0.001,
        reach=4.0,
        bound=2.0,
        scaled=0.5,
    )
    state = state.with_site(
        "patna",
        suspended=True,
        seen=("", "direction", "norm", "refused"),
        weight=1.25,
        contribution=0.75,
    )
    return replace(
        state,
        folded=(*state.folded, kept),
        frames={"gaya/2": bytes(range(8))},
        center=VECTOR / 8,
        recent=(("gaya", "patna"), ("gaya",)),
        headings={"gaya": VECTOR / 16},
        sketch_seed=2**61 + 1,
    )


def same(one: ServerState, other: ServerState) -> bool:
    (arrays, facts), (others, told) = to_parts(one), to_parts(other)
    return (
        facts == told
        and arrays.keys() == others.keys()
        and all(arrays[n].tobytes() == others[n].tobytes() for n in arrays)
        and all(arrays[n].dtype == others[n].dtype for n in arrays)
    )


def metadata_of(path: Path) -> dict[str, str]:
    with safetensors.safe_open(str(path), framework="numpy") as file:
        return dict(file.metadata())


# --- frames


@pytest.mark.parametrize("kind", FRAMES)
def test_every_frame_ever_sent_can_be_read(kind: str) -> None:
    vector, here = vector_of(kind), CODECS[kind]
    for name in FRAMES[kind]:
        found = decode_frame((FOLDER / name).read_bytes(), LAYOUT, vector.size, here)
        expected = here.entries(here.encode(vector, 7), vector.size).vector()
        assert found.vector.tobytes() == expected.tobytes()
        assert (found.layout, found.rank, found.base_version) == (LAYOUT, 4, 7)


@pytest.mark.parametrize("kind", FRAMES)
def test_frame_is_written_as_before(kind: str) -> None:
    assert frame(kind).hex() == (FOLDER / FRAMES[kind][-1]).read_bytes().hex()


# --- journals


def test_golden_journal_holds_every_kind_of_event() -> None:
    assert {type(event) for event in EVENTS} == set(Event.registry.values())


def test_every_journal_ever_written_can_be_read() -> None:
    for name in JOURNALS:
        entries = read_journal(FOLDER / name)
        assert [entry.event for entry in entries] == events_of(name)
        assert [entry.seq for entry in entries] == list(range(len(entries)))
        assert entries[0].time == 1_700_000_000.25


def test_journal_is_written_as_before(tmp_path: Path) -> None:
    write_journal(tmp_path / "journal.jsonl")
    expected = (FOLDER / JOURNALS[-1]).read_text(encoding="utf-8")
    assert (tmp_path / "journal.jsonl").read_text(encoding="utf-8") == expected


def test_old_journal_can_be_gone_on_with(tmp_path: Path) -> None:
    for name in JOURNALS:
        path = tmp_path / name
        path.write_bytes((FOLDER / name).read_bytes())
        journal = Journal(path)
        journal.append(RunInterrupted(9))
        journal.close()
        expected = [*events_of(name), RunInterrupted(9)]
        assert [entry.event for entry in read_journal(path)] == expected


# --- checkpoints


def test_every_checkpoint_ever_written_can_be_read() -> None:
    for name in CHECKPOINTS:
        assert same(from_parts(*read_tensors(FOLDER / name)), server_state(name))


def test_golden_checkpoint_uses_every_field_of_the_state() -> None:
    plain = ServerState("", "", VECTOR[:0], {})
    for f in fields(ServerState):
        value: Any = getattr(server_state(), f.name)
        assert isinstance(value, np.ndarray) or value != getattr(plain, f.name), f.name


def test_checkpoint_is_written_as_before(tmp_path: Path) -> None:
    # The order of safetensors' metadata is not fixed, so what is compared is all that it says.
    write_tensors(tmp_path / "checkpoint", *to_parts(server_state()))
    here, there = tmp_path / "checkpoint", FOLDER / CHECKPOINTS[-1]
    assert metadata_of(here) == metadata_of(there)  # the facts, and a checksum of everything
    assert here.stat().st_size == there.stat().st_size


def test_altered_golden_file_would_be_noticed(tmp_path: Path) -> None:
    from boli.errors import CorruptFileError

    data = bytearray((FOLDER / CHECKPOINTS[-1]).read_bytes())
    data[-1] ^= 1
    (tmp_path / "checkpoint").write_bytes(data)
    with pytest.raises(CorruptFileError):
        read_tensors(tmp_path / "checkpoint")


if __name__ == "__main__":
    for kind, names in FRAMES.items():
        if not (FOLDER / names[-1]).exists():
            (FOLDER / names[-1]).write_bytes(frame(kind))
    if not (FOLDER / JOURNALS[-1]).exists():
        write_journal(FOLDER / JOURNALS[-1])
    if not (FOLDER / CHECKPOINTS[-1]).exists():
        write_tensors(FOLDER / CHECKPOINTS[-1], *to_parts(server_state()))
