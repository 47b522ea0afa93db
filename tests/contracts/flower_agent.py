"""A Flower app for tests: its nodes do `QuadraticWork`, and its ServerApp lends them its Grid.

So a test coordinates from its own process, through a real federation.
"""

from __future__ import annotations

from pathlib import Path

from flower_quadratic import lend, node_command
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from boli.engine.flower import GridPost, make_client_app


def main(grid: Grid, context: Context) -> None:
    """Lend the Grid until the run is stopped."""
    lend(GridPost(grid), Path(str(context.run_config["runs"])))


client_app = make_client_app(node_command)
server_app = ServerApp()
server_app.main()(main)
