"""Reading a plan: a TOML file and `--set` overrides in, a validated `Plan` out.

Errors are told in the words of the file: the key, its value, what is wrong with
it, and the nearest key that there is.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from boli.errors import PlanError
from boli.plan import TOKENIZERS, Plan
from boli.plan_rounds import Section

RELATIVE_TO_HERE = ("corpus.root", "model.base.path", "model.base.micro.tokenizer")


def load_plan(path: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Read a plan file; `overrides` are `section.key=value` with values as in TOML.

    Paths in the file are relative to its folder, those in overrides to the
    current folder. A site's keys are `site.NAME.key`.

    Raises:
        PlanError: the file is missing, is not TOML, or does not validate.
    """
    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlanError(f"there is no plan at {path}", _nearby_plans(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"cannot read {path}: {error}", "plans are UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{path} is not TOML: {error}", "mend that line") from None
    _anchor_paths(tables, path.parent)
    for override in overrides:
        _set(tables, override)
    return plan_from_tables(tables, str(path))


def plan_from_tables(
    tables: Mapping[str, Any],
    origin: str = "the plan",
    extra: Literal["forbid", "ignore"] = "forbid",  # keys that are not known
) -> Plan:
    """Validate nested tables, as TOML or JSON gives them.

    Raises:
        PlanError: names every key that is wrong, with its value.
    """
    try:
        return Plan.model_validate(tables, extra=extra)
    except ValidationError as error:
        details = error.errors()
        # A tuple whose entry is wrong is reported a second time, as too short.
        details = [detail for detail in details if detail["type"] != "too_short"] or details
        problems = "\n  ".join(_describe(detail, tables) for detail in details[:8])
        raise PlanError(f"{origin} is not valid\n  {problems}") from None


def _nearby_plans(path: Path) -> str:
    there = sorted(str(other) for other in path.parent.glob("*.toml"))
    return f"there are: {', '.join(there[:5])}" if there else "give the path of a .toml file"


def _anchor_paths(tables: dict[str, Any], folder: Path) -> None:
    """Make the plan's own relative paths absolute, from the plan's folder."""
    corpus = tables.setdefault("corpus", {})
    if isinstance(corpus, dict) and isinstance(corpus.get("root", "."), str):
        corpus["root"] = str((folder / Path(corpus.get("root", ".")).expanduser()).resolve())
    base = tables.get("model", {}).get("base", {}) if isinstance(tables.get("model"), dict) else {}
    if isinstance(base, dict) and isinstance(base.get("path"), str):
        base["path"] = _folder_or_hub_id(base["path"], folder)
    micro = base.get("micro") if isinstance(base, dict) else None
    if isinstance(micro, dict) and isinstance(micro.get("tokenizer"), str):
        micro["tokenizer"] = _tokenizer(micro["tokenizer"], folder)


def _tokenizer(path: str, folder: Path) -> str:
    """Return a folder's absolute path; a word that says whose words a tokenizer is of stays."""
    return path if path in TOKENIZERS else str((folder / Path(path).expanduser()).resolve())


def _folder_or_hub_id(path: str, folder: Path) -> str:
    """A hub id has one slash and no dot in front; anything that exists here is a folder."""
    candidate = (folder / Path(path).expanduser()).resolve()
    looks_like_hub = path.count("/") <= 1 and not path.startswith((".", "/", "~"))
    return path if looks_like_hub and not candidate.exists() else str(candidate)


def _set(tables: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    parts = key.split(".")
    if not equals or not all(parts):
        raise PlanError(
            f"--set {override!r} is not section.key=value", "for example --set rounds.total=3"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    if key in RELATIVE_TO_HERE:
        here = Path.cwd()
        match key:
            case "model.base.path":
                value = _folder_or_hub_id(str(value), here)
            case "model.base.micro.tokenizer":
                value = _tokenizer(str(value), here)
            case _:
                value = str((here / Path(str(value)).expanduser()).resolve())
    table: Any = tables
    for depth, part in enumerate(parts[:-1]):
        table = _descend(table, part, ".".join(parts[: depth + 1]), override)
    if not isinstance(table, dict):
        raise PlanError(f"--set {override!r}: {'.'.join(parts[:-1])} is not a table")
    table[parts[-1]] = value


def _descend(table: Any, part: str, where: str, override: str) -> Any:
    if isinstance(table, list):
        for entry in table:
            if isinstance(entry, dict) and entry.get("name") == part:
                return entry
        names = [str(entry.get("name")) for entry in table if isinstance(entry, dict)]
        raise PlanError(f"--set {override!r}: there is no {where}", f"there are: {names}")
    if not isinstance(table, dict):
        raise PlanError(f"--set {override!r}: {where} is not a table")
    return table.setdefault(part, {})


def _describe(detail: Mapping[str, Any], tables: Mapping[str, Any]) -> str:
    """Turn one pydantic error into `key = value: what is wrong; what to change`."""
    *above, last = detail["loc"] or ("",)
    unknown = detail["type"] == "extra_forbidden"
    location = [part for part in above if not _is_union_tag(part)]
    if last != "" and (unknown or not _is_union_tag(last)):
        location.append(last)
    key = ".".join(_readable(location, tables))
    message = str(detail["msg"]).removeprefix("Value error, ")
    if unknown:
        known = sorted(_known_keys(location[:-1]))
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{key}: unknown key; {advice}"
    if detail["type"] == "missing":
        return f"{key}: is missing; add it"
    if not location:
        return message
    value = detail.get("input")
    shown = "" if isinstance(value, dict | list) else f" = {value!r}"
    return f"{key}{shown}: {message[0].lower()}{message[1:]}"


def _is_union_tag(part: object) -> bool:
    text = str(part)
    return "[" in text or text in {"tuple", "int", "str", "float", "bool", "literal"}


def _readable(location: Sequence[Any], tables: Mapping[str, Any]) -> Iterator[str]:
    table: Any = tables
    for part in location:
        try:
            table = table[part]
        except (KeyError, IndexError, TypeError):
            table = None
        named = isinstance(part, int) and isinstance(table, dict) and table.get("name")
        yield str(named or part)


def _known_keys(location: Sequence[Any]) -> set[str]:
    section: Any = Plan
    for part in location:
        if isinstance(part, int):
            continue
        section = _section_of(section.model_fields[str(part)].annotation)
    return set(section.model_fields)


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_of(inner)
        if found is not None:
            return found
    return None
