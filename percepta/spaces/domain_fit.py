"""How the `domain` encoder is made: a small residual network, taught the classes of the images where they have some, and otherwise to
recognise two views of one image among others (SimCLR, Chen et al. 2020, eq. 1).

Its features are those of all stages, averaged over the image and scaled to mean 0 and variance 1 on the images it was trained on. The last stage
alone forgets what its task does not ask for: one that was taught shapes let a model turn all colours to blue and called it better.

The number of steps is fixed, not the time, and every random number comes from the seed: the same images and seed give the same weights on
a machine. It trains on the CPU.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

WIDTHS = (32, 64, 128, 128)  # of the stem and the three blocks
LAST = WIDTHS[-1]
DIMS = sum(WIDTHS)
SCALED_ON = 4096  # images, at most


@dataclass(frozen=True)
class Recipe:
    """What decides the weights beside data and seed; all of it is part of the cache key, so raise `version` when the code changes them."""

    version: int = 2
    steps: int = 300
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.02
    max_images: int = 20_000  # of larger sets, evenly spread ones
    held: float = 0.1  # of labelled images, to say how good it became
    temperature: float = 0.2


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
        rows = torch.cat([self.stages(_floats(part)) for part in images[:SCALED_ON].split(256)]).double()
        std = rows.std(0)
        self.mean.copy_(rows.mean(0))
        alive = std[std > 1e-6]  # of a unit that never fires nothing is read
        floor = 0.1 * float(alive.median()) if len(alive) else 1.0
        self.scale.copy_(1 / std.clamp(min=floor))


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
        classes = 64 if labels is None else int(labels.max()) + 1
        head = (
            nn.Linear(LAST, classes)
            if labels is not None
            else nn.Sequential(nn.Linear(LAST, LAST), nn.ReLU(), nn.Linear(LAST, classes))
        )
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=LAST**-0.5, generator=generator)
            nn.init.zeros_(module.bias)
    losses = _run(encoder, head, images[seen], None if labels is None else labels[seen], recipe, generator, note, check)
    encoder.eval()
    encoder.set_scale(images[seen])
    if labels is not None and held:
        with torch.no_grad():
            guesses = torch.cat([head(encoder.stages(_floats(part))[:, -LAST:]).argmax(1) for part in images[kept].split(256)])
        return Fitted(encoder, float((guesses == labels[kept]).double().mean()), held)
    tail = losses[-max(1, len(losses) // 10) :]
    return Fitted(encoder, sum(tail) / len(tail))


def _run(
    encoder: Encoder, head: nn.Module, images: Tensor, labels: Tensor | None, recipe: Recipe, generator: torch.Generator,
    note: Callable[[str], None], check: Callable[[], None],
) -> list[float]:  # fmt: skip
    """All steps; the losses. Samples are drawn with replacement."""
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    losses: list[float] = []
    for step in range(recipe.steps):
        check()
        done = step / recipe.steps
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * min(1.0, (step + 1) / (0.1 * recipe.steps)) * (0.5 + 0.5 * math.cos(math.pi * done))
        rows = _distinct(len(images), recipe.batch, generator)
        x = _floats(images[rows])
        if labels is None:
            views = torch.cat([view(x, generator), view(x, generator)])
            loss = nt_xent(head(encoder.stages(views)[:, -LAST:]), recipe.temperature)
        else:
            loss = F.cross_entropy(head(encoder.stages(shifted(x, generator))[:, -LAST:]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise ValueError(f"training the domain encoder: the loss is {losses[-1]} at step {step + 1}; check the images")
        if (step + 1) % max(1, recipe.steps // 5) == 0:
            note(f"domain encoder: step {step + 1} of {recipe.steps}, loss {losses[-1]:.3f}")
    return losses


def _distinct(count: int, batch: int, generator: torch.Generator) -> Tensor:
    """A batch without repetitions: an image must not be its own negative."""
    return torch.randperm(count, generator=generator)[: min(batch, count)]


def _floats(images: Tensor) -> Tensor:
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _flipped(x: Tensor, generator: torch.Generator) -> Tensor:
    flip = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)


def shifted(x: Float[Tensor, "b 3 s s"], generator: torch.Generator) -> Float[Tensor, "b 3 s s"]:
    """Each image flipped or not, and moved by up to an eighth of its side."""
    size, pad = x.shape[-1], x.shape[-1] // 8
    wide = F.pad(x, (pad,) * 4, mode="reflect")
    top, left = torch.randint(0, 2 * pad + 1, (2, len(x)), generator=generator)
    rows, cols = (start[:, None] + torch.arange(size) for start in (top, left))
    moved = wide.permute(0, 2, 3, 1)[torch.arange(len(x))[:, None, None], rows[:, :, None], cols[:, None, :]]
    return _flipped(moved.permute(0, 3, 1, 2), generator)


def view(x: Float[Tensor, "b 3 s s"], generator: torch.Generator) -> Float[Tensor, "b 3 s s"]:
    """One view of SimCLR: a part of the image (40 to 100% of it), flipped or not, brightness, contrast and colours changed a little."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((len(x), *shape), generator=generator)

    side = uniform(0.4, 1.0).sqrt()
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = uniform(-1, 1, 2) * (1 - side)[:, None]
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    part = _flipped(F.grid_sample(x, grid, padding_mode="border", align_corners=False), generator)
    mean = part.mean((1, 2, 3), keepdim=True)
    part = (part - mean) * uniform(0.7, 1.3, 1, 1, 1) + mean + uniform(-0.3, 0.3, 1, 1, 1)
    return (part * uniform(0.85, 1.15, 3, 1, 1)).contiguous(memory_format=torch.channels_last)


def nt_xent(z: Float[Tensor, "b2 d"], temperature: float) -> Float[Tensor, ""]:
    """SimCLR's loss; rows k and k + b are the two views of image k."""
    z = F.normalize(z)
    similar = z @ z.T / temperature
    similar.fill_diagonal_(float("-inf"))
    return F.cross_entropy(similar, torch.arange(len(z)).roll(len(z) // 2))
