"""percepta probe affinity: how much of the structure of a batch a model keeps (SADM, figure 5)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from percepta.cli import fail
from percepta.cli.parse import Usage, check_folder, parse, to_stdout
from percepta.cli.probe import Affinity


def run(args: Sequence[str]) -> int:
    command = parse(Affinity, args, "percepta probe affinity")
    try:
        levels = tuple(float(part) for part in command.levels.split(",") if part.strip())
    except ValueError:
        levels = ()
    if not levels:
        raise Usage(f"percepta probe affinity: --levels is a list of numbers, such as 0.5,2, got {command.levels!r}")
    out = command.out or Path("runs/probe-affinity")
    check_folder(out, f"percepta probe affinity: --out {out}")
    return _look(command, levels, out)


def _look(command: Affinity, levels: tuple[float, ...], out: Path) -> int:
    from percepta.data import open_source
    from percepta.interop.load import load_pipeline
    from percepta.networks import Autoencoder, Network
    from percepta.probes import Denoised, affinities, labelled_groups
    from percepta.training.folder import write_json
    from percepta.training.precision import pick_device
    from percepta.training.signals import Interrupted, stop_on_signals

    device = pick_device(command.device)
    pipeline = load_pipeline(command.model)
    denoiser = pipeline.denoiser.requires_grad_(False).eval().to(device)
    vae = None if pipeline.vae is None else Autoencoder(pipeline.vae).requires_grad_(False).eval().to(device)  # pyright: ignore[reportArgumentType]
    network = denoiser.network
    assert isinstance(network, Network)
    made = None if network.sample_size is None else network.sample_size * (1 if vae is None else vae.factor)
    size = command.size or made
    if size is None:
        raise Usage(f"percepta probe affinity: {command.model} does not say which size its images have: give --size")
    source = open_source(command.data, size)
    with stop_on_signals() as flag:
        try:
            space = _space(command, source, size, flag.check).to(device)
            groups, labels = labelled_groups(source, command.groups, command.num, size, command.crop)
            found = affinities(Denoised(denoiser, groups, labels, space, out / "figures", levels, command.seed, vae, flag.check))
        except Interrupted:
            return fail("stopped; run the same command again", 3)
    protocol = _protocol(command, source, size, denoiser, space) | {"how": found.how}
    figures = [str(path) for path in found.figures]
    record = {"probe": "affinity", "numbers": found.numbers, "figures": figures, "protocol": protocol}
    write_json(out / "probe.json", {key: value for key, value in record.items() if key != "protocol"})
    write_json(out / "protocol.json", protocol)
    to_stdout(json.dumps(record) if command.json else f"{_table(found.numbers)}\n{out / 'probe.json'}; {', '.join(figures)}")
    return 0


def _space(command: Affinity, source: Any, size: int, check: Any):
    """The space; `domain` is the encoder of these very images that `percepta evaluate` would train and find."""
    from percepta.evaluation.evaluate import cache_folder, domain_encoder
    from percepta.evaluation.sets import ImageSet, open_side
    from percepta.spaces.extractor import split_name
    from percepta.spaces.opening import open_space
    from percepta.spaces.space import enlarging
    from percepta.training.log import console

    folder = None
    if split_name(command.space)[0] == "domain":
        images = open_side(source, size=size, crop=command.crop, on_bad="error")
        assert isinstance(images, ImageSet)
        folder = domain_encoder(images, cache_folder(), command.seed, lambda text: console.print(text, markup=False), check)
    return enlarging(open_space(command.space, folder), size)


def _protocol(command: Affinity, source: Any, size: int, denoiser: Any, space: Any) -> dict[str, Any]:
    import torch

    from percepta._version import __version__
    from percepta.sampling import weights_hash

    return {
        "model": {"name": command.model, "weights": weights_hash(denoiser)},
        "space": {"name": space.name},
        "images": {"name": command.data, "fingerprint": source.fingerprint, "size": size, "crop": command.crop, "num": command.num},
        "seed": command.seed,
        "versions": {"percepta": __version__, "torch": str(torch.__version__)},
    }


def _table(numbers: dict[str, dict[str, float]]) -> str:
    heads = list(next(iter(numbers.values())))
    lines = [" " * 12 + "".join(f"{head:>20}" for head in heads)]
    return "\n".join([*lines, *(f"{name:<12}" + "".join(f"{row[head]:>20.4g}" for head in heads) for name, row in numbers.items())])
