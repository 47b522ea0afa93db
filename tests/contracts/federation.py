"""A real Flower federation on loopback: one SuperLink, a SuperNode a site, and `flwr run`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quadratic import LENIENT

from boli.journal import RoundStepped, UpdateAccepted, read_journal
from boli.plan_file import load_plan
from boli.run import Run, train

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SITES = ("arrah", "gaya")  # of the tiny plan


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Federation:
    """Everything is below one folder; `close` ends every process that was started."""

    folder: Path
    path: tuple[Path, ...] = ()  # of modules that the apps need, besides boli
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        modules = [str(path) for path in (REPOSITORY / "src", *self.path)]
        return {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(modules),
            "FLWR_HOME": str(self.folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        }

    def start_superlink(self) -> None:
        (self.folder / "flwr").mkdir(parents=True, exist_ok=True)
        (self.folder / "flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        arguments = ["--insecure", "--host", "127.0.0.1", "--port", str(self.port)]
        self._start("superlink", "flower-superlink", *arguments)
        deadline = time.monotonic() + 60
        while not self._listens():
            assert time.monotonic() < deadline, self.log("superlink")
            time.sleep(0.1)

    def _listens(self) -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self.port)) == 0

    def start_supernode(self, name: str, settings: Mapping[str, Any]) -> None:
        config = " ".join(
            f"{key}={json.dumps(value if value is True else str(value))}"
            for key, value in settings.items()
        )
        arguments = ["--insecure", "--superlink", f"127.0.0.1:{self.port}"]
        arguments += ["--port", str(free_port()), "--node-config", config]
        self._start(name, "flower-supernode", *arguments)

    def _start(self, name: str, program: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                [str(BIN / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.environment,
                start_new_session=True,
                cwd=self.folder,
            )

    def submit(self, app: Path) -> str:
        """Submit an app; returns what `flwr run` says."""
        done = subprocess.run(
            [str(BIN / "flwr"), "run", str(app), "here"],
            capture_output=True,
            text=True,
            env=self.environment,
            check=False,
        )
        assert "Successfully started run" in done.stdout, done.stdout + done.stderr
        return done.stdout

    def pids(self, *words: str) -> list[int]:
        """Return the processes of this federation, and its nodes, with these words in a row."""
        home = f"FLWR_HOME={self.folder / 'flwr'}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes().decode().replace("\0", " ")
                mine = home in (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if mine and " ".join(words) in command:
                found.append(int(entry.name))
        return found

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]

    def kill(self, name: str) -> None:
        """End a process and those that it started, without a word; nodes of sites stay."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for name, process in list(self.processes.items()):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill(name)


def write_app(plan: Path, home: Path, *settings: str) -> Path:
    """Write an app as a user does; returns its run's folder."""
    options = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "boli.cli.main", "flower", plan, home / "app", *options]
    done = subprocess.run(
        [*map(str, command), "--runs", str(home / "runs")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = (home / "app" / "pyproject.toml").read_text()
    (run,) = (line.split('"')[1] for line in text.splitlines() if line.startswith("run ="))
    return home / "runs" / run


def settings_of(site: str, home: Path, data: Path) -> Mapping[str, Any]:
    limits = home / f"{site}.limits.toml"
    limits.write_text(LENIENT)
    return {"site": site, "data": data, "state": home / site, "limits": limits, "accept": True}


def wait_for(
    run: Path, is_there: Callable[[], bool], federation: Federation, seconds: float
) -> None:
    deadline = time.monotonic() + seconds
    while not is_there():
        if time.monotonic() > deadline:
            logs = [path.read_text() for path in sorted(run.parents[1].rglob("*.log"))]
            raise AssertionError("\n".join(log[-3000:] for log in logs))
        time.sleep(0.1)


def result(run: Run) -> bytes:
    return (run.adapter / "adapter_model.safetensors").read_bytes()


def check_same_as_local(plan: Path, run: Path, home: Path, rounds: int) -> None:
    """Check that nothing was lost and nothing counted twice: the local engine's bits."""
    settings = ["engine.threads_per_site=1", f"rounds.total={rounds}"]
    assert result(Run(run)) == result(train(load_plan(plan, settings), runs=home / "local"))
    facts = [entry.event for entry in read_journal(run / "journal.jsonl")]
    accepted = {fact.order for fact in facts if isinstance(fact, UpdateAccepted)}
    assert len(accepted) == len(SITES) * rounds
    versions = {fact.version for fact in facts if isinstance(fact, RoundStepped)}
    assert versions == set(range(1, rounds + 1))
