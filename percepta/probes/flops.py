"""What a training step with LPL costs beside one without, in arithmetic (LPL, table 8): counted by torch on shapes alone.

    plain = [encoder] + network, forward and backward
    LPL   = plain + p (decoder of the target, forward + decoder of the prediction, forward and backward to its input)

p is the share of samples below the noise threshold: the others are never decoded. A multiplication and an addition are two operations. Attention is
counted as fused kernels run it, which compute its scores again in the backward pass.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AsymmetricAutoencoderKL, AutoencoderKL
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from percepta.absent import absent
from percepta.formulation import FLOW, Formulation, LogitNormalTimes, LogNormalTimes, UniformTimes
from percepta.networks import PRESETS, Autoencoder, Network, build, outline_autoencoder
from percepta.networks.presets import nearest
from percepta.path import AbstractDiscretePath, Cosine, LinearBeta, Rectified, VarianceExploding
from percepta.spaces.decoder import Decoder

SDXL = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "scaling_factor": 0.13025,
}
ASYMMETRIC = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "down_block_out_channels": (128, 256, 512, 512),
    "layers_per_down_block": 2,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "up_block_out_channels": (192, 384, 768, 768),
    "layers_per_up_block": 3,
}
VAES: dict[str, tuple[type, dict[str, Any]]] = {  # the paper's two, by their published configurations
    "sdxl": (AutoencoderKL, SDXL),
    "asymmetric-x-1-5": (AsymmetricAutoencoderKL, ASYMMETRIC),
}
SCHEDULES: dict[str, Formulation] = {
    "linear": Formulation(LinearBeta()),
    "scaled-linear": Formulation(LinearBeta(1000, 0.00085, 0.012, True)),
    "cosine": Formulation(Cosine()),
    "flow": FLOW,
    "flow-uniform": Formulation(Rectified(), "flow", UniformTimes()),
}


@dataclass(frozen=True)
class StepCost:
    """GFLOP of one image: `encode` its encoding, `network` the step on its latent, `target` and `predicted` the two decodings where it is
    decoded. `share` of the images are. Latents that are cached cost no encoding: `cached`."""

    encode: float
    network: float
    target: float
    predicted: float
    share: float
    cached: bool = False

    @property
    def plain(self) -> float:
        return self.network + (0.0 if self.cached else self.encode)

    @property
    def lpl(self) -> float:
        return self.plain + self.share * (self.target + self.predicted)

    @property
    def ratio(self) -> float:
        return self.lpl / self.plain


def share_below(formulation: Formulation, tau: float) -> float:
    """The share of training times with sigma/alpha <= tau."""
    if not tau > 0:
        raise ValueError(f"the threshold tau is a sigma/alpha above 0, got {tau}")
    path, times = formulation.path, formulation.times
    if isinstance(path, AbstractDiscretePath):
        assert isinstance(times, UniformTimes)
        return float((path.level(path.time_of(range(path.num_steps))) <= tau).double().mean())
    last = float(path.time_of_level(torch.tensor([tau], dtype=torch.float64)))
    if isinstance(times, LogitNormalTimes):
        return _normal((math.log(last / (1 - last)) - times.mean) / times.std)
    if isinstance(times, LogNormalTimes):
        assert isinstance(path, VarianceExploding)
        return _normal((math.log(last) - times.mean) / times.std)
    return min(1.0, max(0.0, (last - path.t_min) / (path.t_max - path.t_min)))


def _normal(x: float) -> float:
    """Phi(x)."""
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def step_cost(
    network: str,
    vae: str,
    size: int,
    share: float,
    layers: Sequence[int] | None = None,
    cached: bool = False,
    crop: int | None = None,
) -> StepCost:
    """Of a preset network and an autoencoder (a name of VAES, or a folder with its config.json) on images of size x size. `layers` are the
    decoder's that are read, `crop` the side of the latent window that is decoded."""
    if not 0 <= share <= 1:
        raise ValueError(f"the share of samples that are decoded is 0 to 1, got {share}")
    if network not in PRESETS:
        raise ValueError(f"unknown network {network!r}{nearest(network, list(PRESETS))}; known: {', '.join(PRESETS)}")
    with torch.device("meta"):
        autoencoder = _autoencoder(vae)
        side, rest = divmod(size, autoencoder.factor)
        if rest or side < 2:
            raise ValueError(f"images of this autoencoder are a multiple of {autoencoder.factor} pixels wide, got {size}")
        classes = PRESETS[network].typical.num_classes
        denoiser = build(network, channels=autoencoder.latent_channels, size=side, num_classes=classes)
        window = side if crop is None else min(side, crop)
        target, predicted = _decodings(Decoder(autoencoder, layers), window)
        return StepCost(_encoding(autoencoder, size), _step(denoiser, side), target, predicted, share, cached)


def _autoencoder(name: str) -> Autoencoder:
    if name in VAES:
        cls, config = VAES[name]
        return Autoencoder(cls(**config))
    folder = Path(name)
    if "/" in name and not folder.exists():
        raise ValueError(absent(name, "an autoencoder's folder"))
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{name} is no autoencoder known here{nearest(name, list(VAES))}; known: {', '.join(VAES)}, or a folder with its config.json"
        )
    return outline_autoencoder(folder)


def _counted(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def _counted_back(forward: Callable[[], Tensor]) -> float:
    """Forward and backward. Shapes alone are attended by plain products: the scores, half of these, are added once more."""
    with FlopCounterMode(display=False) as counter:
        out = forward()
        attention = counter.get_flop_counts()["Global"].get(torch.ops.aten.bmm, 0)
        out.backward()
    return (counter.get_total_flops() + attention / 2) / 1e9


def _encoding(vae: Autoencoder, size: int) -> float:
    with torch.no_grad():
        return _counted(lambda: vae.encode(torch.empty(1, vae.in_channels, size, size)))


def _step(network: Network, side: int) -> float:
    """Forward and backward, to all weights."""
    cond = None if network.num_classes is None else torch.zeros(1, dtype=torch.long)
    x, time = torch.empty(1, network.in_channels, side, side), torch.empty(1)
    return _counted_back(lambda: network(x, time, cond).sum())


def _decodings(space: Decoder, side: int) -> tuple[float, float]:
    """Of the target, which needs no gradient, and of the prediction: the weights are frozen, the gradient is its latent's alone."""
    shape = (1, space.vae.latent_channels, side, side)
    with torch.no_grad():
        target = _counted(lambda: space(torch.empty(shape)))
    z = torch.empty(shape, requires_grad=True)
    return target, _counted_back(lambda: torch.stack([x.sum() for x in space(z)]).sum())
