"""Which copies of pools a site's text lies in, so that an erase finds the run."""

from __future__ import annotations

from pydantic import ValidationError

from boli.errors import SiteError
from boli.plan import Plan, SitePlan
from boli.pool.pins import pins_of
from boli.rounds.update import MOST_COPIES, Copy


def copies_of(plan: Plan, site: SitePlan) -> tuple[Copy, ...]:
    """Return the copies of pools that a site's text lies in.

    Raises:
        SiteError: what says so cannot be told: without it an erase would not find the run.
    """
    paths = [path for source in site.text for path in (source.path, source.held_out_by) if path]
    pins = pins_of(map(plan.resolve, paths))
    if len(pins) > MOST_COPIES:
        raise SiteError(
            f"the text of site {site.name} lies in {len(pins)} copies of pools",
            f"take it as at most {MOST_COPIES}",
        )
    try:
        return tuple(Copy(**{name: pin[name] for name in Copy.model_fields}) for pin in pins)
    except ValidationError as error:
        where = error.errors()[0]["loc"][0]
        raise SiteError(
            f"the pool.json beside the text of site {site.name} was altered: its {where}",
            "take the copy again: boli pool get",
        ) from error
