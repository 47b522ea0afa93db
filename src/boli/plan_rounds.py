"""Sections of the plan on rounds, and on what travels in them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Frozen; refuses keys that it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, ser_json_inf_nan="constants"
    )


class OuterPlan(Section):
    """The coordinator's optimizer over pseudo-gradients."""

    name: Literal["sgd", "nesterov", "delayed_nesterov", "adam", "yogi"] = "sgd"
    learning_rate: float = Field(1.0, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)  # nesterov, delayed_nesterov
    delay: int = Field(4, ge=1)  # delayed_nesterov: rounds between momentum updates
    activation: float = Field(0.0, ge=0, le=1)  # delayed_nesterov: share of momentum in between
    beta1: float = Field(0.9, ge=0, lt=1)  # adam, yogi
    beta2: float = Field(0.99, ge=0, lt=1)
    epsilon: float = Field(1e-3, gt=0)

    @model_validator(mode="after")
    def _activation_fits(self) -> Self:
        if self.activation * self.delay > 1:
            raise ValueError(
                f"activation {self.activation} × delay {self.delay} is above 1; "
                f"set activation to at most {1 / self.delay:.3g}"
            )
        return self


class RoundsPlan(Section):
    mode: Literal["synchronous", "asynchronous"] = "synchronous"
    total: int = Field(20, ge=1)
    local_steps: int = Field(20, ge=1)  # H, for a site of ordinary speed
    min_local_steps: int = Field(1, ge=1)  # no order asks for fewer, however slow or late a site is
    buffer_size: int | None = Field(None, ge=1)  # asynchronous: updates that make a round
    max_staleness: int | None = Field(None, ge=0)  # asynchronous: in rounds
    speed_aware: bool = False  # local steps follow each site's measured speed
    staleness_power: float = Field(0.5, ge=0, le=2)  # weight shrinks by (1 + staleness) ** this
    token_power: float = Field(1.0, ge=0, le=1)  # update weight = tokens ** token_power
    # Bounds on what one site can do (docs/decisions/0021-one-site-its-share.md).
    step_multiple: float = Field(1.0, gt=0)  # of what so many AdamW steps can move; inf: no bound
    norm_multiple: float | None = Field(None, gt=0)  # of what the lower-median site adds; inf: none
    most_share: float | None = Field(None, gt=0, le=1)  # asynchronous: of any ten versions' updates
    robust: Literal["none", "trimmed_mean", "median", "centered_clipping"] = "none"
    trim_share: float = Field(0.2, gt=0, lt=0.5)  # trimmed_mean: of the sites, at each end
    suspend: bool = True  # sites that offend again and again
    patience_seconds: float = Field(3600.0, gt=0)  # with a site that does not judge the end
    average: int = Field(1, ge=1)  # the last version is the mean of so many
    deadline_seconds: float = Field(0.0, ge=0)  # re-issue with half the steps; 0: never
    outer: OuterPlan = OuterPlan()
    seed: int = 0

    @model_validator(mode="after")
    def _mode_fits(self) -> Self:
        if self.min_local_steps > self.local_steps:
            raise ValueError(
                f"min_local_steps {self.min_local_steps} is above local_steps "
                f"{self.local_steps}; lower it, or raise local_steps"
            )
        if self.average > self.total:
            raise ValueError(
                f"average {self.average} is above total {self.total}, which is how many versions "
                "there are; lower it"
            )
        if self.mode == "synchronous":
            for key in ("buffer_size", "max_staleness"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"{key} has no meaning when every round waits for every site; "
                        f'remove it, or set mode = "asynchronous"'
                    )
            if self.speed_aware:
                raise ValueError(
                    "measured speed would make a synchronous run differ from its repetition; "
                    'remove speed_aware, or set mode = "asynchronous"'
                )
        return self


Share = Annotated[float, Field(gt=0, le=0.5)]  # of the entries


class OneWayPlan(Section):
    name: Literal["dense", "sparse", "dgc", "public"] = "dense"
    dtype: Literal["fp32", "fp16"] = "fp32"  # dense
    density: Share = 1 / 32  # that is sent; not dense
    warmup: tuple[Share, ...] = ()  # densities of the first versions; not dense
    warmup_rounds: int = Field(1, ge=1)  # that each of them lasts
    value_bits: Literal[2, 4, 8] = 2  # not dense
    chunk: int = Field(4096, ge=0, le=64 * 65535, multiple_of=64)  # 0: the whole vector
    residual_decay: float = Field(1.0, ge=0, le=1)  # of what was left, at every update; 0: let go
    final_residual_decay: float | None = Field(None, ge=0, le=1)  # towards it along the run

    @property
    def densities(self) -> tuple[float, ...]:
        """Those of the first versions, one by one."""
        return tuple(share for share in self.warmup for _ in range(self.warmup_rounds))


class CodecPlan(OneWayPlan):
    least_density: float | None = Field(None, gt=0, le=0.5)  # speed_aware: down to it on thin lines
    momentum: float = Field(0.9, ge=0, lt=1)  # dgc: of each site's steps, until they are sent
    train_from_residual: bool = False  # a site goes on from the version and what is not in it yet
    downlink: OneWayPlan | None = None  # by default dense fp32, or sparse where the uplink is not

    @model_validator(mode="after")
    def _downlink_fits(self) -> Self:
        if self.downlink is not None and self.downlink.name in ("dgc", "public"):
            raise ValueError(
                f"{self.downlink.name} is for updates: "
                'set codec.downlink.name to "sparse" or "dense"'
            )
        if self.least_density is not None and (
            self.name != "sparse" or self.least_density > self.density
        ):
            raise ValueError(
                f"least_density {self.least_density} bounds the density {self.density} of codec "
                '"sparse" from below; lower it, or remove it'
            )
        if self.name == "dgc" and self.train_from_residual:
            raise ValueError("under dgc a site trains from the version: remove train_from_residual")
        return self

    @property
    def down(self) -> OneWayPlan:
        """How versions travel."""
        if self.downlink is not None:
            return self.downlink
        if self.name == "dense":
            return OneWayPlan()
        own = self.model_dump(include=set(OneWayPlan.model_fields))
        return OneWayPlan.model_validate(own | {"name": "sparse"})
