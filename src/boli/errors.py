"""Every exception that boli raises on purpose, with its exit code.

BoliError                  1
├── PlanError             10   the plan is wrong
├── CorpusError           11   text is missing, empty, or not what the plan says
├── ModelError            12   a base model or an adapter cannot be loaded or built
│   ├── DivergedError          a model gives no finite probabilities
│   └── LayoutError       13   two sides do not train the same parameters
├── CodecError            14   a payload cannot be made or read
├── StorageError          15   a file cannot be written, or is held by another run
│   └── CorruptFileError  16   a file is there, but not whole
├── TransportError        17   orders or updates cannot travel
├── SiteError             18   a site cannot do its work
│   ├── WorkerLostError   20   a process of a node ended; the node can be started again
│   └── LimitError        22   more is asked of a site than its people allow
│       └── NotAcceptedError   its people did not accept a plan
├── RunError              19   a run cannot be started, resumed or reported
└── PoolError             21   a pool cannot be used, or a record may not go there
"""

from __future__ import annotations

from collections.abc import Mapping

OWN_LOG = "the site's own log says more"
# What a site says of its failure is one of these codes. The words are the coordinator's own, so
# that no path, column name or value of a site, and no message of a library, can travel in them.
PUBLIC_WORDS: Mapping[str, tuple[str, str]] = {
    "error": ("the site cannot do its work", OWN_LOG),
    "unexpected": ("the site's program failed unexpectedly", OWN_LOG),
    "memory": ("the site has too little memory for this run", OWN_LOG),
    "plan": ("the site does not accept the plan", OWN_LOG),
    "protocol": ("the site speaks another version of the protocol", "update boli on both sides"),
    "text": ("the site's text is missing, or not what the plan says", OWN_LOG),
    "text.missing": ("a text of the plan is not at the site", OWN_LOG),
    "text.empty": ("a text of the plan is empty at the site", OWN_LOG),
    "text.format": ("a text at the site is not in the format that the plan names", OWN_LOG),
    "text.column": ("a text at the site lacks the column that the plan names", OWN_LOG),
    "text.short": ("the site has too few lines to train on and to hold out", OWN_LOG),
    "model": ("the site cannot load the base model", OWN_LOG),
    "model.refused": (
        "the site refuses the base model",
        "a site takes plain safetensors, JSON and a tokenizer.json of an architecture that "
        "transformers has built in; " + OWN_LOG,
    ),
    "model.size": ("the base model is larger than the site allows", OWN_LOG),
    "model.loses": (
        "the tokenizer of the base loses too much of the site's text",
        "choose a base whose tokenizer works on bytes, or falls back to them",
    ),
    "layout": ("the site does not train the parameters that the coordinator has", OWN_LOG),
    "codec": ("the site cannot read what it was sent", OWN_LOG),
    "storage": ("the site cannot write its state", OWN_LOG),
    "storage.full": ("No space left on device at the site", "free some space there"),
    "storage.corrupt": ("a file of the site's state is damaged", OWN_LOG),
    "transport": ("the site cannot exchange messages", OWN_LOG),
    "site": ("the site cannot do its work", OWN_LOG),
    "site.kit": ("the site cannot read what it was told of the run", OWN_LOG),
    "site.unknown": ("the plan does not name the site", "give the site its section in the plan"),
    "site.outside": (
        "the plan names text outside the site's data folder",
        "name text relative to the site's data folder",
    ),
    "model.vocabulary": (
        "the vocabulary that the base was cut to does not fit the site's text",
        "lower the floors of model.base.pieces, or name more text of the base's language",
    ),
    "site.diverged": ("training diverged at the site", "lower the learning rate"),
    "limits": ("more is asked of the site than its people allow", OWN_LOG),
    "limits.declined": ("the site's people have not accepted the plan", "ask them to"),
    "limits.adapters": (
        "the site does not let an adapter of this kind be trained",
        'set model.adapter.kind = "lora", or ask the site\'s people',
    ),
    "limits.min-tokens": (
        "an update would be computed from fewer tokens than the site allows",
        "raise rounds.local_steps, rounds.min_local_steps or the batch, or name more text",
    ),
    "limits.min-tokens-full": (
        "an update of every weight would be computed from fewer tokens than the site allows",
        "raise rounds.local_steps, rounds.min_local_steps or the batch, name more text, or set "
        'model.adapter.kind = "lora"',
    ),
    "limits.min-judged-lines": (
        "fewer lines would be judged together than the site allows",
        "raise evaluation.max_lines or the percentages of corpus.held_out",
    ),
    "limits.tell-ngram": (
        "the site does not tell what n-grams of its text need",
        "set evaluation.ngram = false",
    ),
    "limits.max-local-steps": (
        "an order asks for more local steps than the site allows",
        "lower rounds.local_steps",
    ),
    "limits.max-batch-tokens": (
        "a local step takes more tokens than the site allows",
        "lower model.local_steps.batch_sequences",
    ),
    "limits.max-order-hours": (
        "an order takes longer than the site allows",
        "lower rounds.local_steps",
    ),
    "limits.max-bytes-a-day": (
        "an update is larger than what may leave the site in a day",
        'choose codec.name = "sparse", or a lower density',
    ),
    "limits.max-base-bytes": ("the base model is larger than the site allows", OWN_LOG),
    "limits.bases": ("the base model is none of those that the site allows", OWN_LOG),
    "limits.text": (
        "the plan names text that the site does not allow",
        "name another file, or ask the site's people",
    ),
    "limits.pieces": (
        "the site sends no counts of pieces of words",
        'set model.base.micro.tokenizer = "base" or model.base.vocabulary.cut = "none", or go on '
        "without its words",
    ),
    **dict.fromkeys(
        ("limits.pieces-least-lines", "limits.pieces-least-documents"),
        ("a piece of a word has less support than the site asks for", OWN_LOG),
    ),
    "pieces.unsound": ("what a site sent as its pieces cannot be used", OWN_LOG),
    "limits.require-masked-sums": (
        "the site lets only masked sums leave, which this version does not have",
        "ask the site's people",
    ),
    "limits.order": ("an order is none that an honest coordinator gives", OWN_LOG),
    "worker": ("a process of the site's node ended", OWN_LOG),
    "node.ended": ("the site's node ended, or is not there", OWN_LOG),
    "run": ("the site cannot carry out the run", OWN_LOG),
    "pool": ("the site cannot use its pool", OWN_LOG),
}


