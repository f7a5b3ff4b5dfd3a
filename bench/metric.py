"""P9: LPIPS of a batch and its gradient at the images, against lpips, torchmetrics and (where it is installed) piq, on the same weights.

    python bench/metric.py [--quick] [--json] [--threads N] [--trunks vgg16 alex] [--size 64] [--batch 8]

Both sides run in turn in one process; medians and ratios (peer's time over ours), with each side's value, which must be equal. Ours four times:
in float32, with the targets' features known beforehand (where a set is augmented not at all, or by few flips), in bf16, and both. A target needs
no gradient, and no side computes one. Networks have random weights and the peer's own heads: the time is right, the distance means nothing.
"mean pooling" is what Cas-DM trains with (piq's replace_pooling).
--quick takes a batch of 2 and three rounds.
"""

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from _common import about, finish, headline, interleaved, medians, parser, printer
from torch import Tensor, nn

from percepta.spaces.lpips import Lpips

FLOORS = {"fp32": 1.1, "cached": 1.5, "bf16": 1.8, "bf16 cached": 2.5}  # of P9, for VGG16 against the fastest peer


class Pair:
    """Images and their targets, and the value and gradient of a distance of them."""

    def __init__(self, batch: int, size: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self.target = torch.rand(batch, 3, size, size, generator=draw) * 2 - 1
        self.image = (0.7 * self.target + 0.3 * torch.rand(self.target.shape, generator=draw)).requires_grad_()
        self.values: dict[str, float] = {}
        self.gradients: dict[str, Tensor] = {}

    def side(self, name: str, distance: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        def once() -> None:
            value = distance(self.image, self.target).float().mean()
            (self.gradients[name],) = torch.autograd.grad(value, self.image)
            self.values[name] = value.item()

        return once


def layers_of(peer: nn.Module) -> Iterator[tuple[int, nn.Module]]:
    """A peer's layers by their index in torchvision's `features`."""
    for name, part in peer.named_modules():
        index = name.rpartition(".")[2]
        if index.isdecimal() and "slice" in name and name.count(".") == name.count("slices") + 1:
            yield int(index), part


def ours(trunk: str, peer: Any, precision: str = "fp32", pooling: str = "max") -> Lpips:
    """LPIPS with a peer's weights."""
    made = Lpips(trunk, weights="random", precision=precision, pooling=pooling)
    for index, layer in layers_of(peer.net):
        made.trunk.layers[index].load_state_dict(layer.state_dict())
    heads = [lin.model[-1].weight.detach().flatten() for lin in peer.lins]
    made.calibration = nn.ParameterList(heads).requires_grad_(False)
    return made


def peers(trunk: str) -> dict[str, Any]:
    """The packages' networks, all with the weights of the first."""
    import lpips
    from torchmetrics.functional.image.lpips import _LPIPS

    net = trunk.removesuffix("16")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = {"lpips": lpips.LPIPS(net=net, pnet_rand=True, verbose=False), "torchmetrics": _LPIPS(net=net, pnet_rand=True)}
    first = dict(layers_of(found["lpips"].net))
    for index, layer in layers_of(found["torchmetrics"].net):
        layer.load_state_dict(first[index].state_dict())
    return {name: peer.requires_grad_(False).eval() for name, peer in found.items()}


def piq_side(lpips: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """piq's LPIPS on VGG16 with mean pooling, without its download: the weights of the other peers."""
    import piq
    from piq.perceptual import VGG16_LAYERS, ContentLoss
    from torchvision.models import vgg16

    heads = [lin.model[-1].weight.detach() for lin in lpips.lins]
    layers = [VGG16_LAYERS[name] for name in ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")]
    made = ContentLoss(
        vgg16(weights=None).features, layers=layers, weights=heads, replace_pooling=True, distance="mse", reduction="none", normalize_features=True,
        mean=piq.perceptual.IMAGENET_MEAN, std=piq.perceptual.IMAGENET_STD,
    )  # fmt: skip
    state = {f"{index}.{name}": value for index, layer in layers_of(lpips.net) for name, value in layer.state_dict().items()}
    made.model.load_state_dict(state, strict=False)
    return lambda x, y: made((x + 1) / 2, (y + 1) / 2)


def sides(trunk: str, pair: Pair) -> dict[str, Callable[[], None]]:
    others = peers(trunk)
    first = others["lpips"]
    out: dict[str, Callable[[], None]] = {}
    for precision in ("fp32", "bf16"):
        made = ours(trunk, first, precision)
        with torch.no_grad():
            known = made(pair.target)
        out[precision] = pair.side(precision, made.distance)
        name = "cached" if precision == "fp32" else "bf16 cached"
        out[name] = pair.side(name, lambda x, y, made=made, known=known: made.between(known, made(x)))
    for name, peer in others.items():
        out[name] = pair.side(name, peer)
    if trunk == "vgg16":
        out["mean pooling"] = pair.side("mean pooling", ours(trunk, first, pooling="average").distance)
        if importlib.util.find_spec("piq"):
            out["piq"] = pair.side("piq", piq_side(first))
    return out


def report(say: Callable[..., None], trunk: str, pair: Pair, rounds: int) -> dict[str, float]:
    made = sides(trunk, pair)
    seconds = medians(interleaved(made, rounds, warmup=2))
    images, apart = len(pair.image), pair.gradients["lpips"]
    say(f"\n{trunk}, {images} images of {pair.image.shape[-1]} px: forward and backward")
    for name, value in seconds.items():
        cosine = nn.functional.cosine_similarity(pair.gradients[name].flatten(), apart.flatten(), dim=0).item()
        say(
            f"  {name:<14}{1e3 * value / images:8.2f} ms/image   value {pair.values[name]:.7f}   gradient's cosine to lpips' {cosine:.5f}"
        )
    ratios: dict[str, float] = {}
    plain = [name for name in ("lpips", "torchmetrics") if name in seconds]
    for own, floor in FLOORS.items():
        for peer in plain:
            ratios[f"p9-{trunk}-{own.replace(' ', '-')}-vs-{peer}"] = seconds[peer] / seconds[own]
        best = min(seconds[peer] for peer in plain) / seconds[own]
        say(f"  {own}: {best:.2f}x the faster of {', '.join(plain)}" + (f" (floor {floor})" if trunk == "vgg16" else ""))
    if "piq" in seconds:
        ratios[f"p9-{trunk}-mean-pooling-vs-piq"] = seconds["piq"] / seconds["mean pooling"]
    return ratios


def main() -> None:
    ask = parser(__doc__, "a batch of 2, three rounds")
    ask.add_argument("--trunks", nargs="+", default=["vgg16", "alex"], choices=["vgg16", "alex"])
    ask.add_argument("--size", type=int, default=64, help="pixels a side (default: %(default)s)")
    ask.add_argument("--batch", type=int, default=8, help="images together (default: %(default)s)")
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore")  # the peers ask torchvision in an old way
    say = printer(asked.json)
    facts = about("lpips", "torchmetrics", "torchvision", *(["piq"] if importlib.util.find_spec("piq") else []))
    say(headline(facts))
    ratios: dict[str, float] = {}
    for trunk in asked.trunks:
        ratios |= report(say, trunk, Pair(2 if asked.quick else asked.batch, asked.size), 3 if asked.quick else 15)
    finish(asked.json, ratios, about=facts)


if __name__ == "__main__":
    main()
