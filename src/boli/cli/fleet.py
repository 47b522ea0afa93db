"""boli coordinator, invite, join, sites, revoke: sites on other machines."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import boli
from boli.errors import BoliError, LimitError, NotAcceptedError, RunError, TransportError

if TYPE_CHECKING:
    from boli.engine.identities import Address
    from boli.preparation import Prepared
    from boli.rounds.transport import Transport

Folder = Annotated[
    Path, typer.Option("--folder", help="Keys, certificates and streams of the coordinator.")
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")]
COORDINATOR = Path("coordinator")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, command, brief, example in (
        (
            "coordinator",
            coordinator,
            "Run a plan over sites on other machines.",
            "boli coordinator plans/first.toml --listen 0.0.0.0:4222",
        ),
        (
            "invite",
            invite,
            "Write the one file with which a site comes in.",
            "boli invite bhojpur --out bhojpur.boli --address 203.0.113.5:4222",
        ),
        (
            "join",
            join,
            "Serve a coordinator as one of its sites.",
            "boli join bhojpur.boli --data /srv/text",
        ),
        (
            "pieces",
            pieces,
            "At a site: see which words a plan would let leave, without joining.",
            "boli pieces plans/real.toml --site gaya --data /srv/text",
        ),
        ("sites", sites, "List the sites: who is there, how fast, last seen.", "boli sites"),
        ("revoke", revoke, "End a site's key.", "boli revoke bhojpur"),
    ):
        app.command(name, epilog=f"Example: {example}", short_help=brief)(command)


def require_nats() -> None:
    """Make sure that the libraries are there that reach other machines.

    Raises:
        TransportError: the extra is not installed.
    """
    lacking = [name for name in ("nats", "nkeys", "cryptography") if find_spec(name) is None]
    if lacking:
        raise TransportError(
            f"{' and '.join(lacking)} not installed: sites elsewhere are reached over NATS",
            'pip install "boli[nats]"',
        )


def state_of(site: str) -> Path:
    """Return where a site's state lies by default."""
    return Path(os.environ.get("BOLI_HOME") or Path.home() / ".boli") / "sites" / site


def coordinator(
    plan: Annotated[Path, typer.Argument(help="The plan, a TOML file.")],
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where sites come in; remembered for next time."),
    ] = None,
    connect: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="A server that runs with our server.conf already."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the plan."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Start a new run although this plan has one.")
    ] = False,
    forgive: Annotated[
        list[str] | None,
        typer.Option(metavar="SITE", help="Let a suspended site take part again."),
    ] = None,
    folder: Folder = COORDINATOR,
    runs: Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")] = Path(
        "runs"
    ),
) -> None:
    """Run a plan over sites on other machines; start it again at any time, and it goes on.

    It starts a NATS server of its own. Sites need an invitation: boli invite.
    """
    require_nats()
    from boli.cli.main import finish_or_tell
    from boli.engine.coordinator import Coordinator
    from boli.engine.identities import Address
    from boli.engine.nats_server import saved_listen
    from boli.model.layout import Layout

    loaded = boli.load_plan(plan, overrides or ())
    found = [] if again else [run for run in boli.list_runs(runs) if run.plan == loaded]
    if found and found[0].finished:
        print(f"this plan has been carried out; boli coordinator {plan} --again starts a new run")
        finish_or_tell(found[0], "")
        return
    place = Coordinator(
        folder,
        Address.of(listen) if listen else saved_listen(folder),
        Address.of(connect) if connect else None,
        lambda line: print(line, flush=True),
    )

    place.prepare()

    @contextlib.contextmanager
    def engine(run: boli.Run, prepared: Prepared) -> Iterator[Transport]:
        versions = None if prepared.asks else run.folder / "versions"
        entries = {
            site: Layout.from_description(found).size
            for site, found in prepared.site_layouts.items()
        }
        asked = prepared.run, run.plan, prepared.base, versions, entries, prepared.asks
        with place.transport(*asked) as transport:
            yield transport

    resume = found[0].id if found else None
    for other in [] if found else boli.list_runs(runs):
        if other.plan.name == loaded.name and not other.finished:
            print(f"the plan differs from that of run {other.id}, which stays: this is a new run")
            break
    command = f"boli coordinator {plan}" + (f" --folder {folder}" if folder != COORDINATOR else "")
    from boli.cli.main import watched_run

    plan_of_new = None if resume else loaded
    finish_or_tell(watched_run(plan_of_new, resume, runs, engine, forgive or ()), command)


