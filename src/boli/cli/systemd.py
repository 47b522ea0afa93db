"""The systemd unit that boli join prints: the node runs as a user of its own, in a sandbox.

What is not here: MemoryDenyWriteExecute, because torch makes code while it runs (a product of
bf16 matrices fails with it).
"""

from __future__ import annotations

import grp
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import boli
from boli.errors import RunError

HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # by ProtectHome and PrivateTmp
GPU = Path("/dev/nvidiactl")
# Without a device of its own; with a GPU these two lines make room for it.
NO_DEVICES = ("PrivateDevices=yes",)
NVIDIA = ("DevicePolicy=closed", *(f"DeviceAllow=char-nvidia{kind} rw" for kind in ("", "-uvm")))
SANDBOX = """\
AmbientCapabilities=
CapabilityBoundingSet=
KeyringMode=private
LockPersonality=yes
NoNewPrivileges=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=tmpfs
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
UMask=0077"""


@dataclass(frozen=True)
class JoinUnit:
    """What the unit of one site names; all paths are absolute."""

    site: str
    invitation: Path
    data: Path
    limits: Path
    base: Path | None = None

    @property
    def state(self) -> str:
        """Name of the folder below /var/lib that systemd makes for the state."""
        return f"boli-{self.site}"

    def text(self, program: Path) -> str:
        """Return the unit.

        Raises:
            RunError: a path cannot be named in it.
        """
        words = ["join", "${CREDENTIALS_DIRECTORY}/invitation", "--data", _escaped(self.data)]
        words += ["--state", "${STATE_DIRECTORY}"]
        words += ["--limits", "${CREDENTIALS_DIRECTORY}/limits.toml", "--accept"]
        words += ["--base", _escaped(self.base)] if self.base else []
        command = " ".join([_quoted(_percent(program)), *map(_quoted, words)])
        shown = [self.data, *([self.base] if self.base else []), *_programs(program)]
        binds = [f"BindReadOnlyPaths={_bound(path)}" for path in _hidden(shown)]
        data = shlex.quote(str(self.data))
        devices = NVIDIA if GPU.exists() else NO_DEVICES
        return f"""\
# Save as /etc/systemd/system/boli-join.service, then:
#   systemctl daemon-reload && systemctl enable --now boli-join
# It runs as a user that systemd makes for it, and accepts every plan within
#   {_percent(self.limits)}
# which it cannot write. It has the group of the data folder, which has to be able to read it. As
# root, for example, before this is printed:
#   groupadd --system boli-text
#   chgrp -R boli-text {data} && chmod -R g+rX {data}
# Its state is /var/lib/private/{self.state}; one that there is already can be moved there first.
[Unit]
Description=boli: site {self.site} of a federation
Wants=network-online.target
After=network-online.target

[Service]
ExecStart={command}
LoadCredential=invitation:{_percent(self.invitation)}
LoadCredential=limits.toml:{_percent(self.limits)}
DynamicUser=yes
StateDirectory={self.state}
StateDirectoryMode=0700
SupplementaryGroups={_group(self.data)}
Environment=HOME=%S/{self.state} BOLI_HOME=%S/{self.state}
{"".join(line + chr(10) for line in [*binds, *devices])}{SANDBOX}
Restart=always
RestartSec=10
RestartPreventExitStatus=22
Nice=10

[Install]
WantedBy=multi-user.target"""


def _programs(program: Path) -> list[Path]:
    """Return the folders that hold boli and Python."""
    package = Path(boli.__file__).resolve().parent
    places = (program.parent, Path(sys.prefix), Path(sys.base_prefix), package)
    return [place.resolve() for place in places]


def _hidden(paths: list[Path]) -> list[Path]:
    """Return the outermost of the paths that lie where the unit sees nothing of the machine."""
    hidden = sorted({path for path in paths if any(path.is_relative_to(place) for place in HIDDEN)})
    return [
        path
        for path in hidden
        if not any(path != other and path.is_relative_to(other) for other in hidden)
    ]


def _bound(path: Path) -> str:
    if ":" in str(path):
        raise RunError(
            f"{path} has a colon, which systemd takes for the end of a path",
            "rename it, or move it to where the unit sees it: not below " + " or ".join(HIDDEN),
        )
    return _quoted(_percent(path))


def _group(folder: Path) -> str:
    """Return the group of a folder, if it is one whose rights may be given on."""
    number = folder.stat().st_gid
    try:
        return grp.getgrgid(number).gr_name if number else ""
    except KeyError:
        return str(number)


def _percent(path: Path) -> str:
    if not str(path).isprintable():
        raise RunError(f"{str(path)!r} cannot be named in a unit", "rename it")
    return str(path).replace("%", "%%")


def _escaped(path: Path) -> str:
    """Return a path that stands for itself in a command, with no specifier and no variable."""
    return _percent(path).replace("$", "$$")


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
