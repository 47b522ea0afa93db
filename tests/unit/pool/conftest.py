"""A pool in a folder, and an egress log."""

from __future__ import annotations

from pathlib import Path

import pytest

from boli.pool.egress_log import EgressLog
from boli.pool.table import Pool, create_pool


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return create_pool(str(tmp_path / "pool"), "bhojpuri", "IN-BR")


@pytest.fixture
def log(tmp_path: Path) -> EgressLog:
    return EgressLog(tmp_path / "egress")
