"""Which version is exported: a minority neither chooses nor blocks, and a majority is heard."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boli.rounds.best import JudgedVersion, Selection, majority, per_byte
from boli.rounds.update import Judgement, Vector

Lie = Callable[[int], float]
EVERY, TOTAL = 5, 20


def theta(version: int) -> Vector:
    return np.full(3, version, np.float32)


def said(bits: float, num_bytes: int = 100, part: Any = "tuning") -> Judgement:
    return Judgement(language="mag", part=part, bits=bits, bytes=num_bytes)


def carried_out(
    sites: Mapping[str, Mapping[int, float]], lies: Mapping[str, Lie], total: int = TOTAL
) -> Selection:
    """Return the selection at the end of a synchronous run, nothing restored yet.

    `sites` has bits by version for the honest sites; a version that is not named is as
    the one before. A liar says what its lie makes of a version; None: nothing.
    """
    found, active = Selection(), sorted([*sites, *lies])

    def hear(version: int) -> None:
        nonlocal found
        for site in active:
            bits = lies[site](version) if site in lies else sites[site][version]
            if bits is not None and math.isfinite(bits):  # others do not come in: see Judgement
                found = found.hear(site, version, [said(bits)])

    hear(0)
    for version in range(1, total + 1):
        found, _ = found.follow(theta(version - 1), version, active, EVERY, total)
        if found.open is not None and found.open.version == version:
            hear(version)
    return found


def exported(sites: Mapping[str, Mapping[int, float]], lies: Mapping[str, Lie]) -> int:
    """Return the version that is exported in the end."""
    active = sorted([*sites, *lies])
    found = carried_out(sites, lies)
    if found.better_than_last(active) is None:
        return TOTAL
    earlier = found.kept[-1].version
    again, restored = found.restore(theta(TOTAL), TOTAL + 1)
    assert restored.tolist() == theta(earlier).tolist()
    assert again.made(TOTAL + 1) == earlier
    return earlier


RUINED = {0: 8.0, 5: 7.0, 10: 6.0, 15: 5.0, 20: 9.0}
BETTER = {0: 8.0, 5: 7.0, 10: 6.0, 15: 5.0, 20: 4.5}
LIES: dict[str, Lie] = {
    "all is perfect": lambda version: 8.0 if not version else 1e-300,
    "all is terrible": lambda version: 8.0 if not version else 1e300,
    "only the first is good": lambda version: {0: 8.0, 5: 1e-9}.get(version, 1e9),
    "only the last is good": lambda version: {0: 8.0, 20: 1e-9}.get(version, 1e9),
    "the reverse": lambda version: {0: 8.0, 5: 5.0, 10: 6.0, 15: 7.0, 20: 1.0}[version],
    "zero": lambda version: 0.0,
    "zero after the base": lambda version: 8.0 if not version else 0.0,
    "less than zero": lambda version: -1.0,
    "not a number": lambda version: 8.0 if not version else math.nan,
    "nothing": lambda version: 8.0 if not version else math.inf,
    "a huge base": lambda version: 1e300 if not version else 1.0,
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("honest", [2, 3, 4])
def test_a_minority_neither_chooses_nor_blocks(lie: str, honest: int) -> None:
    names = [f"honest-{number}" for number in range(honest)]
    lies = {f"liar-{number}": LIES[lie] for number in range(honest - 1)}
    assert exported(dict.fromkeys(names, RUINED), lies) == 15
    assert exported(dict.fromkeys(names, BETTER), lies) == 20


@pytest.mark.parametrize("lie", ["only the first is good", "only the last is good"])
def test_control_a_majority_does_choose(lie: str) -> None:
    lies = {f"liar-{number}": LIES[lie] for number in range(2)}
    assert exported({"honest": RUINED if "last" in lie else BETTER}, lies) != (
        15 if "last" in lie else 20
    )


def test_of_two_sites_one_that_lies_cannot_have_a_worse_version_chosen() -> None:
    for lie in LIES.values():
        assert exported({"honest": BETTER}, {"liar": lie}) == 20


def test_languages_that_differ_in_difficulty_need_no_common_scale() -> None:
    """A median of each version by itself would let the liar pick: its place among them moves."""
    easy = {0: 8.0, 5: 4.0, 10: 3.9, 15: 3.8, 20: 3.7}
    hard = {0: 8.0, 5: 7.8, 10: 7.6, 15: 7.4, 20: 7.2}
    for lie in LIES.values():
        assert exported({"easy": easy, "hard": hard}, {"liar": lie}) == 20


def test_a_minority_cannot_walk_downhill_in_steps_that_each_please_somebody() -> None:
    one = {0: 8.0, 5: 6.0, 10: 5.9, 15: 6.4, 20: 6.4}
    other = {0: 8.0, 5: 6.0, 10: 6.5, 15: 6.4, 20: 6.4}
    found = carried_out({"one": one, "other": other}, {"liar": lambda version: 8.0 - version / 10})
    # 10 pleases one, 15 the other; but 15 is worse than 5 for both.
    assert [each.version for each in found.kept] == [5, 10]


def test_an_earlier_version_has_to_be_clearly_better() -> None:
    nearly = {0: 8.0, 5: 7.0, 10: 6.0, 15: 5.0, 20: 5.004}
    clearly = {**nearly, 20: 5.006}
    assert exported(dict.fromkeys("abc", nearly), {}) == 20
    assert exported(dict.fromkeys("abc", clearly), {}) == 15


def test_version_that_comes_back_has_to_be_found_better_once_more() -> None:
    found = carried_out(dict.fromkeys("abc", RUINED), {})
    found, best = found.restore(theta(20), 21)
    assert best[0] == 15
    for site in "abc":
        found = found.hear(site, 21, [said(9.5)])  # worse than the last one after all
    assert found.better_than_last("abc") is not None
    found, last = found.restore(best, 22)
    assert last[0] == 20
    assert found.made(22) == 20
    for site in "abc":
        found = found.hear(site, 22, [said(99.0)])
    assert found.better_than_last("abc") is None  # this ends, whatever is said


def test_the_better_of_two_in_the_end_is_the_last_where_it_was_restored_rightly() -> None:
    found, _ = carried_out(dict.fromkeys("abc", RUINED), {}).restore(theta(20), 21)
    for site in "abc":
        found = found.hear(site, 21, [said(5.0)])
    assert found.better_than_last("abc") is None


# --- what counts as a judgement


@pytest.mark.parametrize(
    "judgements",
    [
        [],
        [said(0.0)],
        [said(-5.0)],
        [said(8.0, 0)],
        [said(8.0, part="test")],
        [said(9.0), said(-1.0)],
    ],
)
def test_what_is_no_judgement_of_tuning_text_is_none(judgements: list[Judgement]) -> None:
    assert per_byte(judgements) == 0.0


def test_languages_of_a_site_are_judged_together_and_the_test_part_is_not_looked_at() -> None:
    assert per_byte([said(100, 10), said(100, 90), said(1e9, part="test")]) == 2.0
    assert per_byte([said(1e308), said(1e308)]) < math.inf


def test_claims_of_bytes_weigh_nothing() -> None:
    """A site's judgement counts once, however much text it says it has."""
    huge = [said(1e-3, 2**53)]
    found = Selection(base=dict.fromkeys("abcde", 8.0), open=JudgedVersion(version=5))
    for site in "abc":
        found = found.hear(site, 5, [said(900.0)])
    for site in "de":
        found = found.hear(site, 5, huge)
    assert found.open is not None
    assert found.score(found.open, "abcde") == pytest.approx(9.0 / 8.0)


