from __future__ import annotations

from pathlib import Path

import pytest

from boli.errors import PoolError
from boli.pool.address import parse_address


def test_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_address("pool").folder == tmp_path / "pool"
    assert parse_address(f"file://{tmp_path}/pool").url == f"{tmp_path}/pool"


def test_s3_address_takes_endpoint_and_region_from_its_query(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://elsewhere")
    address = parse_address("s3://texts/a/b?endpoint=http://127.0.0.1:9000/&region=ap-south-1")
    assert address.url == "s3://texts/a/b"
    assert address.table("records") == "s3://texts/a/b/records"
    assert address.options["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9000"
    assert address.options["AWS_ALLOW_HTTP"] == "true"
    assert address.options["AWS_REGION"] == "ap-south-1"
    assert address.options["AWS_CONDITIONAL_PUT"] == "etag"


def test_s3_address_falls_back_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://store.example")
    options = parse_address("s3://texts/pool").options
    assert options["AWS_ENDPOINT_URL"] == "https://store.example"
    assert options["AWS_ALLOW_HTTP"] == "false"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a\0b",
        "a\nb",
        "http://host/pool",
        "s3://",
        "s3://texts",
        "s3://texts/../other",
        "s3://texts/a/../../b",
        "s3://texts/a//b",
        "s3://texts/a%2fb",
        "s3://key:secret@texts/a",
        "s3://texts/a?secret=1",
        "s3://texts/a#b",
        "s3://TEXTS/a",
        "s3://[/a",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(PoolError):
        parse_address(text)


def test_a_secret_in_an_address_is_not_repeated() -> None:
    with pytest.raises(PoolError) as error:
        parse_address("s3://key:hunter2@texts/a")
    assert "hunter2" not in str(error.value)


def test_put_replaces_and_delete_takes_what_is_gone_for_gone(tmp_path: Path) -> None:
    address = parse_address(str(tmp_path))
    address.put("README.md", b"one")
    address.put("README.md", b"two")
    assert address.files("") == ["README.md"]
    assert (tmp_path / "README.md").read_bytes() == b"two"
    address.delete(["gone", "README.md"])
    assert address.files("") == []
