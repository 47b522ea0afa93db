"""Steps and snapshots that bring a node to the current version, also after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from quadratic import FIRST, LAYOUT

from boli.codec.codec import Codec, DenseCodec, decode_frame, encode_frame
from boli.codec.sparse import SparseCodec
from boli.rounds.transport import Joined, VersionLog, held_digest
from boli.rounds.update import Release, Vector, take

VIEWS = {"gaya": (None, LAYOUT.view(None).spans), "arrah": (2, LAYOUT.view(2).spans)}
THIN = SparseCodec(density=0.05, chunk=64)


def releases(count: int, codec: Codec = THIN, seed: int = 0) -> Iterator[Release]:
    """Yield version 0 and so many after it, each the decoded step away from the one before."""
    draw = np.random.default_rng(seed)
    theta = FIRST
    yield Release(0, LAYOUT.digest, theta)
    for version in range(1, count + 1):
        move = draw.standard_normal(theta.size).astype(np.float32)
        frame = encode_frame(codec, move, LAYOUT.digest, None, version - 1)
        step = decode_frame(frame, LAYOUT.digest, theta.size).vector
        theta = theta - step
        yield Release(version, LAYOUT.digest, theta, step, frame)


def joins(site: str, version: int, theta: Vector) -> Joined:
    held = take(theta, VIEWS[site][1])
    return Joined(site, (), {}, version, held_digest(held))


def bring(log: VersionLog, site: str, version: int, theta: Vector) -> tuple[Vector, bool]:
    """Return what a node holds after it caught up, and whether it took a snapshot."""
    held, snapshot = take(theta, VIEWS[site][1]), False
    for sent in log.catch_up(joins(site, version, theta)):
        vector = decode_frame(sent.frame, LAYOUT.digest, held.size).vector
        snapshot = snapshot or sent.snapshot
        held = vector if sent.snapshot else held - vector
    return held, snapshot


@pytest.mark.parametrize("site", VIEWS)
@pytest.mark.parametrize("restarted", [False, True])
def test_steps_from_any_version_lead_to_the_bits_of_the_snapshot(
    tmp_path: Path, site: str, restarted: bool
) -> None:
    made = list(releases(6))
    log = VersionLog(VIEWS, made[0], tmp_path)
    for release in made[1:]:
        log.publish(release)
    if restarted:
        log = VersionLog(VIEWS, Release(6, LAYOUT.digest, made[6].theta), tmp_path)
    snapshots = 0
    for release in made:
        held, snapshot = bring(log, site, release.version, release.theta)
        assert held.tobytes() == take(made[6].theta, VIEWS[site][1]).tobytes()
        snapshots += snapshot
    assert 0 < snapshots < 6  # too many steps together are larger than a snapshot


def test_restart_without_the_folder_needs_a_snapshot(tmp_path: Path) -> None:
    made = list(releases(2))
    log = VersionLog(VIEWS, made[0], tmp_path)
    log.publish(made[1])
    log.publish(made[2])
    last = Release(2, LAYOUT.digest, made[2].theta)
    assert bring(VersionLog(VIEWS, last), "gaya", 1, made[1].theta)[1]
    assert not bring(VersionLog(VIEWS, last, tmp_path), "gaya", 1, made[1].theta)[1]


def test_steps_of_another_history_or_torn_ones_are_passed_over(tmp_path: Path) -> None:
    made, others = list(releases(3)), list(releases(3, seed=1))
    log = VersionLog(VIEWS, made[0], tmp_path)
    for release in made[1:]:
        log.publish(release)
    other = VersionLog(VIEWS, Release(3, LAYOUT.digest, others[3].theta), tmp_path)
    assert bring(other, "gaya", 2, made[2].theta)[1]
    # From an older state, the versions after it are made anew; the one before still leads there.
    older = VersionLog(VIEWS, Release(2, LAYOUT.digest, made[2].theta), tmp_path)
    assert not bring(older, "gaya", 1, made[1].theta)[1]
    path = tmp_path / f"{2:09d}.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    again = VersionLog(VIEWS, Release(3, LAYOUT.digest, made[3].theta), tmp_path)
    assert not bring(again, "gaya", 2, made[2].theta)[1]
    held, snapshot = bring(again, "gaya", 1, made[1].theta)
    assert snapshot
    assert held.tobytes() == made[3].theta.tobytes()


def test_folder_keeps_no_more_than_a_snapshot_and_nothing_of_dense_steps(tmp_path: Path) -> None:
    log: VersionLog | None = None
    for release in releases(40):
        log = log or VersionLog(VIEWS, release, tmp_path / "thin")
        if release.version:
            log.publish(release)
    files = sorted((tmp_path / "thin").iterdir())
    assert files[-1].stem == f"{40:09d}"
    assert 0 < len(files) < 10
    dense = list(releases(1, DenseCodec()))
    VersionLog({"gaya": VIEWS["gaya"]}, dense[0], tmp_path / "dense").publish(dense[1])
    assert not (tmp_path / "dense").exists()
