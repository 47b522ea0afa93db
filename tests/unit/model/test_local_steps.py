from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from boli.errors import CorpusError, ModelError, SiteError
from boli.model import local_steps
from boli.model.adapter import attach
from boli.model.local_steps import (
    PLAIN_HEADS,
    LocalSteps,
    PackedText,
    _HeadLoss,
    summed_loss,
    token_lines,
)
from boli.plan import AdapterPlan, LocalStepsPlan

Load = Callable[..., Any]
LORA = AdapterPlan(rank=3, alpha=6.0)


def made_up_tokens(count: int = 40, seed: int = 1) -> list[np.ndarray[Any, np.dtype[np.uint32]]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 320, rng.integers(1, 15)).astype(np.uint32) for _ in range(count)]


def plan_of(**values: Any) -> LocalStepsPlan:
    settings: dict[str, Any] = {
        "batch_sequences": 2,
        "sequence_length": 16,
        "precision": "fp32",
        "compile": "off",
    }
    return LocalStepsPlan(**(settings | values))


def steps_on(base: Any, kind: str = "lora", **values: Any) -> LocalSteps:
    adapter = attach(base.model, AdapterPlan(kind=kind, rank=3, alpha=6.0))  # type: ignore[arg-type]
    return LocalSteps(base.model, adapter, PackedText(made_up_tokens(), 16, 5), plan_of(**values))


@pytest.fixture(scope="session")
def llama(family_folder: Callable[[str], Path]) -> Path:
    return family_folder("llama")


# --- packed text


def test_pass_takes_each_token_once_in_whole_lines_without_padding() -> None:
    # Every token is different, so that a token says which line it is from.
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 30)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    lines = [np.arange(a, b, dtype=np.uint32) for a, b in pairwise(starts)]
    text = PackedText(lines, 7, seed=3)
    total = int(lengths.sum())
    assert text.per_pass == total // 7
    orders = []
    for _ in range(3):
        stream = text.take(text.per_pass).reshape(-1)
        assert len(set(stream)) == len(stream) == total // 7 * 7
        assert set(stream) <= set(range(total))
        # Lines stand whole and in a new order, each behind the other.
        order = [int(np.searchsorted(starts, token, "right")) - 1 for token in stream]
        kept = [line for i, line in enumerate(order) if i == 0 or order[i - 1] != line]
        expected = np.concatenate([lines[i] for i in kept])[: len(stream)]
        assert np.array_equal(stream, expected)
        assert len(kept) == len(set(kept))
        orders.append(tuple(kept))
    assert len(set(orders)) == 3


def test_every_token_is_used_where_they_fill_the_sequences() -> None:
    lines = made_up_tokens()
    total = sum(line.size for line in lines)
    text = PackedText(lines, total, seed=0)
    assert Counter(text.take(1).reshape(-1).tolist()) == Counter(np.concatenate(lines).tolist())


def test_batch_may_reach_into_the_next_pass() -> None:
    lines = made_up_tokens()
    one, other = PackedText(lines, 16, 2), PackedText(lines, 16, 2)
    whole = one.take(2 * one.per_pass + 1)
    pieces = [other.take(3) for _ in range((2 * one.per_pass + 1) // 3)]
    assert np.array_equal(np.concatenate(pieces), whole[: 3 * len(pieces)])
    assert one.position == 2 * one.per_pass + 1


def test_cursor_and_seed_say_all() -> None:
    lines = made_up_tokens()
    text = PackedText(lines, 16, 2)
    text.take(text.per_pass + 3)
    again = PackedText(lines, 16, 2, position=text.position)
    following = text.take(9)
    assert np.array_equal(again.take(9), following)
    again.position = text.per_pass + 3  # back to an earlier pass or place
    assert np.array_equal(again.take(9), following)
    other = PackedText(lines, 16, 3, position=text.per_pass + 3)
    assert not np.array_equal(other.take(9), following)


def test_too_little_text_for_one_sequence_is_refused() -> None:
    assert PackedText([np.zeros(16, np.uint32)], 16, 0).per_pass == 1
    with pytest.raises(CorpusError, match="15 tokens do not fill one sequence of 16") as caught:
        PackedText([np.zeros(15, np.uint32)], 16, 0)
    assert "sequence_length" in caught.value.hint


def test_each_line_gets_its_tokens_and_the_end_token(tiny_tokenizer: Any) -> None:
    lines = [f"गया {number} बजे।" for number in range(1003)]
    found = list(token_lines(tiny_tokenizer, lines))
    assert len(found) == 1003
    end = tiny_tokenizer.eos_token_id
    for line, tokens in zip(lines, found, strict=True):
        assert tokens[-1] == end
        assert end not in tokens[:-1]
        assert tiny_tokenizer.decode(tokens[:-1]) == line


# --- the loss


def plain_loss(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=tokens).logits[:, :-1].double()
    return nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1), reduction="sum"
    )


