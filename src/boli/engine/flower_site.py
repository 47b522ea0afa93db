"""What happens at a site with one message of a Flower federation: the ClientApp's part.

A ClientApp is a process of a second or two. It loads no model: it hands the bundle
to the site's node, a process that stays, over a socket in the site's state folder,
and starts the node where there is none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from boli.durable import open_private, write_file
from boli.engine.flower_wire import Asked, Greeting, Had, Pieces, Told, pack, split
from boli.engine.wire import Line, unpack_message
from boli.errors import (
    BoliError,
    LimitError,
    NotAcceptedError,
    SiteError,
    TransportError,
    public_words,
)
from boli.plan import NAME
from boli.site.kit import BaseFile, Kit, SiteFolder, kit_from
from boli.site.limits import FILE, site_limits, write_template

START_SECONDS = 60.0  # until a started node listens; it loads its model after that
log = logging.getLogger("boli.site")
LONGEST_SOCKET = 100  # bytes of its path: the kernel takes 107, other systems 103

NodeCommand = Callable[[SiteFolder, str], Sequence[str]]  # of a run, by its id


def node_command(folder: SiteFolder, run: str) -> Sequence[str]:
    """Return the command that starts a site's node for a run."""
    optional = ["" if path is None else str(path) for path in (folder.base, folder.limits_file)]
    arguments = [run, folder.site, str(folder.data), str(folder.state), *optional]
    return [sys.executable, "-m", "boli.engine.flower_node", *arguments]


def site_folder(settings: Mapping[str, Any]) -> SiteFolder | None:
    """Return the places that a SuperNode's --node-config names; None where it names no site.

    Raises:
        LimitError: the site's limits.toml is not valid.
        SiteError: a key is missing, or is not what it should be.
    """

    if "site" not in settings:
        return None
    site = str(settings["site"])
    if not re.fullmatch(NAME, site):
        raise SiteError(f"site {site!r} is no name", "use lower-case letters, digits and -")
    keys = ("data", "state", "base", "limits")
    paths = {key: Path(str(settings[key])) for key in keys if key in settings}
    for key in ("data", "state"):
        if key not in paths:
            raise SiteError(
                f"the node-config of site {site} has no {key}",
                f"start the SuperNode with --node-config 'site=\"{site}\" data=… state=…'",
            )
    for key, path in paths.items():
        if not path.is_absolute():
            raise SiteError(f"{key} of site {site} is {path}", "give an absolute path")
    state, limits = paths["state"], paths.get("limits")
    allowed = site_limits(state, limits)
    return SiteFolder(site, paths["data"], state, paths.get("base"), allowed, limits)


def answer(data: bytes, settings: Mapping[str, Any], command: NodeCommand = node_command) -> bytes:
    """Return the site's answer to one message.

    Raises:
        TransportError: it is not a message of ours, or there is no answer; Flower tells the
            coordinator the error's words, so they are those of its code, and none of the site's.
    """
    try:
        return _answer(data, settings, command)
    except BoliError as found:
        log.warning("%s", found)
        code = found.code
    except Exception:
        log.exception("a message of the coordinator")
        code = "unexpected"
    problem, hint = public_words(code)
    raise TransportError(problem, hint, code)


def _answer(data: bytes, settings: Mapping[str, Any], command: NodeCommand) -> bytes:
    kind, body, payload = unpack_message(data)
    try:
        match kind:
            case "hello":
                return pack("greeting", _greet(body.get("kit"), settings))
            case "pieces":
                return pack("had", _take_pieces(Pieces.model_validate(body), payload, settings))
            case "asked":
                return _pass_on(Asked.model_validate(body), data, settings, command)
    except ValidationError as error:
        raise TransportError(f"not a message of ours: {error}") from error
    raise TransportError(f"unknown kind {kind[:20]!r}", "update boli at the site")


def _greet(said: object, settings: Mapping[str, Any]) -> Greeting:
    """Say which site this is; keep what the run is, and say what the site lacks."""
    site = str(settings.get("site", ""))[:100]
    try:
        folder = site_folder(settings)
        if folder is None:
            return Greeting()
        if said is None:  # the coordinator asks who this is, before it tells of the run
            return Greeting(site=folder.site)
        kit = kit_from(said)
        folder.make_private()
        if folder.limits_file is None:
            write_template(folder.state / FILE)
        folder.admit(kit, partial(_accepts, settings))
        content = kit.model_dump_json().encode()
        write_file(folder.run_folder(kit) / "kit.json", content, private=True)
        lacking = folder.missing(kit)
        if lacking:
            folder.make_room(kit, lacking)
        have = {file.name: folder.fetched_bytes(kit, file) for file in lacking}
        for file in kit.files:
            if have.get(file.name) == file.size:
                folder.finish_file(kit, file)
        return Greeting(site=folder.site, have=have)
    except BoliError as error:
        log.warning("%s", error)
        return Greeting(site=site, code=error.code)


