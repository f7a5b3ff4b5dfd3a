"""percepta probe: what an autoencoder does to its latents, what a step with LPL costs, and what a denoiser keeps of a batch's structure."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from percepta.absent import absent
from percepta.cli import fail
from percepta.cli.parse import Usage, check_folder, parse, to_stdout


@dataclass(frozen=True)
class Probe:
    """Look at an autoencoder: how its latents scale, how far a disturbed patch reaches, which outliers its feature maps have.

    Example: percepta probe ./vae --what perturbation --data ./images --size 256

    OUT gets probe.json (the numbers), protocol.json (how they were made) and figures/. `percepta probe flops` counts what a training step
    with LPL costs; it needs neither images nor weights. `percepta probe affinity RUN` looks at what a denoiser keeps of a batch.
    """

    vae: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="VAE")]
    """A diffusers autoencoder folder, a pipeline with a vae/, a run of the recipe `autoencoder`, or `taef2`, whose weights
    `percepta doctor` asks for."""
    what: Literal["interpolation", "perturbation", "outliers"]
    """interpolation: latents scaled as if they were images. perturbation: noise in one patch of the latent. outliers: feature maps of the
    decoder and what LPL's mask drops of them."""
    data: str = "shapes"
    """Images: a folder, .npz, tar shards, hf:NAME, or shapes."""
    num: int = 16
    """How many of them, evenly spread over the set."""
    size: int = 256
    """Side of the images, in pixels."""
    crop: Literal["center-crop", "stretch", "pad", "none"] = "center-crop"
    """How an image becomes a square."""
    scales: str = "0.5,1.3,2"
    """For interpolation: the factors, separated by commas."""
    patch: int | None = None
    """For perturbation: side of the patch, in latents. Default: an eighth of the latent's side."""
    draws: int = 4
    """For perturbation: noises per image."""
    seed: int = 0
    """For perturbation: of the noise."""
    out: Path | None = None
    """Folder for what comes out. Default: runs/probe-WHAT."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Flops:
    """Count the arithmetic of a training step with LPL beside one without, on shapes alone: no weights, no memory, any size.

    Example: percepta probe flops --network mmdit-xl-2 --vae sdxl --size 256 --batch 64

    Samples above the noise threshold are never decoded, and nothing behind the last layer that is read is computed.
    """

    network: str = "mmdit-xl-2"
    """A named network, as for percepta train."""
    vae: str = "sdxl"
    """sdxl, asymmetric-x-1-5, or a folder with an autoencoder's config.json."""
    size: int = 256
    """Side of the images, in pixels."""
    batch: int = 64
    """Images of a step: operations are given for all of them."""
    tau: float = 3.0
    """Noise threshold: LPL where sigma/alpha is at most this."""
    schedule: Literal["linear", "scaled-linear", "cosine", "flow", "flow-uniform"] = "linear"
    """Which times are drawn: DDPM's linear, Stable Diffusion's scaled linear or cosine betas, rectified flow with logit-normal or uniform times."""
    share: float | None = None
    """The share of samples that are decoded. Default: what tau and the schedule make of it."""
    layers: str | None = None
    """Layers of the decoder that are read, separated by commas; 0 is the mid block. Default: all."""
    crop: int | None = None
    """Side of the latent window that is decoded. Default: all of it."""
    cached: bool = False
    """Latents are cached: a step does not encode."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Affinity:
    """Noise images with labels, denoise them in one step, and look at how alike they then are to each other, beside how alike they were.

    Example: percepta probe affinity runs/sadm --data ./images --size 32

    OUT gets probe.json, protocol.json and figures/: affinities as heat maps, beside the affinity of the labels (1 for two images of one class),
    and the images. Numbers are means over all groups, the pictures are of the first.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run folder, or a folder of a diffusers pipeline."""
    data: str = "shapes"
    """Images with labels: a folder with a folder for each class, .npz, tar shards, hf:NAME, or shapes."""
    space: str = "inception-2048"
    """Whose features are compared: inception-768, clip, dinov2, alex, domain (trained on --data), pixels."""
    levels: str = "0.5,2,8"
    """Noise levels, sigma/alpha, separated by commas."""
    num: int = 8
    """Images of a group, two of a class."""
    groups: int = 32
    """Groups of images, each with noise of its own."""
    size: int | None = None
    """Side of the images. Default: what the model makes."""
    crop: Literal["center-crop", "stretch", "pad", "none"] = "center-crop"
    """How an image becomes a square."""
    seed: int = 0
    """Of the noise, and of the `domain` space."""
    out: Path | None = None
    """Folder for what comes out. Default: runs/probe-affinity."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print one JSON object."""


def run(args: Sequence[str]) -> int:
    if args and args[0] == "flops":
        return _flops(parse(Flops, args[1:], "percepta probe flops"))
    if args and args[0] == "affinity":
        from percepta.cli.probe_affinity import run as affinity

        return affinity(args[1:])
    command = parse(Probe, args, "percepta probe")
    for flag, least in (("num", 1), ("size", 1), ("draws", 1)):
        if getattr(command, flag) < least:
            raise Usage(f"percepta probe: --{flag} must be at least {least}, got {getattr(command, flag)}")
    scales = _numbers(command.scales, float, "percepta probe: --scales")
    out = command.out or Path("runs") / f"probe-{command.what}"
    check_folder(out, f"percepta probe: --out {out}")
    return _look(command, tuple(scales), out)


