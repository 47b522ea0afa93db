"""The figures of a run, made from its folder alone; every fact counts once.

docs/reference/report.md documents them field by field.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from boli.durable import is_locked, write_file
from boli.errors import RunError
from boli.evaluation.card import exported_figures
from boli.evaluation.page import page
from boli.evaluation.paired import Comparison, together
from boli.evaluation.told import Lane, Told, made
from boli.evaluation.verdict import RIVALS, Coded, beside, facts, verdict, winner
from boli.journal import (
    Evaluated,
    UpdateAccepted,
    UpdateRejected,
    read_journal,
)
from boli.model.layout import Layout
from boli.rounds.integrity import verify
from boli.signature import own_fingerprint

SCHEMA = 1
FLOAT32_BYTES = 4


def figures(folder: Path) -> dict[str, Any]:
    """Return what report.json holds: facts from plan.json, run.json and journal.jsonl.

    Raises:
        CorruptFileError: the journal is missing or was altered.
        RunError: plan.json or run.json cannot be read, or nothing has happened yet.
    """
    plan = _read_json(folder / "plan.json")
    told = _told(folder, plan)
    prepared = _read_json(folder / "run.json")
    sites = {site["name"]: _site(told, site) for site in plan["site"]}
    languages, compared, forgetting = _languages(told, plan)
    with_ppmd = {site for site, *_ in told.ppmd}
    own = own_fingerprint()
    curves = {code: _curve(told, code) for code in languages}
    found = {
        "schema": SCHEMA,
        "run": prepared["run"],
        "plan": {"name": plan["name"], "digest": told.plan, "settings": plan},
        "boli": told.boli,
        "status": _status(folder, told),
        "failure": told.failure,
        "mode": plan["rounds"]["mode"],
        "journal": verify(folder, None, own=own, signer=own, checkpoint=False).facts(),
        "version": told.version,
        "num_entries": Layout.from_description(prepared["layout"]).size,
        "started": told.first,
        "seconds": told.seconds,
        "preparation_seconds": told.preparation_seconds,
        "tokens": sum(site["tokens"] for site in sites.values()),
        "languages": languages,
        "mean": _mean(languages, compared),
        "without_ppmd": sorted({site for site, *_ in told.six_gram if site not in with_ppmd}),
        "forgetting": forgetting,
        "exported": None if told.exported is None else exported_figures(told.exported),
        "judged_versions": _judged_versions(told),
        "sites": sites,
        "rounds": _rounds(told, sites),
        "curve": {code: points for code, points in curves.items() if points},
        **_traffic(sites, told.version, prepared["site_layouts"]),
        "timeline": {name: lane.spans for name, lane in told.lanes.items()},
        "interruptions": told.stops,
    }
    # A model that diverged gives NaN, which JSON does not have: it becomes null.
    finite: dict[str, Any] = json.loads(json.dumps(found), parse_constant=lambda _: None)
    return finite


def write_report(folder: Path) -> Path:
    """Write report.json and report.html; returns the page's path.

    Raises:
        CorruptFileError: the journal is missing or was altered.
        RunError: plan.json or run.json cannot be read, or nothing has happened yet.
        StorageError: the disk is full or refuses.
    """
    found = figures(folder)
    write_file(folder / "report.json", json.dumps(found, indent=1, allow_nan=False).encode())
    write_file(folder / "report.html", page(found).encode())
    return folder / "report.html"


def _told(folder: Path, plan: Mapping[str, Any]) -> Told:
    told = Told({site["name"]: Lane() for site in plan["site"]})
    for entry in read_journal(folder / "journal.jsonl"):
        told.tell(entry)
    if told.first is None or not (folder / "run.json").exists():
        raise RunError(f"run {folder.name} has not begun", "wait until its base is prepared")
    return told


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}", "restore it from a copy") from None


def _status(folder: Path, told: Told) -> str:
    """A run that was killed leaves no last word; whether one goes on, its lock tells."""
    if told.finished is not None:
        return "finished"
    if told.stops and told.stops[-1]["resumed"] is None:
        return "interrupted"
    return "running" if is_locked(folder) else "interrupted"


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None


def _change(before: float | None, after: float | None) -> float | None:
    return None if not before or after is None else (after / before - 1) * 100


def _weighed(judged: Iterable[Coded]) -> float | None:
    """Return bits per byte of several sites' text together."""
    there = list(judged)
    return _ratio(sum(event.bits for event in there), sum(event.bytes for event in there))


