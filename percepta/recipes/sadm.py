"""SADM (Yang et al. 2024): diffusion that keeps the structure of each batch, seen by a space and then by a critic that learns to see it.

    min_theta   |output - target|^2 + lambda eta_t/B^2 sum_ij ( R(Psi(x_i), Psi(x_j)) - R(Psi(xh_i), Psi(xh_j)) )^2
    max_Psi     the second term alone, with xh held

First the space Psi is as it was trained elsewhere (structure guidance), then a copy of it takes turns with the denoiser (structure adversarial
training). From scratch, or to bring a trained model to another domain (--init), with all weights or few (--peft).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from percepta.discrepancies.affinity import Distance, Relation
from percepta.estimate import Denoise
from percepta.objectives import AdversarialStructure, Rounds, Structure, Structures, Term
from percepta.objectives.rows import Clamp
from percepta.spaces.extractor import split_name
from percepta.spaces.opening import open_space, weighted
from percepta.spaces.space import enlarging
from percepta.training.knobs import AnyFormulation, WithAugment
from percepta.training.method import Method, Pace
from percepta.training.recipe import Context, Recipe, denoising_method
from percepta.training.settings import Settings

MICRO = 16  # images that go through the space together, unless --micro-batch says otherwise
SHARE, START = 0.2, 0.01  # of the gradient, and the weight that begins to follow it
CRITICS = ("critic_lr", "critic_clip", "critic_weight_decay", "critic_anchor", "critic_drift")
ADVERSARIAL = 7  # one step in so many is adversarial, as 4,000 of 28,000 are in the paper's fine-tuning

EDM: Mapping[str, Any] = {  # as EDM has it; the length is that of the paper's second stage, the first is "until convergence"
    "structure_weight": 1.0, "predict": "edm", "optimizer": "adam", "clip": None, "ema": "edm", "ema_halflife": 500_000, "cond_dropout": 0.0,
}  # fmt: skip
CIFAR: Mapping[str, Any] = {
    **EDM, "network": "ddpmpp-32", "size": 32, "batch": 512, "lr": 1e-3, "steps": 500_000, "warmup": 19_531, "augment": 0.12,
    "sample_steps": 18,
}  # fmt: skip
FACES: Mapping[str, Any] = {
    **EDM, "network": "ddpmpp-64", "size": 64, "batch": 256, "lr": 2e-4, "steps": 500_000, "warmup": 39_063, "augment": 0.15,
    "sample_steps": 40,
}  # fmt: skip
DIT: Mapping[str, Any] = {"structure_weight": 1.0, "predict": "eps", "network": "dit-xl-2", "batch": 256, "lr": 1e-4, "flip": True}
# 24,000 + 4,000 steps are the paper's; batch and rate are those of the protocol it follows (docs/recipes/sadm.md)
TUNING: Mapping[str, Any] = {
    "structure_weight": 1.0,
    "size": 256,
    "batch": 32,
    "lr": 1e-4,
    "sg_steps": 24_000,
    "sat_steps": 4_000,
    "guidance": 1.5,
    "class_table": "new",
}
PRESETS = {
    "paper-cifar10": CIFAR,
    "paper-ffhq64": FACES,
    "paper-celeba64": FACES,
    "paper-imagenet256": {**DIT, "size": 256, "steps": 500_000},
    "paper-imagenet512": {**DIT, "size": 512, "steps": 500_000},
    **{f"finetune-{name}": TUNING for name in ("food101", "sun397", "df20m", "caltech", "cub", "artbench10", "flowers", "cars")},
    "own-images": {"batch": 32, "lr": 1e-4, "sg_steps": 1_800, "sat_steps": 300, "flip": True, "ema_decay": 0.999, "checkpoint_every": 300},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainSadm(AnyFormulation, WithAugment):
    """Train or finetune a diffusion model with structure guidance, and with a structure critic."""

    name = "sadm"
    summary = "diffusion guided by the structure of each batch, with a critic; to bring a model to a new domain"
    example = "percepta train sadm --init ./dit --peft diffit --data ./images"
    sampler = "heun"
    usual = "edm"
    presets = MappingProxyType(PRESETS)

    space: str = "inception-2048"
    """Psi, where images are compared: inception-2048, inception-768, clip, dinov2, alex, domain (trained on --data), pixels; several
    as NAME or NAME:WEIGHT between commas."""
    structure_weight: float | None = None
    """lambda, the weight of the structure beside the squared error; 0 leaves it out. It is 1 in the paper, whose error is no mean over pixels: beside
    ours that can be nearly all of the gradient. Default: it follows --structure-share."""
    structure_share: float | None = None
    """The part of the gradient's norm that the structure is to have, between 0 and 1: its weight follows it, beginning at --structure-weight or
    0.01. Default: 0.2 where no weight is given."""
    relation: Relation = "cosine"
    """What an affinity is: the cosine of two features, their distance over the mean distance, or a Gaussian kernel of it."""
    distance: Distance = "l2"
    """How two affinities are compared: their squared or their absolute difference."""
    eta_max: float = 10.0
    """Bound of the weight 1/t that the structure has at time t."""
    times_per: Literal["batch", "sample"] = "batch"
    """batch: all images of a step have one noise level, as in the paper's algorithm. sample: each has its own."""
    clamp: Clamp = "straight"
    """Pixels beyond [-1, 1] before the space: clamped with the gradient passed on, clamped without it, or left."""

    sg_steps: int | None = None
    """Steps of a round with the space as it is. Default: those of --steps that are not adversarial."""
    sat_steps: int | None = None
    """Steps of a round in which the critic takes turns with the denoiser; 0 for none. Default: a seventh of --steps, as in the paper's
    fine-tuning, or what --sg-steps leaves of them."""
    rounds: int = 1
    """How often the two follow each other; the critic goes on from where it was. --steps is then rounds (sg + sat)."""
    critic_lr: float = 1e-5
    """Learning rate of the critic, on the schedule of --lr."""
    critic_clip: float | None = 1.0
    """Largest norm of the critic's gradient."""
    critic_weight_decay: float = 0.0
    """AdamW's decay of the critic, which pulls it from the space that it began as to zero; --weight-decay is the denoiser's alone."""
    critic_anchor: float = 0.0
    """Weight of the critic's mean squared distance from the space that it began as: keeps it near."""
    critic_drift: float = 0.3
    """How far the critic's weights may go, as a part of their norm; beyond it the run stops with the last good checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.structure_weight is not None and not 0 <= self.structure_weight < float("inf"):
            raise ValueError(f"--structure-weight must be 0 or more, got {self.structure_weight:g}")
        for flag, value, least in (("sg-steps", self.sg_steps, 0), ("sat-steps", self.sat_steps, 0), ("rounds", self.rounds, 1)):
            if value is not None and value < least:
                raise ValueError(f"--{flag} must be at least {least}, got {value}")
        for flag, value in (
            ("eta-max", self.eta_max),
            ("critic-lr", self.critic_lr),
            ("critic-clip", self.critic_clip),
            ("critic-drift", self.critic_drift),
        ):
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"--{flag} must be above 0, got {value:g}")
        for flag, value in (("critic-anchor", self.critic_anchor), ("critic-weight-decay", self.critic_weight_decay)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"--{flag} must be 0 or more, got {value:g}")
        if self.structure_weight == 0 and self.structure_share is not None:
            raise ValueError(
                "--structure-share asks for a part of the gradient, and --structure-weight 0 leaves the structure out: leave one away"
            )

    def settled(self, settings: Settings) -> tuple[Recipe, Settings]:
        """--steps, --sg-steps, --sat-steps and --rounds: two or three of them say the rest."""
        if self.structure_weight == 0 and self.sat_steps:
            raise ValueError(
                f"--structure-weight 0 leaves the structure out, and --sat-steps {self.sat_steps} train a critic of it: give --sat-steps 0 "
                "(where --sg-steps are given they are then all steps), or leave the weight away"
            )
        goes_on = settings.resume and (self.folder(settings) / "config.json").is_file()
        told = goes_on or settings.steps != self.default_settings().steps
        if self.sg_steps is None:
            return self._shared_out(settings), settings
        sat = self.sat_steps
        if sat is None:  # what --steps leaves
            sat = max(0, settings.steps // self.rounds - self.sg_steps) if told and self.structure_weight != 0 else 0
        if not self.sg_steps + sat:
            raise ValueError("--sg-steps 0 with --sat-steps 0 trains nothing")
        whole = replace(self, sat_steps=sat)
        if goes_on and settings.steps > whole.total:
            whole = whole._extended(settings.steps)
        if told and settings.steps != whole.total:
            raise ValueError(
                f"--steps {settings.steps} is not what --sg-steps {self.sg_steps}, --sat-steps {sat} and --rounds {self.rounds} come to, "
                f"{whole.total}: leave it away, or where a preset or the run so far says it, give --steps {whole.total}"
            )
        return whole, settings if told else replace(settings, steps=whole.total)

    def _shared_out(self, settings: Settings) -> "TrainSadm":
        """--steps in rounds of equal length, and each of them in its two stages."""
        if settings.steps % self.rounds:
            raise ValueError(
                f"--steps {settings.steps} are not {self.rounds} rounds of equal length: choose a multiple, or give --sg-steps"
            )
        each = settings.steps // self.rounds
        usual = 0 if self.structure_weight == 0 else each // ADVERSARIAL
        sat = usual if self.sat_steps is None else self.sat_steps
        if sat > each:
            raise ValueError(
                f"--sat-steps {sat} are more than the {each} steps of a round: give --sg-steps instead of --steps, or more --steps"
            )
        return replace(self, sg_steps=each - sat, sat_steps=sat)

    def _extended(self, steps: int) -> "TrainSadm":
        """A run that goes on beyond its end has further rounds like those before; without a critic there is nothing to round up to."""
        assert self.sg_steps is not None and self.sat_steps is not None
        if not self.sat_steps:
            return replace(self, sg_steps=steps, rounds=1)
        each = self.sg_steps + self.sat_steps
        if steps % each:
            up = -(-steps // each)
            raise ValueError(
                f"a run of rounds of {each} steps goes on by whole rounds, and --steps {steps} end within one: give --steps {up * each} "
                f"for {up} rounds" + (f", or {(up - 1) * each} for {up - 1}" if (up - 1) * each > self.total else "")
            )
        return replace(self, rounds=steps // each)

    @property
    def total(self) -> int:
        return self.rounds * ((self.sg_steps or 0) + (self.sat_steps or 0))

    @property
    def lengths(self) -> frozenset[str]:
        """Without a critic a round is all that there is."""
        return frozenset({"rounds"} if self.sat_steps else {"rounds", "sg_steps"})

    def check(self, settings: Settings) -> None:
        super().check(settings)
        if self.structure_weight == 0:
            return
        if settings.batch < 2:
            raise ValueError(
                f"a batch of {settings.batch} has no structure, which is how its images are to each other: give --batch 2 or more"
            )
        idle = [name for name in CRITICS if getattr(self, name) != getattr(type(self), name)]
        if idle and not self.sat_steps:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
            raise ValueError(f"{flags}: this run has no critic, as --sat-steps are 0: give --sat-steps, or leave {flags} away")

    def build(self, context: Context) -> Method:
        formulation = self.formulation(context.init)
        sampler = {"flow": "euler", "edm": "heun"}.get(formulation.output, "ddim")
        weight = self.squared_error(formulation)
        terms = list(self._terms(context)) if context.trains else []
        method = denoising_method(context, formulation, weight, self.cond_dropout, "unet-pocket", sampler, terms, self.augment)
        assert isinstance(method.estimate, Denoise)
        method.estimate = replace(method.estimate, micro=context.micro_batch, one_time=self.times_per == "batch")
        method.paces = {term.name: Pace(self.critic_lr, self.critic_clip, self.critic_weight_decay) for term in terms}
        return method

    def _terms(self, context: Context) -> Iterator[Term]:
        wanted = weighted(self.space) if self.structure_weight != 0 else {}
        scale, share = START if self.structure_weight is None else self.structure_weight, self.structure_share
        share = SHARE if share is None and self.structure_weight is None else share
        for name, weight in wanted.items():
            yield Term(
                "structure" if len(wanted) == 1 else f"structure/{name}", self._structure(name, context), scale * weight,
                share=None if share is None else share * weight / sum(wanted.values()),
            )  # fmt: skip

    def _structure(self, name: str, context: Context) -> Structure:
        domain = context.domain() if split_name(name)[0] == "domain" and context.domain is not None else None
        space = enlarging(open_space(name, domain), context.size * (1 if context.vae is None else context.vae.factor))
        how, chunk = Structures(self.relation, self.distance, self.eta_max), context.micro_batch or MICRO
        if self.sat_steps:
            rounds = Rounds(self.sg_steps or 0, self.sat_steps)
            judge = AdversarialStructure(space, how, chunk, self.clamp, context.vae, rounds, self.critic_anchor, self.critic_drift)
        else:
            judge = Structure(space, how, chunk, self.clamp, context.vae)
        if self.augment:  # an image that was altered does not come again
            judge.rows.known = None
        return judge
