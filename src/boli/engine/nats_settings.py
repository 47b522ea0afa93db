"""The NATS server's settings: who may say and hear what, and how much of it."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterable
from pathlib import Path

from boli.engine.identities import (
    HELLO,
    Address,
    Identities,
    asks,
    hears,
    may_publish,
    may_subscribe,
    public_key,
    room_of,
    tells,
)

PART_BYTES = 16 << 10  # of a message in the streams: half a second at 256 kbit/s
LARGEST_MESSAGE_BYTES = 128 << 10  # also of what is not in parts
# Also of those that have not shown a key yet, with 20 kB each; nats_admission looks after them.
MOST_CONNECTIONS, LEAST_CONNECTIONS = 4096, 256
STORE_FILES = 1024  # that the server can have open for its streams, whoever connects
SITE_CONNECTIONS = 8  # of one site: a new one comes in while the server still waits for old ones
SITE_SUBSCRIPTIONS = 100
# How long the server keeps the way for an answer. That a part is stored may take long on a poor
# disk; an acknowledgement is not answered at all, and could ask for very many ways.
STORED, ACKNOWLEDGED = '"60s"', '"2s"'


def most_connections() -> int:
    """Return how many connections the server takes: no more than it can have files open."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # the server raises its own soft limit
    if hard == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(LEAST_CONNECTIONS, min(MOST_CONNECTIONS, hard - STORE_FILES))


def settings(folder: Path, listen: Address, identities: Identities, store_bytes: int) -> str:
    """Return the server's configuration file.

    Timeouts are long, for lines with seconds of delay; limits are small, for strangers.
    """
    quoted = json.dumps
    guests = identities.guests()
    rooms = "".join(_room(site, guest.public) for site, guest in guests.items())
    return f"""# Made by boli coordinator; made anew whenever a site is invited or revoked.
server_name: boli
listen: {quoted(str(listen))}
pid_file: {quoted(str(folder / "server.pid"))}
log_file: {quoted(str(folder / "server.log"))}
logfile_size_limit: 10MB
logfile_max_num: 3
max_payload: {LARGEST_MESSAGE_BYTES}
max_pending: 16MB
no_fast_producer_stall: true
max_connections: {most_connections()}
max_subscriptions: 1000
write_deadline: "120s"
ping_interval: "60s"
ping_max: 3
authorization {{ timeout: 60 }}
tls {{
  cert_file: {quoted(str(identities.certificate))}
  key_file: {quoted(str(identities.certificate_key))}
  handshake_first: true
  timeout: 60
}}
jetstream {{
  store_dir: {quoted(str(folder / "jetstream"))}
  sync_interval: always
  max_file_store: {store_bytes}
  max_memory_store: 16MB
}}
accounts {{
  SYSTEM {{ users: [ {{ nkey: {public_key(identities.seed("system"))} }} ] }}
  BOLI {{
    jetstream: enabled
    users: [ {{ nkey: {public_key(identities.seed("coordinator"))} }} ]
    exports: [
      {{ stream: {quoted(HELLO)} }}
{"".join(_offer(site) for site in guests)}    ]
    imports: [
{"".join(_take("stream", room_of(site), tells(site)) for site in guests)}    ]
  }}
{rooms}}}
system_account: SYSTEM
"""


def _lines(items: Iterable[str]) -> str:
    return "".join(f"      {item}\n" for item in items)


def _offer(site: str) -> str:
    """Return what the coordinator's account has for a site's, and for no other."""
    to = f"accounts: [ {json.dumps(room_of(site))} ]"
    answered = [
        f"{{ service: {json.dumps(subject)}, {to}, response_threshold: {within} }}"
        for subject, within in zip(asks(site), (STORED, ACKNOWLEDGED), strict=True)
    ]
    read = [f"{{ stream: {json.dumps(subject)}, {to} }}" for subject in hears(site)]
    return _lines([*answered, *read])


def _take(kind: str, account: str, subjects: Iterable[str]) -> str:
    """Return what one account takes from another."""
    return _lines(
        f"{{ {kind}: {{ account: {json.dumps(account)}, subject: {json.dumps(subject)} }} }}"
        for subject in subjects
    )


def _room(site: str, public: str) -> str:
    """Return a site's own account, empty when its key was revoked.

    Permissions alone do not keep it from others: the server answers a message to a
    stream, and an acknowledgement, at whatever subject the sender names, with rights of
    its own; that may be another site's stream, or "delete it". Here it is one of this room.
    """
    quoted = json.dumps
    rights = (
        f"publish: {{ allow: {quoted(list(may_publish(site)))} }}, "
        f"subscribe: {{ allow: {quoted(list(may_subscribe(site)))} }}"
    )
    user = f"{{ nkey: {public}, permissions: {{ {rights} }} }}" if public else ""
    told = _lines(f"{{ stream: {quoted(subject)} }}" for subject in tells(site))
    return f"""  {quoted(room_of(site))} {{
    users: [ {user} ]
    limits {{ max_connections: {SITE_CONNECTIONS}, max_subscriptions: {SITE_SUBSCRIPTIONS} }}
    exports: [
{told}    ]
    imports: [
{_take("service", "BOLI", asks(site))}{_take("stream", "BOLI", [*hears(site), HELLO])}    ]
  }}
"""
