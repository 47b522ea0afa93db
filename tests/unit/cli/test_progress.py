"""What sites say is shown as it is: it is no markup, and no command to a terminal."""

from __future__ import annotations

from typing import Any

import pytest

from boli.cli.progress import Watch, watched
from boli.engine.wire import Failing
from boli.journal import (
    AttemptsRefused,
    Evaluated,
    SiteBenched,
    SiteJoined,
    SiteLeft,
    SixGramEvaluated,
    UpdateRejected,
    UpdateWeighed,
    VersionJudged,
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


def test_nothing_of_a_sites_own_words_is_in_what_is_heard_of_its_failure() -> None:
    said = Failing.model_validate({"problem": "\x1b[2J\x07मूलपाठ", "hint": "h" * 9999})
    failed = said.failed("gaya")
    assert "मूल" not in failed.problem + failed.hint
    assert failed.problem.isprintable()


def weighed(site: str, version: int, **values: Any) -> UpdateWeighed:
    plain = {"weight": 1.0, "bound": 2.0, "scaled": 1.0, "offence": ""}
    return UpdateWeighed(site=site, sequence=version, version=version, **(plain | values))


def test_suspect_sites_are_named_when_it_begins_and_each_time_that_it_doubles(
    tiny_plan: object, tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    plan: Plan = tiny_plan(tmp_path)  # type: ignore[operator]
    with watched(plan) as watch:
        assert not list(watch.suspects())
        for version in range(1, 9):
            watch.observe(weighed("arrah", version, norm=1.0, direction=0.5))
            for name in ("gaya", "?"):
                watch.observe(
                    weighed(name, version, norm=9.0, direction=-0.98, offence="direction")
                )
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


def test_model_that_loses_to_a_six_gram_is_told_at_the_first_judgement(
    tiny_plan: object, tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    plan: Plan = tiny_plan(tmp_path)  # type: ignore[operator]
    names = [site.name for site in plan.site]

    def judge(watch: Watch, version: int, bits: float) -> None:
        for site in plan.site:
            watch.observe(Evaluated(site.name, site.language, "tuning", version, bits, 100))
        watch.observe(VersionJudged(version, dict.fromkeys(names, 0.5), 0.5, True))

    with watched(plan) as watch:
        judge(watch, 1, 98.0)  # sites that tell no 6-gram
        assert {site["to_six_gram"] for site in watch.sites.values()} == {"–"}
        for site in plan.site:
            watch.observe(SixGramEvaluated(site.name, site.language, "tuning", 87.5, 100))
        assert {site["to_six_gram"] for site in watch.sites.values()} == {"+12.0 %"}
        for version, bits in ((2, 98.0), (3, 95.0), (4, 70.0), (5, 69.0)):
            judge(watch, version, bits)
    said = " ".join(capsys.readouterr().out.split()).replace("\N{NO-BREAK SPACE}", " ")
    assert said.count("loses to a 6-gram of each site's own text by 12.0 %") == 1
    assert said.count("beats a 6-gram of each site's own text by 20.0 %") == 1
    assert said.count("On tuning text") == 2
