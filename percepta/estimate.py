"""The one record that every objective reads, and the estimators that make it.

Whatever makes the images (a denoiser's guess, a chain of sampling steps, a translating generator), an objective sees an Estimate:
x0_hat, the reference x0, whether the two are paired, and, where there is one, the noise level.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from percepta.formulation import Cond, Denoiser, Noised
from percepta.path import AbstractPath, Times
from percepta.rng import Rng, mix, seed_torch
from percepta.spaces import Features, Space

AUGMENT_LABELS = "augment_labels"  # the condition that says how an image was altered


def take(cond: Cond, rows: Sequence[int] | slice | Tensor) -> Cond:
    """The rows of a condition, whatever its form."""
    if cond is None:
        return None
    return cond[rows] if isinstance(cond, Tensor) else {k: v[rows] for k, v in cond.items()}


def moved(x: Tensor, device: torch.device | str, **options) -> Tensor:
    """Without a wait, but to a CPU: there it would be read before it has come."""
    return x.to(device, non_blocking=torch.device(device).type != "cpu", **options)


@dataclass(frozen=True)
class Batch:
    """Clean samples in [-1, 1] (or scaled latents), their condition, and for translation the images of the other domain."""

    x0: Float[Tensor, "b c *d"]
    cond: Cond = None
    source: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x0)

    def to(self, device: torch.device | str, **options) -> "Batch":
        def move(x):
            return moved(x, device, **(options if x.is_floating_point() and x.ndim == 4 else {}))

        cond = (
            self.cond
            if self.cond is None
            else move(self.cond)
            if isinstance(self.cond, Tensor)
            else {k: move(v) for k, v in self.cond.items()}
        )
        return Batch(move(self.x0), cond, None if self.source is None else move(self.source))

    def select(self, rows: Sequence[int] | slice) -> "Batch":
        return Batch(self.x0[rows], take(self.cond, rows), None if self.source is None else self.source[rows])


@dataclass(frozen=True)
class Estimate:
    """A differentiable guess `x0_hat` beside the clean reference `x0`.

    `paired` says whether row k of both shows the same thing: per-sample objectives need it. `taps` hold what else the estimator
    has at hand (a raw output, hidden states). `features` are computed once per Space and shared by all readers.
    `onward`, where given, takes a gradient at x0_hat on to the maker's parameters: the graph ends at x0_hat then, a leaf.
    `rng` has the rows' random numbers, for a judge that draws some: under names of its own.
    """

    x0_hat: Float[Tensor, "b c *d"]
    x0: Float[Tensor, "n c *d"]
    paired: bool = True
    noised: Noised | None = None
    path: AbstractPath | None = None
    cond: Cond = None
    taps: Mapping[str, Tensor] = field(default_factory=dict)
    onward: Callable[[Tensor], None] | None = None
    rng: Rng | None = None
    _real: dict[Space, Features] = field(default_factory=dict, repr=False)
    _fake: dict[Space, Features] = field(default_factory=dict, repr=False)
    _encoded: dict[tuple["Encoder", str], Tensor] = field(default_factory=dict, repr=False)
    _whole: "Estimate | None" = field(default=None, repr=False)  # of a detached one: where its maker can still be reached

    def __len__(self) -> int:
        return len(self.x0_hat)

    @property
    def t(self) -> Times:
        if self.noised is None or self.path is None:
            raise ValueError(
                "this estimate has no noise level (it was not made by denoising): use an objective without a weight or a "
                "gate by level, or the estimator Denoise"
            )
        return self.noised.t

    @property
    def level(self) -> Times:
        """sigma/alpha."""
        return self.known_path.level(self.t)

    @property
    def snr(self) -> Times:
        return self.known_path.snr(self.t)

    @property
    def known_path(self) -> AbstractPath:
        _ = self.t  # raises where there is none
        assert self.path is not None
        return self.path

    def features(self, space: Space) -> tuple[Features, Features]:
        """(real, fake) features, each computed once; the real side without gradient."""
        with torch.no_grad():
            real = space.features(self.x0, self._real)
        return real, space.features(self.x0_hat, self._fake)

    def encoded(self, encoder: "Encoder", name: str) -> Tensor:
        """The mean latents of x0, x0_hat or a tap by a frozen encoder, computed once, whichever term or turn asks first; for a critic without gradient."""
        if self._whole is not None:
            return self._whole.encoded(encoder, name).detach()
        if (encoder, name) not in self._encoded:
            images = {"x0": self.x0, "x0_hat": self.x0_hat}[name] if name in ("x0", "x0_hat") else self.taps[name]
            with torch.set_grad_enabled(images.requires_grad):  # whoever asks later may need the way to the maker
                self._encoded[encoder, name] = encoder.encode(images)[0]
        return self._encoded[encoder, name]

    def select(self, keep: Tensor) -> "Estimate":
        """The rows where `keep` holds. Choose before features are read: what a gate drops is then never computed."""
        rows = keep.nonzero()[:, 0]
        noised = None if self.noised is None else Noised(*(v[moved(rows, v.device)] for v in self.noised))
        rows = moved(rows, self.x0_hat.device)
        x0 = self.x0[rows] if self.paired else self.x0
        # the rows of a leaf still lead to it: `onward` belongs to the whole
        return Estimate(
            self.x0_hat[rows], x0, self.paired, noised, self.path, take(self.cond, rows), {k: v[rows] for k, v in self.taps.items()},
            rng=None if self.rng is None else self.rng.select(rows.tolist()),
        )  # fmt: skip

    def detach(self) -> "Estimate":
        """No gradient to the maker; features that were computed stay, so that a critic's turn runs no backbone again."""
        fake = {space: tuple(f.detach() for f in features) for space, features in self._fake.items()}
        taps, whole = {k: v.detach() for k, v in self.taps.items()}, self._whole or self
        return replace(self, x0_hat=self.x0_hat.detach(), taps=taps, _fake=fake, _encoded={}, _whole=whole)


