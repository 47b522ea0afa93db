"""A real Flower federation on loopback: one SuperLink, a SuperNode a site, and `flwr run`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


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
        config = " ".join(f'{key}="{value}"' for key, value in settings.items())
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
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

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
