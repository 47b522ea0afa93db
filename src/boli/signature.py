"""The Ed25519 key with which this machine signs its journals' heads.

One key for each BOLI_HOME, made on first use, readable by its owner alone. Whoever has it can
sign anything: a signature shows that nobody else has changed what it covers.

Source: Bernstein et al. 2011, as RFC 8032 has it. https://www.rfc-editor.org/rfc/rfc8032
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from boli.durable import locked, write_file
from boli.errors import CorruptFileError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

LOCK_SECONDS = 10.0
FINGERPRINT_DIGITS = 32  # 128 bits


@dataclass(frozen=True)
class SigningKey:
    """A private key; `public` is its other half, 64 hexadecimal digits."""

    private: Ed25519PrivateKey

    @property
    def public(self) -> str:
        """The key that others check signatures with."""
        return self.private.public_key().public_bytes_raw().hex()

    @property
    def fingerprint(self) -> str:
        """The short form of the public key."""
        return fingerprint(self.public)

    def sign(self, message: bytes) -> str:
        """Return the signature of a message, 128 hexadecimal digits."""
        return self.private.sign(message).hex()


def fingerprint(public: str) -> str:
    """Return the short form of a public key, for people to compare."""
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()[:FINGERPRINT_DIGITS]


def is_signed_by(public: str, message: bytes, signature: str) -> bool:
    """Tell whether this key made this signature; False also where either is malformed."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        key.verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def key_path() -> Path:
    """Return where this machine's key is: in BOLI_HOME, or in ~/.boli."""
    home = Path(os.environ.get("BOLI_HOME") or Path.home() / ".boli")
    return home / "keys" / "journal.key"


def _note_of(run: str) -> Path:
    return key_path().parent / "sealed" / hashlib.sha256(run.encode()).hexdigest()


def note_sealed(run: str) -> None:
    """Note that this machine signs a run's journal: from then on it is not one without a head.

    Raises:
        StorageError: the note cannot be written.
    """
    if not was_sealed(run):
        write_file(_note_of(run), run.encode())


def was_sealed(run: str) -> bool:
    """Tell whether this machine has signed the journal of a run of this name."""
    return _note_of(run).exists()


def own_fingerprint() -> str:
    """Return the fingerprint of this machine's key; empty where it has none yet.

    Raises:
        CorruptFileError: the file is not a key.
    """
    path = key_path()
    return _read(path).fingerprint if path.exists() else ""


def own_key() -> SigningKey:
    """Return this machine's key, made where there is none yet.

    Raises:
        CorruptFileError: the file is not a key.
        StorageError: the key cannot be written.
    """
    path = key_path()
    if not path.exists():
        with locked(path.parent, "the key folder", LOCK_SECONDS):
            if not path.exists():  # another process was first
                write_file(path, os.urandom(32).hex().encode(), private=True)
    return _read(path)


def _read(path: Path) -> SigningKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        return SigningKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text())))
    except (OSError, ValueError) as error:
        raise CorruptFileError(
            f"{path} is not a signing key: {error}",
            "restore it from a copy; or move it away: a new key is made, and "
            "boli verify RUN --adopt signs each run again",
        ) from None
