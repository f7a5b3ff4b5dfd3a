"""Term: an objective with a name, a scale, a weight per sample and a gate, and the two kinds of objective.

    loss = scale / B  sum over kept k of  weight_k objective(estimate)_k

The gate acts before any feature is computed, and B counts the samples drawn, not the samples kept: a gated term is the expectation
of 1(gate) loss, as the papers write it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from percepta.estimate import Estimate
from percepta.formulation import expand
from percepta.rng import Rng


class AbstractObjective(ABC):
    """A judgement of an Estimate. `told`, where it has one, holds further numbers for the log after each call: means over the rows."""

    told: Mapping[str, Tensor] = MappingProxyType({})


class AbstractPerSample(AbstractObjective):
    """One number per sample: may be weighted, gated and split into micro-batches."""

    @abstractmethod
    def __call__(self, est: Estimate) -> Float[Tensor, "b"]: ...


class AbstractPerBatch(AbstractObjective):
    """One number for the set of samples: the kernel batch is the whole batch, over micro-batches and ranks.

    It is called on every rank, with no rows where a gate kept none there: what it gathers, all ranks gather.
    """

    @abstractmethod
    def __call__(self, est: Estimate) -> Float[Tensor, ""]: ...


@runtime_checkable
class Settles(Protocol):
    """A player's module that has something to do after each of its moves: weights back into their bounds, a power iteration."""

    def settle(self) -> None: ...


class TrainsCritic(ABC):
    """An objective with a network of its own that takes a turn before the model does.

    `limits` bound what the objective tells (`told`) of a critic that has moved: beyond one, it is good for nothing any more, the run stops before
    that is saved, and `advice` says what to do.
    """

    critic: nn.Module
    limits: Mapping[str, float] = MappingProxyType({})
    advice: str = ""

    @abstractmethod
    def critic_loss(self, est: Estimate, rng: Rng) -> Float[Tensor, ""]: ...

    def moves(self, step: int) -> bool:
        """Whether it takes its turn in this step."""
        return True


@dataclass(frozen=True)
class Calibrated:
    """How a term's weight is found on the first batches of a run, beside the term that it joins (percepta.training.calibration).

    share: it is to be `part` of the sum of the two losses. variance: its variance is to be `part` of the other's. levels: it weighs noise levels
    as the term `by` would, by w Var(by)/Var(other), with the weight w that `by` has or would be found to have.
    """

    rule: Literal["share", "variance", "levels"] = "share"
    part: float = 0.2
    by: "Term | None" = None

    def __post_init__(self) -> None:
        if (self.rule == "levels") != (self.by is not None):
            raise ValueError(f"the rule levels, and no other, says by which term; got {self.rule} by {self.by and self.by.name}")
        if not 0 < self.part < (1 if self.rule == "share" else float("inf")):
            raise ValueError(f"a {self.rule} of {self.part:g} cannot be: it is above 0{', and below 1' * (self.rule == 'share')}")


@dataclass(frozen=True)
class Term:
    """`weight` maps an estimate to one number per sample, `keep` to the mask of the samples that are judged at all.

    `share` is the part of the gradient's norm that the term is wanted to have: its weight then follows, where a method is trained by the loop.
    `calibrated` says how the weight is found, once, where that is left to the first batches.
    With `every` n a method judges by it in each n-th step alone, and it counts n times there: the same on average, for less work.
    """

    name: str
    objective: AbstractPerSample | AbstractPerBatch
    scale: float = 1.0
    weight: Callable[[Estimate], Float[Tensor, "b"]] | None = None
    keep: Callable[[Estimate], Bool[Tensor, "b"]] | None = None
    every: int = 1
    share: float | None = None
    calibrated: Calibrated | None = None

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(f"term {self.name!r}: a share of the gradient lies between 0 and 1, got {self.share:g}")
        if self.every < 1:
            raise ValueError(f"term {self.name!r}: every counts steps, 1 or more, got {self.every}")
        if isinstance(self.objective, AbstractPerBatch) and self.weight is not None:
            raise ValueError(
                f"term {self.name!r}: {type(self.objective).__name__} judges the batch as a whole and cannot be weighted "
                "per sample; use a gate, or a per-sample objective"
            )

    def at(self, est: Estimate, step: int) -> Float[Tensor, ""]:
        """The term in a step: 0 in those that it leaves out, which keeps the graph."""
        return self(est) * self.every if step % self.every == self.every - 1 else est.x0_hat[:0].sum()

    def __call__(self, est: Estimate) -> Float[Tensor, ""]:
        judged = self.judged(est)
        if isinstance(self.objective, AbstractPerBatch):  # asked even with no rows, since it may gather those that other ranks kept
            return self.scale * self.objective(judged)
        if len(judged) == 0:
            return est.x0_hat[:0].sum()  # keeps the graph, and is 0 whatever lies beyond the gate
        return self.scale * self.losses(judged).sum() / len(est)

    def judged(self, est: Estimate) -> Estimate:
        """The samples that the gate keeps."""
        return est if self.keep is None else est.select(self.keep(est))

    def losses(self, judged: Estimate) -> Float[Tensor, "b"]:
        """Of each sample that is judged, weighted, before `scale`; for per-sample objectives."""
        assert isinstance(self.objective, AbstractPerSample)
        losses = self.objective(judged)
        assert losses.shape == (len(judged),), (self.name, losses.shape, len(judged))
        return losses if self.weight is None else losses * expand(self.weight(judged), losses)


def per_sample(error: Float[Tensor, "b *d"]) -> Float[Tensor, "b"]:
    """Mean over everything but the batch, in float32 or better."""
    return error.to(torch.promote_types(error.dtype, torch.float32)).flatten(1).mean(1)
