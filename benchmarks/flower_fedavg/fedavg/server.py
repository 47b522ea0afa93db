"""Flower's FedAvg strategy as it is; every version is kept, to be judged after the run."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from boli.model.adapter import initial_vector
from boli.plan import Plan
from boli.preparation import open_base

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    plan = Plan.model_validate_json(Path(str(config["plan"])).read_text())
    folder = Path(str(config["versions"]))
    base = open_base(plan, str(config["base"]), lambda _: None)
    first = initial_vector(base.model, plan.model.adapter)
    slowest: dict[str, float] = {"seconds": 0.0}

    def note_slowest(contents: list[RecordDict], _weight: str) -> MetricRecord:
        found = [float(content["metrics"]["train-seconds"]) for content in contents]
        slowest["seconds"] = max(found)
        slowest["mean_seconds"] = sum(found) / len(found)
        return MetricRecord({"train-seconds": max(found)})

    def keep(version: int, arrays: ArrayRecord) -> None:
        line = {"version": version, "time": time.time(), **slowest}
        np.save(folder / f"{version}.npy", arrays["adapter"].numpy())
        with (folder / "versions.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    sites = len(plan.site)
    while len(list(grid.get_node_ids())) < sites:
        time.sleep(0.2)
    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=sites,
        min_available_nodes=sites,
        train_metrics_aggr_fn=note_slowest,
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord({"adapter": Array(first)}),
        num_rounds=plan.rounds.total,
        evaluate_fn=keep,
    )
