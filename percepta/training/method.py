"""Method: what is trained, how an estimate is made, which terms judge it, and who takes which turn in a step."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from percepta.estimate import Batch, Estimate, Estimator
from percepta.objectives.term import AbstractPerBatch, Term, TrainsCritic
from percepta.peft import Adapter
from percepta.rng import Rng, mix, seed_torch
from percepta.training.product import Product


@dataclass(frozen=True)
class Turn:
    """One player's move: the loss that its parameters follow. `logs` are the terms behind it, by name.

    `backward`, where given, makes the gradient itself (a rollout that replays its steps); it is called with the loss's scale. `terms`,
    where given, are the summands of `loss`, so that the share of each in the gradient can be told: by their graph, or, where that does
    not reach the parameters, by `alone`, which gives the gradient of one term, by name and scale, at the parameters.
    """

    player: str
    loss: Tensor
    logs: Mapping[str, Tensor]
    backward: Callable[[float], None] | None = None
    terms: Mapping[str, Tensor] | None = None
    alone: "Callable[[str, float, Sequence[Tensor]], Sequence[Tensor | None]] | None" = None
    limits: Mapping[str, tuple[float, str]] = field(default_factory=dict)  # names in `logs` -> the most, and what to do beyond that


@dataclass(frozen=True)
class Pace:
    """How a player other than the model moves: its learning rate, of which the run's schedule is a factor, the norm of its gradient, its decay."""

    lr: float
    clip: float | None = 1.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not self.lr > 0 or (self.clip is not None and not self.clip > 0):
            raise ValueError(f"a learning rate and a clipping norm are above 0, got {self.lr:g} and {self.clip}")


