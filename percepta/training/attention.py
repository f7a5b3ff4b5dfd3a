"""Where a generator looks, as a picture: U-GAT-IT's heat map in colours over its source image.

Each picture has a scale of its own: dark violet where its map is least, pale yellow where it is most. The colours grow lighter all the way, so that they
can be told apart without hue, and in print.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from percepta.networks.translation import Direction, Pair
from percepta.networks.ugatit import UgatitPair

COLOURS = ((24, 15, 62), (98, 25, 120), (188, 55, 84), (246, 141, 30), (252, 250, 170))  # from least to most
OPAQUE = 0.62  # of the colours over the grey picture
DIM = 0.6  # of the light of the picture: on a white ground nothing else would be dark
LUMA = (0.299, 0.587, 0.114)


def looked(pair: Pair, x: Float[Tensor, "b 3 h w"], direction: Direction) -> tuple[Tensor, Tensor | None]:
    """(the translations, `x` under the generator's attention), in one pass; None for generators that have no attention."""
    if not isinstance(pair, UgatitPair):
        return pair.translate(x, direction), None
    image, _, heat = pair.generated(x, direction)
    return image, overlaid(x, heat)


def overlaid(x: Float[Tensor, "b 3 h w"], heat: Float[Tensor, "b 1 rows columns"]) -> Float[Tensor, "b 3 h w"]:
    """`heat` in colours over a grey `x`, both brought to one size. A map that is the same everywhere says nothing: it is dark."""
    low, high = heat.float().amin((1, 2, 3), keepdim=True), heat.float().amax((1, 2, 3), keepdim=True)
    share = (heat.float() - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    share = F.interpolate(share, x.shape[-2:], mode="bilinear", align_corners=False).squeeze(1) * (len(COLOURS) - 1)
    stops = torch.tensor(COLOURS, device=x.device) / 127.5 - 1
    below = share.long().clamp(0, len(COLOURS) - 2)
    colour = torch.lerp(stops[below], stops[below + 1], (share - below)[..., None]).permute(0, 3, 1, 2)
    grey = (x.float() * x.new_tensor(LUMA, dtype=torch.float32)[:, None, None]).sum(1, keepdim=True)
    return torch.lerp(((grey + 1) * DIM - 1).expand_as(colour), colour, OPAQUE).to(x.dtype)
