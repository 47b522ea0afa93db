"""Find every regular expression of the package boli, so that a new one cannot be forgotten.

    python tests/properties/patterns.py FILE ...

A call such as re.compile(…) or re.sub(…) is found in the source, below `SOURCE`. What it
compiles is found by running it: the modules are imported and their cached functions called,
while `re` is watched; arguments that need nothing but names of the module are evaluated.
Prints a JSON list of rows: call, operation, pattern, flags, whether it is of bytes.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from boli.errors import BoliError

SOURCE = Path(__file__).resolve().parents[2] / "src"
LANGUAGES = ("bho", "urd")  # for functions that make patterns for a language
SAMPLES = {  # calls of functions that make patterns and are not cached, by file
    "boli/corpus/pii_addresses.py": lambda module: module._undotted("ram dot kumar"),
}


@dataclass(frozen=True)
class Call:
    """A call of a function of re, at some lines of a file."""

    file: str  # below SOURCE
    first: int
    last: int
    operation: str  # compile, sub, match …
    node: ast.Call

    @property
    def name(self) -> str:
        return f"{self.file}:{self.first}"


def calls() -> Iterator[Call]:
    """Yield every call of `re` in the source that compiles a pattern."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in ("re", "regex"):
                raise AssertionError(f"{path} hides calls of {node.module}; use import re")
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr=operation)):
                    if operation != "escape":
                        file = str(path.relative_to(SOURCE))
                        yield Call(file, node.lineno, node.end_lineno or 0, operation, node)


def module_of(file: str) -> ModuleType:
    """Import the module of a file below SOURCE."""
    return importlib.import_module(".".join(Path(file).with_suffix("").parts))


def watched(files: set[str]) -> Iterator[tuple[str, int, re.Pattern[Any]]]:
    """Import modules and call their cached functions; yield what they compile, and where."""
    compiled: list[tuple[str, int, re.Pattern[Any]]] = []
    original = re._compile  # type: ignore[attr-defined]

    def note(pattern: Any, flags: int) -> re.Pattern[Any]:
        made: re.Pattern[Any] = original(pattern, flags)
        frame = sys._getframe(1)
        while frame.f_code.co_filename == re.__file__ and frame.f_back is not None:
            frame = frame.f_back
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(SOURCE):
            compiled.append((str(path.relative_to(SOURCE)), frame.f_lineno, made))
        return made

    re._compile = note  # type: ignore[attr-defined]
    for file in sorted(files):
        module = module_of(file)
        SAMPLES.get(file, lambda _: None)(module)
        for value in list(vars(module).values()):
            if hasattr(value, "cache_info"):
                wanted = list(inspect.signature(value).parameters)
                if not wanted:
                    value()
                elif wanted == ["language"]:
                    for language in LANGUAGES:
                        with contextlib.suppress(BoliError):  # it knows others
                            value(language)
    re._compile = original  # type: ignore[attr-defined]
    yield from compiled


def evaluated(call: Call) -> re.Pattern[Any] | None:
    """Return the pattern of a call whose arguments need nothing but names of its module."""
    flags = {keyword.arg: keyword.value for keyword in call.node.keywords}.get("flags")
    if call.operation in ("compile", "match", "fullmatch", "search", "findall", "finditer"):
        flags = flags or (call.node.args[1:] and call.operation == "compile" and call.node.args[1])
    names = vars(module_of(call.file))

    def value_of(node: ast.expr) -> Any:
        return eval(compile(ast.Expression(node), call.file, "eval"), dict(names))

    try:
        return re.compile(value_of(call.node.args[0]), value_of(flags) if flags else 0)
    except NameError:  # of the function that it is in
        return None


def main(files: list[str]) -> None:
    found = list(watched(set(files)))
    rows = []
    for call in calls():
        if call.file not in files:
            continue
        patterns = {
            pattern
            for file, line, pattern in found
            if file == call.file and call.first <= line <= call.last
        }
        more = None if patterns else evaluated(call)
        for pattern in sorted(patterns | ({more} if more else set()), key=repr):
            is_bytes = isinstance(pattern.pattern, bytes)
            text = pattern.pattern.decode("latin-1") if is_bytes else pattern.pattern
            rows.append([call.name, call.operation, text, pattern.flags, is_bytes])
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
