from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from boli.durable import locked
from boli.errors import CorruptFileError, RunError
from boli.evaluation.page import duration, size
from boli.evaluation.report import figures, write_report
from boli.journal import (
    DifferenceJudged,
    Evaluated,
    Event,
    Journal,
    MixedEvaluated,
    OrderSent,
    PpmdEvaluated,
    RoundStepped,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    SiteBenched,
    SiteJoined,
    SixGramEvaluated,
    UpdateAccepted,
    UpdateRejected,
    UpdateWeighed,
    VersionExported,
    VersionJudged,
    VersionRestored,
    read_journal,
)
from boli.model.layout import Layout
from boli.plan_file import plan_from_tables

LAYOUT = Layout.of({"a": ((4, 25), "rows")})  # d = 100
HALF = Layout.of({"a": ((2, 25), "rows")})
START = 1_700_000_000.0

NOTHING_LOST = 10**9  # a checkpoint that knows every line


class Story:
    """Writes a run's folder as boli.run does, at times of the test's own choosing."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **sites: str) -> None:
        self.folder = folder
        self.sites = sites
        self.clock = START
        clock = SimpleNamespace(time=lambda: self.clock)
        monkeypatch.setattr("boli.journal.time", clock)
        self.journal = Journal(folder / "journal.jsonl")

    def prepare(self, **tables: Any) -> None:
        plan = plan_from_tables(
            {
                "name": "tiny",
                "model": {"base": {"language": "hin", "path": "base", "text": ["hin.txt"]}},
                "rounds": {"total": 4, "local_steps": 5},
                "site": [
                    {"name": name, "language": language, "text": [f"{name}.txt"]}
                    for name, language in self.sites.items()
                ],
            }
            | tables
        )
        (self.folder / "plan.json").write_text(plan.model_dump_json())
        layouts = {name: LAYOUT.describe() for name in self.sites}
        prepared = {"run": self.folder.name, "base": "base", "layout": LAYOUT.describe()}
        (self.folder / "run.json").write_text(json.dumps({**prepared, "site_layouts": layouts}))

    def at(self, seconds: float, *events: Event) -> None:
        """Journal events so many seconds after the first."""
        self.clock = START + seconds
        for event in events:
            self.journal.append(event)

    def begin(self) -> None:
        self.at(0, RunStarted("run", "digest", "9.9", LAYOUT.digest, 100, dict(self.sites)))

    def figures(self) -> dict[str, Any]:
        return figures(self.folder)


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Story]:
    def begin(plan: dict[str, Any] | None = None, **sites: str) -> Story:
        told = Story(tmp_path, monkeypatch, **(sites or {"arrah": "bho", "gaya": "mag"}))
        told.prepare(**(plan or {}))
        told.begin()
        return told

    return begin


def joined(site: str, language: str, restarts: int = 0) -> SiteJoined:
    return SiteJoined(site, {language: {"train": 80, "tuning": 10, "test": 10}}, restarts)


def ordered(site: str, number: int, version: int, steps: int = 5, down: int = 400) -> OrderSent:
    return OrderSent(f"run-{site}-{number}", site, version, steps, 0, down)


def accepted(site: str, number: int, version: int, **values: Any) -> UpdateAccepted:
    facts: dict[str, Any] = {
        "order": f"run-{site}-{number}",
        "site": site,
        "base_version": version,
        "staleness": 0,
        "local_steps": 5,
        "tokens": 100,
        "weight": 1.0,
        "loss": 6.0,
        "norm": 1.0,
        "scaled": 1.0,
        "train_seconds": 2.0,
        "evaluate_seconds": 0.0,
        "work_seconds": 2.0,
        "idle_seconds": 0.0,
        "bytes_up": 500,
    }
    return UpdateAccepted(**(facts | values))


def stepped(version: int, tokens: int, num_updates: int = 2) -> RoundStepped:
    return RoundStepped(version, num_updates, tokens, 0.5, 1.0)


def judged(
    site: str, language: str, part: str, version: int, per_byte: float, num_bytes: int = 100
) -> Evaluated:
    return Evaluated(site, language, part, version, per_byte * num_bytes, num_bytes)


def finished_run(told: Story, *, after: float = 1.5, base_after: float = 1.1) -> Story:
    """Two sites, one round, judged before and after by sites and coordinator."""
    told.at(0, judged("", "hin", "test", 0, 1.0))
    for number, (site, language) in enumerate(told.sites.items()):
        told.at(1 + number / 10, joined(site, language), ordered(site, 1, 0))
    for site, language in told.sites.items():
        told.at(
            4,
            judged(site, language, "tuning", 0, 2.1),
            judged(site, language, "test", 0, 2.0),
            accepted(site, 1, 0),
        )
    told.at(4, stepped(1, 100 * len(told.sites), len(told.sites)))
    for site, language in told.sites.items():
        told.at(4, ordered(site, 2, 1, steps=0))
        told.at(
            5,
            judged(site, language, "tuning", 1, after + 0.1),
            judged(site, language, "test", 1, after),
        )
    told.at(6, judged("", "hin", "test", 1, base_after), RunFinished(1, 106.0, "adapter"))
    return told


def text_of(page: str) -> str:
    """Return what a reader sees, on one line."""
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


# The exported version, and the sites beside each other


def restored_run(told: Story, score: float | None = 0.75) -> Story:
    """Version 1 of 2 comes back as version 3, and is exported; gaya is hostile."""
    finished_run(told)
    told.at(7, *(accepted(site, 3, 1, norm=9.0, scaled=0.5) for site in told.sites))
    told.at(7, stepped(2, 400))
    for version, values in ((1, (0.7, 0.75)), (2, (1.2, 0.01)), (3, (0.7, 0.75))):
        ratios = dict(zip(told.sites, values, strict=True))
        told.at(8, VersionJudged(version, ratios, max(values), kept=version != 2))
    for version, value in ((2, 2.4), (3, 1.4)):
        for site, language in told.sites.items():
            told.at(8, judged(site, language, "tuning", version, value + 0.1))
            told.at(8, judged(site, language, "test", version, value))
    told.at(8, VersionRestored(3, 1, 0.6))
    for version, (norm, direction, offence) in enumerate([(2.0, 0.5, ""), (8.0, -0.9, "norm")], 1):
        told.at(9, UpdateWeighed("arrah", version, version, 1.0, 2.0, 4.0, 1.0, 0.5, ""))
        told.at(9, UpdateWeighed("gaya", version, version, 1.0, norm, 4.0, 1.0, direction, offence))
    told.at(9, SiteBenched("gaya", "its updates were held to the bound again and again"))
    told.at(9, VersionExported(3, 1, 2, score, 2, 2), RunFinished(3, 9.0, "adapter"))
    return told


def test_figures_after_are_those_of_the_exported_version(story: Callable[..., Story]) -> None:
    found = restored_run(story()).figures()
    assert found["version"] == 2
    assert found["languages"]["bho"]["test_version"] == 3
    assert found["languages"]["bho"]["after"]["test"] == pytest.approx(1.4)
    assert found["exported"] == {
        "version": 3,
        "made": 1,
        "last": 2,
        "score": 0.75,
        "judges": 2,
        "sites": 2,
        "change_percent": pytest.approx(-25),
        "better_than_base": True,
    }
    assert [each["version"] for each in found["judged_versions"]] == [1, 2, 3]
    assert [each["made"] for each in found["judged_versions"]] == [1, 2, 1]
    assert [each["kept"] for each in found["judged_versions"]] == [True, False, True]
    # The curve has a point for each round, and none for what is there twice.
    assert [point[0] for point in found["curve"]["bho"]] == [0, 1, 2]


def test_version_that_was_exported_unjudged_has_no_figures_of_another(
    story: Callable[..., Story],
) -> None:
    told = finished_run(story())
    told.at(7, VersionExported(2, 2, 2, None, 0, 2), RunFinished(2, 9.0, "adapter"))
    bho = told.figures()["languages"]["bho"]
    assert (bho["test_version"], bho["after"]["test"], bho["change_percent"]) == (2, None, None)


def test_page_says_which_version_is_exported_and_why(story: Callable[..., Story]) -> None:
    told = restored_run(story())
    page = write_report(told.folder).read_text(encoding="utf-8")
    said = text_of(page)
    assert "Version 1 of 2 is exported: it was the best on the sites' tuning text." in said
    assert "What came after it made that text worse." in said
    assert "More than half of the sites judge it at least 25.0 % better than the base." in said
    assert "3 exported version 1 again" in said
    assert "Site gaya was suspended: no more orders were given." in said
    assert "Warning" not in said


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (1.0, "Warning: it is no better than the base: no majority of the sites judges it better"),
        (1.25, "(the majority's bound is 25.0 % more bits)"),
        (None, "which is not more than half: it is not known whether it is better than the base"),
    ],
)
def test_page_warns_of_an_adapter_that_is_no_better_than_the_base(
    story: Callable[..., Story], score: float | None, words: str
) -> None:
    told = restored_run(story(), score)
    assert told.figures()["exported"]["better_than_base"] is False
    page = write_report(told.folder).read_text(encoding="utf-8")
    assert words in text_of(page)
    assert '<p class="bad"><b>Warning' in page


def test_run_from_before_versions_were_chosen_says_nothing_of_it(
    story: Callable[..., Story],
) -> None:
    told = finished_run(story())
    found = told.figures()
    assert (found["exported"], found["judged_versions"]) == (None, [])
    assert "is exported" not in text_of(write_report(told.folder).read_text(encoding="utf-8"))


def test_sites_stand_beside_each_other(story: Callable[..., Story]) -> None:
    told = restored_run(story())
    sites = told.figures()["sites"]
    assert sites["arrah"]["comparison"] == {
        "norm_of_bound": {"mean": 0.5, "max": 0.5},
        "direction": {"mean": 0.5, "min": 0.5},
        "judged_percent": pytest.approx(-30),
        "offences": 0,
        "rounds": [[1, 2.0, 4.0, 0.5, 0], [2, 2.0, 4.0, 0.5, 0]],
    }
    hostile = sites["gaya"]["comparison"]
    assert hostile["norm_of_bound"] == {"mean": 1.25, "max": 2.0}
    assert hostile["direction"] == {"mean": pytest.approx(-0.2), "min": -0.9}
    assert hostile["offences"] == 1
    page = write_report(told.folder).read_text(encoding="utf-8")
    assert "Norm of each site's updates over the rounds" in page
    assert "−0.90" in page


def test_without_comparisons_the_updates_themselves_tell_the_norms(
    story: Callable[..., Story],
) -> None:
    told = finished_run(story())
    told.at(7, accepted("gaya", 3, 1, norm=8.0, scaled=0.25), stepped(2, 300))
    found = told.figures()["sites"]["gaya"]["comparison"]
    assert found["rounds"] == [[1, 1.0, None, None, 0], [2, 8.0, 2.0, None, 0]]
    assert found["norm_of_bound"]["max"] == 4.0
    assert found["direction"] == {"mean": None, "min": None}


def test_resume_forgets_what_the_checkpoint_does_not_know_of_the_choice(
    story: Callable[..., Story],
) -> None:
    told = restored_run(story())
    told.at(10, RunResumed(1, [], 0))
    found = told.figures()
    assert found["exported"] is None
    assert [each["version"] for each in found["judged_versions"]] == [1]
    assert [each[0] for each in found["sites"]["gaya"]["comparison"]["rounds"]] == [1]


# Languages


def test_change_is_that_of_the_test_part(story: Callable[..., Story]) -> None:
    bho = finished_run(story()).figures()["languages"]["bho"]
    assert bho["before"] == {"tuning": pytest.approx(2.1), "test": pytest.approx(2.0)}
    assert bho["after"] == {"tuning": pytest.approx(1.6), "test": pytest.approx(1.5)}
    assert bho["change_percent"] == pytest.approx(-25)
    assert (bho["role"], bho["sites"], bho["test_bytes"]) == ("site", ["arrah"], 100)


def test_sites_of_one_language_are_weighed_by_bytes(story: Callable[..., Story]) -> None:
    told = story(arrah="bho", chhapra="bho")
    told.at(
        1, judged("arrah", "bho", "test", 0, 1.0, 300), judged("chhapra", "bho", "test", 0, 2.0)
    )
    bho = told.figures()["languages"]["bho"]
    assert bho["before"]["test"] == pytest.approx(1.25)
    assert bho["test_bytes"] == 400


def test_before_and_after_are_of_the_same_sites(story: Callable[..., Story]) -> None:
    told = story(arrah="bho", chhapra="bho")
    told.at(1, judged("arrah", "bho", "test", 0, 1.0), judged("chhapra", "bho", "test", 0, 3.0))
    told.at(2, stepped(1, 200), judged("arrah", "bho", "test", 1, 0.9))
    bho = told.figures()["languages"]["bho"]
    assert bho["before"]["test"] == pytest.approx(1.0)
    assert bho["change_percent"] == pytest.approx(-10)


def test_a_site_without_a_judgement_before_does_not_shift_the_change(
    story: Callable[..., Story],
) -> None:
    told = story(arrah="bho", chhapra="bho")
    told.at(1, judged("arrah", "bho", "test", 0, 1.0), stepped(1, 200))
    told.at(2, judged("arrah", "bho", "test", 1, 0.9), judged("chhapra", "bho", "test", 1, 5.0))
    bho = told.figures()["languages"]["bho"]
    assert bho["after"]["test"] == pytest.approx(0.9)
    assert bho["test_bytes"] == 100


def test_base_language_stays_out_of_the_mean(story: Callable[..., Story]) -> None:
    found = finished_run(story(), base_after=1.5).figures()
    assert found["languages"]["hin"]["role"] == "base"
    assert found["mean"]["before"] == pytest.approx(2.0)
    assert found["mean"]["after"] == pytest.approx(1.5)
    assert found["mean"]["languages"] == ["bho", "mag"]
    assert found["forgetting"]["change_percent"] == pytest.approx(50)


def test_base_language_at_a_site_is_not_mixed_with_the_coordinators(
    story: Callable[..., Story],
) -> None:
    found = finished_run(story(delhi="hin"), base_after=1.5).figures()
    assert found["languages"]["hin"]["role"] == "site"
    assert found["languages"]["hin"]["after"]["test"] == pytest.approx(1.5)
    assert found["languages"]["hin"]["before"]["test"] == pytest.approx(2.0)
    assert found["forgetting"]["before"] == pytest.approx(1.0)


def test_mean_takes_only_languages_judged_twice(story: Callable[..., Story]) -> None:
    told = story()
    told.at(1, judged("arrah", "bho", "test", 0, 2.0), judged("gaya", "mag", "test", 0, 4.0))
    assert told.figures()["mean"]["before"] == pytest.approx(3.0)
    assert told.figures()["mean"]["after"] is None
    told.at(2, stepped(1, 200), judged("arrah", "bho", "test", 1, 1.0))
    mean = told.figures()["mean"]
    assert (mean["before"], mean["after"]) == (pytest.approx(2.0), pytest.approx(1.0))
    assert mean["languages"] == ["bho"]


def test_six_gram_of_the_same_sites_says_who_wins(story: Callable[..., Story]) -> None:
    told = story(arrah="bho", chhapra="bho", gaya="mag")
    for site, code, before in (("arrah", "bho", 2.0), ("chhapra", "bho", 3.0), ("gaya", "mag", 2)):
        told.at(1, judged(site, code, "test", 0, before))
        told.at(1, SixGramEvaluated(site, code, "test", 80.0 if site != "chhapra" else 500.0, 100))
    told.at(1, judged("gaya", "mag", "tuning", 0, 2.0))
    told.at(1, SixGramEvaluated("gaya", "mag", "tuning", 90.0, 100))
    told.at(2, judged("arrah", "bho", "test", 1, 0.9), judged("gaya", "mag", "test", 1, 0.6))
    found = told.figures()
    bho, mag = found["languages"]["bho"], found["languages"]["mag"]
    assert bho["six_gram"] == {"tuning": None, "test": pytest.approx(0.8)}  # of arrah alone
    assert bho["against_six_gram_percent"] == pytest.approx(12.5)
    assert mag["six_gram"] == {"tuning": pytest.approx(0.9), "test": pytest.approx(0.8)}
    assert mag["against_six_gram_percent"] == pytest.approx(-25)
    assert (bho["mixed"], mag["mixed"], found["mean"]["mixed"]) == (None, None, None)
    assert found["mean"]["six_gram"] == pytest.approx(0.8)
    assert found["mean"]["against_six_gram_percent"] == pytest.approx(-6.25)
    page = html.unescape(write_report(told.folder).read_text(encoding="utf-8"))
    # Of a mean over two languages; no site said whether that is noise.
    assert "The model wins: 0.750 bits per byte, 6.2\N{NO-BREAK SPACE}% less than a 6-gram" in page
    assert "Whether that is noise is not known: no interval was told." in page
    assert found["without_ppmd"] == ["arrah", "chhapra", "gaya"]
    assert "PPMd has no figures of arrah, chhapra and gaya: pyppmd is not installed there" in page
    told.at(3, MixedEvaluated("arrah", "bho", "test", 1, 70.0, 100))
    told.at(3, MixedEvaluated("gaya", "mag", "test", 0, 10.0, 100))  # of another version
    told.at(3, MixedEvaluated("gaya", "mag", "test", 1, 50.0, 100))
    told.at(3, SixGramEvaluated("gaya", "mag", "test", 40.0, 100))
    found = told.figures()
    assert found["mean"]["mixed"] == pytest.approx(0.6)
    page = html.unescape(write_report(told.folder).read_text(encoding="utf-8"))
    assert "A 6-gram wins: 0.600 bits per byte; the model needs 0.750, 25.0" in page
    assert "it needs 0.600, 0.0" in page


def compared(told: Story, documents: int | None = 40, **ends: tuple[float, float] | None) -> None:
    """Two sites that are judged before and after, with intervals beside each rival."""
    for site, code in told.sites.items():
        told.at(1, judged(site, code, "test", 0, 2.0))
        told.at(1, SixGramEvaluated(site, code, "test", 100.0, 100))
        told.at(1, PpmdEvaluated(site, code, "test", 90.0, 100))
        told.at(2, judged(site, code, "test", 1, 0.8))
        told.at(2, MixedEvaluated(site, code, "test", 1, 70.0, 100))
        for rows in (("model", "base"), ("model", "six_gram"), ("model", "ppmd")):
            low, high = ends.get(rows[1]) or (None, None)
            told.at(2, DifferenceJudged(site, code, 1, *rows, documents, low, high))
        told.at(2, DifferenceJudged(site, code, 1, "mixed", "six_gram", documents, -0.4, 0.1))


ENDS = {"base": (-0.7, -0.5), "six_gram": (-0.25, -0.15), "ppmd": (-0.2, -0.05)}


def test_report_says_who_wins_and_whether_that_is_noise(story: Callable[..., Story]) -> None:
    told = story()
    compared(told, **ENDS)
    found = told.figures()
    bho, mean = found["languages"]["bho"], found["mean"]
    assert (bho["ppmd"], mean["ppmd"], found["without_ppmd"]) == (0.9, 0.9, [])
    assert bho["documents"] == 40
    assert bho["differences"]["ppmd"] == {
        "change_percent": pytest.approx(100 * (0.8 / 0.9 - 1)),
        "low_percent": pytest.approx(-20),
        "high_percent": pytest.approx(-5),
        "documents": 40,
        "better": "a",
    }
    assert bho["winner"]["row"] == mean["winner"]["row"] == "model"
    assert (bho["winner"]["noise"], mean["winner"]["noise"]) == (False, False)
    assert mean["differences"]["ppmd"]["documents"] == 80
    assert mean["differences"]["mixed_to_six_gram"]["better"] is None
    page = html.unescape(write_report(told.folder).read_text(encoding="utf-8"))
    page = page.replace("\N{NO-BREAK SPACE}", " ")
    assert "wins: 0.800 bits per byte, 11.1 % less than PPMd (0.900; 5.0 to 20.0 %), not" in page
    assert "Over 80 documents none of this is noise." in page
    assert "30.0 % below the 6-gram, which may be noise." in page


def test_difference_within_noise_is_said_to_be(story: Callable[..., Story]) -> None:
    told = story()
    compared(told, documents=9, **ENDS | {"ppmd": (-0.3, 0.1)})
    mean = told.figures()["mean"]
    assert mean["winner"]["noise"] is True
    assert mean["winner"]["sentence"].endswith(", which may be noise.")
    assert mean["verdict"].endswith("Over 18 documents the difference to PPMd may be noise.")
    page = write_report(told.folder).read_text(encoding="utf-8")
    assert "fewer than 30 documents (bho 9 and mag 9)" in page


@pytest.mark.parametrize("ends", [(-0.1, -0.05), (0.2, 0.3), None])
def test_interval_that_does_not_hold_its_change_is_not_believed(
    story: Callable[..., Story], ends: tuple[float, float] | None
) -> None:
    told = story()
    compared(told, **ENDS | {"ppmd": ends})
    told.at(3, DifferenceJudged("arrah", "bho", 0, "model", "ppmd", 40, -0.2, -0.05))
    found = told.figures()
    for figures_of in (found["languages"]["bho"], found["mean"]):
        assert figures_of["differences"]["ppmd"]["low_percent"] is None
        assert figures_of["differences"]["ppmd"]["better"] is None
        assert figures_of["winner"]["noise"] is None
        assert "; to PPMd no interval was told" in figures_of["verdict"]


def test_text_without_documents_leaves_open_what_is_noise(story: Callable[..., Story]) -> None:
    told = story()
    compared(told, documents=None)
    bho = told.figures()["languages"]["bho"]
    assert bho["documents"] is None
    assert bho["verdict"].endswith("nothing says which lines belong to one document.")


def test_figures_of_other_text_are_not_compared(story: Callable[..., Story]) -> None:
    told = story()
    compared(told, **ENDS)
    told.at(3, PpmdEvaluated("arrah", "bho", "test", 90.0, 99))
    found = told.figures()
    assert "ppmd" not in found["languages"]["bho"]["differences"] | found["mean"]["differences"]
    assert "ppmd" in found["languages"]["mag"]["differences"]


def test_what_a_lost_version_said_is_forgotten(story: Callable[..., Story]) -> None:
    told = story()
    told.at(1, stepped(1, 200))
    compared(told, **ENDS)
    told.at(4, RunResumed(0, [], NOTHING_LOST))
    told.at(5, judged("arrah", "bho", "test", 1, 0.8))
    assert told.figures()["languages"]["bho"]["differences"]["ppmd"]["low_percent"] is None


def test_runs_without_a_six_gram_say_nothing_of_one(story: Callable[..., Story]) -> None:
    told = finished_run(story())
    found = told.figures()
    assert found["languages"]["bho"]["six_gram"] == {"tuning": None, "test": None}
    assert found["mean"]["six_gram"] is None
    assert "6-gram" not in write_report(told.folder).read_text(encoding="utf-8")
    told.at(90, SixGramEvaluated("arrah", "bho", "test", 0.0, 100))  # a claim that cannot be
    assert told.figures()["languages"]["bho"]["against_six_gram_percent"] is None


def test_curve_keeps_a_site_that_is_judged_at_other_versions(story: Callable[..., Story]) -> None:
    told = story(arrah="bho", chhapra="bho")
    told.at(1, judged("arrah", "bho", "tuning", 0, 1.0), judged("chhapra", "bho", "tuning", 0, 3.0))
    told.at(2, stepped(1, 70), judged("arrah", "bho", "tuning", 1, 0.8))
    told.at(3, stepped(2, 90), judged("chhapra", "bho", "tuning", 2, 2.0))
    assert told.figures()["curve"]["bho"] == [
        [0, 0, pytest.approx(2.0)],
        [1, 70, pytest.approx(1.9)],
        [2, 90, pytest.approx(1.4)],
    ]


# Sites, rounds, bytes


def test_figures_of_a_site_add_up(story: Callable[..., Story]) -> None:
    told = story()
    told.at(1, joined("arrah", "bho"), ordered("arrah", 1, 0, down=0), ordered("arrah", 1, 0))
    told.at(9, accepted("arrah", 1, 0, train_seconds=4.0, work_seconds=6.0, evaluate_seconds=2.0))
    told.at(9, ordered("arrah", 2, 0), accepted("arrah", 2, 0, staleness=3, idle_seconds=2.0))
    arrah = told.figures()["sites"]["arrah"]
    assert (arrah["updates"], arrah["local_steps"], arrah["tokens"]) == (2, 10, 200)
    assert arrah["tokens_per_second"] == pytest.approx(200 / 6)
    assert arrah["idle_percent"] == pytest.approx(20)  # 2 of 2 + 8
    assert arrah["staleness"] == {"mean": 1.5, "max": 3}
    assert (arrah["bytes_up"], arrah["bytes_down"]) == (1000, 800)
    idle = told.figures()["sites"]["gaya"]
    assert (idle["updates"], idle["idle_percent"], idle["staleness"]["max"]) == (0, None, None)


def test_an_order_sent_twice_costs_its_bytes_twice(story: Callable[..., Story]) -> None:
    told = story()
    told.at(1, ordered("arrah", 1, 0, down=10), ordered("arrah", 1, 0, down=20))
    assert told.figures()["sites"]["arrah"]["bytes_down"] == 30


def test_loss_of_a_round_is_weighed_by_tokens_and_counts_stale_updates(
    story: Callable[..., Story],
) -> None:
    told = story(arrah="bho", chhapra="bho")
    told.at(1, accepted("arrah", 1, 0), stepped(1, 100, 1))
    told.at(2, accepted("arrah", 2, 1, loss=4.0, tokens=300))
    told.at(2, accepted("chhapra", 1, 0, staleness=1, loss=8.0), stepped(2, 500))
    first, second = told.figures()["rounds"]
    assert first["loss"] == {"bho": 6.0}
    assert second["loss"] == {"bho": pytest.approx(5.0)}
    assert (second["version"], second["tokens"], second["seconds"]) == (2, 500, 2.0)


def test_bytes_and_residuals_are_told_by_round_and_site(story: Callable[..., Story]) -> None:
    told = story()
    told.at(1, ordered("arrah", 1, 0, down=10), ordered("gaya", 1, 0, down=20))
    told.at(2, accepted("arrah", 1, 0, bytes_up=100, residual_norm=3.0))
    told.at(2, accepted("gaya", 1, 0, bytes_up=200, residual_norm=5.0), stepped(1, 200, 2))
    told.at(3, ordered("arrah", 2, 1, down=30), accepted("arrah", 2, 1, bytes_up=400))
    told.at(4, stepped(2, 300, 1), ordered("arrah", 3, 2, down=50))
    first, last = told.figures()["rounds"]
    assert first["bytes_up"] == {"arrah": 100, "gaya": 200}
    assert first["bytes_down"] == {"arrah": 10, "gaya": 20}
    assert first["residual_norm"] == pytest.approx(4.0)
    assert last["bytes_up"] == {"arrah": 400, "gaya": 0}
    assert last["bytes_down"] == {"arrah": 80, "gaya": 0}  # with the order to judge the end


def test_compression_compares_with_what_the_sites_own_rank_would_send(
    story: Callable[..., Story],
) -> None:
    told = story(arrah="bho")
    told.at(1, ordered("arrah", 1, 0, down=300), accepted("arrah", 1, 0, bytes_up=100))
    told.at(2, stepped(1, 100, 1))
    ratio = told.figures()["compression_ratio"]
    assert ratio["every_local_step"] == pytest.approx(5 * 100 * 4 * 2 / 400)
    assert ratio["every_round"] == pytest.approx(100 * 4 * 2 / 400)
    assert told.figures()["bytes"] == {
        "up": 100,
        "down": 300,
        "up_per_round": 100.0,
        "down_per_round": 300.0,
    }
    prepared = json.loads((told.folder / "run.json").read_text())
    prepared["site_layouts"]["arrah"] = HALF.describe()
    (told.folder / "run.json").write_text(json.dumps(prepared))
    assert told.figures()["compression_ratio"]["every_round"] == pytest.approx(1.0)
    assert told.figures()["num_entries"] == 100


def test_refused_updates_are_counted_by_reason(story: Callable[..., Story]) -> None:
    told = story()
    told.at(1, *[UpdateRejected("", "gaya", "malformed", "not JSON")] * 2)
    told.at(2, UpdateRejected("run-gaya-1", "gaya", "stale", "11 rounds behind"))
    told.at(3, SiteBenched("gaya", "3 updates in a row were refused"))
    gaya = told.figures()["sites"]["gaya"]
    assert gaya["rejected"] == {"malformed": 2, "stale": 1}
    assert (gaya["updates"], gaya["bytes_up"]) == (0, 0)
    assert gaya["benched"] == "3 updates in a row were refused"
    assert told.figures()["sites"]["arrah"]["rejected"] == {}


def test_a_forged_order_does_not_undo_another_sites_update(story: Callable[..., Story]) -> None:
    told = story()
    told.at(1, accepted("arrah", 1, 0))
    told.at(2, UpdateRejected("run-arrah-1", "gaya", "forged", "says it is from 'arrah'"))
    found = told.figures()
    assert found["sites"]["arrah"]["updates"] == 1
    assert found["sites"]["gaya"]["rejected"] == {"forged": 1}


def test_restarts_of_every_process_count(story: Callable[..., Story]) -> None:
    told = story()
    told.at(1, joined("arrah", "bho"))
    told.at(2, joined("arrah", "bho", restarts=1))
    told.at(3, joined("arrah", "bho", restarts=2))
    told.at(9, RunResumed(0, [], NOTHING_LOST), joined("arrah", "bho"))
    told.at(10, joined("arrah", "bho", restarts=1))
    assert told.figures()["sites"]["arrah"]["restarts"] == 3


# Interrupted and resumed


def test_facts_told_twice_count_once(story: Callable[..., Story]) -> None:
    told = story()
    told.at(1, joined("arrah", "bho"))
    told.at(4, judged("arrah", "bho", "tuning", 0, 2.0), accepted("arrah", 1, 0, loss=5.0))
    told.at(5, stepped(1, 100))
    told.at(50, RunResumed(0, [], NOTHING_LOST), joined("arrah", "bho"))
    told.at(51, judged("arrah", "bho", "tuning", 0, 1.9), accepted("arrah", 1, 0, loss=7.0))
    told.at(51, stepped(1, 100))
    found = told.figures()
    assert (found["tokens"], found["sites"]["arrah"]["bytes_up"]) == (100, 500)
    assert [step["loss"] for step in found["rounds"]] == [{"bho": 7.0}]
    assert found["curve"]["bho"] == [[0, 0, pytest.approx(1.9)]]


def test_rounds_that_the_checkpoint_forgot_are_not_counted(story: Callable[..., Story]) -> None:
    told = story()
    told.at(1, accepted("arrah", 1, 0), stepped(1, 100))
    told.at(2, accepted("arrah", 2, 1), stepped(2, 200), judged("arrah", "bho", "tuning", 2, 1.0))
    since = len(read_journal(told.folder / "journal.jsonl"))
    told.at(3, accepted("arrah", 3, 2), RunInterrupted(2))
    assert told.figures()["tokens"] == 300
    told.at(4, RunResumed(1, ["000000009.safetensors"], since))
    found = told.figures()
    assert found["version"] == 1
    # The second is in the sum of the round that is open; the checkpoint does not know the third.
    assert found["tokens"] == 200
    assert "bho" not in found["curve"]
    assert found["interruptions"][0]["corrupt"] == ["000000009.safetensors"]


def test_time_between_stop_and_resume_is_not_training(story: Callable[..., Story]) -> None:
    told = story()
    told.at(10, stepped(1, 100), RunInterrupted(1))
    assert told.figures()["interruptions"] == [
        {"stopped": 10.0, "resumed": None, "asked": True, "version": 1, "corrupt": []}
    ]
    told.at(1000, RunResumed(1, [], NOTHING_LOST))
    told.at(1004, stepped(2, 200), judged("", "hin", "test", 2, 1.0))
    told.at(2000, RunResumed(2, [], NOTHING_LOST))  # it was killed: nothing tells of a stop
    told.at(2001, RunFinished(2, 5.0, "adapter"))
    found = told.figures()
    assert found["seconds"] == pytest.approx(15)
    assert found["preparation_seconds"] == pytest.approx(4)
    killed = found["interruptions"][1]
    assert (killed["stopped"], killed["resumed"], killed["asked"]) == (1004.0, 2000.0, False)


def test_a_start_that_came_to_nothing_is_not_training(story: Callable[..., Story]) -> None:
    told = story()
    told.at(500, RunStarted("run", "digest", "9.9", LAYOUT.digest, 100, dict(told.sites)))
    told.at(504, stepped(1, 100))
    found = told.figures()
    assert (found["started"], found["seconds"]) == (START + 500, 4.0)


def test_clock_set_back_gives_no_negative_time(story: Callable[..., Story]) -> None:
    told = story()
    told.at(10, stepped(1, 100))
    told.at(-500, RunResumed(1, [], NOTHING_LOST), joined("arrah", "bho"))
    told.at(-490, accepted("arrah", 2, 1))
    found = told.figures()
    assert found["seconds"] == pytest.approx(10)
    assert all(span["end"] > span["start"] >= 0 for span in found["timeline"]["arrah"])


def test_status_follows_the_journal_and_the_lock(story: Callable[..., Story]) -> None:
    told = story()
    with locked(told.folder, "run"):
        assert told.figures()["status"] == "running"
    assert told.figures()["status"] == "interrupted"  # killed: no last word, nobody holds it
    told.at(1, RunInterrupted(0))
    assert told.figures()["status"] == "interrupted"
    told.at(2, RunResumed(0, [], NOTHING_LOST), RunFinished(1, 1.0, "adapter"))
    assert told.figures()["status"] == "finished"


# Timeline


def test_work_is_laid_out_backwards_from_its_arrival(story: Callable[..., Story]) -> None:
    told = story()
    told.at(1, joined("arrah", "bho"), ordered("arrah", 1, 0))
    told.at(
        10,
        accepted(
            "arrah",
            1,
            0,
            train_seconds=3.0,
            evaluate_seconds=2.0,
            work_seconds=5.5,
            idle_seconds=1.0,
        ),
    )
    assert told.figures()["timeline"]["arrah"] == [
        {"start": 3.5, "end": 4.5, "kind": "idle", "version": 0},
        {"start": 4.5, "end": 6.5, "kind": "evaluate", "version": 0},
        {"start": 7.0, "end": 10.0, "kind": "train", "version": 0},
    ]


def test_spans_never_overlap(story: Callable[..., Story]) -> None:
    told = story()
    told.at(0, joined("arrah", "bho"))
    told.at(5, accepted("arrah", 1, 0, train_seconds=4.0, work_seconds=4.0))
    late = {"train_seconds": 2.0, "work_seconds": 2.0, "idle_seconds": 3.0}
    told.at(8, accepted("arrah", 2, 0, **late))
    spans = told.figures()["timeline"]["arrah"]
    assert [(span["kind"], span["start"], span["end"]) for span in spans] == [
        ("train", 1.0, 5.0),
        ("idle", 5.0, 6.0),
        ("train", 6.0, 8.0),
    ]


def test_last_judging_is_laid_out_between_order_and_answer(story: Callable[..., Story]) -> None:
    told = finished_run(story())
    last = told.figures()["timeline"]["arrah"][-1]
    assert last == {"start": 4.0, "end": 5.0, "kind": "evaluate", "version": 1}


def test_wait_before_the_last_judging_is_idle_unless_training_was_given_up(
    story: Callable[..., Story],
) -> None:
    told = story()
    told.at(0, joined("arrah", "bho"), joined("gaya", "mag"))
    told.at(3, accepted("arrah", 1, 0), accepted("gaya", 1, 0), ordered("gaya", 2, 0))
    told.at(7, stepped(1, 200), ordered("arrah", 2, 1, steps=0), ordered("gaya", 3, 1, steps=0))
    told.at(9, judged("arrah", "bho", "test", 1, 1.0), judged("gaya", "mag", "test", 1, 1.0))
    lanes = told.figures()["timeline"]
    assert [span["kind"] for span in lanes["arrah"]] == ["train", "idle", "evaluate"]
    assert [span["kind"] for span in lanes["gaya"]] == ["train", "evaluate"]


def test_an_answer_sent_again_after_a_resume_keeps_its_place(story: Callable[..., Story]) -> None:
    told = story()
    told.at(0, joined("arrah", "bho"))
    told.at(5, accepted("arrah", 1, 0))
    told.at(100, RunResumed(0, [], NOTHING_LOST), joined("arrah", "bho"))
    told.at(101, accepted("arrah", 1, 0))
    assert [(s["start"], s["end"]) for s in told.figures()["timeline"]["arrah"]] == [(3.0, 5.0)]


def test_an_answer_made_before_the_site_joined_has_no_place(story: Callable[..., Story]) -> None:
    told = story()
    told.at(0, joined("arrah", "bho"))
    told.at(100, RunResumed(0, [], NOTHING_LOST), joined("arrah", "bho"))
    told.at(101, accepted("arrah", 1, 0, train_seconds=40.0, work_seconds=40.0))
    assert told.figures()["timeline"]["arrah"] == []
    assert told.figures()["sites"]["arrah"]["train_seconds"] == 40.0


# Files


def test_a_run_that_has_not_begun_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Story(tmp_path, monkeypatch, arrah="bho")
    told.prepare()
    with pytest.raises(CorruptFileError):
        told.figures()
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(RunError, match="has not begun"):
        told.figures()
    told.begin()
    (tmp_path / "run.json").unlink()  # killed between the first line and this file
    with pytest.raises(RunError, match="has not begun"):
        told.figures()


def test_a_run_without_a_round_has_a_report(story: Callable[..., Story]) -> None:
    told = story()
    found = told.figures()
    assert (found["version"], found["rounds"], found["curve"]) == (0, [], {})
    assert found["compression_ratio"] == {"every_local_step": None, "every_round": None}
    text = text_of(write_report(told.folder).read_text())
    assert "0 of 4 rounds" in text
    assert "no gain to tell of yet" in text


def test_a_diverged_base_does_not_put_nan_into_the_files(story: Callable[..., Story]) -> None:
    told = finished_run(story(), base_after=float("nan"))
    write_report(told.folder)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (told.folder / "report.json").read_text()
    found = json.loads(text, parse_constant=refuse)
    assert found["forgetting"]["after"] is None
    assert found["schema"] == 1


def test_report_json_holds_the_figures(story: Callable[..., Story]) -> None:
    told = finished_run(story())
    page = write_report(told.folder)
    assert page == told.folder / "report.html"
    assert json.loads((told.folder / "report.json").read_text()) == told.figures()


# The page


@pytest.mark.parametrize(
    ("after", "base_after", "said"),
    [
        (
            1.5,
            1.1,
            [
                "2.000 bits before and takes 1.500 after",
                "25.0 % better",
                "hin, was forgotten by 10.0 %",
            ],
        ),
        (2.5, 0.9, ["25.0 % worse", "Not every language gained", "10.0 % better as well"]),
        (2.0, 1.0, ["no change", "hin, was not forgotten"]),
    ],
)
def test_summary_is_honest(
    story: Callable[..., Story], after: float, base_after: float, said: list[str]
) -> None:
    told = finished_run(story(), after=after, base_after=base_after)
    text = text_of(write_report(told.folder).read_text())
    for sentence in said:
        assert sentence in text


def test_page_needs_nothing_from_elsewhere(story: Callable[..., Story]) -> None:
    page = write_report(finished_run(story()).folder).read_text()
    outside = re.findall(r'(?:src|href|action)="([^"]*)"|url\(([^)]*)\)|@import', page)
    assert all((link or url).startswith("#") for link, url in outside)
    assert "<script" not in page
    assert "<text" in page  # letters are text, not outlines


def test_page_is_whole_html_with_a_plot_for_each_width(story: Callable[..., Story]) -> None:
    page = write_report(finished_run(story()).folder).read_text()
    open_tags: list[str] = []
    ids: list[str] = []

    class Check(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            ids.extend(str(value) for key, value in attrs if key == "id")
            if tag not in ("meta", "br"):
                open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            ids.extend(str(value) for key, value in attrs if key == "id")

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Check().feed(page)
    assert open_tags == []
    assert len(ids) == len(set(ids))
    assert page.count("<svg") == 6  # the loss of one round is no line
    assert "#0a1b" not in page  # every color follows the reader's light or dark


def test_a_stop_is_marked_and_told(story: Callable[..., Story]) -> None:
    told = story()
    told.at(0, joined("arrah", "bho"))
    told.at(60, accepted("arrah", 1, 0), stepped(1, 100), RunInterrupted(1))
    told.at(60 + 7200, RunResumed(1, [], NOTHING_LOST), joined("arrah", "bho"))
    told.at(60 + 7300, accepted("arrah", 2, 1), stepped(2, 200), RunInterrupted(2))
    text = text_of(write_report(told.folder).read_text())
    assert (
        "run was stopped 1 min 0 s after its start, and went on from round 1 after 2 h 0 min"
        in text
    )
    assert f"boli train --resume {told.folder.name}" in text
    assert "2 min 40 s" in text  # of training, without the two hours


def test_same_journal_gives_the_same_page(story: Callable[..., Story]) -> None:
    told = finished_run(story())
    assert write_report(told.folder).read_bytes() == write_report(told.folder).read_bytes()


def test_many_sites_and_a_diverged_one_can_be_drawn(story: Callable[..., Story]) -> None:
    names = {f"site-{k}": ("bho", "mag", "mai", "awa")[k % 4] for k in range(14)}
    told = finished_run(story(**names), after=float("nan"))
    assert write_report(told.folder).read_text().count("site-13") > 2


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (655_911, "656 kB"), (999_700, "1 MB")],
)
def test_size_reads_well(num_bytes: int, text: str) -> None:
    assert size(num_bytes).replace("\N{NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.0002, "1 ms"),
        (0.04, "40 ms"),
        (0.0997, "0.1 s"),
        (9.97, "10 s"),
        (59.7, "1 min 0 s"),
        (3599.9, "1 h 0 min"),
        (3 * 86400 + 3600, "3 d 1 h"),
    ],
)
def test_duration_reads_well(seconds: float, text: str) -> None:
    assert duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == text
