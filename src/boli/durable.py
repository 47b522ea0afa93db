"""Write files that survive a power cut: whole and on the disk, or not there at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from boli.errors import CorruptFileError, StorageError

Arrays = Mapping[str, NDArray[Any]]
CREATE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
TEMPORARY = ".tmp"
MOST_TRIES = 100
LONGEST_STEM = 200  # characters of a name, so that the temporary file's is not too long


def storage_error(path: Path, error: OSError) -> StorageError:
    """Say what the operating system refused, and what to do about it."""
    code = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        code = "storage.full"
        hint = "free some space there and resume the run; what was written before is whole"
    elif error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        hint = "choose a folder that you may write to"
    else:
        hint = "check the disk"
    return StorageError(f"cannot write {path}: {error.strerror or error}", hint, code)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes, *, private: bool = False) -> None:
    """Replace `path` by `data` in one step: temporary file, fsync, rename, fsync the folder.

    A private file can be read by its owner alone, from its first byte on; folders that have to
    be made for it, too. The temporary file has a name that nobody can plant a link at.

    Raises:
        StorageError: the disk is full or refuses; `path` keeps what it held.
    """
    temporary: Path | None = None
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o777)
        descriptor, temporary = _temporary(path, 0o600 if private else 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)  # still locked: nobody takes it for abandoned
        sync_folder(path.parent)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        raise storage_error(path, error) from error


def _temporary(path: Path, mode: int) -> tuple[int, Path]:
    """Create a locked file beside `path`; those that killed writers left there are removed."""
    stem = f".{path.name[:LONGEST_STEM]}"
    for entry in os.scandir(path.parent):
        if entry.name.startswith(f"{stem}.") and entry.name.endswith(TEMPORARY):
            _remove_abandoned(Path(entry.path))
    for _ in range(MOST_TRIES):
        temporary = path.with_name(f"{stem}.{secrets.token_hex(8)}{TEMPORARY}")
        descriptor = os.open(temporary, CREATE | os.O_WRONLY, mode)
        try:
            if not mode & 0o077:
                os.fchmod(descriptor, mode)  # whatever the umask
            _lock(descriptor)
            if os.fstat(descriptor).st_ino == temporary.lstat().st_ino:
                return descriptor, temporary
        except (BlockingIOError, FileNotFoundError):
            pass  # another writer took it for abandoned before it was locked
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise OSError(errno.EBUSY, "others remove every temporary file")


def _lock(descriptor: int) -> None:
    """Lock a file that is being written; a file system without locks goes without."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise


def _remove_abandoned(temporary: Path) -> None:
    """Remove a temporary file whose writer is gone; the lock of one that lives is held."""
    with contextlib.suppress(OSError):
        descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()
        finally:
            os.close(descriptor)


