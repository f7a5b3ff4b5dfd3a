"""What the vision transformers (CLIP, DINOv2) share: how images reach their size, and how their weights get in.

Two ways to the same size: in floating point, antialiased, with gradients (training), and by Pillow in 8 bits, which is what the reference
tools do before they measure. They differ by the rounding only.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn


def target_size(height: int, width: int, size: int, crop: bool) -> tuple[int, int]:
    """The size before the centre crop: the shorter side becomes `size` and the longer follows; without the crop both become `size`."""
    if not crop:
        return size, size
    short = min(height, width)
    return (size if height == short else int(size * height / short)), (size if width == short else int(size * width / short))


def centre(x: Tensor, size: int) -> Tensor:
    """The middle size x size; a half pixel goes to the even side, as torchvision's CenterCrop puts it."""
    top, left = (round((side - size) / 2) for side in x.shape[-2:])
    return x[..., top : top + size, left : left + size]


def square(x: Tensor) -> Tensor:
    """The middle square of an image at its own size; a half pixel goes up and left, as CMMD's reader cuts it."""
    height, width = x.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return x[..., top : top + side, left : left + side]


def fitted(x: Float[Tensor, "b 3 h w"], size: int, crop: bool) -> Float[Tensor, "b 3 s s"]:
    """Antialiased bicubic in floating point; what has the size already passes unchanged."""
    target = target_size(x.shape[2], x.shape[3], size, crop)
    if x.shape[-2:] != target:
        x = F.interpolate(x, size=target, mode="bicubic", antialias=True)
    return centre(x, size)


def fitted_by_pillow(images: UInt8[Tensor, "b 3 h w"], size: int, crop: bool) -> UInt8[Tensor, "b 3 s s"]:
    """Pillow's bicubic, each pass of it rounded to 8 bits: to the bit what torchvision's Resize does with a PIL image."""
    target = target_size(images.shape[2], images.shape[3], size, crop)
    if images.shape[-2:] != target:
        pixels = images.cpu().permute(0, 2, 3, 1).numpy()
        rows = [np.asarray(Image.fromarray(one).resize((target[1], target[0]), Image.Resampling.BICUBIC)) for one in pixels]
        images = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).to(images.device)
    return centre(images, size)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Put float32 weights into a module that was made on the meta device; ValueError where they are not its own."""
    own = module.state_dict()
    wrong = [
        f"{name} {'is missing' if name not in tensors else f'has shape {tuple(tensors[name].shape)}, not {tuple(value.shape)}'}"
        for name, value in own.items()
        if name not in tensors or tensors[name].shape != value.shape
    ]
    if wrong:
        raise ValueError(f"these are not the weights of {what}: {wrong[0]} ({len(wrong)} of {len(own)} tensors are wrong)")
    module.load_state_dict({name: tensors[name].float() for name in own}, assign=True)


def random_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Weights for tests of shapes and gradients, without touching the global random numbers: what they measure means nothing."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.empty(value.shape).normal_(std=(2 / value[0].numel()) ** 0.5 if value.ndim > 1 else 0.02, generator=generator)
        + (1.0 if value.ndim == 1 and name.endswith("weight") else 0.0)
        for name, value in module.state_dict().items()
    }