def public_words(code: str) -> tuple[str, str]:
    """Return what the coordinator says of a site's failure: the problem, and what to do."""
    return PUBLIC_WORDS.get(
        code, ("the site cannot go on, for a reason that only a newer boli knows", OWN_LOG)
    )


class BoliError(Exception):
    """What happened, and what to change.

    `problem` says what happened with its value; `hint` says what to change. Both stay on the
    machine: all that travels is `code`, a key of PUBLIC_WORDS.
    """

    exit_code = 1
    code = "error"

    def __init__(self, problem: str, hint: str = "", code: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint
        self.code = code or type(self).code

    def __str__(self) -> str:
        return f"{self.problem}\n  {self.hint}" if self.hint else self.problem


class PlanError(BoliError):
    """The plan is wrong: names the file, the key, the value and what to change."""

    exit_code = 10
    code = "plan"


class CorpusError(BoliError):
    """Text is missing, empty, or not what the plan says."""

    exit_code = 11
    code = "text"


class ModelError(BoliError):
    """A base model or an adapter cannot be loaded or built."""

    exit_code = 12
    code = "model"


class DivergedError(ModelError):
    """A model gives no finite probabilities: training diverged, or its weights are damaged."""


class LayoutError(ModelError):
    """Two sides do not train the same parameters."""

    exit_code = 13
    code = "layout"


class CodecError(BoliError):
    """A payload cannot be made or read."""

    exit_code = 14
    code = "codec"


class StorageError(BoliError):
    """A file cannot be written, or is held by another run."""

    exit_code = 15
    code = "storage"


class CorruptFileError(StorageError):
    """A file is there, but not whole."""

    exit_code = 16
    code = "storage.corrupt"


class TransportError(BoliError):
    """Orders or updates cannot travel."""

    exit_code = 17
    code = "transport"


class SiteError(BoliError):
    """A site cannot do its work."""

    exit_code = 18
    code = "site"


class WorkerLostError(SiteError):
    """A further process of a node ended; started again, the node goes on from its state."""

    exit_code = 20
    code = "worker"


class LimitError(SiteError):
    """More is asked of a site than its people allow."""

    exit_code = 22
    code = "limits"


class NotAcceptedError(LimitError):
    """The people of a site did not accept a plan."""

    code = "limits.declined"


class RunError(BoliError):
    """A run cannot be started, resumed or reported."""

    exit_code = 19
    code = "run"


class PoolError(BoliError):
    """A pool cannot be reached, is not what it says, or may not be written as asked."""

    exit_code = 21
    code = "pool"
