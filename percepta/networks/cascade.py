"""Two clean estimates and their mixture as one network: Cas-DM's cascade, and Dual Diffusion. Written from the papers.

    eps' = theta(x_t, t)
    x0*  = (x_t - sigma eps')/alpha                equation 8 of Cas-DM; kept within [-clamp, clamp], and a constant for the gradient
    x0', r = phi(x0*, t)                           Dual Diffusion (Benny and Wolf 2022) has no phi: theta puts out eps', x0' and r at once
    mixed  = r x0' + (1 - r) x0*                   per pixel; every sampler's mean is affine in x0, so this is equation 11 (and 17)

theta learns from eps' alone: nothing that is asked of x0', r or `mixed` reaches it in a cascade. A cascade therefore holds the noise
schedule, and reads DDPM's timesteps 0 .. T-1. This file imports torch and diffusers only, and travels with exported weights.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

RATIOS = ("sigmoid", "raw")
HALF = 65504 / 10  # how far x0* may reach where phi runs in fp16: the rest of its range is for the layers' sums
FOLLOWS = ("sample_size", "in_channels", "out_channels", "num_class_embeds")  # what the parts' configurations leave to the whole


def betas_of(schedule: Mapping[str, Any]) -> Float[Tensor, "T"]:
    """The betas of a schedule, float64: LinearBeta, Cosine or BetaTable with its numbers, as `percepta.path` writes them."""
    kind = {"dtype": torch.float64, "device": "cpu"}
    name = schedule.get("name")
    if name == "BetaTable":
        return torch.tensor(schedule["table"], **kind)
    if name == "LinearBeta":
        ends, steps = (schedule["beta_start"], schedule["beta_end"]), schedule["num_steps"]
        if schedule["scaled"]:
            return torch.linspace(ends[0] ** 0.5, ends[1] ** 0.5, steps, **kind) ** 2
        return torch.linspace(*ends, steps, **kind)
    if name == "Cosine":
        t = torch.arange(schedule["num_steps"] + 1, **kind) / schedule["num_steps"]
        abar = torch.cos((t + schedule["offset"]) / (1 + schedule["offset"]) * math.pi / 2) ** 2
        return (1 - abar[1:] / abar[:-1]).clamp(max=schedule["max_beta"])
    raise ValueError(f"a cascade's schedule is LinearBeta, Cosine or BetaTable (the path's to_config()), got {name!r}")


class ExactConv(nn.Conv2d):
    """A last layer that autocast leaves in float32: r is trained by errors of about 1e-6, and bf16 has three digits."""

    def forward(self, input: Tensor) -> Tensor:
        device = input.device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return super().forward(input)
        with torch.autocast(device, enabled=False):
            return super().forward(input.to(self.weight.dtype))


class Cascade(ModelMixin, ConfigMixin):
    """forward(sample, timestep, class_labels).sample -> [mixed, x0', r, eps', x0*] along the channels, 4C + 1 of them, float32 or better.

    `theta_config` and `phi_config` are UNet2DModel's, without what follows from the data; without `phi_config` this is Dual Diffusion.
    `concat` shows phi eps' beside x0*. `ratio` is "sigmoid" (r in (0, 1)) or "raw". `clamp` None leaves x0* as it comes, which is
    up to 1e6 in the noisiest steps of a cosine schedule: in fp16 phi would answer NaN, so that is refused. The U-Nets read timestep *
    `time_factor`: improved-diffusion shows them a scale of 1000, whatever T is.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        theta_config: Mapping[str, Any],
        schedule: Mapping[str, Any],
        phi_config: Mapping[str, Any] | None = None,
        sample_size: int | None = None,
        in_channels: int = 3,
        out_channels: int | None = None,
        num_class_embeds: int | None = None,
        concat: bool = False,
        clamp: float | None = 1.0,
        ratio: str = "sigmoid",
        time_factor: float = 1.0,
    ) -> None:
        super().__init__()
        c = in_channels
        if ratio not in RATIOS:
            raise ValueError(f"ratio is {' or '.join(RATIOS)}, got {ratio!r}")
        if clamp is not None and not clamp > 0:
            raise ValueError(f"clamp bounds x0* and is positive (1 for images in [-1, 1]) or None, got {clamp}")
        if concat and phi_config is None:
            raise ValueError("concat shows phi the noise eps' beside x0*, but Dual Diffusion has no phi: leave concat out")
        if out_channels not in (None, 4 * c + 1):
            raise ValueError(f"a cascade of {c} channels puts out 4 x {c} + 1 = {4 * c + 1}, got out_channels={out_channels}")
        self.register_to_config(out_channels=4 * c + 1)
        self.theta = _unet(theta_config, c, c if phi_config is not None else 2 * c + 1, num_class_embeds)
        self.phi = None if phi_config is None else _unet(phi_config, 2 * c if concat else c, c + 1, num_class_embeds)
        last = self.theta if self.phi is None else self.phi
        last.conv_out = ExactConv(last.conv_out.in_channels, last.conv_out.out_channels, 3, padding=1)
        log_abar = torch.cumprod(1 - betas_of(schedule), 0).clamp(min=1e-40).log()
        # float64 kept as whole numbers: casting the model to bf16 must not round the schedule
        knots = torch.cat([torch.zeros(1, dtype=torch.float64, device="cpu"), log_abar])
        self.register_buffer("log_abar", knots.view(torch.int64), persistent=False)

        self.reach = 10 * math.exp(-float(log_abar[-1]) / 2)  # of x0*: ten standard deviations over the least alpha

    @property
    def unets(self) -> tuple[UNet2DModel, ...]:
        return (self.theta,) if self.phi is None else (self.theta, self.phi)

    def alpha_sigma(self, timestep: Shaped[Tensor, "b"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """alpha and sigma at DDPM's timesteps, float64; log abar is linear between them."""
        where = "cpu" if timestep.device.type == "mps" else timestep.device  # MPS has no float64
        table, u = self.get_buffer("log_abar").to(where).view(torch.float64), timestep.to(where).double() + 1
        steps = len(table) - 1
        if u.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(((u > -1e-6) & (u < steps + 1e-6)).all()):
            raise ValueError(
                f"timesteps of this cascade lie in 0 .. {steps - 1}, got {float(u.min()) - 1:g} to {float(u.max()) - 1:g}; "
                "was it trained with another number of steps?"
            )
        left = u.floor().clamp(0, steps - 1).long()
        log_abar = table[left] + (u - left) * (table[left + 1] - table[left])
        return (log_abar / 2).exp(), (-torch.expm1(log_abar)).sqrt()

    def star(self, sample: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"], time: Shaped[Tensor, "b"]) -> Tensor:
        """x0* of equation 8, in eps's precision, outside every graph."""
        alpha, sigma = (k.to(eps.dtype).to(eps.device).reshape(-1, 1, 1, 1) for k in self.alpha_sigma(time))
        star = ((sample.to(eps.dtype) - sigma * eps) / alpha).detach()
        clamp = self.config["clamp"]
        return star if clamp is None else star.clamp(-clamp, clamp)

    def _check_range(self, sample: Tensor) -> None:
        """phi reads x0*: refused where fp16 cannot hold it, on the schedule as a whole, so that no step has to be waited for."""
        device, clamp = sample.device.type, self.config["clamp"]
        reach = self.reach if clamp is None else min(clamp, self.reach)
        if self.phi is None or reach <= HALF:
            return
        cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if (torch.get_autocast_dtype(device) if cast else sample.dtype) == torch.float16:
            raise ValueError(
                f"x0* reaches {reach:.0e} in the noisiest steps of this cascade (clamp {clamp}), more than fp16 can hold (6.6e+04): use bf16 "
                "or no mixed precision, train with a clamp (--clamp-x0 1.0), or on 1000 steps of --schedule linear"
            )

    def forward(
        self,
        sample: Float[Tensor, "b c h w"],
        timestep: Tensor | float | int,
        class_labels: Int[Tensor, "b"] | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        config, c = self.config, sample.shape[1]
        self._check_range(sample)
        wide = torch.promote_types(sample.dtype, torch.float32)
        time = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        read = time if config["time_factor"] == 1 else time * config["time_factor"]
        first = self.theta(sample, read, class_labels, return_dict=False)[0]
        eps = first[:, :c].to(wide)
        star = self.star(sample, eps, time)
        if self.phi is None:
            rest = first[:, c:]
        else:
            seen = torch.cat([star, eps.detach()], 1) if config["concat"] else star
            rest = self.phi(seen.to(sample.dtype), read, class_labels, return_dict=False)[0]
        x0_prime, r = rest.to(wide).split([c, 1], 1)
        if config["ratio"] == "sigmoid":
            r = r.sigmoid()
        out = torch.cat([r * x0_prime + (1 - r) * star, x0_prime, r, eps, star], 1)
        return UNet2DOutput(sample=out) if return_dict else (out,)


def _unet(config: Mapping[str, Any], c_in: int, c_out: int, classes: int | None) -> Any:
    given = [name for name in FOLLOWS if name in config]
    if given:
        raise ValueError(
            f"theta_config and phi_config leave {', '.join(FOLLOWS)} to the cascade's own configuration, got {', '.join(given)}"
        )
    return UNet2DModel(**config, in_channels=c_in, out_channels=c_out, num_class_embeds=classes)
