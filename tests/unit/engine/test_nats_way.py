"""How a connection is given up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from boli.engine.nats_way import abandon


def test_connection_whose_transport_is_closed_already_is_abandoned_quietly() -> None:
    class Closed:
        def abort(self) -> None:  # as in Python 3.11.2, on a TLS transport after its end
            raise AttributeError("'NoneType' object has no attribute '_abort'")

    ended = []

    class Ended:
        _transport = SimpleNamespace(_io_writer=SimpleNamespace(transport=Closed()))

        async def close(self) -> None:
            ended.append(True)

    client: Any = Ended()
    clients = {client}
    asyncio.run(abandon(client, clients))
    assert ended
    assert not clients
