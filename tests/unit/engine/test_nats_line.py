"""A line to a server that ends every connection at the door, without a word."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from pathlib import Path

from boli.engine.identities import Access, Address, Identities, new_seed
from boli.engine.nats_line import Line


class Door:
    """A server that greets, hears who is there, and hangs up."""

    def __init__(self, identities: Identities) -> None:
        self.identities, self.port, self.num_guests = identities, 0, 0
        self._open, self._over = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Door:
        self._thread.start()
        assert self._open.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.identities.certificate, self.identities.certificate_key)
        server = await asyncio.start_server(self._greet, "127.0.0.1", 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        self._open.set()
        await self._over.wait()
        server.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = {"server_id": "x", "version": "2.10.0", "headers": True, "max_payload": 1000}
        said |= {"nonce": "bm9uY2U", "auth_required": True, "tls_required": True}
        writer.write(f"INFO {json.dumps(said)}\r\n".encode())
        await reader.readuntil(b"PING\r\n")
        self.num_guests += 1
        writer.close()


def test_server_that_hangs_up_without_a_word_is_no_connection(tmp_path: Path) -> None:
    identities = Identities(tmp_path)
    identities.make()
    connected: list[object] = []

    async def note(client: object) -> None:
        connected.append(client)

    with Door(identities) as door:
        address = Address("127.0.0.1", door.port)
        line = Line(Access("arrah", address, new_seed(), identities.authority), note)
        line.open()
        deadline = time.monotonic() + 20
        while not door.num_guests or "at the door" not in line.trouble:
            assert time.monotonic() < deadline, line.trouble
            time.sleep(0.02)
        assert (line.client, line.num_connections, connected) == (None, 0, [])
        assert not line.key_refused  # it never said so
        line.close()
