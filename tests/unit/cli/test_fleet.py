"""What boli invite writes and warns of, and the unit that boli join prints."""

from __future__ import annotations

import json
import pwd
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from boli.cli.fleet import state_of
from boli.cli.main import app
from boli.engine.identities import Address, Identities, Invitation, write_invitation
from boli.engine.nats_server import Server
from boli.errors import TransportError
from boli.plan import Plan


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
    assert "$" not in command.replace("$$", "")
    return shlex.split(command.replace("%%", "%").replace("$$", "$"))


def test_unit_keeps_every_sign_of_a_path(tmp_path: Path) -> None:
    folder = tmp_path / 'a "b" \\c 100% of $HOME'
    folder.mkdir()
    said = unit(folder, "--data", folder, "--state", folder / "state")
    (command,) = re.findall(r"^ExecStart=(.*)$", said, re.MULTILINE)
    assert "100%% of $$HOME" in command
    words = as_systemd_reads(command)
    assert words[1:3] == ["join", str(folder / "gaya.boli")]
    assert words[3:] == ["--data", str(folder), "--state", str(folder / "state")]


@pytest.mark.parametrize(
    ("user", "caller", "expected"),
    [
        ("root", "nobody", "nobody"),  # sudo boli join --systemd
        ("nobody", "root", "nobody"),  # sudo -u nobody
        ("root", None, "root"),
        (None, None, "root"),
    ],
)
def test_node_runs_as_who_called_sudo(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    user: str | None,
    caller: str | None,
    expected: str,
) -> None:
    for name, value in (("USER", user), ("SUDO_USER", caller)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    said = unit(tmp_path, "--data", tmp_path, "--state", tmp_path)
    assert f"\nUser={expected}\n" in said


def test_state_under_sudo_is_in_the_callers_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BOLI_HOME", raising=False)
    monkeypatch.setenv("USER", "root")
    monkeypatch.setenv("SUDO_USER", "nobody")
    home = Path(pwd.getpwnam("nobody").pw_dir)
    said = unit(tmp_path, "--data", tmp_path)
    assert f'"{(home / ".boli/sites/gaya").resolve()}"' in said
    assert state_of("gaya", "nobody") == home / ".boli/sites/gaya"
