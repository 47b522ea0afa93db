"""Run the two commands of the README in a bare Debian, as an ordinary user, and report.

    python3 tests/bare/run.py [--root] [--suite bookworm] [--folder FOLDER] [COMMAND ...]

The root file system holds what `PACKAGES` names and what Debian cannot do without: no ffmpeg, no
compiler, no development headers, no file of this machine but what its pip settings name. The
repository is cloned into it as committed. Needs root, debootstrap, a network and 6 GB; it takes
as long as `make demo` and `make test` on an empty cache. --root runs the commands as root.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("ca-certificates", "make", "python3", "python3-venv")  # what the README asks for
COMMANDS = ("make demo", "make test")
USER = "stranger"
PASSED_ON = re.compile(r"PIP_|(http|https|no|all)_proxy$|PYTEST_ADDOPTS$|CI$", re.IGNORECASE)


def pip_settings() -> dict[str, str]:
    """Return the settings of this machine's pip, from all its files and variables, as variables."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    found: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        variable = "PIP_" + key.upper().replace("-", "_")
        value = " ".join(shlex.split(value)).replace("\\n", " ")
        if section == ":env:" or variable not in found:  # a variable overrides a file
            found[variable] = value
    return found


def named_paths(variables: Mapping[str, str]) -> Iterator[Path]:
    """Yield the files and folders of this machine that settings name."""
    for value in variables.values():
        for word in value.split():
            path = Path(word.removeprefix("file://"))
            if path.is_absolute() and path.exists():
                # The pages of an index on this machine refer to files in folders beside it.
                yield path.parent if word.startswith("file://") else path


def build(root: Path, suite: str) -> None:
    """Make the root file system and clone the repository into its user's home."""
    packages = ",".join(PACKAGES)
    command = ["debootstrap", "--variant=minbase", f"--include={packages}", suite, str(root)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["chroot", str(root), "useradd", "--create-home", USER], check=True)
    home = root / "home" / USER
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(home / "boli")], check=True)
    subprocess.run(
        ["chroot", str(root), "chown", "-R", f"{USER}:{USER}", f"/home/{USER}"], check=True
    )


def run(root: Path, command: str, as_root: bool) -> int:
    """Run a command in the clone, in mount and process namespaces that end with it."""
    settings = pip_settings()
    lines = ["set -eu", f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev"]
    for path in named_paths(settings):
        there = root / path.relative_to("/")
        if path.is_dir():
            there.mkdir(parents=True, exist_ok=True)
        elif not there.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            there.touch()
        lines.append(shlex.join(["mount", "--bind", "-o", "ro", str(path), str(there)]))
    whose = [] if as_root else [f"--userspec={USER}:{USER}"]
    path_inside = "/usr/local/bin:/usr/bin:/bin" + ":/usr/sbin:/sbin" * as_root
    inside = f"export PATH={path_inside}; cd /home/{USER}/boli && {command}"
    # Not by exec: a process that changes its user no longer ends with the one that started it.
    lines.append(shlex.join(["chroot", *whose, str(root), "sh", "-c", inside]) + "; exit $?")
    # In its environment, not among its arguments: an address of an index may hold a password.
    variables = {name: value for name, value in os.environ.items() if PASSED_ON.match(name)}
    variables |= settings | {"HOME": f"/home/{USER}", "USER": USER, "LANG": "C.UTF-8"}
    variables["PATH"] = os.environ["PATH"]
    namespaces = ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork"]
    whole = [*namespaces, "--kill-child", "sh", "-c", "\n".join(lines)]
    return subprocess.run(whole, env=variables, check=False).returncode


@contextlib.contextmanager
def root_folder(given: Path | None) -> Iterator[Path]:
    """Give an empty folder for the root file system, and remove it afterwards unless given."""
    if given is not None:
        given.mkdir(parents=True)
        yield given.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="boli-bare-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", action="store_true", help="run the commands as root")
    parser.add_argument("--suite", default="bookworm", help="Debian's release")
    parser.add_argument("--folder", type=Path, help="keep the root file system here")
    parser.add_argument("commands", nargs="*", default=COMMANDS)
    options = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        print("this needs root and the command debootstrap", file=sys.stderr)
        return 2
    failed = 0
    with root_folder(options.folder) as root:
        build(root, options.suite)
        for command in options.commands:
            started = time.monotonic()
            status = run(root, command, options.root)
            failed += status != 0
            seconds = time.monotonic() - started
            print(f"== {command}: exit {status} after {seconds:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