def _own_address(folder: Path) -> Address:
    """Return the address to write into invitations: the one this machine uses outward.

    Raises:
        TransportError: no coordinator said yet where it listens, or no way leads out.
    """
    from boli.engine.identities import Address
    from boli.engine.nats_server import is_listen_known, saved_listen

    if not is_listen_known(folder):
        raise TransportError(
            "it is not known yet where sites reach this coordinator",
            "give the address: --address HOST:PORT; "
            "or start boli coordinator PLAN --listen 0.0.0.0:4222 first",
        )
    listen = saved_listen(folder)
    if listen.host not in ("0.0.0.0", "::"):
        return listen
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; asks which way out there is
            return Address(probe.getsockname()[0], listen.port)
        except OSError:
            raise TransportError(
                "this machine's own address is not known", "give it: --address HOST:PORT"
            ) from None


def _warn(problem: str, hint: str) -> None:
    print(f"warning: {problem}\n  {hint}", file=sys.stderr)


def _warn_of_plan(site: str, runs: Path) -> None:
    """Say where the newest run does not know a site; there may be another plan yet to come."""
    with contextlib.suppress(BoliError):
        for run in boli.list_runs(runs)[:1]:
            names = [one.name for one in run.plan.site]
            if site not in names:
                _warn(
                    f"the newest run, {run.id}, has no site {site}",
                    f"its sites: {', '.join(names)}; {site} waits until a plan names it",
                )


def invite(
    site: Annotated[str, typer.Argument(help="The site's name, as in the plan.")],
    out: Annotated[Path | None, typer.Option(help="The file; SITE.boli by default.")] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where the site reaches this coordinator."),
    ] = None,
    folder: Folder = COORDINATOR,
    runs: Runs = Path("runs"),
) -> None:
    """Write the one file with which a site comes in; an older one of the same site ends."""
    require_nats()
    import re

    from boli.engine.identities import Address, Identities, write_invitation
    from boli.engine.nats_server import readmit, saved_listen
    from boli.plan import NAME

    if not re.match(NAME, site):
        raise TransportError(
            f"{site!r} is no name for a site", "use small letters, digits and hyphens"
        )
    reached = Address.of(address) if address else _own_address(folder)
    path = out or Path(f"{site}.boli")
    write_invitation(Identities(folder).invite(site, reached), path)
    running = readmit(folder)
    print(f"{path} lets {site} in at {reached}; give it to that site's people only")
    print(f"there: boli join {path.name} --data FOLDER-WITH-TEXT")
    listen, option = saved_listen(folder), ""
    if listen.is_loopback and listen != reached:
        wanted = reached if reached.is_loopback else Address("0.0.0.0", reached.port)
        option = f" --listen {wanted}"
    if not running:
        print(f"its server does not run yet; it comes up with boli coordinator PLAN{option}")
    elif listen.is_loopback and not reached.is_loopback:
        _warn(
            f"the coordinator listens at {listen} only, where nobody elsewhere gets in",
            f"stop it, then: boli coordinator PLAN{option}",
        )
    if reached.is_loopback and not address:
        _warn(
            f"{reached} is this machine only: nobody elsewhere gets in with this file",
            f"for a site elsewhere: boli invite {site} --address HOST:PORT",
        )
    _warn_of_plan(site, runs)


def revoke(
    site: Annotated[str, typer.Argument(help="The site's name.")], folder: Folder = COORDINATOR
) -> None:
    """End a site's key: its connection ends at once, and it does not come in again."""
    require_nats()
    from boli.engine.identities import Identities
    from boli.engine.nats_server import readmit

    Identities(folder).revoke(site)
    running = readmit(folder)
    print(f"{site} is out" + ("" if running else "; the server does not run"))


