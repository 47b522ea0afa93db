"""What boli invite writes and warns of, and the unit that boli join prints."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from boli.cli.fleet import _accepts
from boli.cli.main import app
from boli.cli.systemd import SANDBOX
from boli.engine.identities import Address, Identities, Invitation, write_invitation
from boli.engine.nats_server import Server
from boli.errors import LimitError, NotAcceptedError, RunError, TransportError
from boli.plan import Plan
from boli.site.limits import Limits, read_limits

DEPLOY = Path(__file__).resolve().parents[3] / "deploy" / "systemd"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listens(folder: Path, address: str) -> None:
    """Leave what a coordinator leaves that ran with --listen."""
    server = Server(folder / "coordinator", Address.of(address))
    server.identities.make()
    server.write_settings()


def invite(*words: str) -> str:
    done = CliRunner().invoke(app, ["invite", *words])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def invited(folder: Path, site: str = "gaya") -> str:
    return Invitation.read(folder / f"{site}.boli").address


def test_invitation_is_refused_while_nobody_knows_where_sites_come_in(here: Path) -> None:
    for before in ("", "bhojpur"):
        if before:  # an invitation says where one site comes in, not where the server listens
            invite(before, "--address", "203.0.113.5:4222")
        done = CliRunner().invoke(app, ["invite", "gaya"])
        assert isinstance(done.exception, TransportError)
        assert "--address HOST:PORT" in done.exception.hint
        assert not (here / "gaya.boli").exists()


def test_given_address_is_taken_also_before_the_first_run(here: Path) -> None:
    said = invite("gaya", "--address", "203.0.113.5:4300")
    assert invited(here) == "203.0.113.5:4300"
    assert "boli coordinator PLAN --listen 0.0.0.0:4300" in said
    assert "warning" not in said


def test_trial_on_one_machine_needs_no_more_than_its_address(here: Path) -> None:
    said = invite("gaya", "--address", "127.0.0.1:4300")
    assert invited(here) == "127.0.0.1:4300"
    assert "boli coordinator PLAN --listen 127.0.0.1:4300" in said
    assert "warning" not in said


def test_invitation_that_is_of_use_here_only_says_so(here: Path) -> None:
    listens(here, "127.0.0.1:4300")
    said = invite("gaya")
    assert invited(here) == "127.0.0.1:4300"
    assert "warning: 127.0.0.1:4300 is this machine only" in said


def test_coordinator_that_listens_here_only_is_told_of(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listens(here, "127.0.0.1:4300")
    monkeypatch.setattr("boli.engine.nats_server.reload", lambda _: True)
    said = invite("gaya", "--address", "203.0.113.5:4300")
    assert "warning: the coordinator listens at 127.0.0.1:4300 only" in said
    assert "boli coordinator PLAN --listen 0.0.0.0:4300" in said


def test_site_that_the_newest_plan_does_not_name_is_invited_with_a_warning(
    here: Path, tiny_plan: Callable[..., Plan]
) -> None:
    listens(here, "203.0.113.5:4222")
    run = here / "runs" / "tiny-1"
    run.mkdir(parents=True)
    (run / "plan.json").write_text(tiny_plan(here).model_dump_json())
    said = invite("gayaa")
    assert "warning: the newest run, tiny-1, has no site gayaa" in said
    assert "its sites: arrah, gaya" in said
    assert (here / "gayaa.boli").exists()
    assert "warning" not in invite("gaya")
    (run / "plan.json").write_text(json.dumps({"name": "torn"}))
    assert "warning" not in invite("gaya")


def unit(folder: Path, *words: object) -> str:
    invitation = folder / "gaya.boli"
    address = Address("203.0.113.5")
    write_invitation(Identities(folder / "keys").invite("gaya", address), invitation)
    done = CliRunner().invoke(app, ["join", str(invitation), "--systemd", *map(str, words)])
    assert done.exit_code == 0, done.output
    return done.output


def as_systemd_reads(command: str) -> list[str]:
    """Return the words of ExecStart: quotes are read as a shell does, %% and $$ are one each."""
    assert "%" not in command.replace("%%", "")
    own = re.sub(r"\$\{(CREDENTIALS|STATE)_DIRECTORY\}", "", command)
    assert "$" not in own.replace("$$", "")
    return shlex.split(command.replace("%%", "%").replace("$$", "$"))


def test_unit_keeps_every_sign_of_a_path(tmp_path: Path) -> None:
    folder = tmp_path / 'a "b" \\c 100% of $HOME'
    folder.mkdir()
    said = unit(folder, "--data", folder, "--state", folder / "state")
    (command,) = re.findall(r"^ExecStart=(.*)$", said, re.MULTILINE)
    assert "100%% of $$HOME" in command
    words = as_systemd_reads(command)
    assert words[1:5] == ["join", "${CREDENTIALS_DIRECTORY}/invitation", "--data", str(folder)]
    (invitation, limits) = re.findall(r"^LoadCredential=[a-z.]+:(.*)$", said, re.MULTILINE)
    assert Path(invitation.replace("%%", "%")) == folder / "gaya.boli"
    assert Path(limits.replace("%%", "%")) == folder / "gaya.limits.toml"


def test_unit_runs_as_a_user_of_its_own_in_a_sandbox_and_cannot_write_its_limits(
    tmp_path: Path,
) -> None:
    said = unit(tmp_path, "--data", tmp_path)
    assert "\nDynamicUser=yes\n" in said
    assert "\nUser=" not in said
    assert SANDBOX in said
    assert f"\nLoadCredential=limits.toml:{tmp_path}/gaya.limits.toml\n" in said
    assert read_limits(tmp_path / "gaya.limits.toml") == Limits()
    assert " --accept" in said.replace('"', "")


def test_unit_lets_the_node_see_text_where_it_sees_nothing_else(tmp_path: Path) -> None:
    said = unit(tmp_path, "--data", tmp_path)
    assert f'\nBindReadOnlyPaths="{tmp_path}"\n' in said or not str(tmp_path).startswith("/tmp")


@pytest.mark.parametrize("name", ["a\nUser=root", "a:b"])
def test_path_that_a_unit_cannot_name_is_refused(tmp_path: Path, name: str) -> None:
    data = tmp_path / name
    data.mkdir()
    write_invitation(
        Identities(tmp_path / "keys").invite("gaya", Address("h")), tmp_path / "g.boli"
    )
    words = ["join", str(tmp_path / "g.boli"), "--systemd", "--data", str(data)]
    assert isinstance(CliRunner().invoke(app, words).exception, RunError)


def test_unit_takes_the_limits_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "ours.toml").write_text("min_tokens = 9000\n")
    said = unit(tmp_path, "--data", tmp_path, "--limits", tmp_path / "ours.toml")
    assert f"\nLoadCredential=limits.toml:{tmp_path}/ours.toml\n" in said
    (tmp_path / "ours.toml").write_text("min_tokes = 9000\n")
    words = ["join", str(tmp_path / "gaya.boli"), "--systemd", "--data", str(tmp_path)]
    done = CliRunner().invoke(app, [*words, "--limits", str(tmp_path / "ours.toml")])
    assert isinstance(done.exception, LimitError)


@pytest.mark.parametrize("gpu", [False, True])
def test_unit_is_rated_safe_by_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    monkeypatch.setattr("boli.cli.systemd.GPU", tmp_path if gpu else tmp_path / "none")
    path = tmp_path / "boli-join.service"
    path.write_text(unit(tmp_path, "--data", tmp_path))
    assert exposure(path) <= 1.8


def test_unit_of_the_coordinator_is_in_the_same_sandbox() -> None:
    path = DEPLOY / "boli-coordinator.service"
    assert SANDBOX in path.read_text()
    assert exposure(path) <= 2.0


def test_unit_that_systemd_rates_unsafe_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "bare.service"
    path.write_text("[Service]\nExecStart=/bin/true\n")
    assert exposure(path) > 8


def exposure(path: Path) -> float:
    """Return how exposed a unit is, 0 to 10, as systemd says."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze (package systemd)")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"exposure level for .*: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert "Unknown" not in done.stderr, done.stderr
    return float(found[1])


