"""Where a pool is: a folder, or a place in S3; and the small files beside its tables."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit
from uuid import uuid4

from boli.durable import storage_error, sync_folder, write_file
from boli.errors import PoolError

if TYPE_CHECKING:
    from collections.abc import Iterable

# Names in S3 that mean the same to every program that reads an address.
_BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
_PREFIX = r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*"
_EXAMPLE = "give a folder, or s3://BUCKET/PREFIX?endpoint=https://HOST&region=NAME"

# A commit may take minutes over a thin line; a server that is not there is told of in one.
_PATIENCE = {"timeout": "300s", "connect_timeout": "10s", "retry_timeout": "60s"}


@dataclass(frozen=True)
class Address:
    """Where a pool is, and how it is reached. Keys come from the environment (AWS_…) alone."""

    url: str  # as it is told to others
    folder: Path | None  # None: in S3
    options: dict[str, str] = field(default_factory=dict)  # of deltalake

    def table(self, name: str) -> str:
        """Return where a table of the pool lies, for deltalake."""
        if self.folder is not None:
            return str(self.folder / name)
        return f"{self.url}/{name}"

    def put(self, name: str, data: bytes) -> None:
        """Write a small file of the pool, whole.

        Raises:
            StorageError: the disk refuses.
            PoolError: S3 refuses.
        """
        if self.folder is not None:
            # Several may write it at once, so that each has a file of its own until it is whole.
            own = self.folder / f".{name}.{uuid4().hex}"
            write_file(own, data)
            own.replace(self.folder / name)
            return
        try:
            with self._bucket().open_output_stream(self._key(name)) as file:
                file.write(data)
        except OSError as error:
            raise unreachable(self.url, error) from error

    def read(self, name: str) -> bytes:
        """Return a small file of the pool.

        Raises:
            PoolError: it is not there, or cannot be read.
        """
        try:
            if self.folder is not None:
                return (self.folder / name).read_bytes()
            with self._bucket().open_input_stream(self._key(name)) as file:
                return bytes(file.read())
        except OSError as error:
            raise unreachable(self.url, error) from error

    def sync(self, name: str, version: int) -> None:
        """Bring a table's commit to the disk: a folder outlasts a power cut then, as S3 does.

        Raises:
            StorageError: the disk refuses.
        """
        if self.folder is None:
            return
        table = self.folder / name
        commit = table / "_delta_log" / f"{version:020d}.json"
        try:
            actions = [json.loads(line) for line in commit.read_text().splitlines()]
            paths = [
                table / unquote(action["add"]["path"]) for action in actions if "add" in action
            ]
            for path in [*paths, commit]:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            for folder in {path.parent for path in [*paths, commit]}:
                sync_folder(folder)
        except FileNotFoundError:
            pass  # an erase came right after it
        except OSError as error:
            raise storage_error(table, error) from error

    def files(self, below: str) -> list[str]:
        """Return the names of all files of the pool below a folder, hidden ones too.

        Raises:
            PoolError: they cannot be listed.
        """
        if self.folder is not None:
            paths = (self.folder / below).rglob("*")
            return [str(path.relative_to(self.folder)) for path in paths if not path.is_dir()]
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(self._key(below), recursive=True, allow_not_found=True)
        start = len(self._key(""))
        try:
            found = self._bucket().get_file_info(selector)
        except OSError as error:
            raise unreachable(self.url, error) from error
        return [file.path[start:] for file in found if file.type == FileType.File]

    def delete(self, names: Iterable[str]) -> None:
        """Delete files of the pool; what is gone already is no error.

        Raises:
            PoolError: one cannot be deleted.
        """
        for name in names:
            try:
                if self.folder is not None:
                    (self.folder / name).unlink()
                else:
                    self._bucket().delete_file(self._key(name))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise unreachable(self.url, error) from error

    def _key(self, name: str) -> str:
        return f"{self.url.removeprefix('s3://')}/{name}"

    def _bucket(self) -> Any:
        return _file_system(self.options.get("AWS_ENDPOINT_URL", ""), self.options["AWS_REGION"])


@cache
def _file_system(endpoint: str, region: str) -> Any:
    """Return pyarrow's S3; the same one keeps its connections."""
    from pyarrow.fs import S3FileSystem

    parts = urlsplit(endpoint)
    return S3FileSystem(
        region=region,
        endpoint_override=parts.netloc or None,
        scheme=parts.scheme or "https",
        # A small file goes up in one piece: nothing of it stays when this process is killed.
        allow_delayed_open=True,
    )


def parse_address(text: str) -> Address:
    """Return where `text` points to; nothing is opened yet.

    Raises:
        PoolError: it is neither a folder nor a place in S3, or it carries a password.
    """
    if not text.strip() or any(ord(character) < 32 for character in text):
        raise PoolError(f"{text!r} is no address of a pool", _EXAMPLE)
    scheme = text.split("://", 1)[0] if "://" in text else ""
    if scheme in ("", "file"):
        return _in_folder(text.removeprefix("file://"))
    if scheme != "s3":
        raise PoolError(f"a pool cannot be at {scheme}://", _EXAMPLE)
    return _in_s3(text)


def _in_folder(text: str) -> Address:
    try:
        folder = Path(text).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise PoolError(f"{text!r} is no folder: {error}", _EXAMPLE) from None
    return Address(str(folder), folder)


def _in_s3(text: str) -> Address:
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise PoolError(f"this is no address in S3: {error}", _EXAMPLE) from None
    query = dict(parse_qsl(parts.query))
    prefix = parts.path.strip("/")
    if "@" in parts.netloc or not query.keys() <= {"endpoint", "region"}:
        raise PoolError(
            "an address in S3 carries an endpoint and a region, and nothing secret",
            "put keys into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if (
        not re.fullmatch(_BUCKET, parts.netloc)
        or not re.fullmatch(_PREFIX, prefix)
        or parts.fragment
    ):
        raise PoolError(
            f"{text!r} is no place in S3",
            "give s3://BUCKET/PREFIX of ASCII letters, digits, dots, dashes and underscores",
        )
    environment = os.environ
    endpoint = query.get("endpoint") or environment.get("AWS_ENDPOINT_URL_S3")
    endpoint = endpoint or environment.get("AWS_ENDPOINT_URL", "")
    region = query.get("region") or environment.get("AWS_REGION")
    region = region or environment.get("AWS_DEFAULT_REGION", "us-east-1")
    # Two writers never get the same version: the second one's put is refused.
    options = {"AWS_CONDITIONAL_PUT": "etag", "AWS_REGION": region, **_PATIENCE}
    if endpoint:
        options["AWS_ENDPOINT_URL"] = endpoint.rstrip("/")
        options["AWS_ALLOW_HTTP"] = str(endpoint.startswith("http://")).lower()
    return Address(f"s3://{parts.netloc}/{prefix}", None, options)


def plain(error: Exception) -> str:
    """Return what a library says, in one line and without its drawings."""
    lines = re.sub(r"\x1b\[[0-9;]*m|↳", "", str(error)).split("\n")
    return "; ".join(line.strip() for line in lines if line.strip())[:300]


def unreachable(url: str, error: Exception) -> PoolError:
    """Say that a pool cannot be read or written."""
    if "NoSuchBucket" in str(error):
        return PoolError(f"there is no bucket for {url}", "make it first, or check the address")
    return PoolError(
        f"cannot reach the pool at {url}: {plain(error)}",
        "check the address, the line, and the keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY;"
        " what was written before is whole, and the command can be given again",
    )