def _look(command: Probe, scales: tuple[float, ...], out: Path) -> int:
    from percepta.data import open_source
    from percepta.probes import PROBES, Look, first_images
    from percepta.training.folder import write_json
    from percepta.training.precision import pick_device
    from percepta.training.signals import Interrupted, stop_on_signals

    vae = _open(command.vae).requires_grad_(False).eval().to(pick_device(command.device))
    source = open_source(command.data, command.size)
    images = first_images(source, command.num, command.size, command.crop)
    with stop_on_signals() as flag:
        look = Look(vae, images, out / "figures", scales, command.patch, command.draws, command.seed, check=flag.check)
        try:
            found = PROBES[command.what](look)
        except Interrupted:
            return fail("stopped; run the same command again", 3)
    protocol = _protocol(command, source, len(images), vae) | {"how": found.how}
    figures = [str(path) for path in found.figures]
    record = {"probe": command.what, "numbers": found.numbers, "figures": figures, "protocol": protocol}
    write_json(out / "probe.json", {key: value for key, value in record.items() if key != "protocol"})
    write_json(out / "protocol.json", protocol)
    to_stdout(json.dumps(record) if command.json else f"{_table(found.numbers)}\n{out / 'probe.json'}; {', '.join(figures)}")
    return 0


def _open(name: str):
    from percepta.networks import load_autoencoder
    from percepta.training.data import vae_folder
    from percepta.weights import find_weights, read_weights

    if name == "taef2" and not Path(name).exists():
        from percepta.networks.taef2 import build_taef2

        return build_taef2(read_weights(find_weights("taef2_fp16")))
    if "/" in name and not Path(name).exists():
        raise Usage(f"percepta probe: {absent(name, 'an autoencoder')}")
    if not any((Path(name) / part / "config.json").is_file() for part in ("vae", "model", ".")):
        raise Usage(
            f"percepta probe: {name}: no autoencoder there (no config.json in it, in vae/ or in model/), and it is not taef2"
        )
    return load_autoencoder(vae_folder(name))


def _protocol(command: Probe, source, count: int, vae) -> dict:
    import torch

    from percepta._version import __version__
    from percepta.data.latents import hash_module

    return {
        "vae": {"name": command.vae, "class": type(vae.model).__name__, "weights": hash_module(vae), "factor": vae.factor,
                "latent_channels": vae.latent_channels},
        "images": {"name": command.data, "fingerprint": source.fingerprint, "count": count, "size": command.size, "crop": command.crop},
        "seed": command.seed,
        "versions": {"percepta": __version__, "torch": str(torch.__version__)},
    }  # fmt: skip


def _table(numbers: dict) -> str:
    """Names and numbers in columns; rows where each name has several."""
    if not all(isinstance(value, dict) for value in numbers.values()):
        return "\n".join(f"{name:<18} {_shown(value)}" for name, value in numbers.items())
    heads = [key for key, value in next(iter(numbers.values())).items() if not isinstance(value, list)]
    lines = [" " * 16 + "".join(f"{head:>17}" for head in heads)]
    lines += [f"{name:<16}" + "".join(f"{_shown(row[head]):>17}" for head in heads) for name, row in numbers.items()]
    return "\n".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _flops(command: Flops) -> int:
    for flag in ("size", "batch", "crop"):
        value = getattr(command, flag)
        if value is not None and value < 1:
            raise Usage(f"percepta probe flops: --{flag} must be at least 1, got {value}")
    layers = None if command.layers is None else _numbers(command.layers, int, "percepta probe flops: --layers")
    from percepta.probes import SCHEDULES, share_below, step_cost

    share = share_below(SCHEDULES[command.schedule], command.tau) if command.share is None else command.share
    cost = step_cost(command.network, command.vae, command.size, share, layers, command.cached, command.crop)
    total = {"plain": cost.plain * command.batch / 1e3, "lpl": cost.lpl * command.batch / 1e3, "ratio": cost.ratio}
    record = {"probe": "flops", "tflop": total, "gflop_per_image": asdict(cost), "asked": asdict(command)}
    text = (
        f"a step of {command.batch} images of {command.size} px: {total['plain']:.3f} TFLOP plain, {total['lpl']:.3f} with LPL "
        f"({cost.ratio:.3f} times)\nof an image, GFLOP: {cost.network:.1f} network, {cost.encode:.1f} encoding"
        f"{' (cached)' if command.cached else ''}; {cost.target:.1f} and {cost.predicted:.1f} where its target and its prediction are "
        f"decoded, which are {100 * share:.1f}% of the images"
    )
    to_stdout(json.dumps(record) if command.json else text)
    return 0


def _numbers(text: str, kind: type, asked: str) -> list:
    """Numbers of a list with commas; Usage where one is none."""
    try:
        found = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or not all(0 <= number < 100 for number in found):
        raise Usage(
            f"{asked} is a list of {'whole ' if kind is int else ''}numbers, such as {'0,1,2' if kind is int else '0.5,2'}, got {text!r}"
        )
    return found
