"""Flower's side of a site: local steps from the arrays that came, and arrays back.

The adapter travels as one array, the leanest form. AdamW's moments and the place in the
text stay in the node's context, as boli's own nodes keep theirs.
"""

import time
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from boli.plan import Plan
from boli.site.work import open_work

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    config = context.run_config
    plan = Plan.model_validate_json(Path(str(config["plan"])).read_text())
    name = context.node_config["site"]
    torch.set_num_threads(plan.engine.threads_per_site)
    site = next(one for one in plan.site if one.name == name)
    work = open_work(plan, site, str(config["base"]))
    if "moments" in context.state:
        moments = context.state["moments"]
        arrays = {key: array.numpy() for key, array in moments.items()}
        work.steps.restore(arrays, dict(context.state["place"]))
    began = time.monotonic()
    work.adapter.load(message.content["arrays"]["adapter"].numpy())
    count, total = plan.rounds.local_steps, plan.rounds.total
    position = (message.content["config"]["server-round"] - 1) / total
    steps = work.steps.run(lambda: count, position, 1 / (total * count))
    seconds = time.monotonic() - began
    kept = {key: Array(array) for key, array in work.steps.arrays().items()}
    context.state["moments"] = ArrayRecord(kept)
    context.state["place"] = ConfigRecord(work.steps.facts())
    content = RecordDict(
        {
            "arrays": ArrayRecord({"adapter": Array(work.adapter.read())}),
            "metrics": MetricRecord(
                {"num-examples": steps.tokens, "train-loss": steps.loss, "train-seconds": seconds}
            ),
        }
    )
    return Message(content, reply_to=message)