Estimator = Callable[[Batch, Rng], Estimate]


@runtime_checkable
class Encoder(Protocol):
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Denoise:
    """Noise the batch, denoise it: x0_hat = D(alpha x0 + sigma eps, t, cond).

    With probability `cond_dropout` a sample's condition is replaced by the null condition, so that guidance can be used later.
    `micro` rows go through the network at a time, and once more in the backward pass: a batch that has to stay whole, because a term couples its
    samples, takes the memory of so many. With `one_time` all samples of a step, on all ranks, have one time. `augment` alters the clean images first,
    and its labels join the condition: the estimate is then of the altered image.
    """

    denoiser: Denoiser
    cond_dropout: float = 0.0
    micro: int | None = None
    one_time: bool = False
    augment: Callable[[Tensor, Rng], tuple[Tensor, Tensor]] | None = None

    def __call__(self, batch: Batch, rng: Rng) -> Estimate:
        x0, told = (batch.x0, None) if self.augment is None else self.augment(batch.x0, rng)
        noised = self.denoiser.formulation.noised(x0, rng, self._shared_time(rng) if self.one_time else None)
        cond = batch.cond
        if self.cond_dropout > 0 and cond is not None:
            drop = rng.uniform("cond-dropout") < self.cond_dropout
            cond = self.denoiser.network.drop_condition(cond, drop)  # pyright: ignore[reportCallIssue]
        if told is not None:
            cond = {**({"class_labels": cond} if isinstance(cond, Tensor) else cond or {}), AUGMENT_LABELS: told}
        x0_hat, taps = self._denoised(noised, cond, rng)
        return Estimate(x0_hat, noised.x0, True, noised, self.denoiser.path, cond, taps)

    def _shared_time(self, rng: Rng) -> Times:
        """One draw for the step, whatever rows this process has of it."""
        one = Rng(rng.seed, (rng.step,), rng.step, f"{rng.stream}/one-time")
        formulation = self.denoiser.formulation
        return formulation.times.draw(formulation.path, one).expand(len(rng)).clone()

    def _denoised(self, noised: Noised, cond: Cond, rng: Rng) -> tuple[Tensor, Mapping[str, Tensor]]:
        if self.micro is None or self.micro >= len(noised.x_t):
            return self.denoiser.full(noised.x_t, noised.t, cond)

        def part(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
            seed_torch(mix(rng.seed, rng.stream, "denoise", rng.step, rng.ordinals[rows.start]), noised.x_t.device)
            return self.denoiser.full(noised.x_t[rows], noised.t[rows], take(cond, rows))

        rows = [slice(first, min(first + self.micro, len(noised.x_t))) for first in range(0, len(noised.x_t), self.micro)]
        parts = [checkpoint(part, one, use_reentrant=False, preserve_rng_state=False) for one in rows]
        taps = {name: torch.cat([told[name] for _, told in parts]) for name in parts[0][1]}  # pyright: ignore
        return torch.cat([x0_hat for x0_hat, _ in parts]), taps  # pyright: ignore


@dataclass(frozen=True)
class DenoiseLatents:
    """Denoise, where the batch holds images that an autoencoder encodes first."""

    denoise: Denoise
    vae: Encoder

    def __call__(self, batch: Batch, rng: Rng) -> Estimate:
        with torch.no_grad():
            mean, std = self.vae.encode(batch.x0)
        return self.denoise(Batch(mean + std * rng.normal("posterior", mean.shape[1:]), batch.cond), rng)


@runtime_checkable
class Translates(Protocol):
    def taps(self, a: Tensor, b: Tensor, rng: Rng) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True)
class Translate:
    """Translate between the domains of `source` (A) and x0 (B), both ways: x0_hat is A as B, and the taps hold the rest by name. Nothing is paired."""

    pair: Translates

    def __call__(self, batch: Batch, rng: Rng) -> Estimate:
        if batch.source is None:
            raise ValueError("a translation needs images of both domains: Batch(x0, source=...) holds those of the other")
        taps = self.pair.taps(batch.source, batch.x0, rng)
        return Estimate(taps["fake_b"], batch.x0, paired=False, taps=taps, rng=rng)
