"""Each term's share of the gradient: |g_k| / sum_j |g_j|, with g_k the gradient of term k alone at the model's parameters.

The values of losses say nothing about who steers: a small term with a steep gradient may be all that moves. The gradients are those of the
global batch, summed over micro-batches and ranks before the norm. They are taken from the graph of the step itself, beside the gradient
that trains: nothing is drawn again, and the step has the same bits with them and without. A rollout that replays its steps replays them
once more for each of its terms.
"""

import math

import torch
from torch import Tensor

from percepta import distributed
from percepta.rollout import Rollout
from percepta.training.method import Method, Turn
from percepta.training.optim import norm_of
from percepta.training.precision import CUDA_GRAPHS
from percepta.training.settings import Settings
from percepta.training.state import Player

USUAL = 10  # lines of the log between two measurements, where --shares-every does not say


def shares_every(settings: Settings, method: Method, device: torch.device) -> int:
    """Steps between two measurements; 0 for none. A single term has the share 1, which needs no measuring.

    A weight that follows its share is measured at every line of the log. Where each term takes a replay of the whole chain, nothing is measured unless it is asked for.
    """
    graphs = settings.compile in CUDA_GRAPHS and device.type == "cuda"
    if wanted := [term.name for term in method.terms if term.share is not None]:
        if settings.shares_every == 0 or graphs:
            raise ValueError(
                f"a share of the gradient is wanted for {', '.join(wanted)}, which has to be measured: leave --shares-every 0 and CUDA graphs away"
            )
        return settings.shares_every or settings.log_every
    if settings.shares_every is None:
        replays = isinstance(method.estimate, Rollout) and method.estimate.backprop in ("replay", "auto")
        return 0 if graphs or replays or len(method.all_terms) < 2 else USUAL * settings.log_every
    if settings.shares_every and graphs:
        raise ValueError(f"--shares-every walks backward once per term, and the CUDA graphs of --compile {settings.compile} keep "
                         "one result only: use --compile default, or --shares-every 0")  # fmt: skip
    return settings.shares_every if len(method.all_terms) > 1 else 0


def due(step: int, every: int, settings: Settings) -> bool:
    """Whether the step that ends as number `step` is measured: the first that writes a line at or after each multiple of `every`."""
    if not every or (step % settings.log_every and step != settings.steps):
        return False
    line_before = (step - 1) // settings.log_every * settings.log_every
    return step // every > line_before // every


class Shares:
    """The gradients of one step's terms, added up part by part. `asked`: by the user, who is told where there is nothing to add."""

    def __init__(self, asked: bool = False) -> None:
        self.asked = asked
        self._sums: dict[str, list[Tensor]] = {}

    def add(self, turn: Turn, share: float, player: Player) -> None:
        """The terms of one part of the batch; their graph stays for the backward pass that trains."""
        scale = 1.0 if player.scaler is None else player.scaler.get_scale()  # fp16: small gradients would vanish
        for name, loss in (turn.terms or {}).items():
            if not loss.requires_grad:
                found = (None,) * len(player.params)
            elif turn.alone is not None:
                found = turn.alone(name, share * scale, player.params)
            else:
                found = torch.autograd.grad(loss * (share * scale), player.params, retain_graph=True, allow_unused=True)
            grads = [torch.zeros_like(p) if g is None else g / scale for p, g in zip(player.params, found, strict=True)]
            if name in self._sums:
                torch._foreach_add_(self._sums[name], grads)
            else:
                self._sums[name] = grads

    def values(self) -> dict[str, float]:
        """Term -> share; called on every rank. Empty where nothing was added, or where no share can be told (0 or infinity)."""
        if not self._sums:
            if self.asked:
                raise ValueError("--shares-every was asked for, but this method's turns do not name their terms (Turn.terms), so no share can "
                                 "be measured: leave --shares-every out")  # fmt: skip
            return {}
        norms = {name: float(norm_of([distributed.summed(g) for g in grads])) for name, grads in self._sums.items()}
        total = sum(norms.values())
        if not (math.isfinite(total) and total > 0):
            return {}
        return {name: norm / total for name, norm in norms.items()}