def _judgements(
    told: Told, language: str, part: str, *, base: bool
) -> dict[int, dict[str, Evaluated]]:
    """Return version to site to judgement; `base` asks for the coordinator's own."""
    found: dict[int, dict[str, Evaluated]] = defaultdict(dict)
    for (site, code, where, version), event in sorted(told.judged.items()):
        if (code, where, site == "") == (language, part, base):
            found[version][site] = event
    return found


Compared = dict[tuple[str, str], Comparison]  # by two rows: "model" or "mixed", and another


def _language(told: Told, language: str, sites: list[str]) -> tuple[dict[str, Any], Compared]:
    """Compare version 0 with the last version judged, on the same sites' text.

    Without sites, it is the language of the base, and the coordinator judges.
    """
    role = "site" if sites else "base"
    found: dict[str, Any] = {"role": role, "sites": sites, "before": {}, "after": {}}
    found |= {"six_gram": {}, "ppmd": None, "mixed": None}
    compared: Compared = {}
    for part in ("tuning", "test"):
        by_version = _judgements(told, language, part, base=not sites)
        last = max((version for version in by_version if version), default=None)
        if told.exported is not None and last is not None:
            last = told.exported.version  # also where nobody judged it
        first = by_version.get(0, {})
        now = first if last is None else by_version.get(last, {})
        both = [site for site in now if site in first]
        judged = [now[site] for site in both or now]
        found["before"][part] = _weighed(first[site] for site in both)
        found["after"][part] = None if last is None else _weighed(judged)
        found["six_gram"][part] = _beside(told.six_gram, both or now, language, part)
        if part == "test":
            found["ppmd"] = _beside(told.ppmd, both or now, language, part)
        if part == "test" and last is not None:
            found["mixed"] = _beside(told.mixed, both or now, language, part, last)
            compared = _compared(told, language, last, sorted(both or now))
        found[f"{part}_version"] = last
        found[f"{part}_bytes"] = sum(event.bytes for event in judged)
    found["change_percent"] = _change(found["before"]["test"], found["after"]["test"])
    found["against_six_gram_percent"] = _change(found["six_gram"]["test"], found["after"]["test"])
    first_of = next(iter(compared.values()), None)
    found["documents"] = None if first_of is None else first_of.num_documents or None
    return found | (_verdict(compared) if sites else {}), compared


def _compared(told: Told, language: str, version: int, sites: Sequence[str]) -> Compared:
    """Compare rows of the test part of several sites, where every one of them told both."""
    part = "test"
    rows: dict[str, list[Coded | None]] = {
        "model": [told.judged.get((site, language, part, version)) for site in sites],
        "mixed": [told.mixed.get((site, language, part, version)) for site in sites],
        "base": [told.judged.get((site, language, part, 0)) for site in sites],
        "six_gram": [told.six_gram.get((site, language, part)) for site in sites],
        "ppmd": [told.ppmd.get((site, language, part)) for site in sites],
    }
    found: Compared = {}
    for a, b in (*(("model", rival) for rival in RIVALS), ("mixed", "six_gram")):
        parts, sizes = [], []
        for site, ours, theirs in zip(sites, rows[a], rows[b], strict=True):
            if ours is None or theirs is None:
                break
            told_by = told.differences.get((site, language, a, b, version))
            parts.append(beside(ours, theirs, told_by))
            sizes.append(float(ours.bytes))
        whole = [each for each in parts if each is not None]
        if whole and len(whole) == len(sites):
            found[a, b] = together(whole, sizes)
    return found


def _verdict(compared: Compared) -> dict[str, Any]:
    """Return the differences, and who wins by them, as report.json has them."""
    rivals = {b: found for (a, b), found in compared.items() if a == "model"}
    told = {b if a == "model" else f"{a}_to_{b}": facts(f) for (a, b), f in compared.items()}
    return {"differences": told, "winner": winner(rivals), "verdict": verdict(rivals)}


def _beside(told: Mapping[Any, Any], sites: Iterable[str], *where: str | int) -> float | None:
    """Return bits per byte of what n-grams need for the text of these sites, if all told it."""
    found = [told.get((site, *where)) for site in sites]
    return None if None in found else _weighed(one for one in found if one is not None)


def _languages(
    told: Told, plan: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Compared], dict[str, Any] | None]:
    """Return figures and comparisons by language, and the base's own as the coordinator judged."""
    holders: dict[str, list[str]] = {}
    for site in plan["site"]:
        for code in {source["language"] or site["language"]: None for source in site["text"]}:
            holders.setdefault(code, []).append(site["name"])
    both = {code: _language(told, code, sites) for code, sites in holders.items()}
    found = {code: figures for code, (figures, _) in both.items()}
    compared = {code: each for code, (_, each) in both.items()}
    code = plan["model"]["base"]["language"]
    base, _ = _language(told, code, [])
    if not base["test_bytes"]:
        return found, compared, None
    found.setdefault(code, base)
    forgetting = {when: base[when]["test"] for when in ("before", "after")}
    kept = {key: base[key] for key in ("change_percent", "test_bytes")}
    return found, compared, {"language": code, **forgetting, **kept}


