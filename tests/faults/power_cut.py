"""Cut the power of a program: what it did not flush to the disk is lost.

The program's folder is an ext4 file system on a loop device. The file behind the loop device is
served by this module over /dev/fuse, which keeps what was flushed apart from what was only
written. A cut loses everything that is in memory, and of the blocks that were written since the
last flush it keeps none, the oldest ones, or a random half, because a disk with a cache may do
any of these. ext4 is mounted with noauto_da_alloc: other file systems do not make up for a rename
without an fsync. All processes of the program end at the cut: they are in a PID namespace.

Needs root, /dev/fuse, loop devices, mkfs.ext4 and util-linux. Without a file system under test:

    python tests/faults/power_cut.py IMAGE BACKING FOLDER   # the disk itself, for this module

Source: the requests and their layout are those of linux/fuse.h, version 7.31.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

BLOCK_BYTES = 4096
LONGEST_WRITE_BYTES = 1 << 20
PATIENCE_SECONDS = 120
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18  # sched.h, sys/mount.h
MOUNT_OPTIONS = "loop,noatime,noauto_da_alloc,commit=1"


class PowerCutError(RuntimeError):
    """The test could not be carried out, which says nothing about the program under test."""


@dataclass(frozen=True)
class Cut:
    """What a cut did, and what the check said about the state that it left."""

    number: int
    seconds: float  # from the start of the program to the cut
    acknowledged: str  # what the program claimed last before a cut
    ok: bool
    note: str


def why_not() -> str | None:
    """Return why the power cannot be cut on this machine; None where it can."""
    if os.geteuid() != 0:
        return "not root: power cuts mount file systems"
    for tool in ("mkfs.ext4", "mount", "nsenter", "unshare"):
        if shutil.which(tool) is None:
            return f"needs the command {tool} (packages e2fsprogs, util-linux)"
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not Path(device).exists():
            return f"no device {device}"
    return None


def cuts(
    program: Sequence[str],
    check: Sequence[str],
    *,
    number: int,
    seed: int,
    between: tuple[float, float],  # seconds until the cut, drawn at random
    after_ack: bool = False,  # count them from the program's first claim
    size_mb: int = 32,
) -> Iterator[Cut]:
    """Cut the power of a program again and again, each time on what the cut before left.

    {dir} stands for the folder in both commands. The program prints a line "ACK TOKEN" whenever
    it claims that something is durable. The check finds the last token in $ACKED and exits with 0
    where nothing is lost or torn; where it does not, the next program begins with an empty disk.
    """
    reason = why_not()
    if reason:
        raise PowerCutError(reason)
    draw, acknowledged = random.Random(seed), ""
    with tempfile.TemporaryDirectory(prefix="boli-power-cut-") as folder:
        disk = Disk(Path(folder), size_mb)
        disk.format()
        for count in range(1, number + 1):
            with disk.mounted(), Program(disk.inside(program)) as running:
                running.wait(draw.uniform(*between), after_ack)
                status, seconds = running.status(), running.seconds()
                acknowledged = running.acknowledged or acknowledged
                lost = disk.cut(draw.randrange(1 << 30))
            ok, note = checked(disk, check, acknowledged)
            if status:  # it could not go on from what the cut before left
                ok, note = False, f"the program ended by itself, with exit status {status}; {note}"
            yield Cut(count, seconds, acknowledged, ok, f"{note} [{lost}]")
            if not ok:
                disk.format()
                acknowledged = ""


def checked(disk: Disk, check: Sequence[str], acknowledged: str) -> tuple[bool, str]:
    """Mount what a cut left, which replays the file system's journal, and run the check on it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(disk.mounted())
        except PowerCutError as error:
            return False, f"the file system does not mount: {error}"
        done = subprocess.run(
            disk.inside(check),
            env={**os.environ, "ACKED": acknowledged},
            timeout=PATIENCE_SECONDS,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        disk.keep()
    return done.returncode == 0, (done.stdout.strip().splitlines() or [""])[-1]


class Program:
    """The program under test, and the last claim that it printed."""

    def __init__(self, command: Sequence[str]) -> None:
        self.acknowledged = ""
        self._begun = time.monotonic()
        self._claimed = threading.Event()
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # ends the PID namespace with all that is in it
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("ACK ") and line.endswith("\n"):
                self.acknowledged = line[4:].strip()
                self._claimed.set()

    def status(self) -> int | None:
        return self._process.poll()

    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def wait(self, seconds: float, after_ack: bool) -> None:
        """Let it run for so long, or until it ends."""
        while after_ack and not self._claimed.wait(0.01) and self.status() is None:
            if self.seconds() > PATIENCE_SECONDS:
                raise PowerCutError(f"no claim within {PATIENCE_SECONDS} s")
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)