def open_private(path: Path, flags: int = os.O_WRONLY | os.O_APPEND) -> int:
    """Open a file for its owner alone, made if it is not there; returns the descriptor.

    A link is not followed, and what others could read before they cannot read any more.

    Raises:
        OSError: the path is a link, or the disk refuses.
    """
    descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(PermissionError):  # somebody else's, who let us write there
        os.fchmod(descriptor, 0o600)
    return descriptor


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a private file and bring it to the disk; a torn one before stays a line apart.

    Raises:
        StorageError: the disk is full or refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(open_private(path, os.O_RDWR | os.O_APPEND), "a+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            torn = size > 0 and file.read(1) != b"\n"
            file.write((b"\n" if torn else b"") + line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error


def make_private(folder: Path, names: Collection[str]) -> None:
    """Make a folder that its owner alone can enter, and take others' rights from what is in it.

    Only from what has these names, and all below it: a user may name a folder with other things.
    Links are not followed; what belongs to another user than the folder stays as it is.

    Raises:
        StorageError: it cannot be made, or is not ours to close.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        owner = folder.stat().st_uid
        folder.chmod(0o700)
    except OSError as error:
        raise storage_error(folder, error) from error
    for name in names:
        with contextlib.suppress(OSError):
            _tighten(folder / name, owner)
    found = (one for name in names for one in os.walk(folder / name))
    for place, folders, files in found:
        for name in (*folders, *files):
            with contextlib.suppress(OSError):  # a link, a socket, or gone meanwhile
                _tighten(Path(place, name), owner)


def _tighten(path: Path, owner: int) -> None:
    """Take the rights of group and others from what belongs to `owner`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if found.st_uid == owner and found.st_mode & 0o077:
            os.fchmod(descriptor, stat.S_IMODE(found.st_mode) & 0o700)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Bring every file below `folder` to the disk, and the folder itself."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def tensors_digest(arrays: Arrays, facts: str) -> str:
    """Hash names, dtypes, shapes and bytes; safetensors itself has no checksum."""
    digest = hashlib.sha256(facts.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_tensors(
    path: Path,
    arrays: Arrays,
    facts: Mapping[str, Any],
    sign: Callable[[str], Mapping[str, str]] = lambda _: {},  # digest to what vouches for it
    *,
    private: bool = False,
) -> None:
    """Write named arrays and JSON facts as one checksummed safetensors file.

    Raises:
        StorageError: the disk is full or refuses.
    """
    text = json.dumps(facts, sort_keys=True)
    digest = tensors_digest(arrays, text)
    metadata = {"facts": text, "sha256": digest, **sign(digest)}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    content = safetensors.numpy.save(contiguous, metadata=metadata)
    write_file(path, content, private=private)


def read_tensors(
    path: Path,
    hint: str = "delete it",  # where it is not whole
    is_signed: Callable[[str, Mapping[str, str]], bool] = lambda *_: True,  # digest, metadata
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return what `write_tensors` wrote.

    Raises:
        CorruptFileError: the file is missing, torn or altered.
    """
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text, digest = metadata["facts"], metadata["sha256"]
        if tensors_digest(arrays, text) != digest:
            raise CorruptFileError(f"{path} does not match its checksum", hint)
        if not is_signed(digest, metadata):
            raise CorruptFileError(f"{path} is not signed by the key that it should be", hint)
        return arrays, json.loads(text)
    except (
        OSError,
        KeyError,
        ValueError,
        TypeError,  # a dtype that numpy lacks
        AttributeError,
        safetensors.SafetensorError,
    ) as error:
        raise CorruptFileError(f"{path} is not a whole file: {error}", hint) from error


class Generations:
    """The last few versions of one state, newest first; a corrupt one is passed over.

    Only their owner can read them: updates and moments tell of the text they were made from.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        sign: Callable[[str], Mapping[str, str]] = lambda _: {},  # as of `write_tensors`
        is_signed: Callable[[str, Mapping[str, str]], bool] = lambda *_: True,
    ) -> None:
        self.folder = folder
        self.keep = keep
        self._sign, self._is_signed = sign, is_signed
        self._corrupt: list[Path] = []  # found by `load`; they go once something newer is whole

    def paths(self) -> list[Path]:
        """Return the files there are, newest first."""
        return sorted(self.folder.glob("[0-9]*.safetensors"), reverse=True)

    def save(self, arrays: Arrays, facts: Mapping[str, Any]) -> Path:
        """Write the next generation, then drop the oldest; a corrupt one counts for none.

        Raises:
            StorageError: the disk is full or refuses; older generations stay.
        """
        there = self.paths()
        number = int(there[0].stem) + 1 if there else 1
        path = self.folder / f"{number:09d}.safetensors"
        write_tensors(path, arrays, facts, self._sign, private=True)
        whole = [old for old in there if old not in self._corrupt]
        for old in [*self._corrupt, *whole[self.keep - 1 :]]:
            old.unlink(missing_ok=True)
        self._corrupt = []
        return path

    def load(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any], list[Path]] | None:
        """Return the newest whole generation and the corrupt files newer than it.

        Returns None where nothing was ever saved.

        Raises:
            CorruptFileError: there are files, and none of them is whole.
        """
        corrupt: list[Path] = []
        for path in self.paths():
            try:
                arrays, facts = read_tensors(path, is_signed=self._is_signed)
            except CorruptFileError:
                corrupt.append(path)
            else:
                self._corrupt = corrupt
                return arrays, facts, corrupt
        if corrupt:
            raise CorruptFileError(
                f"no whole file among {', '.join(str(path) for path in corrupt)}",
                "start a new run; this one cannot be resumed",
            )
        return None


def is_locked(folder: Path) -> bool:
    """Tell whether a process holds `folder`."""
    try:
        with (folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


@contextlib.contextmanager
def locked(folder: Path, what: str, patience_seconds: float = 0.0) -> Iterator[None]:
    """Hold `folder` for this process alone; the kernel lets go when the process ends.

    Raises:
        StorageError: another process holds it, for longer than the patience.
    """
    deadline = time.monotonic() + patience_seconds
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(folder / "lock", LOCK_FLAGS, 0o666), "r+")
    except OSError as error:
        raise storage_error(folder, error) from error
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise StorageError(
                    f"{what} {folder} is in use by process {holder}",
                    "wait for it to end, or stop it first",
                ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