def _mean(languages: Mapping[str, Any], compared: Mapping[str, Compared]) -> dict[str, Any]:
    """Average the test part over the sites' languages, over the same ones before and after."""
    ours = {code: each for code, each in languages.items() if each["role"] == "site"}
    both = [code for code, each in ours.items() if each["change_percent"] is not None]
    over = both or [code for code, each in ours.items() if each["before"]["test"] is not None]
    before = _ratio(sum(ours[code]["before"]["test"] for code in over), len(over))
    after = _ratio(sum(ours[code]["after"]["test"] for code in both), len(both))
    found = {
        "before": before,
        "after": after,
        "change_percent": _change(before, after),
        "languages": over,
    }
    each = [compared[code] for code in over]
    means = {
        rows: together([one[rows] for one in each])
        for rows in (each[0] if each else ())
        if all(rows in one for one in each)
    }
    return found | _mean_beside([ours[code] for code in over]) | _verdict(means)


def _mean_beside(languages: list[dict[str, Any]]) -> dict[str, Any]:
    """Average what n-grams need over the same languages; null where one does not say it."""
    found: dict[str, Any] = {}
    for key, values in {
        "six_gram": [each["six_gram"]["test"] for each in languages],
        "ppmd": [each["ppmd"] for each in languages],
        "mixed": [each["mixed"] for each in languages],
        "after": [each["after"]["test"] for each in languages],
    }.items():
        told = [value for value in values if value is not None]
        found[key] = _ratio(sum(told), len(told)) if len(told) == len(values) else None
    against = _change(found["six_gram"], found.pop("after"))
    return found | {"against_six_gram_percent": against}


def _curve(told: Told, language: str) -> list[list[float | int | None]]:
    """Return [version, tokens, bits per byte of the tuning part]; each site's latest counts."""
    latest: dict[str, Evaluated] = {}
    points: list[list[float | int | None]] = []
    for version, by_site in sorted(_judgements(told, language, "tuning", base=False).items()):
        if version in told.restored:
            continue  # its point is there already, at the round that made it
        latest |= by_site
        step = told.rounds.get(version)
        tokens = step[1].tokens if step else None if version else 0
        points.append([version, tokens, _weighed(latest.values())])
    return points


def _site(told: Told, site: Mapping[str, Any]) -> dict[str, Any]:
    name = site["name"]
    mine = [answer for (owner, _), answer in told.answers.items() if owner == name]
    updates = [answer for answer in mine if isinstance(answer, UpdateAccepted)]
    refused = Counter(answer.reason for answer in mine if isinstance(answer, UpdateRejected))

    def total(figure: str) -> Any:
        return sum(getattr(update, figure) for update in updates)

    idle, work = total("idle_seconds"), total("work_seconds")
    ages = [update.staleness for update in updates]
    return {
        "language": site["language"],
        "num_lines": told.num_lines.get(name, {}),
        "updates": len(updates),
        "local_steps": total("local_steps"),
        "tokens": total("tokens"),
        "tokens_per_second": _ratio(total("tokens"), total("train_seconds")),
        "train_seconds": total("train_seconds"),
        "evaluate_seconds": total("evaluate_seconds"),
        "work_seconds": work,
        "idle_seconds": idle,
        "idle_percent": _ratio(100 * idle, idle + work),
        "bytes_up": total("bytes_up"),
        "bytes_down": sum(down for (owner, _), down in told.bytes_down.items() if owner == name),
        "staleness": {"mean": _ratio(sum(ages), len(ages)), "max": max(ages, default=None)},
        "rejected": dict(refused),
        "benched": told.benched.get(name),
        "comparison": _comparison(told, name),
        "restarts": sum(count for (owner, _), count in told.restarts.items() if owner == name),
    }


def _judged_versions(told: Told) -> list[dict[str, Any]]:
    """Return the versions that were judged for export, in order, each by the round that made it."""
    return [
        {
            "version": version,
            "made": _made(told, version),
            "score": event.score,
            "sites": event.sites,
            "kept": event.kept,
        }
        for version, event in sorted(told.judged_versions.items())
    ]


