"""The process of one site under the local engine: python -m boli.engine.local_node."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from boli.durable import Generations, locked
from boli.engine.local import LocalLink
from boli.errors import BoliError

LOCK_SECONDS = 5.0  # a node of the process before may need a moment to end


def serve(run_folder: Path, site_name: str, link: LocalLink, restarts: int) -> None:
    """Open a site's text, base and state, and serve orders until told to stop."""
    import torch

    from boli.codec.codec import DenseCodec
    from boli.plan_file import plan_from_tables
    from boli.site.node import Node
    from boli.site.work import open_work

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    plan = plan_from_tables(json.loads((run_folder / "plan.json").read_text()))
    site = next(site for site in plan.site if site.name == site_name)
    origin = json.loads((run_folder / "run.json").read_text())["base"]
    work = open_work(plan, site, origin)
    Node(
        site=site_name,
        link=link,
        work=work,
        store=Generations(run_folder / "sites" / site_name),
        full_digest=work.full_layout.digest,
        codec=DenseCodec(plan.codec.dtype),
        slowdown=site.slowdown,
        restarts=restarts,
    ).run()


def main(arguments: list[str]) -> int:
    """Run the node; tell the coordinator why, where it cannot go on."""
    folder, site, descriptor, restarts = arguments
    link = LocalLink(int(descriptor))
    site_folder = Path(folder) / "sites" / site
    try:
        with locked(site_folder, "the site folder", LOCK_SECONDS):
            serve(Path(folder), site, link, int(restarts))
    except BoliError as error:
        link.fail(error.problem, error.hint)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
