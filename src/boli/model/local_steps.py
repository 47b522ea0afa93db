"""The inner loop that a site runs: packed sequences, dropout, an optimizer, one flat vector.

Source: Srivastava et al. 2014, Dropout, https://jmlr.org/papers/v15/srivastava14a.html.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from boli.errors import CorpusError, ModelError, SiteError
from boli.model import memory
from boli.model.adapter import Adapter
from boli.model.framing import framing_of
from boli.model.optimizers import InnerOptimizer, hidden_matrices
from boli.plan import LocalStepsPlan

# Their logits are a plain product of the hidden state and the output embedding.
PLAIN_HEADS = {"llama", "qwen2", "qwen3", "mistral", "bloom", "gpt2", "phi3", "olmo2"} | {
    *("gemma", "gemma3_text")
}
LOGITS_AT_ONCE = 1 << 22  # entries of a block of logits
# What layers are called whose output is added to the hidden state, in the families that we know.
ADDED = {"o_proj", "down_proj", "dense", "dense_4h_to_h", "c_proj"}
Tokens = NDArray[np.int64]  # (n, length) full sequences


@dataclass
class PackedText:
    """Token lines in one endless stream of full sequences, shuffled anew in every pass.

    Each line stands between its begin and end tokens; a sequence begins where the one
    before ended, so that there is no padding. The cursor and the seed say all.
    """

    lines: Sequence[NDArray[np.uint32]]  # tokens of each line, those that frame it included
    sequence_length: int
    seed: int
    position: int = 0  # sequences handed out, over all passes
    ignored: tuple[int, ...] = ()  # tokens that are not predicted, as they frame the lines
    _pass: int = -1
    _sequences: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    def __post_init__(self) -> None:
        total = sum(line.size for line in self.lines)
        self.per_pass = total // self.sequence_length
        if not self.per_pass:
            raise CorpusError(
                f"{total} tokens do not fill one sequence of {self.sequence_length}",
                "add text, or lower model.local_steps.sequence_length",
            )

    def take(self, count: int) -> Tokens:
        """Return the next (count, sequence_length) tokens."""
        rows = []
        for _ in range(count):
            number, row = divmod(self.position, self.per_pass)
            if number != self._pass:
                self._shuffle(number)
            rows.append(self._sequences[row])
            self.position += 1
        return np.stack(rows)

    def predicted(self, batch: Tokens) -> int:
        """Return how many tokens of a batch are predicted: all but the first of each sequence."""
        targets = batch[:, 1:]
        return targets.size - int(np.isin(targets, self.ignored).sum())

    def _shuffle(self, number: int) -> None:
        draw = np.random.Generator(np.random.PCG64([self.seed, number]))
        stream = np.concatenate([self.lines[i] for i in draw.permutation(len(self.lines))])
        used = stream[: self.per_pass * self.sequence_length]
        self._sequences = used.reshape(self.per_pass, -1).astype(np.int64)
        self._pass = number


class _HeadLoss(torch.autograd.Function):
    """Summed cross-entropy of an output embedding, in blocks, without keeping logits.

    The gradients at the hidden state, and at the embedding where it is trained, are made on
    the way forward, where the probabilities are at hand; nothing of size (tokens, vocabulary)
    survives.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        gradient = torch.empty_like(hidden)
        trained = ctx.needs_input_grad[1]
        at_weight = torch.zeros_like(weight) if trained else None
        at_bias = torch.zeros_like(bias) if trained and bias is not None else None
        total = hidden.new_zeros((), dtype=torch.float32)
        block = max(1, LOGITS_AT_ONCE // weight.shape[0])
        used = weight.to(hidden.dtype)
        for start in range(0, hidden.shape[0], block):
            rows = slice(start, start + block)
            logits = nn.functional.linear(hidden[rows], used, bias)
            log_probabilities = nn.functional.log_softmax(logits, dim=1, dtype=torch.float32)
            chosen = targets[rows, None]
            total -= log_probabilities.gather(1, chosen).sum()
            grad = log_probabilities.exp_()
            grad.scatter_add_(1, chosen, grad.new_full((1, 1), -1.0).expand_as(chosen))
            if at_bias is not None:
                at_bias += grad.sum(0)
            grad = grad.to(used.dtype)
            torch.mm(grad, used, out=gradient[rows])
            if at_weight is not None:
                at_weight += grad.t() @ hidden[rows]
        ctx.save_for_backward(gradient, at_weight, at_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        found = (
            None if gradient is None else gradient * gradients[0].to(gradient.dtype)
            for gradient in ctx.saved_tensors
        )
        return *found, None


def has_plain_head(model: Any) -> bool:
    """Tell whether a model's logits are a plain product, which needs no more than a block of them.

    A model that PEFT wraps is none: its body is hidden.
    """
    from transformers import PreTrainedModel

    return (
        isinstance(model, PreTrainedModel)
        and model.config.model_type in PLAIN_HEADS
        and getattr(model.config, "final_logit_softcapping", None) is None
    )


@torch.no_grad()
def token_losses(
    model: Any,
    tokens: Tensor,  # (n, length)
) -> Tensor:  # (n, length - 1) float32
    """Return the loss of every token but the first, in nats, a block of logits at a time."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    if not has_plain_head(model):
        logits = model(input_ids=inputs, use_cache=False).logits.float()
        return nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    head, chosen = model.get_output_embeddings(), targets.reshape(-1)
    hidden = model.base_model(input_ids=inputs, use_cache=False)[0]
    hidden = hidden.reshape(-1, hidden.shape[-1])
    block = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    # Made beforehand: small pieces between the blocks would keep memory from being used again.
    losses = torch.empty(chosen.shape, device=hidden.device)
    for start in range(0, hidden.shape[0], block):
        rows = slice(start, start + block)
        logits = head(hidden[rows]).float()
        losses[rows] = nn.functional.cross_entropy(logits, chosen[rows], reduction="none")
    return losses.view(targets.shape)


def summed_loss(
    model: Any,
    tokens: Tensor,  # (n, length) full sequences
    ignored: Sequence[int] = (),  # tokens whose prediction does not count
) -> tuple[Tensor, int]:
    """Return the summed next-token loss, in nats, and how many tokens it sums."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)
    counted = None
    if ignored:
        counted = ~torch.isin(targets, torch.tensor(list(ignored), device=targets.device))
        targets = targets[counted]
    head = model.get_output_embeddings()
    if has_plain_head(model):
        hidden = model.base_model(input_ids=inputs, use_cache=False)[0]
        hidden = hidden.reshape(-1, hidden.shape[-1])
        hidden = hidden if counted is None else hidden[counted]
        loss = _HeadLoss.apply(hidden, head.weight, getattr(head, "bias", None), targets)  # type: ignore[no-untyped-call]
    else:
        logits = model(input_ids=inputs, use_cache=False).logits
        logits = logits.reshape(-1, logits.shape[-1])
        logits = logits if counted is None else logits[counted]
        loss = nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
    return loss, targets.numel()


def computes_in_half(plan: LocalStepsPlan, device: torch.device) -> bool:
    """Tell whether local steps run in bf16: where asked, or where the device has it."""
    if plan.precision != "auto":
        return plan.precision == "bf16"
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@dataclass(frozen=True)
class Steps:
    """What a stretch of local steps did."""

    count: int
    tokens: int
    loss: float  # mean, nats per token
    seconds: float


class Gradient(Protocol):
    """Makes the gradient of a batch, in this process or in several."""

    def of(self, batch: Tokens, number: int, draw: int) -> Tensor:
        """Set the adapter's gradient to that of the batch's loss divided by `number`.

        `draw` is the seed of what dropout drops. Return the summed loss, in nats.
        """
        ...


class _Dropout:
    """Drops entries of what blocks add to the hidden state, and of the embedding of tokens.

    Transformers' own dropout is not there in most of today's families, and draws from the
    process's random state; this one draws from a seed that each step names.
    """

    def __init__(self, model: Any, share: float, device: torch.device) -> None:
        self.share, self.active, self._draw = share, False, ""
        self._random = torch.Generator(device)
        found = [m for name, m in model.named_modules() if name.rpartition(".")[2] in ADDED]
        if not found:
            raise ModelError(
                f"model.local_steps.dropout {share:g}: boli does not know which layers of "
                f"{type(model).__name__} add to its hidden state",
                "set model.local_steps.dropout = 0",
            )
        for number, module in enumerate((model.get_input_embeddings(), *found)):
            module.register_forward_hook(partial(self._drop, number))

    @contextlib.contextmanager
    def dropping(self, draw: int, part: int) -> Iterator[None]:
        """Drop while the block runs, in a part of the batch whose step has this seed."""
        self._draw = f"{draw}/{part}"
        self.active = True
        try:
            yield
        finally:
            self.active = False

    def _drop(self, number: int, _module: Any, _inputs: Any, output: Tensor) -> Tensor:
        if not self.active:
            return output
        # Seeded for each layer: a layer that is computed again drops the same entries.
        self._random.manual_seed(_seed_of(f"{self._draw}/{number}"))
        kept = torch.empty_like(output).bernoulli_(1 - self.share, generator=self._random)
        return output * kept.div_(1 - self.share)


class OwnGradient:
    """The gradient of a batch, made by this process alone, a part of the batch at a time."""

    def __init__(
        self, model: Any, adapter: Adapter, plan: LocalStepsPlan, ignored: Sequence[int] = ()
    ) -> None:
        self.model, self.adapter, self._ignored = model, adapter, ignored
        self.device = adapter.flat.device
        # A bf16 base computes in bf16 by itself; the float32 masters of `full` need autocast.
        frozen = next(model.parameters()).dtype
        self._autocast = frozen == torch.float32 and computes_in_half(plan, self.device)
        needs = memory.needs_of(model, plan, frozen.itemsize, self.device)
        self._at_once = needs.sequences
        self._layers = memory.recompute(model) if needs.recomputes else []
        self._dropout = _Dropout(model, plan.dropout, self.device) if plan.dropout else None
        # Compiling pays where steps are many and kernels small: on GPUs, by default.
        compiles = plan.compile == "auto" and self.device.type == "cuda" and not plan.dropout
        if plan.compile == "on" or compiles:
            model.base_model.compile()

    def of(self, batch: Tokens, number: int, draw: int) -> Tensor:
        tokens = torch.from_numpy(batch).to(self.device, non_blocking=True)
        self.adapter.gradient.zero_()
        summed = torch.zeros((), device=self.device)
        with memory.recomputing(self._layers):
            for part, rows in enumerate(torch.split(tokens, self._at_once)):
                with contextlib.ExitStack() as during:
                    if self._dropout is not None:
                        during.enter_context(self._dropout.dropping(draw, part))
                    with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
                        total, _ = summed_loss(self.model, rows, self._ignored)
                    (total / number).backward()  # type: ignore[no-untyped-call]
                summed += total.detach()
        return summed


class LocalSteps:
    """An inner optimizer over an adapter's flat vector, on one site's packed text.

    `arrays` and `facts` are its whole state: with them and the version it starts
    from, the next steps are the same bit for bit.
    """

    def __init__(
        self,
        model: Any,
        adapter: Adapter,
        text: PackedText,
        plan: LocalStepsPlan,
        gradient: Gradient | None = None,  # by default this process's own
        own_tokens: bool = False,  # of embeddings, only the rows of the text's tokens are trained
    ) -> None:
        self.model, self.adapter, self.text, self.plan = model, adapter, text, plan
        self.device = adapter.flat.device
        self._gradient = gradient or OwnGradient(model, adapter, plan, text.ignored)
        self._kept = list(_rows_of_others(adapter, text)) if own_tokens else []
        half = computes_in_half(plan, self.device)
        self._optimizer = InnerOptimizer(
            adapter,
            plan,
            hidden_matrices(model, adapter.layout) if plan.optimizer == "muon" else (),
            torch.bfloat16 if half else torch.float32,
        )

    def reset_moments(self) -> None:
        """Start the optimizer anew."""
        self._optimizer.reset()

    def run(
        self,
        count: Callable[[], int],
        position: float,
        position_step: float,
        after_step: Callable[[int, float], bool] = lambda _step, _loss: True,
    ) -> Steps | None:
        """Take local steps until `count()` are done; the adapter's vector moves.

        `count` is asked before every step and may shrink. `after_step` gets the
        number of steps done and the last loss; returning False abandons the work,
        and then the result is None.

        Raises:
            SiteError: the loss is not finite any more.
        """
        if not self.plan.keep_moments:
            self.reset_moments()
        # Without the model's own dropout: torch's random state would have to be kept.
        self.model.eval()
        started = time.perf_counter()
        losses, tokens, done = 0.0, 0, 0
        while done < count():
            loss = self._step(self.plan.rate_at(position + done * position_step))
            done += 1
            tokens += self.plan.batch_sequences * self.plan.sequence_length
            losses += loss
            if not math.isfinite(loss):
                raise SiteError(
                    f"the loss is {loss} after {done} local steps",
                    "lower model.local_steps.learning_rate",
                )
            if not after_step(done, loss):
                return None
        seconds = time.perf_counter() - started
        return Steps(done, tokens, losses / max(1, done), seconds)

    def _step(self, rate: float) -> float:
        draw = _seed_of(f"{self.text.seed}/{self.text.position}")
        batch = self.text.take(self.plan.batch_sequences)
        number = self.text.predicted(batch)
        total = self._gradient.of(batch, number, draw)
        for table, rows in self._kept:
            table[rows] = 0
        norm = torch.linalg.vector_norm(self.adapter.gradient)
        self.adapter.gradient.mul_((self.plan.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        self._optimizer.step(rate)
        return float(total) / number

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the moments, as copies."""
        return self._optimizer.arrays()

    def facts(self) -> dict[str, Any]:
        """Return the cursor and the optimizer's step count."""
        return {"steps": self._optimizer.num_steps, "sequences": self.text.position}

    def restore(self, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
        """Go back to a state that `arrays` and `facts` gave."""
        self._optimizer.restore(arrays, int(facts["steps"]))
        self.text.position = int(facts["sequences"])


def _rows_of_others(adapter: Adapter, text: PackedText) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a view of the gradient of each table of tokens, and its rows that the text has not."""
    own = np.unique(np.concatenate(text.lines)).astype(np.int64)
    for segment in adapter.layout.token_tables:
        span = slice(segment.offset, segment.offset + segment.size)
        others = np.setdiff1d(np.arange(segment.shape[0]), own, assume_unique=True)
        rows = torch.from_numpy(others).to(adapter.flat.device)
        yield adapter.gradient[span].view(segment.shape), rows


def _seed_of(words: str) -> int:
    """Return a seed that is named, so that nothing random has to be kept."""
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:7], "big")


def token_lines(tokenizer: Any, lines: Sequence[str]) -> Iterator[NDArray[np.uint32]]:
    """Yield the tokens of each line, framed as the tokenizer's base was trained with.

    Raises:
        CorpusError: the tokenizer has neither an end nor a begin token.
    """
    framing = framing_of(tokenizer)
    for start in range(0, len(lines), 1000):
        batch = list(lines[start : start + 1000])
        for tokens in tokenizer(batch, add_special_tokens=False)["input_ids"]:
            yield np.array(framing.packed(tokens), np.uint32)