def join(
    invitation: Annotated[Path, typer.Argument(help="The file that boli invite wrote.")],
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
    accept: Annotated[
        bool,
        typer.Option("--accept", help="Accept every plan within the limits unasked; for services."),
    ] = False,
    systemd: Annotated[
        bool, typer.Option("--systemd", help="Print a systemd unit that does this at every boot.")
    ] = False,
) -> None:
    """Serve a coordinator as one of its sites, run after run, until told to stop.

    It dials out only. Text stays here; Ctrl-C stops it, and nothing is lost. A plan is shown, and
    asked about once, before anything is fetched; what limits.toml does not allow is refused.
    """
    require_nats()
    from boli.engine.identities import Invitation

    found = Invitation.read(invitation)
    place = (state or state_of(found.site)).resolve()
    if not data.is_dir():
        raise RunError(f"{data} is not a folder", "give the folder with the site's text: --data")
    if systemd:
        from boli.cli.systemd import JoinUnit
        from boli.site.limits import FILE, read_limits, write_template

        there = place / FILE
        own = limits or (there if there.exists() else invitation.with_name(f"{found.site}.{FILE}"))
        if limits is None:
            write_template(own)
        read_limits(own)
        paths = invitation.resolve(), data.resolve(), own.resolve(), base and base.resolve()
        print(JoinUnit(found.site, *paths).text(Path(sys.argv[0]).resolve()))
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from boli.durable import locked
    from boli.engine.nats_node import Agent
    from boli.site.kit import SiteFolder
    from boli.site.limits import FILE, site_limits, write_template

    logging.basicConfig(level=logging.WARNING)
    os.umask(0o077)  # also for what libraries write
    if limits is None:
        write_template(place / FILE)
    folder = SiteFolder(found.site, data.resolve(), place, base, site_limits(place, limits))
    folder.make_private()
    asked = partial(_accepts, found.address, limits or place / FILE, accept)
    agent = Agent(found.access, folder, _say, asked)

    def stop(*_: object) -> None:
        agent.stop()
        if agent.is_asking:
            raise KeyboardInterrupt  # nothing else ends a question

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with locked(place, "the site's state"):
        agent.serve()


def pieces(
    plan: Annotated[Path, typer.Argument(help="The plan, a TOML file.")],
    site: Annotated[str, typer.Option(help="The site's name, as in the plan.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder with the site's text; the plan's by default.")
    ] = None,
    limits: Annotated[
        Path | None,
        typer.Option(help="What the site allows; limits.toml in its state folder by default."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a TSV file; printed by default.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the plan."),
    ] = None,
) -> None:
    """Show the counts of pieces of words that a site would send for a tokenizer; nothing is sent.

    Each line is a rounded number of lines, a tab, and a word or a part of one.
    """
    from boli.corpus.pieces import as_text, count_pieces, pack_pieces
    from boli.corpus.sources import read_documents
    from boli.durable import write_file
    from boli.evaluation.units import size
    from boli.site.limits import site_limits
    from boli.site.pieces import floors_of

    loaded = boli.load_plan(plan, overrides or ())
    section = next((one for one in loaded.site if one.name == site), None)
    if section is None:
        names = ", ".join(one.name for one in loaded.site)
        raise RunError(f"plan {loaded.name} has no site {site}", f"it has: {names}")
    if data is not None:
        corpus = loaded.corpus.model_copy(update={"root": str(data.resolve())})
        loaded = loaded.model_copy(update={"corpus": corpus})
    allowed = site_limits(state_of(site), limits)
    floors = floors_of(loaded.model.base.pieces).stricter(allowed.floors)
    found = count_pieces(read_documents(loaded, section.text, section.language), floors)
    if out is None:
        print(as_text(found), end="")
    else:
        write_file(out, as_text(found).encode(), private=True)
    asked = "asks for them" if loaded.asks_pieces else "does not ask for them"
    print(
        f"{len(found)} pieces, each in at least {floors.least_lines} lines of "
        f"{floors.least_documents} documents: {size(len(pack_pieces(found)))}; the plan {asked}"
        + ("" if allowed.pieces else ", and this site's limits let none leave"),
        file=sys.stderr if out is None else sys.stdout,
    )


def _accepts(
    address: str, limits: Path, unasked: bool, words: str, refusal: LimitError | None
) -> bool:
    """Show a plan to the site's people, and return whether they accept it.

    Raises:
        LimitError: an order of it was refused, and nobody is there to ask.
        NotAcceptedError: nobody is there to ask.
    """
    if refusal is not None and not sys.stdin.isatty():
        raise refusal
    print(f"\nThe coordinator at {address} asks this site to take part.\n\n{words}\n")
    print(f" The limits are in {limits}.", flush=True)
    if refusal is not None:
        print(f" It was refused before: {refusal}", flush=True)
    if unasked and refusal is None:
        return True
    if not sys.stdin.isatty():
        raise NotAcceptedError(
            "nobody has accepted this plan yet, and there is no terminal to ask on",
            "start boli join once on a terminal, or with --accept for what runs by itself",
        )
    try:
        return typer.confirm(" Take part?", default=False)
    except typer.Abort:  # Ctrl-C
        return False


def _say(line: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}", flush=True)


def sites(
    folder: Folder = COORDINATOR,
    runs: Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")] = Path(
        "runs"
    ),
) -> None:
    """List the sites: who is there, how fast it trains, its line, what it holds, last seen."""
    from boli.cli.tables import show_sites
    from boli.engine.identities import Identities

    show_sites(Identities(folder).guests(), boli.list_runs(runs))