def asked(unasked: bool, refusal: LimitError | None = None) -> bool:
    return _accepts("203.0.113.5:4222", Path("limits.toml"), unasked, "the plan", refusal)


def terminal(monkeypatch: pytest.MonkeyPatch, answer: str | None) -> None:
    """Let somebody sit there who answers; None: nobody."""
    typed = io.StringIO("" if answer is None else f"{answer}\n")
    monkeypatch.setattr(typed, "isatty", lambda: answer is not None, raising=False)
    monkeypatch.setattr("sys.stdin", typed)


@pytest.mark.parametrize(("answer", "expected"), [("y", True), ("n", False), ("", False)])
def test_people_at_a_terminal_decide(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    expected: bool,
) -> None:
    terminal(monkeypatch, answer)
    assert asked(unasked=False) is expected
    assert "the plan" in capsys.readouterr().out


def test_service_takes_part_only_where_it_was_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch, None)
    assert asked(unasked=True)
    with pytest.raises(NotAcceptedError, match="no terminal") as caught:
        asked(unasked=False)
    assert "--accept" in caught.value.hint
    assert caught.value.exit_code == 22


def test_service_does_not_take_part_again_in_a_run_that_it_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal(monkeypatch, None)
    refusal = LimitError("too many steps")
    with pytest.raises(LimitError) as caught:
        asked(unasked=True, refusal=refusal)
    assert caught.value is refusal
    terminal(monkeypatch, "y")
    assert asked(unasked=True, refusal=refusal)
