"""boli doctor: what would keep a site from taking part, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from boli.cli.fleet import require_nats, state_of
from boli.errors import LimitError, TransportError

if TYPE_CHECKING:
    from boli.site.doctor import Finding

COLORS = {"ok": "green", "warning": "yellow", "problem": "red"}
INDENT = " " * 24


def doctor(
    invitation: Annotated[
        Path | None, typer.Argument(help="The file that boli invite wrote.", show_default=False)
    ] = None,
    data: Annotated[
        Path, typer.Option(help="Folder with the site's text; the plan's paths start here.")
    ] = Path(),
    state: Annotated[
        Path | None, typer.Option(help="Folder for the site's state; below ~/.boli by default.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="Folder of the base, if it is here already.")
    ] = None,
    limits: Annotated[
        Path | None,
        typer.Option(help="What the site allows; limits.toml in the state folder by default."),
    ] = None,
) -> None:
    """Look at all that a site needs, and say what to do; changes nothing.

    With an invitation: the way to the coordinator, the key, the line, the clock. Always: the
    machine, the disk, the text. It can run beside boli join. Ends with 17 if there is a problem.
    """
    num_problems = 0
    for finding in _findings(invitation, data, state, base, limits):
        num_problems += finding.level == "problem"
        _show(finding)
    if num_problems:
        plural = "problem" if num_problems == 1 else "problems"
        print(f"\n{num_problems} {plural} to solve before boli join")
        raise typer.Exit(TransportError.exit_code)
    join = f"boli join {invitation} --data {data}" if invitation else "boli doctor INVITATION"
    print(f"\nready; next: {join}")


def _findings(
    invitation: Path | None,
    data: Path,
    state: Path | None,
    base: Path | None,
    limits: Path | None,
) -> Iterator[Finding]:
    from boli.site.doctor import look_at_disk, look_at_folder, look_at_machine

    if invitation is None:
        yield look_at_machine()
        yield look_at_disk(state or state_of(""))
        yield look_at_folder(data)
        return
    require_nats()
    from boli.engine.identities import Invitation
    from boli.engine.nats_doctor import examine
    from boli.site.doctor import Finding
    from boli.site.kit import SiteFolder
    from boli.site.limits import site_limits

    found = Invitation.read(invitation)
    place = (state or state_of(found.site)).resolve()
    try:
        allowed = site_limits(place, limits)
    except LimitError as error:
        yield Finding("limits", "problem", error.problem, error.hint)
        return
    yield from examine(found.access, SiteFolder(found.site, data.resolve(), place, base, allowed))


def _show(finding: Finding) -> None:
    level = typer.style(f"{finding.level:<9}", fg=COLORS[finding.level])
    typer.echo(f" {level} {finding.check:<12} {finding.value}")
    if finding.advice:
        typer.echo(f"{INDENT}{finding.advice}")