def test_site_without_tuning_text_has_no_vote_and_site_that_is_silent_has_none_in_favor() -> None:
    base = {"a": 8.0, "b": 8.0, "c": 0.0}
    found = Selection(base=base, open=JudgedVersion(version=5))
    found = found.hear("a", 5, [said(400.0)]).hear("c", 5, [said(1.0)])
    assert found.open is not None
    assert found.voters("abc") == ["a", "b"]
    assert found.score(found.open, "abc") is None
    assert found.score(found.open, "a") == 0.5
    found = found.hear("b", 5, [said(600.0)])
    assert found.open is not None
    assert found.score(found.open, "abc") == 0.75
    assert found.score(found.open, "abcd") == 0.75  # d was never heard, and may yet vote
    assert found.score(found.open, "abcdef") is None


def test_base_is_noted_once_and_only_from_version_0() -> None:
    found = Selection().hear("a", 3, [said(100.0)])
    assert not found.base
    found = found.hear("a", 0, [said(800.0)]).hear("a", 0, [said(1.0)])
    assert found.base == {"a": 8.0}


def test_a_judgement_of_an_earlier_version_or_a_second_one_does_not_count() -> None:
    found = Selection(base={"a": 8.0}, open=JudgedVersion(version=5))
    assert found.hear("a", 4, [said(1.0)]) == found
    once = found.hear("a", 6, [said(400.0)])
    assert once.hear("a", 7, [said(1.0)]) == once


