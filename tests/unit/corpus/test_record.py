from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from boli.corpus.record import read_rows

ARRAY = "import pyarrow as pa; pa.array(['a'])"
HIDE = "from boli.corpus.record import without_pandas; without_pandas(); "


def runs(tmp_path: Path, code: str) -> bool:
    """Run code beside a pandas that cannot be imported; say whether all went well."""
    (tmp_path / "pandas").mkdir(exist_ok=True)
    (tmp_path / "pandas" / "__init__.py").write_text("raise SystemExit('pandas was imported')")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False)
    return done.returncode == 0


def test_pandas_is_not_imported_for_an_array(tmp_path: Path) -> None:
    assert runs(tmp_path, HIDE + ARRAY)
    assert not runs(tmp_path, ARRAY)  # control
    assert not runs(tmp_path, HIDE + "import pandas")  # others may still have it


def test_preparing_imports_no_pandas(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "one.txt").write_text("यह एक छोटा सा वाक्य है जो यहाँ लिखा है।\n" * 3)
    arguments = ["prepare", str(tmp_path / "text"), "--language", "hin", "--workers", "1"]
    arguments += ["--out", str(tmp_path / "out")]
    code = f"from boli.cli.main import script; import sys; sys.argv[1:] = {arguments}; script()"
    assert runs(tmp_path, code)
    assert read_rows(next((tmp_path / "out" / "records").glob("*.parquet"))).num_rows == 1
