"""A coordinator's plan names files below the data folder that nobody meant for training.

What a preparation dropped (with personal data in it), hidden files, source.toml, a file that a
link leads to outside of the folder, a whole folder in which such files lie, and a column of
records that is not their text. The full form makes the preparation with `boli prepare`.
"""

from __future__ import annotations

import json
from pathlib import Path

from attack import Outcome, boli
from one_site import LENIENT, plan_of

from boli.corpus.sources import read_split
from boli.errors import BoliError, LimitError
from boli.plan import Plan
from boli.site.kit import Kit, SiteFolder
from boli.site.limits import Limits

PROMISE = (
    "A plan reaches no text below the data folder but what the site's limits name, and never what "
    "was dropped, is hidden, or lies outside."
)
SECRET = "canary"
ROGUE = (
    {"path": "clean/dropped", "column": "excerpt"},
    {"path": "clean/dropped"},
    {"path": "clean", "column": "excerpt"},
    {"path": ".mail/inbox.txt"},
    {"path": "archive/source.toml", "format": "txt"},
    {"path": "link.txt"},
    {"path": "folder/outside.txt"},
    {"path": "patients.csv", "format": "txt"},
    {"path": "../outside.txt"},
    {"path": "heap"},
    {"path": "mag.txt", "held_out_by": ".mail/inbox.txt"},
)


def attack(folder: Path, *, fast: bool) -> Outcome:
    data = _data_folder(folder, with_prepare=not fast)
    state = folder / "state"
    taken, readable = [], 0
    for source in ROGUE:
        kit = Kit(run="curious-1", plan=json.loads(_plan(source).model_dump_json()))
        for limits in (Limits(), Limits(text=("**",), min_tokens=1, min_judged_lines=1)):
            if limits.text == ("**",) and source["path"] == "patients.csv":
                continue  # which "**" names
            try:
                SiteFolder("gaya", data, state, None, limits).plan_here(kit)
            except LimitError:
                continue
            taken.append(str(source))
        readable += _gives_secrets_away(data, source)
    harmless = Kit(run="curious-1", plan=json.loads(_plan({"path": "mag.txt"}).model_dump_json()))
    SiteFolder("gaya", data, state, None, LENIENT).plan_here(harmless)
    prepared = Kit(run="curious-1", plan=json.loads(_plan({"path": "clean"}).model_dump_json()))
    SiteFolder("gaya", data, state, None, LENIENT).plan_here(prepared)
    observed = f"read: {taken}" if taken else f"{len(ROGUE)} of {len(ROGUE)} refused"
    control = f"{readable} of {len(ROGUE)} give secrets away where the plan is one's own"
    return Outcome(not taken, observed, control if readable >= 6 else "")


def _plan(source: dict[str, str]) -> Plan:
    model = plan_of(Path("base")).model.model_dump()
    model["adapter"] = {"kind": "lora"}
    model["local_steps"] |= {"batch_sequences": 64}
    return plan_of(
        Path("base"),
        model=model,
        rounds={"total": 5, "local_steps": 64},
        site=[{"name": "gaya", "language": "mag", "text": [source]}],
    )


def _gives_secrets_away(data: Path, source: dict[str, str]) -> bool:
    """Tell whether what a source reads holds a secret: boli itself reads what its user may read."""
    plan = _plan(source)
    plan = plan.model_copy(update={"corpus": plan.corpus.model_copy(update={"root": str(data)})})
    try:
        splits = read_split(plan, plan.site[0].text, "mag")
    except BoliError:
        return False
    return any(SECRET in line for split in splits.values() for line in split.train)


def _data_folder(folder: Path, *, with_prepare: bool) -> Path:
    """Fill a data folder as sites have them."""
    data = folder / "text"
    secrets = "\n".join(f"{SECRET} number {i} of a patient" for i in range(200))
    ordinary = "\n".join(f"an ordinary line of text, number {i}" for i in range(200))
    for name, content in {
        "mag.txt": ordinary,
        ".mail/inbox.txt": secrets,
        "archive/source.toml": secrets,
        "archive/one.txt": ordinary,
        "patients.csv": secrets,
        "../outside.txt": secrets,
    }.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(content, encoding="utf-8")
    (data / "link.txt").symlink_to(folder / "outside.txt")
    (data / "folder").symlink_to(folder)
    if with_prepare:
        sources = folder / "sources"
        sources.mkdir()
        (sources / "a.txt").write_text(
            "\n\n".join(f"{SECRET} {i}" for i in range(300)) + "\n\n" + ordinary, encoding="utf-8"
        )
        words = ("prepare", sources, "--language", "mag", "--out", data / "clean")
        done = boli(*words, home=folder / "home")
        assert (data / "clean" / "preparation.json").exists(), done.stdout + done.stderr
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for name, text, other in (("records", ordinary, secrets), ("dropped", secrets, secrets)):
            (data / "clean" / name).mkdir(parents=True)
            columns = {"text": text.split("\n"), "excerpt": other.split("\n")}
            pq.write_table(pa.table(columns), data / "clean" / name / "0.parquet")
        (data / "clean" / "preparation.json").write_text("{}")
    (data / "heap").mkdir()
    (data / "heap" / "0.parquet").symlink_to(
        next((data / "clean" / "dropped").glob("*.parquet"), data / "clean" / "dropped")
    )
    return data
