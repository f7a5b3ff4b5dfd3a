"""Classifier-free guidance (Ho and Salimans 2022) as a denoiser around a denoiser:

    x0 = x0(null) + w (x0(cond) - x0(null))

Every output convention is affine in the network's output with the same c_skip for both passes, so guiding x0_hat, eps or v is one
and the same. Both passes run as one batch of 2b; with w = 1, or outside the interval of levels, the conditional pass runs alone.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from percepta.formulation import Cond, expand
from percepta.path import AbstractPath, Times
from percepta.samplers.step import AnyDenoiser, full_of


class Guided(nn.Module):
    """A guided denoiser; made by `guided`."""

    def __init__(
        self, denoiser: AnyDenoiser, scale: float, null_cond: Cond, channels: int | None, interval: tuple[float, float] | None
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.scale = scale
        self.null_cond = null_cond
        self.channels = channels
        self.interval = interval

    @property
    def path(self) -> AbstractPath:
        return self.denoiser.path

    def forward(self, x_t: Float[Tensor, "b c *d"], t: Times, cond: Cond = None) -> Float[Tensor, "b c *d"]:
        scales = self._scales(t)
        if bool((scales == 1).all()):
            return self.denoiser(x_t, t, cond)
        return self._mixed(self.denoiser(*self._twice(x_t, t, cond)), scales)

    def full(self, x_t: Float[Tensor, "b c *d"], t: Times, cond: Cond = None) -> tuple[Float[Tensor, "b c *d"], dict[str, Tensor]]:
        """Guided x0_hat; the taps (a learned variance) are the conditional pass's, as in DiT."""
        scales = self._scales(t)
        if bool((scales == 1).all()):
            return full_of(self.denoiser, x_t, t, cond)
        x0, taps = full_of(self.denoiser, *self._twice(x_t, t, cond))
        return self._mixed(x0, scales), {k: v[: len(x_t)] for k, v in taps.items()}

    def _scales(self, t: Times) -> Times:
        if self.interval is None:
            return torch.full_like(t, self.scale)
        level = self.path.level(t)
        return torch.where((level > self.interval[0]) & (level <= self.interval[1]), self.scale, 1.0)

    def _twice(self, x_t: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, Tensor, Cond]:
        if cond is None:
            raise ValueError("guidance needs a condition: pass cond, or use guidance 1")
        return torch.cat([x_t, x_t]), torch.cat([t, t]), _joined(cond, self._null(cond))

    def _null(self, cond: Cond) -> Cond:
        if self.null_cond is not None:
            return self.null_cond
        network = getattr(self.denoiser, "network", None)
        drop = getattr(network, "drop_condition", None)
        if drop is None:
            raise ValueError(
                f"the network {type(network).__name__} does not know its null condition (drop_condition): pass null_cond"
            )
        rows = len(cond) if isinstance(cond, Tensor) else len(next(iter((cond or {}).values())))
        return drop(cond, torch.ones(rows, dtype=torch.bool))

    def _mixed(self, x0: Tensor, scales: Times) -> Tensor:
        with_cond, without = x0.chunk(2)
        out = without + expand(scales, x0) * (with_cond - without)
        if self.channels is None or self.channels >= x0.shape[1]:
            return out
        return torch.cat([out[:, : self.channels], with_cond[:, self.channels :]], 1)


def _joined(cond: Cond, null: Cond) -> Cond:
    """Both conditions as one batch; a null condition of one row serves all rows."""
    if isinstance(cond, Tensor) and isinstance(null, Tensor):
        return torch.cat([cond, null.to(cond).expand(cond.shape)])
    if isinstance(cond, Tensor) or isinstance(null, Tensor) or cond is None or null is None or set(cond) != set(null):
        raise ValueError(f"the null condition must have the form of the condition: {_form(cond)}, got {_form(null)}")
    return {k: torch.cat([v, null[k].to(v).expand(v.shape)]) for k, v in cond.items()}


def _form(cond: Cond) -> str:
    return (
        "none" if cond is None else f"a tensor {tuple(cond.shape)}" if isinstance(cond, Tensor) else f"a dict of {', '.join(cond)}"
    )


def guided(
    denoiser: AnyDenoiser,
    scale: float,
    null_cond: Cond = None,
    channels: int | None = None,
    interval: tuple[float, float] | None = None,
) -> AnyDenoiser:
    """The denoiser with guidance `scale` (1 is none). `null_cond` has cond's form with one row or all; without it the network is
    asked (drop_condition). `channels` guides the first channels only (the DiT code: 3 of 4 latent channels). `interval` guides
    only where low < sigma/alpha <= high (Kynkaanniemi et al. 2024)."""
    if channels is not None and channels < 1:
        raise ValueError(f"channels must be 1 or more, got {channels}")
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise ValueError(f"the guidance interval is (low, high) in sigma/alpha, got {interval}")
    return denoiser if scale == 1 else Guided(denoiser, scale, null_cond, channels, interval)
