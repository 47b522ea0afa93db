"""boli share, and boli pool: create, get, stats, log, erase."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from boli.errors import PoolError

if TYPE_CHECKING:
    from boli.pool.erase import Erased
    from boli.pool.figures import Figures

pool = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Example: boli pool create /srv/pool --region IN-BR",
)

IDS_AT_ONCE = 100  # in one command that is proposed

PoolUrl = Annotated[
    str,
    typer.Argument(metavar="URL", help="A folder, or s3://BUCKET/PREFIX?endpoint=…&region=…"),
]


def share(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What boli prepare wrote.")],
    pool: Annotated[str, typer.Option(metavar="URL", help="The pool: a folder, or s3://….")],
    site: Annotated[str, typer.Option(metavar="NAME", help="Your site's name, as in plans.")],
    max_quality_bits: Annotated[
        float | None,
        typer.Option(
            metavar="X", min=0, help="Keep back what scored above, in bits per byte, or not at all."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and send nothing.")
    ] = False,
) -> None:
    """Put records into a pool whose consent, licence, residency and quality allow it.

    Both count: what was noted when they were prepared, and what source.toml says now. Give it on
    the machine that has the sources: where these are gone or have moved, nothing goes.

    What stays behind is listed with its reason in DIR/share-….jsonl. What left is in an egress
    log in BOLI_HOME; boli pool log shows it. The command can be given again at any time: nothing
    is there twice.
    """
    from boli.pool.egress import NOTED_BEFORE
    from boli.pool.egress_log import EgressLog, log_folder
    from boli.pool.share import share
    from boli.pool.table import open_pool

    opened = open_pool(pool)
    told = share(folder, opened, site, EgressLog(log_folder()), max_quality_bits, dry_run)
    print(f"{'would share' if dry_run else 'shared':<14}{told.added:>8}")
    print(f"{'already there':<14}{told.there:>8}")
    print(f"{'stayed behind':<14}{told.stayed.total():>8}")
    for reason, number in told.stayed.most_common():
        print(f"{'':<14}{number:>8}  {reason}")
    if any(reason.endswith(NOTED_BEFORE) for reason in told.stayed):
        print(f"to note what source.toml allows now: boli prepare --out {folder} --note")
    if told.withdrawn:
        print(f"{told.withdrawn} of these are in the pool from before; take them out with")
        print(f"  boli pool erase {pool} --site {site} --record ID")
    if told.report is not None and told.stayed:
        print(f"which ones, and why: {told.report}")


@pool.command(
    epilog="Example: boli pool create 's3://texts/bhojpuri?region=ap-south-1' --region IN-BR",
    short_help="Make an empty pool.",
)
def create(
    url: PoolUrl,
    region: Annotated[str, typer.Option(help="Where its disks are, in ISO 3166: IN, or IN-BR.")],
    licence: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPDX", help="A licence that it takes; can be repeated. Default: open ones."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="What its dataset card calls it.")] = "pool",
) -> None:
    """Make an empty pool in a folder or in S3. Keys to S3 come from AWS_ACCESS_KEY_ID and such."""
    from boli.pool.card import write_card
    from boli.pool.table import create_pool

    made = create_pool(url, name, region, tuple(licence or ()))
    write_card(made)
    print(f"made the pool {name} at {made.address.url}, in {region}")
    print(f"it takes {', '.join(made.description.licences)}")


@pool.command(
    epilog="Example: boli pool get /srv/pool --out bhojpuri --language bho --for gaya-2026",
    short_help="Take a copy of one version, to train on.",
)
def get(
    url: PoolUrl,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the copy.")],
    version: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="An older version.")
    ] = None,
    language: Annotated[str, typer.Option(help="Only this language, in ISO 639-3.")] = "",
    region: Annotated[
        str,
        typer.Option(
            help="Where DIR is, in ISO 3166. Without it you get what may go anywhere, and no more."
        ),
    ] = "",
    taker: Annotated[
        str, typer.Option("--for", metavar="NAME", help="Who or what it is for; the pool notes it.")
    ] = "",
) -> None:
    """Write DIR/records/LANGUAGE.parquet and DIR/pool.json, which pins the version.

    A run that trains on these files notes the pin, so that an erase can name it.
    """
    from boli.pool.table import open_pool
    from boli.pool.take import take

    taken = take(open_pool(url), out, taker, version, language, region)
    print(f"version {taken.pin.version}, {taken.pin.rows} records")
    for name, number in taken.rows.most_common():
        print(f"{number:>8}  {out / 'records' / name}.parquet")
    for reason, number in taken.stayed.most_common():
        print(f"{number:>8}  stayed in the pool: {reason}")
    if taken.stayed and not region:
        print("Say where DIR is with --region, and what may go there is given too.")


@pool.command(epilog="Example: boli pool stats /srv/pool", short_help="Count what is in a pool.")
def stats(url: PoolUrl) -> None:
    """Print records and characters by site, language, licence and residency, and repeats."""
    from boli.pool.figures import figures
    from boli.pool.ledger import steady
    from boli.pool.table import open_pool

    opened = open_pool(url)
    found = steady(opened, lambda: figures(opened))
    described = opened.description
    print(f"{described.name} at {opened.address.url}, in {described.region}")
    print(f"version {found.version}: {found.rows} records, {found.characters} characters")
    _show_counts(found)
    print(f"\nnear duplicates across sites  {found.near_across_sites}")
    print(f"same text across sites        {found.same_across_sites}")
    print(f"consent has expired           {found.expired}")
    print(f"erased so far                 {found.erased}")
    print(f"copies taken                  {found.taken}")


def _show_counts(found: Figures) -> None:
    from boli.pool.figures import printable

    for name, values in found.by.items():
        title = {"pipeline": "pipeline version"}.get(name, name)
        print(f"\n{title:<24} records  characters")
        for value, (number, size) in values.items():
            print(f"{printable(value):<24} {number:>7} {size:>11}")


@pool.command(
    epilog="Example: boli pool log /srv/pool --verify",
    short_help="Show what left this machine, and check that nobody changed it.",
)
def log(
    place: Annotated[
        str,
        typer.Argument(
            metavar="URL|DIR",
            help="Only what went to this pool, or DIR with another log. Default: all in BOLI_HOME.",
        ),
    ] = "",
    verify: Annotated[
        bool, typer.Option("--verify", help="Walk the chain of hashes, and say where it breaks.")
    ] = False,
) -> None:
    """Show the egress log of this machine: what was sent, where, when, and what came of it.

    With --verify and a pool's URL the log is also held against what the pool has noted of it, so
    that a log that was cut or written anew is found out.
    """
    from boli.pool.egress_log import LOG, first_break, log_folder, read_log
    from boli.pool.ledger import check_log
    from boli.pool.table import open_pool

    own = bool(place) and (Path(place) / LOG).is_file()
    folder = Path(place) if own else log_folder()
    opened = open_pool(place) if place and not own else None
    only = opened.description.id if opened else ""
    lines = list(read_log(folder))
    for line in _told(lines, only):
        print(line)
    if not verify:
        return
    wrong = check_log(opened, folder) if opened else first_break(folder)
    if wrong:
        raise PoolError(
            f"the log in {folder} is broken: {wrong}",
            "what stands before that is as it was written; find out who changed the rest",
        )
    against = ", and the pool has noted it so" if opened else ""
    print(f"the chain of {len(lines)} lines is whole{against}")


def _told(lines: list[dict[str, object]], only: str) -> list[str]:
    """Return a line for each time that records were to leave, and each erase."""
    ends = {line.get("of"): line for line in lines if line["event"] in ("done", "failed")}
    told = []
    for line in lines:
        if only and line.get("pool") != only:
            continue
        when, where = str(line["time"])[:19], line.get("url")
        if line["event"] == "intent":
            records = line["records"]
            number = len(records) if isinstance(records, list) else 0
            end = ends.get(line["seq"])
            came = "begun, and not known to have ended"
            if end is not None and end["event"] == "done":
                came = f"version {end['version']}"
            elif end is not None:
                came = f"did not come through: {end['reason']}"
            told.append(f"{when}  {line['site']}  {number} records for training  {where}  {came}")
        elif line["event"] == "erased":
            told.append(f"{when}  erased {line['rows']} records  {where}")
        elif line["event"] == "swept":
            told.append(f"{when}  swept up what refused commits had left  {where}")
    return told


@pool.command(
    epilog="Example: boli pool erase /srv/pool --site gaya --runs runs",
    short_help="Erase records or a site, everywhere, and list who had seen them.",
)
def erase(
    url: PoolUrl,
    record: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A record's id; can be repeated.")
    ] = None,
    site: Annotated[
        str, typer.Option(metavar="NAME", help="A whole site; or with --record, only its records.")
    ] = "",
    runs: Annotated[
        Path | None, typer.Option(help="Folder with runs: those that had read it are listed.")
    ] = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Finish what a killed erase elsewhere began.")
    ] = False,
) -> None:
    """Erase records or a site from all files of a pool, and keep their text from coming back.

    Files of all older versions go too: a version that was pinned before can no longer be taken.
    Copies that were taken before, and adapters that were trained, are listed and not changed.
    """
    from boli.pool.egress_log import EgressLog, log_folder
    from boli.pool.erase import erase
    from boli.pool.table import open_pool

    opened = open_pool(url)
    done = erase(opened, EgressLog(log_folder()), record or [], site, runs, take_over)
    _show_erased(done, url, runs)


def _show_erased(done: Erased, url: str, runs: Path | None) -> None:
    from boli.pool.erase import affected

    if not done.rows and not done.files:
        print("nothing of that name is in the pool: no file was changed. Is the name right?")
        print("It is kept out from now on")
    else:
        print(f"erased {done.rows} records; {done.files} files of this and older versions are gone")
        if done.alike:
            print(f"{done.alike} of these held the same text under another id")
        print("older versions can no longer be taken; neither id nor text can come back")
    _show_others(done.others, url)
    for title, takers in (
        ("had seen it", done.takers),
        ("may have seen it: their version went with an earlier erase", done.maybe),
    ):
        if takers:
            print(f"{title}:")
            print("\n".join(f"  {line}" for line in affected(takers)))
    if runs is not None:
        names = ", ".join(f"{name} (version {number})" for name, number in done.runs.items())
        print(f"runs in {runs} that read such a copy: {names or 'none'}")


def _show_others(others: dict[str, list[str]], url: str) -> None:
    """Say which records of other sites hold the text, as commands: each site decides."""
    import shlex

    from boli.pool.figures import printable

    if not others:
        return
    number = sum(len(ids) for ids in others.values())
    print(f"{number} records of other sites hold the same text, and stay; to erase these too:")
    for site, ids in sorted(others.items()):
        for first in range(0, len(ids), IDS_AT_ONCE):
            some = ids[first : first + IDS_AT_ONCE]
            words = [word for name in some for word in ("--record", printable(name))]
            words = ["boli", "pool", "erase", url, "--site", printable(site), *words]
            print(f"  {shlex.join(words)}")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        epilog="Example: boli share prepared --pool /srv/pool --site arrah",
        short_help="Put records into a pool that may go there.",
    )(share)
    app.add_typer(pool, name="pool", short_help="Make a pool, take from it, erase, and look.")
