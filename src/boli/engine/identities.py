"""Who may come in: the coordinator's own keys and certificates, and one key for each site.

Everything is made on first use, in one folder. The names of sites and their public
keys are kept; a site's seed is in the invitation alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from boli.durable import locked, make_private, write_file
from boli.engine.certificates import make_certificates
from boli.errors import TransportError
from boli.plan import NAME

SERVER_NAME = "boli"  # in the certificate, wherever the server is
PORT = 4222
HELLO = "boli.hello"  # what the coordinator says to all
FORMER_KEPT = 20  # keys of a site


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

    @property
    def is_loopback(self) -> bool:
        """Tell whether it leads nowhere but to the machine that asks."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

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
    former: tuple[str, ...] = ()  # keys that let nobody in any more

    def without_key(self) -> Guest:
        """Return the site without the key that it has."""
        former = (*self.former, self.public) if self.public else self.former
        return self.model_copy(update={"public": "", "former": former[-FORMER_KEPT:]})


def asks(site: str) -> tuple[str, ...]:
    """Return the subjects on which the server itself answers a site."""
    return (f"boli.up.{site}", f"$JS.ACK.{down_stream(site)}.>")


def tells(site: str) -> tuple[str, ...]:
    """Return the subjects on which the coordinator hears a site."""
    return tuple(f"boli.{what}.{site}" for what in ("join", "live", "fetch"))


def hears(site: str) -> tuple[str, ...]:
    """Return the subjects that are a site's own to read."""
    return (f"boli.deliver.{site}", f"{inbox_of(site)}.>")


def may_publish(site: str) -> tuple[str, ...]:
    """Return the subjects that a site may write to."""
    return (*tells(site), *asks(site))


def may_subscribe(site: str) -> tuple[str, ...]:
    """Return the subjects that a site may read."""
    return (*hears(site), HELLO)


def room_of(site: str) -> str:
    """Return the server's account for a site alone."""
    return f"SITE_{site}"


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
        make_private(self.folder, ("keys", "tls", "sites.json"))
        with locked(self.folder / "keys", "the key folder", 10.0):
            for who in ("coordinator", "system"):
                if not (self.folder / "keys" / who).exists():
                    write_file(self.folder / "keys" / who, new_seed().encode(), private=True)
            if not self.certificate.exists():
                make_certificates(self.folder / "tls", SERVER_NAME)

    def guests(self) -> dict[str, Guest]:
        """Return the sites that were ever invited."""
        path = self.folder / "sites.json"
        if not path.exists():
            return {}
        return {name: Guest(**found) for name, found in json.loads(path.read_text()).items()}

    def revoked(self) -> set[str]:
        """Return the sites that were invited and have no key any more."""
        return {name for name, guest in self.guests().items() if guest.revoked}

    def owners(self) -> dict[str, str]:
        """Return key to site, also of keys that let nobody in any more."""
        return {
            key: name
            for name, guest in self.guests().items()
            for key in (*guest.former, guest.public)
            if key
        }

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
            before = guests.get(site, Guest(invited=0.0)).without_key()
            news = {"public": public_key(seed), "invited": time.time(), "revoked": 0.0}
            guests[site] = before.model_copy(update=news)
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
            ended = guests[site].without_key()
            guests[site] = ended.model_copy(update={"revoked": time.time()})

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


def write_invitation(invitation: Invitation, path: Path) -> None:
    """Write the file, for its owner's eyes only.

    Raises:
        StorageError: it cannot be written.
    """
    write_file(path, invitation.text().encode(), private=True)