class Disk:
    """A disk in a file, and the process that serves it, in a mount namespace of its own."""

    def __init__(self, folder: Path, size_mb: int) -> None:
        self._image, self._backing = folder / "image", folder / "backing"
        self._state = folder / "state"
        self._size_bytes = size_mb << 20
        self._server: subprocess.Popen[str] | None = None
        self._state.mkdir()
        self._backing.touch()

    def format(self) -> None:
        """Make it empty."""
        self._image.unlink(missing_ok=True)
        self._image.touch()
        os.truncate(self._image, self._size_bytes)
        extended = "lazy_itable_init=0,lazy_journal_init=0"
        command = ["mkfs.ext4", "-q", "-F", "-E", extended, str(self._image)]
        subprocess.run(command, check=True)

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Serve the disk and mount its file system; what is not kept is forgotten afterwards."""
        paths = [str(path) for path in (self._image, self._backing, self._state)]
        command = [sys.executable, __file__, *paths]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as server:
            self._server = server
            try:
                self._hear("ready")
                yield
            finally:
                assert server.stdin is not None
                server.stdin.close()  # it unmounts, and ends
                try:
                    server.wait(PATIENCE_SECONDS)
                except subprocess.TimeoutExpired:
                    server.kill()
                    raise PowerCutError("the file system is in use after its program") from None
                self._server = None

    def inside(self, command: Sequence[str]) -> list[str]:
        """Return the command as it is run on this disk, alone in a PID namespace."""
        assert self._server is not None
        there = [word.replace("{dir}", str(self._state)) for word in command]
        enter = ["nsenter", f"--target={self._server.pid}", "--mount", f"--wdns={Path.cwd()}", "--"]
        return [*enter, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *there]

    def cut(self, seed: int) -> str:
        """Leave in the file what a power cut would leave at this moment; return what was lost."""
        return self._ask(f"cut {seed}")

    def keep(self) -> None:
        """Leave in the file all that was written."""
        subprocess.run(self.inside(["sync", "--file-system", "{dir}"]), check=True)
        self._ask("keep")

    def _ask(self, words: str) -> str:
        assert self._server is not None
        assert self._server.stdin is not None
        self._server.stdin.write(f"{words}\n")
        self._server.stdin.flush()
        return self._hear("done")

    def _hear(self, expected: str) -> str:
        assert self._server is not None
        assert self._server.stdout is not None
        word, _, rest = self._server.stdout.readline().strip().partition(" ")
        if word != expected:
            raise PowerCutError(f"the disk says {word or 'nothing'} {rest}")
        return rest


# In the process that serves the disk


class Cache:
    """What reads see, what is flushed, and the writes between."""

    def __init__(self, image: bytes) -> None:
        self.now, self.flushed = bytearray(image), bytearray(image)
        self.unflushed: list[tuple[int, bytes]] = []
        self.lock = threading.Lock()

    def write(self, offset: int, data: bytes) -> None:
        self.now[offset : offset + len(data)] = data
        for start in range(0, len(data), BLOCK_BYTES):
            self.unflushed.append((offset + start, data[start : start + BLOCK_BYTES]))

    def flush(self) -> None:
        _apply(self.unflushed, self.flushed)
        self.unflushed.clear()

    def after_cut(self, seed: int) -> tuple[bytes, str]:
        """Return the disk as a power cut leaves it, and a word on what it keeps."""
        draw = random.Random(seed)
        blocks = self.unflushed
        kind = draw.choice(("none", "the oldest", "some"))
        if kind == "none":
            blocks = []
        elif kind == "the oldest":
            blocks = blocks[: draw.randint(0, len(blocks))]
        else:
            blocks = [block for block in blocks if draw.random() < 0.5]
        left = bytearray(self.flushed)
        _apply(blocks, left)
        return bytes(left), f"kept {kind}: {len(blocks)} of {len(self.unflushed)} unflushed blocks"


def _apply(blocks: Sequence[tuple[int, bytes]], image: bytearray) -> None:
    for offset, data in blocks:
        image[offset : offset + len(data)] = data


GETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT = 3, 14, 15, 16, 17, 18, 20, 25, 26
UNANSWERED = (2, 36, 42)  # forget, interrupt, forget many


def answer(cache: Cache, request: int, body: bytes) -> bytes | int:
    """Return the answer to a request, or an error number; the root of the file system is a file."""
    if request == INIT:
        ahead = struct.unpack_from("<I", body, 8)[0]
        big_writes, max_pages = 1 << 5, 1 << 22
        limits = (16, 12, LONGEST_WRITE_BYTES, 1, LONGEST_WRITE_BYTES // BLOCK_BYTES, 0)
        return struct.pack("<4I2H2I2H32x", 7, 31, ahead, big_writes | max_pages, *limits)
    if request == GETATTR:
        size = len(cache.now)
        inode = struct.pack("<6Q3I", 1, size, size // 512, 0, 0, 0, 0, 0, 0)
        owner = struct.pack("<7I", 0o100600, 1, 0, 0, 0, BLOCK_BYTES, 0)
        return struct.pack("<Q2I", PATIENCE_SECONDS, 0, 0) + inode + owner
    if request == OPEN:
        return bytes(16)
    if request == STATFS:
        return struct.pack("<5Q4I24x", 0, 0, 0, 0, 0, BLOCK_BYTES, 255, BLOCK_BYTES, 0)
    if request in (READ, WRITE):
        offset, size = struct.unpack_from("<QI", body, 8)
        if request == READ:
            return bytes(cache.now[offset : offset + size])
        cache.write(offset, body[40 : 40 + size])
        return struct.pack("<2I", size, 0)
    if request == FSYNC:
        cache.flush()
    return b"" if request in (FSYNC, RELEASE, FLUSH) else errno.ENOSYS


def serve(cache: Cache, fuse: int) -> None:
    """Answer the kernel until the file is unmounted."""
    while True:
        try:
            message = os.read(fuse, LONGEST_WRITE_BYTES + BLOCK_BYTES)
        except OSError as error:
            if error.errno == errno.ENODEV:  # unmounted
                return
            if error.errno in (errno.ENOENT, errno.EINTR):  # the request was taken back
                continue
            raise
        request, unique = struct.unpack_from("<IQ", message, 4)
        if request in UNANSWERED:
            continue
        with cache.lock:
            answered = answer(cache, request, message[40:])
        status, data = (-answered, b"") if isinstance(answered, int) else (0, answered)
        with suppress(FileNotFoundError):  # it was taken back meanwhile
            os.write(fuse, struct.pack("<IiQ", 16 + len(data), status, unique) + data)


def mount_fuse(file: Path) -> int:
    """Put a FUSE file over a file, in a mount namespace of this process; return its descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=100600,user_id=0,group_id=0".encode()
    if (
        libc.unshare(CLONE_NEWNS)
        or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        or libc.mount(b"power-cut", bytes(file), b"fuse", 0, options)
    ):
        raise OSError(ctypes.get_errno(), f"cannot mount over {file}")
    return fuse


def main(image: Path, backing: Path, folder: Path) -> None:
    cache = Cache(image.read_bytes())
    fuse = mount_fuse(backing)
    server = threading.Thread(target=serve, args=(cache, fuse), daemon=True)
    server.start()
    command = ["mount", "-t", "ext4", "-o", MOUNT_OPTIONS, str(backing), str(folder)]
    mount = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        sys.stdout.write(f"failed {mount.stderr.strip()}\n" if mount.returncode else "ready\n")
        sys.stdout.flush()
        for line in sys.stdin:
            with cache.lock:
                if line.startswith("cut "):
                    left, word = cache.after_cut(int(line[4:]))
                else:
                    left, word = bytes(cache.now), ""
            image.write_bytes(left)
            sys.stdout.write(f"done {word}\n")
            sys.stdout.flush()
    finally:
        for path in (folder, backing):
            subprocess.run(["umount", "--lazy", str(path)], check=False, capture_output=True)
        server.join(PATIENCE_SECONDS)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
