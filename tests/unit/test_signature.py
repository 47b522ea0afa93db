from __future__ import annotations

import stat
from pathlib import Path

import pytest

from boli.errors import CorruptFileError
from boli.signature import fingerprint, is_signed_by, key_path, own_fingerprint, own_key


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BOLI_HOME", str(tmp_path))
    return tmp_path


def test_key_is_made_once_and_for_its_owner_alone() -> None:
    assert own_fingerprint() == ""
    key = own_key()
    assert own_key().public == key.public
    assert own_fingerprint() == key.fingerprint == fingerprint(key.public)
    assert stat.S_IMODE(key_path().stat().st_mode) == 0o600


def test_signature_holds_for_its_message_and_key_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = own_key()
    signature = key.sign(b"message")
    assert is_signed_by(key.public, b"message", signature)
    assert not is_signed_by(key.public, b"massage", signature)
    monkeypatch.setenv("BOLI_HOME", str(tmp_path / "other"))
    assert own_key().public != key.public
    assert not is_signed_by(own_key().public, b"message", signature)
    for malformed in ("", "zz", signature[:-2], signature + "00"):
        assert not is_signed_by(key.public, b"message", malformed)
        assert not is_signed_by(malformed, b"message", signature)


def test_file_that_is_no_key_is_refused_and_kept() -> None:
    own_key()
    key_path().write_text("not a key")
    with pytest.raises(CorruptFileError, match="is not a signing key") as caught:
        own_key()
    assert "--adopt" in caught.value.hint
    assert key_path().read_text() == "not a key"