# --- the order of things


def followed(found: Selection, versions: Sequence[int], active: str = "abc") -> Selection:
    for version in versions:
        found, _ = found.follow(theta(version - 1), version, active, EVERY, TOTAL)
    return found


def test_entries_are_kept_of_the_best_and_of_one_that_waits_for_judgements() -> None:
    found = followed(Selection(base=dict.fromkeys("abc", 8.0)), range(1, 6))
    assert found.open == JudgedVersion(version=5)
    assert found.open_theta is None  # it is the current one
    found = followed(found.hear("a", 5, [said(400.0)]), [6, 7])
    assert found.open_theta is not None
    assert found.open_theta[0] == 5
    found = followed(found.hear("b", 7, [said(400.0)]), [8])
    assert found.open is not None  # one more may come, until the next is due
    found = followed(found, [9, 10])
    assert [each.version for each in found.kept] == [5]
    assert found.best_theta is not None
    assert found.best_theta[0] == 5
    assert found.open == JudgedVersion(version=10)
    assert found.open_theta is None


def test_version_that_all_have_judged_is_settled_at_once() -> None:
    found = followed(Selection(base=dict.fromkeys("abc", 8.0)), range(1, 6))
    for site in "abc":
        found = found.hear(site, 5, [said(400.0)])
    found, settled = found.follow(theta(5), 6, "abc", EVERY, TOTAL)
    assert settled == (JudgedVersion(version=5, ratios=dict.fromkeys("abc", 0.5)), True)
    assert found.open is None
    assert found.best_theta is not None
    assert found.best_theta[0] == 5


def test_version_that_too_few_judge_waits_and_is_given_up_at_the_end() -> None:
    found = followed(Selection(base=dict.fromkeys("abc", 8.0)), range(1, 6))
    found = followed(found.hear("a", 5, [said(1.0)]), range(6, TOTAL))
    assert found.open is not None
    assert found.open.version == 5
    found, settled = found.follow(theta(19), 20, "abc", EVERY, TOTAL)
    assert settled is not None
    assert settled[1] is False
    assert found.open == JudgedVersion(version=20)
    assert found.best_theta is None


def test_best_version_whose_judges_are_gone_gives_way() -> None:
    found = Selection(
        base=dict.fromkeys("abc", 8.0),
        open=JudgedVersion(version=10, ratios={"b": 0.9, "c": 0.9}),
        kept=(JudgedVersion(version=5, ratios={"a": 0.1, "b": 0.95}),),
        best_theta=theta(5),
    )
    waiting, settled = found.follow(theta(10), 11, "abc", EVERY, TOTAL)
    assert settled is None  # b alone has judged both
    found, settled = waiting.follow(theta(11), 12, "bc", EVERY, TOTAL)  # a was suspended
    assert settled is not None
    assert settled[1] is True
    assert found.best_theta is not None
    assert found.best_theta[0] == 10


# --- properties

ratios = st.floats(0.1, 10.0)
claims = st.one_of(st.none(), st.floats(1e-6, 1e6))


@given(st.data())
def test_where_all_honest_sites_agree_the_others_change_nothing(data: Any) -> None:
    honest = data.draw(st.integers(1, 5))
    liars = data.draw(st.integers(0, honest - 1))
    pairs = data.draw(st.lists(st.tuples(ratios, ratios), min_size=honest, max_size=honest))
    one = {f"h{number}": min(pair) for number, pair in enumerate(pairs)}
    other = {f"h{number}": max(pair) * 1.01 for number, pair in enumerate(pairs)}
    for number in range(liars):
        for claimed in (one, other):
            claim = data.draw(claims)
            if claim is not None:
                claimed[f"l{number}"] = claim
    active = [f"h{number}" for number in range(honest)] + [f"l{n}" for n in range(liars)]
    found = Selection(base=dict.fromkeys(active, 1.0))
    better, worse = JudgedVersion(version=1, ratios=one), JudgedVersion(version=2, ratios=other)
    first, second = found.compare(better, worse, active), found.compare(worse, better, active)
    assert first is not None
    assert first < 1
    assert second is None or second > 1


@given(st.lists(ratios, max_size=9), st.integers(1, 9))
def test_majority_is_what_more_than_half_stay_within(found: list[float], num_sites: int) -> None:
    found = found[:num_sites]
    bound = majority(found, num_sites)
    if bound is None:
        assert len(found) <= num_sites / 2
    else:
        assert sum(ratio <= bound for ratio in found) > num_sites / 2
        assert sum(ratio < bound for ratio in found) <= num_sites / 2
