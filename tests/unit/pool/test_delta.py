from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import deltalake
import pyarrow
import pytest

from boli.errors import PoolError
from boli.pool.delta import ConflictError, told
from boli.pool.table import open_pool

CONFLICTS = [
    deltalake.exceptions.CommitFailedError("Metadata changed since last commit."),
    deltalake.exceptions.DeltaError("Kernel error: File not found: 00000000000000000075.json"),
    deltalake.exceptions.DeltaError("Invalid table version: 102"),
    FileNotFoundError(2, "No such file or directory"),
]
OTHERS = [
    deltalake.exceptions.TableNotFoundError("not found"),
    deltalake.exceptions.DeltaError("\x1b[31m↳\x1b[0m Error performing GET"),
    OSError(5, "Input/output error"),
    OSError("404 Not Found <Code>NoSuchBucket</Code>"),
    pyarrow.ArrowInvalid("Parquet magic bytes not found in footer"),
]


@pytest.mark.parametrize("error", CONFLICTS, ids=repr)
def test_what_another_commit_did_is_a_conflict(error: Exception) -> None:
    with pytest.raises(ConflictError, match="changed in between"), told("pool"):
        raise error


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_all_else_is_an_error_of_the_pool(error: Exception) -> None:
    with pytest.raises(PoolError) as found, told("pool"):
        raise error
    assert not isinstance(found.value, ConflictError)
    assert "\x1b" not in str(found.value)


def test_missing_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def without(name: str, *values: Any, **more: Any) -> Any:
        if name.startswith("deltalake"):
            raise ImportError(name)
        return whole(name, *values, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PoolError) as error:
        open_pool(str(tmp_path))
    assert error.value.hint == "pip install 'boli[pool]'"
    assert error.value.exit_code == 21
