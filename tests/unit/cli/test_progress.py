"""What sites say is shown as it is: it is no markup, and no command to a terminal."""

from __future__ import annotations

import pytest

from boli.cli.progress import watched
from boli.engine.wire import Failing
from boli.journal import (
    AttemptsRefused,
    SiteBenched,
    SiteJoined,
    SiteLeft,
    SitesCompared,
    UpdateRejected,
    VersionRestored,
)
from boli.plan import Plan


@pytest.mark.parametrize("words", ["[/red] gone", "[bold]x", ":smile:"])
def test_what_a_site_says_is_no_markup(
    words: str, tiny_plan: object, tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    plan: Plan = tiny_plan(tmp_path)  # type: ignore[operator]
    with watched(plan) as watch:
        watch.observe(UpdateRejected("run-gaya-1", "gaya", "malformed", words))
        watch.observe(SiteLeft("gaya", words))
        watch.observe(SiteBenched("gaya", words))
        watch.observe(AttemptsRefused("not allowed", "gaya", 2, 1.0, words))
    assert capsys.readouterr().out.count(words) == 4


def test_what_a_site_says_of_its_failure_is_one_line_without_control_characters() -> None:
    said = Failing(problem="\x1b[2J\x07मूल\u200dपाठ\nnext\x9b", hint="h" * 9999)
    assert said.problem == " [2J मूल\u200dपाठ next "
    assert len(said.hint) == 500


def test_suspect_sites_are_named_when_it_begins_and_each_time_that_it_doubles(
    tiny_plan: object, tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    plan: Plan = tiny_plan(tmp_path)  # type: ignore[operator]
    with watched(plan) as watch:
        assert not list(watch.suspects())
        for version in range(1, 9):
            honest = {"norm": 1.0, "bound": 2.0, "cosine": 0.5, "offences": 0}
            hostile = {"norm": 9.0, "bound": 2.0, "cosine": -0.98, "offences": version}
            watch.observe(SitesCompared(version, {"arrah": honest, "gaya": hostile, "?": hostile}))
        words = "8 offences, norm 9 with a bound of 2, direction −0.98"
        assert list(watch.suspects()) == [f"gaya: {words}"]
        watch.observe(SiteBenched("gaya", "too many offences"))
        assert list(watch.suspects()) == [f"gaya: suspended: too many offences; {words}"]
        watch.observe(SiteJoined("gaya", {}, 1))
        assert list(watch.suspects()) == [f"gaya: {words}"]
        watch.observe(VersionRestored(21, 12, 0.969))
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("site gaya is suspect") == 4  # 1, 2, 4, 8
    assert "arrah" not in said
    assert "version 12 comes back as version 21" in said
    assert "a majority of the sites judges the last one worse" in said