@pytest.mark.parametrize("block", [1, 320 * 7, 1 << 22])
def test_summed_loss_and_its_gradient_are_those_of_plain_cross_entropy(
    family: Path, load_tiny: Load, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(local_steps, "LOGITS_AT_ONCE", block)
    base = load_tiny(family)
    adapter = attach(base.model, LORA)
    adapter.load(adapter.read() + 0.1)
    tokens = torch.from_numpy(PackedText(made_up_tokens(), 16, 5).take(3))
    loss, number = summed_loss(base.model, tokens)
    assert number == 3 * 15
    (loss / number).backward()
    mine = adapter.gradient.clone()
    adapter.gradient.zero_()
    reference = plain_loss(base.model, tokens)
    (reference / number).backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    assert (mine - adapter.gradient).abs().max() < 1e-4 * adapter.gradient.abs().max()
    assert mine.abs().max() > 0


def test_tiny_families_take_the_blockwise_way(
    family: Path, load_tiny: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without this the test above would compare the plain way with itself.
    base = load_tiny(family)
    attach(base.model, LORA)
    assert base.model.config.model_type in PLAIN_HEADS
    seen: list[int] = []
    monkeypatch.setattr(
        local_steps,
        "_HeadLoss",
        SimpleNamespace(apply=lambda hidden, *_: seen.append(hidden.shape[0]) or hidden.sum()),
    )
    summed_loss(base.model, torch.zeros(2, 8, dtype=torch.long))
    assert seen == [14]


def test_trained_and_unknown_heads_give_the_plain_loss(llama: Path, load_tiny: Load) -> None:
    tokens = torch.arange(20).view(2, 10)
    base = load_tiny(llama, "full")
    attach(base.model, AdapterPlan(kind="full"))
    loss, _ = summed_loss(base.model, tokens)
    loss.backward()
    mine = base.model.lm_head.weight.grad.clone()
    base.model.lm_head.weight.grad.zero_()
    plain_loss(base.model, tokens).backward()
    assert torch.allclose(mine, base.model.lm_head.weight.grad, rtol=1e-3, atol=1e-5)
    assert mine.abs().max() > 0
    assert loss.item() == pytest.approx(plain_loss(base.model, tokens).item(), rel=1e-5)
    other = load_tiny(llama)
    attach(other.model, LORA)
    other.model.config.model_type = "never-heard-of"
    found, _ = summed_loss(other.model, tokens)
    assert found.item() == pytest.approx(plain_loss(other.model, tokens).item(), rel=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "never-heard-of"])
def test_ignored_tokens_are_read_and_not_predicted(
    llama: Path, load_tiny: Load, model_type: str
) -> None:
    base = load_tiny(llama)
    attach(base.model, LORA)
    base.model.config.model_type = model_type
    tokens = torch.from_numpy(PackedText(made_up_tokens(), 16, 5).take(3))
    ignored = tuple({int(tokens[0, 3]), int(tokens[1, 5])})
    found, number = summed_loss(base.model, tokens, ignored)
    logits = base.model(input_ids=tokens).logits[:, :-1].double()
    targets = tokens[:, 1:].clone()
    targets[torch.isin(targets, torch.tensor(ignored))] = -100
    expected = nn.functional.cross_entropy(
        logits.reshape(-1, 320), targets.reshape(-1), reduction="sum"
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert number == int((targets != -100).sum()) < targets.numel()
    text = PackedText(made_up_tokens(), 16, 5, ignored=ignored)
    assert text.predicted(text.take(3)) == number


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("block", [1, 50, 10_000])
def test_gradient_of_the_blockwise_head_is_the_one_of_autograd(
    monkeypatch: pytest.MonkeyPatch, block: int, with_bias: bool
) -> None:
    monkeypatch.setattr(local_steps, "LOGITS_AT_ONCE", block)
    torch.manual_seed(0)
    weight, bias = torch.randn(25, 8), torch.randn(25) if with_bias else None
    hidden = torch.randn(11, 8, requires_grad=True)
    targets = torch.randint(0, 25, (11,))
    trained = [t.requires_grad_() for t in (hidden, weight, bias) if t is not None]
    loss = _HeadLoss.apply(hidden, weight, bias, targets)
    mine = torch.autograd.grad(3 * loss, trained)
    logits = nn.functional.linear(hidden, weight, bias)
    reference = nn.functional.cross_entropy(logits, targets, reduction="sum")
    theirs = torch.autograd.grad(3 * reference, trained)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    for one, other in zip(mine, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def test_dropout_drops_what_the_seed_of_the_step_says(llama: Path, load_tiny: Load) -> None:
    steps = steps_on(load_tiny(llama), "full", dropout=0.3)
    gradient, batch = steps._gradient, steps.text.take(2)
    one, again, other = (gradient.of(batch, 30, draw).item() for draw in (1, 1, 2))
    assert one == again != other
    plain = plain_loss(steps.model, torch.from_numpy(batch)).item()
    assert one != pytest.approx(plain, rel=1e-4)
    # Judging drops nothing.
    assert summed_loss(steps.model, torch.from_numpy(batch))[0].item() == pytest.approx(plain)
    mean = np.mean([gradient.of(batch, 30, draw).item() for draw in range(40)])
    assert mean == pytest.approx(plain, rel=0.1)


def test_dropout_in_a_model_of_unknown_layers_is_refused() -> None:
    class Other(nn.Module):
        pass

    with pytest.raises(ModelError, match=r"dropout 0\.1.*of Other add"):
        local_steps._Dropout(Other(), 0.1, torch.device("cpu"))


# --- the learning rate


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rate_warms_up_then_falls_to_its_floor(schedule: Any) -> None:
    plan = plan_of(schedule=schedule, learning_rate=2.0, warmup=0.1, final_learning_rate=0.25)
    rates = [plan.rate_at(position / 1000) for position in range(1001)]
    assert all(0 < rate <= 2.0 for rate in rates)
    assert rates[:100] == sorted(rates[:100])
    assert rates[0] < 0.05
    assert rates[100] == pytest.approx(2.0)
    assert rates[99] == pytest.approx(2.0, rel=0.02)
    assert rates[100:] == sorted(rates[100:], reverse=True)
    expected = {"constant": (2.0, 2.0), "linear": (1.25, 0.5), "cosine": (1.25, 0.5)}[schedule]
    assert (rates[550], rates[1000]) == pytest.approx(expected)
    assert plan.rate_at(1.7) == pytest.approx(expected[1])


def test_cosine_falls_slower_at_first_than_linear() -> None:
    cosine, linear = (plan_of(schedule=s, warmup=0).rate_at(0.2) for s in ("cosine", "linear"))
    assert cosine > linear


def test_run_without_warmup_starts_at_the_full_rate() -> None:
    assert plan_of(warmup=0, learning_rate=1e-3).rate_at(0.0) == pytest.approx(1e-3)


# --- the loop


def test_local_steps_lower_the_loss_and_count_what_they_did(llama: Path, load_tiny: Load) -> None:
    steps = steps_on(load_tiny(llama), learning_rate=0.02, warmup=0)
    before = steps.adapter.read()
    seen: list[tuple[int, float]] = []

    def note(done: int, loss: float) -> bool:
        seen.append((done, loss))
        return True

    found = steps.run(lambda: 25, 0.0, 0.04, note)
    assert found is not None
    assert (found.count, found.tokens) == (25, 25 * 2 * 16)
    assert [done for done, _ in seen] == list(range(1, 26))
    assert found.loss == pytest.approx(np.mean([loss for _, loss in seen]))
    assert np.mean([loss for _, loss in seen[-5:]]) < np.mean([loss for _, loss in seen[:5]]) - 0.1
    assert not np.array_equal(steps.adapter.read(), before)
    assert steps.facts() == {"steps": 25, "sequences": 50}


@pytest.mark.parametrize("clip_norm", [0.05, 1e6])
def test_step_is_the_one_of_adamw_on_the_clipped_gradient(
    llama: Path, load_tiny: Load, clip_norm: float
) -> None:
    values: dict[str, Any] = {
        "learning_rate": 0.01,
        "warmup": 0,
        "schedule": "linear",
        "weight_decay": 0.1,
        "clip_norm": clip_norm,
    }
    steps = steps_on(load_tiny(llama), **values)
    other = steps_on(load_tiny(llama), **values)
    parameter = nn.Parameter(other.adapter.flat)  # shares its memory with the model
    reference = torch.optim.AdamW(
        [parameter], lr=1, betas=(0.9, 0.99), weight_decay=0.1, foreach=False
    )
    clipped = 0
    for index in range(5):
        tokens = torch.from_numpy(other.text.take(2))
        other.adapter.gradient.zero_()
        loss, number = summed_loss(other.model, tokens)
        (loss / number).backward()
        parameter.grad = other.adapter.gradient.clone()
        clipped += bool(nn.utils.clip_grad_norm_([parameter], clip_norm) > clip_norm)
        reference.param_groups[0]["lr"] = other.plan.rate_at(0.1 * index)
        reference.step()
    steps.run(lambda: 5, 0.0, 0.1)
    assert clipped == (5 if clip_norm < 1 else 0)
    moment = reference.state[parameter]["exp_avg"].numpy()
    assert np.abs(steps.arrays()["first_moment"] - moment).max() < 1e-3 * np.abs(moment).max()
    assert np.allclose(steps.adapter.read(), other.adapter.read(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["lora", "frozen_a", "core", "full"])
def test_saved_state_continues_bit_for_bit(llama: Path, load_tiny: Load, kind: str) -> None:
    one = steps_on(load_tiny(llama, kind), kind)
    one.run(lambda: 3, 0.0, 0.1)
    theta, arrays, facts = one.adapter.read(), one.arrays(), one.facts()
    kept = {name: array.copy() for name, array in arrays.items()}
    one.run(lambda: 4, 0.3, 0.1)
    assert all(np.array_equal(arrays[name], kept[name]) for name in arrays)  # copies
    other = steps_on(load_tiny(llama, kind), kind)
    other.run(lambda: 1, 0.0, 0.1)  # another past, which restore has to undo
    other.adapter.load(theta)
    other.restore(arrays, facts)
    other.run(lambda: 4, 0.3, 0.1)
    assert other.adapter.read().tobytes() == one.adapter.read().tobytes()
    assert other.facts() == one.facts() == {"steps": 7, "sequences": 14}
    for name, array in one.arrays().items():
        assert other.arrays()[name].tobytes() == array.tobytes()


def test_restored_moments_matter(llama: Path, load_tiny: Load) -> None:
    one = steps_on(load_tiny(llama))
    one.run(lambda: 3, 0.0, 0.1)
    theta, facts = one.adapter.read(), one.facts()
    one.run(lambda: 2, 0.3, 0.1)
    other = steps_on(load_tiny(llama))
    other.adapter.load(theta)
    other.restore(other.arrays(), facts)  # the cursor alone
    other.run(lambda: 2, 0.3, 0.1)
    assert other.adapter.read().tobytes() != one.adapter.read().tobytes()


def test_moments_that_are_not_kept_start_anew_with_every_order(
    llama: Path, load_tiny: Load
) -> None:
    one = steps_on(load_tiny(llama), keep_moments=False)
    one.run(lambda: 3, 0.0, 0.1)
    theta = one.adapter.read()
    one.run(lambda: 2, 0.3, 0.1)
    assert one.facts()["steps"] == 2
    other = steps_on(load_tiny(llama))
    other.adapter.load(theta)
    other.text.position = 6
    other.run(lambda: 2, 0.3, 0.1)
    assert other.adapter.read().tobytes() == one.adapter.read().tobytes()


def test_work_stops_when_fewer_steps_are_wanted(llama: Path, load_tiny: Load) -> None:
    steps = steps_on(load_tiny(llama))
    wanted = [20]

    def after(done: int, _: float) -> bool:
        wanted[0] = 4
        return True

    found = steps.run(lambda: wanted[0], 0.0, 0.01, after)
    assert found is not None
    assert found.count == 4


def test_abandoned_work_has_no_result(llama: Path, load_tiny: Load) -> None:
    steps = steps_on(load_tiny(llama))
    assert steps.run(lambda: 20, 0.0, 0.01, lambda done, _: done < 3) is None
    assert steps.facts()["steps"] == 3


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_divergence_is_a_site_error_that_says_what_to_lower(
    llama: Path, load_tiny: Load, kind: str
) -> None:
    steps = steps_on(load_tiny(llama, kind), kind, learning_rate=1e30, warmup=0)
    with pytest.raises(SiteError, match=r"the loss is (nan|inf) after \d local steps") as caught:
        steps.run(lambda: 9, 0.0, 0.01)
    assert "model.local_steps.learning_rate" in caught.value.hint


def test_mean_loss_is_finite_and_near_uniform_at_first(llama: Path, load_tiny: Load) -> None:
    found = steps_on(load_tiny(llama)).run(lambda: 1, 0.0, 0.01)
    assert found is not None
    assert math.log(320) < found.loss < 3 * math.log(320)


def test_rows_of_tokens_that_the_text_never_has_stay_as_they_are(
    llama: Path, load_tiny: Load
) -> None:
    tokens = [line % 50 for line in made_up_tokens()]
    moved = {}
    for own in (True, False):
        base = load_tiny(llama, "full")
        adapter = attach(base.model, AdapterPlan(kind="full"))
        before = adapter.read()
        text = PackedText(tokens, 16, 5)
        LocalSteps(base.model, adapter, text, plan_of(), own_tokens=own).run(lambda: 3, 0.0, 0.1)
        (table, *_) = adapter.layout.token_tables
        span = slice(table.offset, table.offset + table.size)
        apart = (adapter.read() - before)[span].reshape(table.shape)
        moved[own] = apart.any(axis=1)
    assert moved[True][:50].all()
    assert not moved[True][50:].any()
    assert moved[False][50:].any()