def _made(told: Told, version: int) -> int:
    restored = told.restored.get(version)
    return version if restored is None else restored.restored


def _comparison(told: Told, site: str) -> dict[str, Any]:
    """Return how a site's updates and judgements stand beside those of the others."""
    rounds = _weighed_updates(told, site) or _norms(told, site)
    shares = [norm / bound for _, norm, bound, _, _ in rounds if bound]
    directions = [direction for _, _, _, direction, _ in rounds if direction is not None]
    judged = [e.sites[site] for _, e in sorted(told.judged_versions.items()) if site in e.sites]
    return {
        "norm_of_bound": {
            "mean": _ratio(sum(shares), len(shares)),
            "max": max(shares, default=None),
        },
        "direction": {
            "mean": _ratio(sum(directions), len(directions)),
            "min": min(directions, default=None),
        },
        "judged_percent": (judged[-1] - 1) * 100 if judged else None,
        "offences": rounds[-1][-1] if rounds else 0,
        "rounds": [list(each) for each in rounds],
    }


# version, norm, bound, direction, offences so far
Normed = tuple[int, float, float | None, float | None, int]


def _weighed_updates(told: Told, site: str) -> list[Normed]:
    found: list[Normed] = []
    offences = 0
    for (version, name, _), event in sorted(told.weighed.items()):
        if name == site:
            offences += bool(event.offence)
            found.append((version, event.norm, event.bound or None, event.direction, offences))
    return found


def _norms(told: Told, site: str) -> list[Normed]:
    """Return the same of a run that compared nothing: what its updates say of themselves."""
    found: list[Normed] = []
    for update in sorted((u for u in told.updates if u.site == site), key=made):
        bound = update.norm * update.scaled if update.scaled < 1 else None
        found.append((made(update), update.norm, bound, None, 0))
    return found


def _rounds(told: Told, sites: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one entry a version; a loss is the mean over the tokens of a site language."""
    folded: dict[int, dict[str, list[UpdateAccepted]]] = defaultdict(lambda: defaultdict(list))
    for update in told.updates:
        folded[made(update)][sites[update.site]["language"]].append(update)
    return [
        {
            "version": version,
            "tokens": step.tokens,
            "seconds": seconds,
            "step_norm": step.step_norm,
            "num_updates": step.num_updates,
            **_bytes_of_round(told, version, _all(folded[version]), sites),
            "residual_norm": _ratio(
                sum(update.residual_norm for update in _all(folded[version])), step.num_updates
            ),
            "loss": {
                code: _mean_loss(updates) for code, updates in sorted(folded[version].items())
            },
        }
        for version, (seconds, step) in sorted(told.rounds.items())
    ]


def _bytes_of_round(
    told: Told, version: int, updates: Iterable[UpdateAccepted], sites: Iterable[str]
) -> dict[str, Any]:
    """Return bytes by site: up in the updates that made a version, down with the work for it."""
    up = dict.fromkeys(sites, 0)
    for update in updates:
        up[update.site] += update.bytes_up
    last = version == told.version  # what follows it is only to judge it
    down = {
        name: told.bytes_down[name, version - 1]
        + sum(told.bytes_down[name, judged] for judged in (version, *told.restored) if last)
        for name in up
    }
    return {"bytes_up": up, "bytes_down": down}


def _all(by_language: Mapping[str, list[UpdateAccepted]]) -> list[UpdateAccepted]:
    return [update for updates in by_language.values() for update in updates]


def _mean_loss(updates: Iterable[UpdateAccepted]) -> float | None:
    weighed = [(update.loss * update.tokens, update.tokens) for update in updates]
    return _ratio(sum(loss for loss, _ in weighed), sum(tokens for _, tokens in weighed))


def _traffic(sites: Mapping[str, Any], version: int, layouts: Mapping[str, Any]) -> dict[str, Any]:
    """Return bytes of the run, and how many times more a dense exchange would have taken."""
    up = sum(site["bytes_up"] for site in sites.values())
    down = sum(site["bytes_down"] for site in sites.values())
    dense = {"local_steps": 0, "updates": 0}  # bytes, up and down each time
    for name, site in sites.items():
        size = Layout.from_description(layouts[name]).size
        for count in dense:
            dense[count] += site[count] * 2 * FLOAT32_BYTES * size
    per_round = {"up_per_round": _ratio(up, version), "down_per_round": _ratio(down, version)}
    return {
        "bytes": {"up": up, "down": down, **per_round},
        "compression_ratio": {
            "every_local_step": _ratio(dense["local_steps"], up + down),
            "every_round": _ratio(dense["updates"], up + down),
        },
    }
