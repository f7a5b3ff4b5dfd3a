"""Method: what is trained, how an estimate is made, which terms judge it, and who takes which turn in a step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from percepta.estimate import Batch, Estimate, Estimator
from percepta.objectives.term import AbstractPerBatch, Term, TrainsCritic
from percepta.rng import Rng
from percepta.training.product import Product


@dataclass(frozen=True)
class Turn:
    """One player's move: the loss that its parameters follow. `logs` are the terms behind it, by name.

    `backward`, where given, makes the gradient itself (a rollout that replays its steps); it is called with the loss's scale. `terms`,
    where given, are the summands of `loss` with their graph, so that the share of each in the gradient can be told.
    """

    player: str
    loss: Tensor
    logs: Mapping[str, Tensor]
    backward: Callable[[float], None] | None = None
    terms: Mapping[str, Tensor] | None = None


@dataclass
class Method:
    """The model's turn minimises the sum of the terms; each term that trains a critic takes a turn before it.

    `players` maps a name to the module whose trainable parameters that player moves: "model" first, whose weights are averaged.
    `product` is what the trained model is good for: previews and the export.
    """

    model: nn.Module
    estimate: Estimator
    terms: Sequence[Term]
    product: Product
    players: dict[str, nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [term.name for term in self.terms]
        if len(set(names)) != len(names):
            raise ValueError(f"every term needs a name of its own, got {names}")
        critics = {term.name: term.objective.critic for term in self.terms if isinstance(term.objective, TrainsCritic)}
        self.players = {"model": self.model, **critics, **self.players}

    @property
    def whole_batch(self) -> bool:
        """Whether a term couples the samples: the loop then hands over the whole batch instead of micro-batches."""
        return any(isinstance(term.objective, AbstractPerBatch) for term in self.terms)

    def to(self, device: torch.device) -> None:
        """Move every network: the players', and the frozen ones behind the objectives."""
        for module in self.players.values():
            module.to(device)
        for term in self.terms:
            for value in vars(term.objective).values():
                if isinstance(value, nn.Module):
                    value.to(device)

    def step(self, batch: Batch, rng: Rng) -> Iterator[Turn]:
        est = self.estimate(batch, rng)
        for term in self.terms:
            if isinstance(term.objective, TrainsCritic):
                loss = term.objective.critic_loss(est.detach(), rng)
                yield Turn(term.name, loss, {f"critic/{term.name}": loss.detach()})
        yield self._model_turn(est)

    def _model_turn(self, est: Estimate) -> Turn:
        losses = {term.name: term(est) for term in self.terms}
        total = sum(losses.values())
        assert isinstance(total, Tensor), "a method needs at least one term"
        logs = {name: loss.detach() for name, loss in losses.items()}
        if est.onward is None:
            return Turn("model", total, logs, terms=losses)
        return Turn("model", total, logs, backward=partial(_by_way_of, est, total))


def _by_way_of(est: Estimate, loss: Tensor, scale: float) -> None:
    """Backward where the graph ends at x0_hat, a leaf: its gradient, and then the maker's own way on."""
    assert est.onward is not None
    (grad,) = torch.autograd.grad(loss * scale, est.x0_hat)
    est.onward(grad)
