"""How the `domain` encoder is made: a small residual network, taught as percepta.spaces.pretext says.

Its features are those of all stages, averaged over the image and scaled to mean 0 and variance 1 on the images it was trained on. The last stage
alone forgets what its task does not ask for: one that was taught shapes let a model turn all colours to blue and called it better.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from percepta.spaces.pretext import Recipe, accuracy, floats, head_for, teach

WIDTHS = (32, 64, 128, 128)  # of the stem and the three blocks
LAST = WIDTHS[-1]
DIMS = sum(WIDTHS)
SCALED_ON = 4096  # images, at most


@dataclass(frozen=True)
class Fitted:
    """The encoder and how far it came: held-out accuracy, or the mean loss of the last tenth of the steps."""

    encoder: "Encoder"
    reached: float
    held: int = 0


class Residual(nn.Module):
    """x + two 3 x 3 convolutions, the first with the stride."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm2d(out), nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.skip = nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.norm3(self.skip(x)))


class Encoder(nn.Module):
    """Images in [-1, 1] of one size (32 or 64) to 352 features. 0.6 million parameters."""

    mean: Tensor
    scale: Tensor

    def __init__(self, size: int, seed: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2 if size > 32 else 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.blocks = nn.ModuleList(Residual(a, b, 2) for a, b in pairwise(WIDTHS))
        self.register_buffer("mean", torch.zeros(DIMS))
        self.register_buffer("scale", torch.ones(DIMS))
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)

    def stages(self, x: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 352"]:
        """The averages of all stages as they are; the last LAST of them are what the head is taught on."""
        maps = [F.relu(self.norm(self.stem(x)))]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return torch.cat([one.mean((2, 3)) for one in maps], 1)

    def forward(self, x: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 352"]:
        return (self.stages(x) - self.mean) * self.scale

    @torch.no_grad()
    def set_scale(self, images: UInt8[Tensor, "n 3 s s"]) -> None:
        """Mean 0 and variance 1 on these images; a feature that hardly moves there is not blown up."""
        rows = torch.cat([self.stages(floats(part)) for part in images[:SCALED_ON].split(256)]).double()
        std = rows.std(0)
        self.mean.copy_(rows.mean(0))
        alive = std[std > 1e-6]  # of a unit that never fires nothing is read
        floor = 0.1 * float(alive.median()) if len(alive) else 1.0
        self.scale.copy_(1 / std.clamp(min=floor))


class Taught(nn.Module):
    """The encoder with a head on its last stage."""

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder.stages(x)[:, -LAST:])


def fit(
    images: UInt8[Tensor, "n 3 s s"], labels: Int64[Tensor, "n"] | None, recipe: Recipe, seed: int, note: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> Fitted:  # fmt: skip
    """Train on these images. A loss that is not finite ends it with an error; `check` is called at each step and may raise to leave."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    held = 0 if labels is None else min(1000, int(recipe.held * len(images)))
    seen, kept = order[held:], order[:held]
    with torch.random.fork_rng(devices=[]):  # modules draw their first weights from the global generator, before ours replace them
        encoder = Encoder(images.shape[-1], seed).to(memory_format=torch.channels_last)
    network = Taught(encoder, head_for(LAST, labels, generator))
    taught = None if labels is None else labels[seen]
    losses = teach(network, images[seen], taught, recipe, generator, note, check, "domain encoder")
    network.eval()
    encoder.set_scale(images[seen])
    if labels is not None and held:
        return Fitted(encoder, accuracy(network, images[kept], labels[kept]), held)
    tail = losses[-max(1, len(losses) // 10) :]
    return Fitted(encoder, sum(tail) / len(tail))
