"""A site's own model: the federated version, trained on with the site's text alone.

What sites average serves all of them; what one of them speaks, it can learn further by itself.
Nothing of this leaves the site. The tuning part says when to stop, so that the result is
never worse there than the version itself.

Source: Yu et al. 2020, Salvaging Federated Learning by Local Adaptation,
    https://arxiv.org/abs/2002.04758
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from boli.corpus.sources import judged_documents
from boli.errors import ModelError, PlanError, SiteError
from boli.evaluation.card import front_matter
from boli.evaluation.metrics import Scored
from boli.evaluation.paired import Comparison, compare
from boli.model.layout import Vector
from boli.plan import Plan, SitePlan
from boli.site.work import TrainingWork, open_work

CHECKS = 10  # times that the tuning part is judged on the way
PATIENCE = 3  # of them in a row without a better one, and the rest is not trained
LOWER = "lower model.local_steps.learning_rate"


@dataclass(frozen=True)
class Test:
    """Bits per byte of the test lines of a language; all on the same lines."""

    language: str
    mixed: float  # the own model and n-grams of the site's text together
    against_version: Comparison  # the own model is A
    against_six_gram: Comparison


@dataclass(frozen=True)
class Personal:
    """What a site's own model is, and how it came about."""

    theta: Vector  # (d,)
    tests: tuple[Test, ...]
    steps: int  # that it was trained for; 0: none was better than the version
    curve: tuple[tuple[int, float], ...]  # steps, bits per byte of the tuning lines

    @property
    def overfits(self) -> bool:
        """Tell whether the tuning text found further steps no better."""
        return self.steps < self.curve[-1][0]


def sentences(made: Personal) -> Iterator[str]:
    """Say of each language whether the own model is better, and whether that is noise."""
    for test in made.tests:
        yield f"{test.language}: {test.against_version.sentence('the own model', 'the version')}."
        yield f"{test.language}: {test.against_six_gram.sentence('the own model', 'the 6-gram')}."


def readme(run: str, site: str, made: Personal) -> str:
    """Return the README.md of the adapter."""
    front = {
        "language": sorted(test.language for test in made.tests),
        "tags": ["boli", "personalized"],
        "boli": {"run": run, "site": site, "steps": made.steps},
    }
    return (
        f"{front_matter(front)}# {run}, {site}\n\n"
        f"The version of run {run}, trained on for {made.steps} steps with the text of site {site} "
        "alone. Its weights are made of that text: share it as you would share the text.\n\n"
        + "\n".join(sentences(made))
        + "\n"
    )


def site_of(plan: Plan, name: str) -> SitePlan:
    """Return a site's section of a plan.

    Raises:
        PlanError: there is none of that name.
    """
    for site in plan.site:
        if site.name == name:
            return site
    there = ", ".join(site.name for site in plan.site)
    raise PlanError(f"the plan has no site {name!r}", f"its sites are: {there}")


def personalize(
    plan: Plan,
    site: SitePlan,
    origin: str,  # of the base
    theta: Vector,  # (d,) of the federated version
    passes: float,  # over the site's training text, at most
    observe: Callable[[int, int, float], None] = lambda *_: None,  # steps, of, tuning bits per byte
) -> Personal:
    """Train a version on with a site's text, and judge it where the run was judged.

    The learning rates are the plan's, falling to nothing.

    Raises:
        CorpusError: the site's text is missing, empty or too short.
        ModelError: the base cannot be loaded, or is not the one of this version.
        SiteError: the loss is not finite any more.
    """
    falling = {"schedule": "linear", "warmup": 0.02, "final_learning_rate": 0.02}
    steps = plan.model.local_steps.model_copy(update=falling)
    plan = plan.model_copy(update={"model": plan.model.model_copy(update={"local_steps": steps})})
    site = site.model_copy(update={"rank": None})
    work = open_work(plan, site, origin)
    try:
        if work.layout.size != theta.size:
            raise ModelError(
                f"the version has {theta.size} entries, the base at {origin} asks for "
                f"{work.layout.size}",
                "use the run's own base: do not move or change its folder",
            )
        return _personalized(work, theta, passes, observe)
    finally:
        work.close()


def _personalized(
    work: TrainingWork, theta: Vector, passes: float, observe: Callable[[int, int, float], None]
) -> Personal:
    text = work.steps.text
    total = max(CHECKS, round(passes * text.per_pass / work.steps.plan.batch_sequences))
    work.adapter.load(theta)
    before = {language: work.score(language, "test") for language in work.splits}
    best, best_theta, kept, worse = _tuning(work), theta, 0, 0
    curve, done = [(0, best)], 0
    for check in range(1, CHECKS + 1):
        wanted = round(total * check / CHECKS) - done
        work.steps.run(lambda count=wanted: count, done / total, 1 / total)  # type: ignore[misc]
        done += wanted
        found = _tuning(work)
        curve.append((done, found))
        observe(done, total, found)
        worse = 0 if found < best else worse + 1
        if found < best:
            best, best_theta, kept = found, work.adapter.read(), done
        elif worse == PATIENCE:
            break
    work.adapter.load(best_theta)
    tests = tuple(_test(work, language, scored) for language, scored in before.items() if scored)
    return Personal(best_theta, tests, kept, tuple(curve))


def _tuning(work: TrainingWork) -> float:
    """Return the bits per byte of the tuning lines of all the site's languages."""
    scored = [work.score(language, "tuning") for language in work.splits]
    totals = [each.line_bits().total for each in scored if each is not None]
    if len(totals) < len(scored):
        return math.inf
    return sum(total.bits for total in totals) / sum(total.bytes for total in totals)


def _test(work: TrainingWork, language: str, before: Scored) -> Test:
    """Return what is loaded beside an earlier version, and beside the 6-gram."""
    tuning, test = work.score(language, "tuning"), work.score(language, "test")
    if tuning is None or test is None:
        raise SiteError(f"the version gives no finite probabilities for {language}", LOWER)
    own, version = test.line_bits(), before.line_bits().bits
    six_gram = work.rivals.six_gram(language, "test")
    sizes, documents = (
        own.bytes,
        judged_documents(work.splits[language], "test", work.rivals.max_lines),
    )
    mixed = work.mixed_bits(language, tuning, test)
    return Test(
        language,
        float(mixed.sum() / sizes.sum()),
        compare(own.bits, version, sizes, documents),
        compare(own.bits, six_gram, sizes, documents),
    )