def _accepts(settings: Mapping[str, Any], _words: str, refusal: LimitError | None) -> bool:
    """Tell whether the site's people accept plans within their limits: nobody can be asked here.

    Raises:
        LimitError: an order of the run was refused before.
        NotAcceptedError: they did not say so.
    """
    if refusal is not None:
        raise refusal
    if settings.get("accept") is not True:
        raise NotAcceptedError(
            "the people of this site have not said that they accept plans within their limits",
            "set accept=true in the SuperNode's --node-config",
        )
    return True


def _known(run: str, settings: Mapping[str, Any]) -> tuple[SiteFolder, Kit]:
    folder = site_folder(settings)
    if folder is None:
        raise SiteError("this node has no site", "give it one with --node-config")
    path = folder.state / "runs" / run / "kit.json"
    if not path.is_file():
        raise SiteError(f"nothing is known here of run {run}", "the state folder was emptied")
    return folder, Kit.model_validate_json(path.read_bytes())


def _take_pieces(pieces: Pieces, payload: bytes, settings: Mapping[str, Any]) -> Had:
    """Add parts to their files."""
    folder, kit = _known(pieces.run, settings)
    files = {file.name: file for file in kit.files}
    have = {}
    for part, content in zip(pieces.parts, split(pieces.sizes, payload), strict=True):
        if part.file not in files:
            raise TransportError(f"run {pieces.run} has no file {part.file}")
        have[part.file] = _add(folder, kit, files[part.file], part.offset, content)
    return Had(have=have)


def _add(folder: SiteFolder, kit: Kit, file: BaseFile, offset: int, content: bytes) -> int:
    """Add a part to its file; returns how many bytes of the file are here."""
    if (folder.base_folder(kit) / file.name).is_file():
        return file.size
    there = folder.fetched_bytes(kit, file)
    if offset != there:
        return there  # it came twice, or one before it was lost: go on from here
    folder.add_piece(kit, file, content)
    there += len(content)
    if there >= file.size:
        folder.finish_file(kit, file)
    return there


def _pass_on(asked: Asked, data: bytes, settings: Mapping[str, Any], command: NodeCommand) -> bytes:
    """Hand a bundle to the site's node, and wait for its answer."""
    try:
        folder, kit = _known(asked.run, settings)
        line = _line_to(folder, kit, command if asked.start else None)
    except BoliError as error:
        log.warning("%s", error)
        return pack("told", Told(lost=error.code))
    with contextlib.closing(line):
        try:
            line.send_bytes(data)
            told = line.recv_bytes()
            return bytes(told)
        except (EOFError, OSError):
            log.warning("the node ended; its log is %s", folder.run_folder(kit) / "node.log")
            return pack("told", Told(lost="node.ended"))


def _line_to(folder: SiteFolder, kit: Kit, command: NodeCommand | None) -> Line:
    """Return a line to the node, which is started by the command if it is not there.

    Raises:
        SiteError: it cannot be started, or is not to be.
    """
    path = socket_path(folder.run_folder(kit))
    line = _connect(path)
    if line is not None:
        return line
    if command is None:
        raise SiteError("the node is not running", code="node.ended")
    path_of_log = folder.run_folder(kit) / "node.log"
    with os.fdopen(open_private(path_of_log), "ab") as output:
        process = subprocess.Popen(
            command(folder, kit.run),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={
                **os.environ,
                "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads starve what else runs here
                "TOKENIZERS_PARALLELISM": "false",
                "PYTHONUNBUFFERED": "1",
            },
            start_new_session=True,  # it outlives this ClientApp, and the SuperNode
        )
    # Somebody has to notice its end where ClientApps share a process that stays.
    threading.Thread(target=process.wait, daemon=True).start()
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        ended = process.poll()
        line = _connect(path)
        if line is not None:
            return line
        if ended is not None:
            problem = f"the node ended at once with exit code {ended}"
            raise SiteError(problem, f"its log is {path_of_log}", "node.ended")
        time.sleep(0.05)
    problem = f"the node did not listen within {START_SECONDS:.0f} s"
    raise SiteError(problem, f"its log is {path_of_log}", "node.ended")


def socket_path(run_folder: Path) -> Path:
    """Return where the node of a run listens.

    Raises:
        SiteError: the system allows no path that long.
    """
    path = run_folder / "socket"
    if len(os.fsencode(path)) > LONGEST_SOCKET:
        raise SiteError(
            f"{path} is longer than the {LONGEST_SOCKET} bytes that a socket may have",
            "give the SuperNode a shorter state folder",
        )
    return path


def _connect(path: Path) -> Line | None:
    end = socket.socket(socket.AF_UNIX)
    try:
        end.connect(os.fspath(path))
    except (FileNotFoundError, ConnectionRefusedError):
        end.close()
        return None
    return Connection(end.detach())
