"""Structure: the samples of a batch are to be as alike to each other after denoising as they were before (SADM, Yang et al. 2024).

    L_s = eta_t/B^2 sum_ij D( R(Psi(x_i), Psi(x_j)), R(Psi(xh_i), Psi(xh_j)) )        eta_t = min(1/t, eta_max)

B is the global batch: ranks gather their features with gradient, and what splits the batch for memory's sake does not change the loss. t is the path's
own: (k + 1)/T of a discrete path, sigma of EDM. 1/t has no mean over uniform times, and so it is bounded.

AdversarialStructure trains Psi as well: a copy of the space climbs the same loss, with xh held, in a turn of its own before the model's.
"""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from percepta.discrepancies.affinity import Distance, Relation, affinity, affinity_correlation, affinity_gap
from percepta.distributed import gather_rows
from percepta.estimate import Estimate, moved
from percepta.objectives.rows import MEMORY, Clamp, Decodes, Rows
from percepta.objectives.term import AbstractPerBatch, TrainsCritic
from percepta.rng import Rng
from percepta.spaces import Space

ETA_MAX = 10.0


@dataclass(frozen=True)
class Structures:
    """How affinities are made and compared: the relation R, the distance D, and the bound of eta."""

    relation: Relation = "cosine"
    distance: Distance = "l2"
    eta_max: float = ETA_MAX

    def __post_init__(self) -> None:
        if not 0 < self.eta_max < float("inf"):
            raise ValueError(f"eta is bounded by a number above 0, got {self.eta_max:g}: 1/t alone has no mean")

    def eta(self, est: Estimate) -> Float[Tensor, "b"] | float:
        """min(1/t, eta_max) of each sample; 1 where an estimate has no time."""
        return 1.0 if est.noised is None else (1 / est.t).clamp(max=self.eta_max)


class Structure(AbstractPerBatch):
    """The gap between the affinities of x0 and x0_hat in the first feature of `space`.

    `chunk`: images that go through the space at a time. `decoder` makes images of latents. After each call `told` holds what there is to log.
    """

    def __init__(
        self,
        space: Space,
        how: Structures = Structures(),
        chunk: int | None = None,
        clamp: Clamp = "straight",
        decoder: Decodes | None = None,
        memory: int = MEMORY,
    ) -> None:
        self.space, self.how = space, how
        # latents are drawn anew in every epoch: none comes twice
        self.rows = Rows(space, chunk, clamp, memory if decoder is None else 0, decoder)
        self.decoder = decoder
        self.told: dict[str, Tensor] = {}

    def __call__(self, est: Estimate) -> Float[Tensor, ""]:
        return self._gap(est, self.rows.real(est.x0), self.rows(est.x0_hat))

    def _gap(self, est: Estimate, real: Tensor, fake: Tensor) -> Float[Tensor, ""]:
        if not est.paired or len(est.x0) != len(est):
            raise ValueError(
                "the structure of a batch is compared with that of its own targets: use Mmd for sets that are not paired"
            )
        eta = self.how.eta(est)
        if isinstance(eta, Tensor):  # under autocast features may have three digits
            eta = gather_rows(moved(eta, fake.device, dtype=torch.promote_types(fake.dtype, torch.float32)))
        of_real, of_fake = (affinity(gather_rows(rows), self.how.relation) for rows in (real, fake))
        self.told = {"correlation": affinity_correlation(of_real.detach(), of_fake.detach())}
        return affinity_gap(of_real, of_fake, self.how.distance, eta)


@dataclass(frozen=True)
class Rounds:
    """Each round is `held` steps with the critic as it is, and then `moving` steps in which it takes its turn."""

    held: int = 0
    moving: int = 1

    def __post_init__(self) -> None:
        if self.held < 0 or self.moving < 1:
            raise ValueError(
                f"a round has 0 or more steps with the critic held and 1 or more with it moving, got {self.held} and {self.moving}"
            )

    def moves(self, step: int) -> bool:
        return step % (self.held + self.moving) >= self.held


class AdversarialStructure(Structure, TrainsCritic):
    """Structure, whose space learns to see the gap: `critic` is a trainable copy of it, its batch norm statistics as they were.

    anchor: weight of the mean squared distance of the critic's weights from where they began, in the critic's loss.
    drift: how far they may go, as a part of their norm; a critic that goes further has left the space that it was, and the run stops.
    """

    advice = "the critic has left the space that it began as: a lower --critic-lr, a higher --critic-anchor or fewer --sat-steps keep it near"

    def __init__(
        self,
        space: Space,
        how: Structures = Structures(),
        chunk: int | None = None,
        clamp: Clamp = "straight",
        decoder: Decodes | None = None,
        rounds: Rounds = Rounds(),
        anchor: float = 0.0,
        drift: float = 0.3,
    ) -> None:
        if not (0 <= anchor < float("inf") and drift > 0):
            raise ValueError(f"an anchor is 0 or more and a drift above 0, got {anchor:g} and {drift:g}")
        if space.on is not None:
            raise ValueError(
                f"the space {space.name} stands on another, and its critic would be both: give the one below as decoder"
            )
        critic = trainable(space)
        super().__init__(critic, how, chunk, clamp, decoder)
        self.critic: nn.Module = critic
        self.rounds, self.anchor = rounds, anchor
        self.limits = {"drift": drift}
        self.start = [p.detach().clone() for p in critic.parameters()]
        self.moving = False

    def __call__(self, est: Estimate) -> Float[Tensor, ""]:
        """For the model's turn: the critic's weights have no gradient, the graph through it stays."""
        held = {name: p.detach() for name, p in self.critic.named_parameters()}
        real = self.rows.anew(est.x0) if self.moving else self.rows.real(est.x0)
        self.moving = False
        gap = self._gap(est, real, self.rows(est.x0_hat, held))
        with torch.no_grad():
            away, whole = self._away()
            self.told |= {"drift": (away / whole).sqrt()}
        return gap

    def moves(self, step: int) -> bool:
        return self.rounds.moves(step)

    def critic_loss(self, est: Estimate, rng: Rng) -> Float[Tensor, ""]:
        """-L_s, and the anchor where there is one."""
        self.rows.forget()
        self.moving = True  # what the model's turn finds by the weights after this one is of no use to the next step
        loss = -self._gap(est, self.rows(est.x0), self.rows(est.x0_hat))
        return loss + self.anchor * self._away()[0] / sum(p.numel() for p in self.start) if self.anchor else loss

    def _away(self) -> tuple[Tensor, Tensor]:
        """Squared distance of the weights from where they began, and the squared norm that they began with."""
        params = list(self.critic.parameters())
        self.start = [old.to(new.device) for old, new in zip(self.start, params, strict=True)]
        away = torch.stack([(new - old).square().sum() for new, old in zip(params, self.start, strict=True)]).sum()
        return away, torch.stack([old.square().sum() for old in self.start]).sum()


def trainable(space: Space) -> Space:
    """A copy whose weights train. It stays in eval mode, as a Space does: batch norm uses the statistics that it has."""
    critic = copy.deepcopy(space).requires_grad_(True)
    if not any(True for _ in critic.parameters()):
        raise ValueError(
            f"the space {space.name} has no weights that a critic could train: use inception, clip, dinov2, alex or domain, or "
            "Structure (--sat-steps 0), which has no critic"
        )
    return critic
