"""Who may come in: the coordinator's own keys and certificates, and one key for each site.

Everything is made on first use, in one folder. The names of sites and their public
keys are kept; a site's seed is in the invitation alone. Certificates are valid from
2000 to 2120, because a site's clock may be off by years; an authority of our own,
which the invitation carries, is what they are checked against.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from boli.durable import locked, write_file
from boli.errors import TransportError
from boli.plan import NAME

SERVER_NAME = "boli"  # in the certificate, wherever the server is
VALID_FROM, VALID_UNTIL = datetime(2000, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)
PORT = 4222


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int = PORT

    @classmethod
    def of(cls, text: str) -> Address:
        """Read HOST or HOST:PORT, with an IPv6 host in brackets.

        Raises:
            TransportError: it is neither.
        """
        host, colon, port = text.rpartition(":")
        if not colon or text.endswith("]"):
            host, port = text, str(PORT)
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise TransportError(f"{text!r} is no address", "write HOST:PORT, as in 10.0.0.5:4222")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Access:
    """How to come in at a server."""

    name: str  # of the site; empty: the coordinator
    address: Address
    seed: str  # of the key
    authority: str  # certificate, PEM


class Invitation(BaseModel):
    """What `boli invite` writes and `boli join` reads: one file for one site."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: str = Field(pattern=NAME)
    address: str
    seed: str = Field(pattern=r"^SU[A-Z2-7]{56}$")
    publish: tuple[str, ...]  # what the key may do, for the site's people to read
    subscribe: tuple[str, ...]
    authority: str  # certificate, PEM

    @classmethod
    def read(cls, path: Path) -> Invitation:
        """Read an invitation.

        Raises:
            TransportError: the file is missing or is none.
        """
        hint = "boli invite SITE --out FILE makes one, at the coordinator"
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise TransportError(f"cannot read {path}: {error.strerror}", hint) from None
        except (ValueError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise TransportError(f"{path} is not an invitation: {reason}", hint) from None

    def text(self) -> str:
        """Return the file's content."""
        listed = {"publish": list(self.publish), "subscribe": list(self.subscribe)}
        return (
            "# An invitation to a boli coordinator. Whoever has this file is this site:\n"
            "# give it to the site's people only, over a channel that you trust.\n"
            f"site = {json.dumps(self.site)}\n"
            f"address = {json.dumps(self.address)}\n"
            f"seed = {json.dumps(self.seed)}\n"
            + "".join(f"{key} = {json.dumps(value)}\n" for key, value in listed.items())
            + f'authority = """\n{self.authority}"""\n'
        )

    @property
    def access(self) -> Access:
        """How the site comes in."""
        return Access(self.site, Address.of(self.address), self.seed, self.authority)


class Guest(BaseModel):
    """A site that was invited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    public: str = ""  # key; empty: revoked
    invited: float  # Unix seconds
    revoked: float = 0.0


def may_publish(site: str) -> tuple[str, ...]:
    """Return the subjects that a site may write to: its own, and its own acknowledgements."""
    own = tuple(f"boli.{what}.{site}" for what in ("up", "join", "live", "fetch"))
    return (*own, f"$JS.ACK.{down_stream(site)}.>")


def may_subscribe(site: str) -> tuple[str, ...]:
    """Return the subjects that a site may read."""
    return (f"boli.deliver.{site}", "boli.hello", f"{inbox_of(site)}.>")


def inbox_of(site: str) -> str:
    """Return where answers to a site's requests go."""
    return f"_INBOX_{site}"


def down_stream(site: str) -> str:
    """Return the stream of what a site is sent."""
    return f"DOWN_{site}"


def up_stream(site: str) -> str:
    """Return the stream of what a site sends."""
    return f"UP_{site}"


@dataclass(frozen=True)
class Identities:
    """The folder with keys, certificates and the list of sites."""

    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "tls" / "server.pem"

    @property
    def certificate_key(self) -> Path:
        return self.folder / "tls" / "server.key"

    @property
    def authority(self) -> str:
        """The certificate that sites check the server's against, PEM."""
        return (self.folder / "tls" / "authority.pem").read_text()

    def seed(self, who: str) -> str:
        """Return the key of `coordinator` or `system`."""
        return (self.folder / "keys" / who).read_text().strip()

    def make(self) -> None:
        """Make whatever is not there yet.

        Raises:
            StorageError: the folder cannot be written.
        """
        with locked(self.folder / "keys", "the key folder", 10.0):
            for who in ("coordinator", "system"):
                if not (self.folder / "keys" / who).exists():
                    _write_secret(self.folder / "keys" / who, new_seed().encode())
            if not self.certificate.exists():
                _make_certificates(self.folder / "tls")

    def guests(self) -> dict[str, Guest]:
        """Return the sites that were ever invited."""
        path = self.folder / "sites.json"
        if not path.exists():
            return {}
        return {name: Guest(**found) for name, found in json.loads(path.read_text()).items()}

    @contextlib.contextmanager
    def _changed(self) -> Iterator[dict[str, Guest]]:
        with locked(self.folder / "keys", "the key folder", 10.0):
            guests = self.guests()
            yield guests
            found = {name: guest.model_dump() for name, guest in sorted(guests.items())}
            write_file(self.folder / "sites.json", json.dumps(found, indent=1).encode())

    def invite(self, site: str, address: Address) -> Invitation:
        """Return an invitation with a new key; an older one of the same site ends.

        Raises:
            StorageError: the list cannot be written.
        """
        self.make()
        seed = new_seed()
        with self._changed() as guests:
            guests[site] = Guest(public=public_key(seed), invited=time.time())
        return Invitation(
            site=site,
            address=str(address),
            seed=seed,
            publish=may_publish(site),
            subscribe=may_subscribe(site),
            authority=self.authority,
        )

    def revoke(self, site: str) -> None:
        """End a site's key.

        Raises:
            TransportError: there is no such site.
        """
        with self._changed() as guests:
            if site not in guests or not guests[site].public:
                there = ", ".join(name for name, guest in guests.items() if guest.public)
                raise TransportError(f"site {site!r} has no key", f"these have: {there or 'none'}")
            guests[site] = guests[site].model_copy(update={"public": "", "revoked": time.time()})

    def access(self, address: Address, who: str = "coordinator") -> Access:
        """Return how the coordinator itself comes in."""
        return Access("", address, self.seed(who), self.authority)


def new_seed() -> str:
    """Return the seed of a new Ed25519 key, as NATS writes it."""
    import nkeys

    return str(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER).decode())


def public_key(seed: str) -> str:
    """Return the public half."""
    import nkeys

    return str(nkeys.from_seed(bytearray(seed.encode())).public_key.decode())


def _write_secret(path: Path, data: bytes) -> None:
    before = os.umask(0o077)
    try:
        write_file(path, data)
    finally:
        os.umask(before)


def write_invitation(invitation: Invitation, path: Path) -> None:
    """Write the file, for its owner's eyes only.

    Raises:
        StorageError: it cannot be written.
    """
    _write_secret(path, invitation.text().encode())


def _make_certificates(folder: Path) -> None:
    """Make an authority of our own and the server's certificate; the authority's key is let go."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
        return key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def certificate(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named("boli authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(VALID_FROM)
            .not_valid_after(VALID_UNTIL)
        )

    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = (
        certificate("boli authority", authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False
        )
        .sign(authority, hashes.SHA256())
    )
    leaf = (
        certificate(SERVER_NAME, server)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
            critical=False,
        )
        .sign(authority, hashes.SHA256())
    )
    _write_secret(folder / "server.key", pem(server))
    write_file(folder / "authority.pem", root.public_bytes(serialization.Encoding.PEM))
    write_file(folder / "server.pem", leaf.public_bytes(serialization.Encoding.PEM))