@dataclass(frozen=True)
class Beside:
    """A second estimate, whose terms the model's turn minimises as well: per-sample terms alone.

    It is made `micro` rows at a time, and once more in the backward pass: it takes the memory of one micro-batch, as a rollout that replays does.
    """

    estimate: Estimator
    terms: Sequence[Term]
    micro: int | None = None

    def __post_init__(self) -> None:
        if whole := [term.name for term in self.terms if isinstance(term.objective, AbstractPerBatch)]:
            raise ValueError(f"an estimate beside another one is judged sample by sample; {', '.join(whole)} judges sets")

    def __call__(self, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        """The terms over the whole batch, by name."""

        def part(rows: slice) -> Tensor:
            mine = rng.select(rows)
            seed_torch(mix(mine.seed, mine.stream, "beside", mine.step, mine.ordinals[0]), batch.x0.device)
            est = self.estimate(batch.select(rows), mine)
            return torch.stack([term(est) for term in self.terms]) * (len(est) / len(batch))

        size = self.micro or len(batch)
        rows = [slice(first, min(first + size, len(batch))) for first in range(0, len(batch), size)]
        parts = [checkpoint(part, one, use_reentrant=False, preserve_rng_state=False) for one in rows]
        return dict(zip((term.name for term in self.terms), torch.stack(parts).sum(0), strict=True))  # pyright: ignore


@dataclass
class Method:
    """The model's turn minimises the sum of the terms; each term that trains a critic takes a turn before it.

    `players` maps a name to the module whose trainable parameters that player moves: "model" first, whose weights are averaged.
    `product` is what the trained model is good for: previews and the export. `beside` holds further estimates of the same model. `paces` are those
    of players that do not move as the model does.
    """

    model: nn.Module
    estimate: Estimator
    terms: Sequence[Term]
    product: Product
    players: dict[str, nn.Module] = field(default_factory=dict)
    beside: Sequence[Beside] = ()
    watch: Callable[[Estimate], Mapping[str, Tensor]] | None = None  # further numbers for the log: means over the rows
    scales: dict[str, float] = field(default_factory=dict)  # factors on the weights of terms that are wanted to have a share
    paces: Mapping[str, Pace] = field(default_factory=dict)
    adapter: Adapter | None = None  # the few weights of the model that are trained, where it is not all

    def __post_init__(self) -> None:
        names = [term.name for term in self.all_terms]
        if len(set(names)) != len(names):
            raise ValueError(f"every term needs a name of its own, got {names}")
        critics = {term.name: term.objective.critic for term in self.terms if isinstance(term.objective, TrainsCritic)}
        self.players = {"model": self.model, **critics, **self.players}

    @property
    def all_terms(self) -> list[Term]:
        return [*self.terms, *(term for other in self.beside for term in other.terms)]

    @property
    def whole_batch(self) -> bool:
        """Whether a term couples the samples: the loop then hands over the whole batch instead of micro-batches."""
        return any(isinstance(term.objective, AbstractPerBatch) for term in self.terms)

    def to(self, device: torch.device) -> None:
        """Move every network: the players', and the frozen ones behind the estimators and the objectives."""
        for module in self.players.values():
            module.to(device)
        estimators = (self.estimate, *(other.estimate for other in self.beside))
        judges = [
            term.calibrated.by.objective
            for term in self.all_terms
            if term.calibrated is not None and term.calibrated.by is not None
        ]
        for owner in (*estimators, *(term.objective for term in self.all_terms), *judges):
            for value in vars(owner).values():
                if isinstance(value, nn.Module):
                    value.to(device)

    def step(self, batch: Batch, rng: Rng) -> Iterator[Turn]:
        est = self.estimate(batch, rng)
        for term in self.terms:
            critic = term.objective
            if isinstance(critic, TrainsCritic) and critic.moves(rng.step):
                loss = critic.critic_loss(est.detach(), rng)
                yield Turn(term.name, loss, {f"critic/{term.name}": loss.detach()})
        yield self._model_turn(est, [other(batch, rng) for other in self.beside], rng.step)

    def _model_turn(self, est: Estimate, beside: Sequence[Mapping[str, Tensor]], step: int) -> Turn:
        own = {term.name: term.at(est, step) for term in self.terms}
        own = {name: loss * self.scales[name] if name in self.scales else loss for name, loss in own.items()}
        losses = dict(own)
        for other in beside:
            losses |= other
        logs = {name: loss.detach() for name, loss in losses.items()}
        logs |= {f"{term.name}/{what}": value for term in self.terms for what, value in term.objective.told.items()}
        if self.watch is not None:
            logs |= self.watch(est)
        limits = {
            f"{term.name}/{what}": (most, term.objective.advice)
            for term in self.terms
            if isinstance(term.objective, TrainsCritic)
            for what, most in term.objective.limits.items()
        }
        if est.onward is None:
            return Turn("model", total(losses.values()), logs, terms=losses, limits=limits)
        params = [p for p in self.model.parameters() if p.requires_grad]
        rest = {name: loss for other in beside for name, loss in other.items()}
        backward = partial(_by_way_of, est, list(own.values()), list(rest.values()), params)
        return Turn("model", total(losses.values()), logs, backward, losses, partial(_alone, est, own, rest), limits)


def total(losses: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, losses)


def _by_way_of(est: Estimate, own: Sequence[Tensor], rest: Sequence[Tensor], params: Sequence[Tensor], scale: float) -> None:
    """Backward where the graph of `own` ends at x0_hat, a leaf: its gradient, and then the maker's own way on. `rest` has a graph of its own."""
    assert est.onward is not None
    (grad,) = torch.autograd.grad(total(own) * scale, est.x0_hat)
    est.onward(grad)
    if rest:
        torch.autograd.backward(total(rest) * scale, inputs=list(params))


def _alone(
    est: Estimate, own: Mapping[str, Tensor], rest: Mapping[str, Tensor], name: str, scale: float, params: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradient of one term by the same way; what the parameters have as theirs stays as it is, and so do the graphs."""
    assert est.onward is not None
    if name in rest:
        return list(torch.autograd.grad(rest[name] * scale, params, retain_graph=True, allow_unused=True))
    (grad,) = torch.autograd.grad(own[name] * scale, est.x0_hat, retain_graph=True)
    kept = [p.grad for p in params]
    for p in params:
        p.grad = None
    est.onward(grad)
    found = [p.grad for p in params]
    for p, before in zip(params, kept, strict=True):
        p.grad = before
    return found
