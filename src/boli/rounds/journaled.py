"""What the journal says of a round."""

from __future__ import annotations

from boli.journal import Event, RoundStepped, UpdateAccepted
from boli.rounds.transport import Delivery
from boli.rounds.update import ServerState


def update_accepted(
    delivery: Delivery, staleness: int, weight: float, norm: float, scaled: float
) -> Event:
    """Return the journal's line on an update that is folded in."""
    header = delivery.update.header
    return UpdateAccepted(
        order=header.order,
        site=delivery.site,
        base_version=header.base_version,
        staleness=staleness,
        local_steps=header.local_steps,
        tokens=header.tokens,
        weight=weight,
        loss=header.loss,
        norm=norm,
        scaled=scaled,
        train_seconds=header.train_seconds,
        evaluate_seconds=header.evaluate_seconds,
        work_seconds=header.work_seconds,
        idle_seconds=header.idle_seconds,
        bytes_up=delivery.update.num_bytes,
        residual_norm=header.residual_norm,
    )


def round_stepped(state: ServerState, num_updates: int, norm: float, seconds: float) -> Event:
    """Return the journal's line on a step."""
    return RoundStepped(state.version, num_updates, state.tokens, norm, seconds)
