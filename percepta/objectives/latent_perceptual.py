"""LatentPerceptual: how far a clean latent is from its target in the features of the autoencoder's decoder (LPL, Berrada et al. 2025).

    L = 1(sigma/alpha <= tau) sum_l w_l mean_c mean_p keep (phi'_l(z0) - phi'_l(z0_hat))^2

A Term's gate, or `max_level` in a loop of your own, says where it counts; samples that it leaves out are never decoded, and the mean is over
all samples that were drawn, as the paper's expectation has it. Decoding is the cost: see percepta.spaces.decoder for what bounds it.
"""

from collections.abc import Sequence
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor

from percepta.discrepancies.lpl import NORMS, OUTLIERS, layer_weights, lpl
from percepta.estimate import Estimate
from percepta.networks import Autoencoder
from percepta.objectives.term import AbstractPerSample
from percepta.spaces.decoder import Decoder, windows

TAU = 3.0  # sigma/alpha; on a rectified flow t <= 0.75
FARTHEST = 2.5  # from unit deviation, in either direction, that scaled latents may be


class LatentPerceptual(AbstractPerSample):
    """`vae`: an autoencoder of diffusers, or ours; it is frozen for good.

        lpl = LatentPerceptual(vae)
        loss = mse + w * lpl(z0_hat, z0, level)

    z0_hat and z0 are latents as a diffusion model sees them (scaled), level is sigma/alpha of each sample: sqrt((1 - abar)/abar) on DDPM's
    schedules, t/(1 - t) on a rectified flow. `crop`: latents decoded at a time are windows of this side.
    """

    def __init__(
        self, vae: Any, *, layers: Sequence[int] | None = None, weights: str = "upscale", norm: str = "predicted",
        outliers: str = "target", max_level: float | None = TAU, crop: int | None = None, precision: str = "fp32",
        checkpointing: bool = False,
    ) -> None:  # fmt: skip
        if max_level is not None and not max_level > 0:
            raise ValueError(f"the highest noise level is a sigma/alpha above 0, or None for all, got {max_level}")
        if crop is not None and crop < 1:
            raise ValueError(f"a window of latents is 1 wide or more, got {crop}")
        for what, value, known in (("norm is", norm, NORMS), ("outliers are", outliers, OUTLIERS)):
            if value not in known:
                raise ValueError(f"{what} one of {', '.join(known)}, got {value!r}")
        vae = vae if isinstance(vae, Autoencoder) else Autoencoder(vae)
        self.space = Decoder(vae, layers, precision, checkpointing)
        self.weights = layer_weights(self.space.upscale, weights, self.space.coarsest)
        self.pixels = [max(1, vae.factor // fineness) for fineness in self.space.upscale]
        self.norm, self.outliers, self.max_level, self.crop = norm, outliers, max_level, crop
        self._looked = False

    @overload
    def __call__(self, est: Estimate) -> Float[Tensor, "b"]: ...
    @overload
    def __call__(self, est: Tensor, z0: Tensor, level: Tensor | None = None) -> Float[Tensor, ""]: ...

    def __call__(self, est: Estimate | Tensor, z0: Tensor | None = None, level: Tensor | None = None) -> Tensor:
        """Of an Estimate: one number per sample. Of latents: their mean, with the gate."""
        if isinstance(est, Estimate):
            return self._of(est)
        if z0 is None:
            raise ValueError("latents are compared with their targets: lpl(z0_hat, z0, level)")
        return self._gated(est, z0, level)

    def _gated(self, z0_hat: Tensor, z0: Tensor, level: Tensor | None) -> Tensor:
        both = Estimate(z0_hat, z0)
        self._check_pair(both)
        if self.max_level is None:
            return self._of(both).mean()
        if level is None or level.shape != (len(z0_hat),):
            got = "none" if level is None else f"a level of shape {tuple(level.shape)}"
            raise ValueError(
                f"one noise level sigma/alpha per sample is needed for {len(z0_hat)} samples, got {got}; or build "
                "LatentPerceptual(vae, max_level=None), which decodes all"
            )
        kept = both.select(level <= self.max_level)
        return self._of(kept).sum() / len(z0_hat) if len(kept) else z0_hat[:0].sum()

    def _of(self, est: Estimate) -> Float[Tensor, "b"]:
        self._check_pair(est)
        if self.crop is None or self.crop >= max(est.x0.shape[2:]):
            real, fake = est.features(self.space)
        else:
            z0, z0_hat = windows((est.x0, est.x0_hat), self.crop, places(est))
            with torch.no_grad():
                real = self.space.features(z0, {})
            fake = self.space.features(z0_hat, {})
        return lpl(real, fake, self.weights, self.norm, self.outliers, self.pixels)

    def _check_pair(self, est: Estimate) -> None:
        if not est.paired or est.x0.shape != est.x0_hat.shape:
            raise ValueError(f"LPL compares a latent with its own target, got {tuple(est.x0_hat.shape)} and {tuple(est.x0.shape)}")
        self.space.reads.check(est.x0_hat, "LPL")
        self._check_scale(est.x0)

    def _check_scale(self, z0: Tensor) -> None:
        """Of the first batch: a device waits where a number is read from it."""
        if self._looked or z0.numel() < 2:
            return
        self._looked = True
        deviation = float(z0.detach().std())
        if not 1 / FARTHEST <= deviation <= FARTHEST:
            vae = self.space.vae
            assert isinstance(vae, Autoencoder)
            scale = ", ".join(f"{s:.4g}" for s in vae.scale.flatten()[:3].tolist())
            raise ValueError(
                f"LPL reads latents as a diffusion model does, of about unit deviation, got {deviation:.3g}: multiply by the "
                f"autoencoder's scaling_factor ({scale}) first, after its shift; or set that, if it does not fit these images"
            )


def places(est: Estimate) -> Float[Tensor, "b 2"]:
    """Where each sample's window lies, in [0, 1): by its own noise, so that whoever computes it, with whatever neighbours, cuts the same one."""
    if est.noised is None:
        return torch.rand(len(est), 2, device=est.x0.device)
    return torch.special.ndtr(est.noised.eps.flatten(1)[:, :2].float()).clamp_max(1 - 1e-6)
