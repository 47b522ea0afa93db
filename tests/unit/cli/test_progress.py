"""What sites say is shown as it is: it is no markup, and no command to a terminal."""

from __future__ import annotations

import pytest

from boli.cli.progress import watched
from boli.engine.wire import Failing
from boli.journal import AttemptsRefused, SiteBenched, SiteLeft, UpdateRejected
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
