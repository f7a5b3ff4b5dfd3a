"""Contamination: a metric says nothing in a space that the model was trained to please (paper after paper: a loss in LPIPS's trunk lowers
LPIPS, and FID falls with an Inception loss while people see no difference).

What a run was trained against stands in its config.json (`resolved.trained_against`); models made from it, by --init or by decoding
through its autoencoder (--vae), inherit it, and so does a translator whose latents an autoencoder made. Pure reading: no weights, no images.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

CARD = "trained_against"  # the key in an exported pipeline's card, and in config.json
FAMILIES = ("inception", "clip", "dino", "domain", "alex", "squeeze", "vgg", "pixels")  # one network, or siblings of one training
JUDGES = tuple(
    f"{what}_{domain}" for what in ("autoencoder", "prior", "features") for domain in "ab"
)  # of a translation, in latents
MADE_OF = {
    "settings": ("init", "vae"),
    "knobs": ("own", "other", *JUDGES),
}  # flags that name what a run starts from, or is judged by
PARTS = 2  # how far above a model's folder its run may be: RUN/model/unet


def family(space: str) -> str:
    """The network behind a space's name: inception-768 and inception-2048 are one, lpips-alex is alex, vgg16 and vgg19 are siblings."""
    plain = space.lower().removeprefix("lpips-").partition(":")[0]
    return next((name for name in FAMILIES if plain.startswith(name)), plain.partition("-")[0])


def identity(space: str) -> str:
    """What follows the colon: which encoder of its kind (`domain:3f2a`). Empty where it is not known."""
    return space.partition(":")[2]


def contaminated(space: str, trained: Iterable[str]) -> bool:
    """Whether a metric's space, or another layer or sibling of its network, was an objective. Encoders known to differ do not count."""
    return any(
        family(space) == family(other) and (not identity(space) or not identity(other) or identity(space) == identity(other))
        for other in trained
    )


def trained_against(folder: Path | str) -> tuple[str, ...]:
    """The spaces behind a run's folder, a model's folder inside a run, or an exported pipeline: its own and those it inherits."""
    return tuple(dict.fromkeys(_found(Path(folder).expanduser(), set())))


def _found(folder: Path, seen: set[Path]) -> Iterator[str]:
    if not folder.is_dir() or folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    card = _json(folder / "percepta.json").get("card")
    protocol = card.get("protocol") if isinstance(card, dict) else None
    listed = protocol.get(CARD) if isinstance(protocol, dict) else None
    if isinstance(listed, str):
        yield from filter(None, listed.split(", "))
    run = _run_of(folder)
    if run is None:
        return
    config = _json(run / "config.json")
    yield from (entry["space"] for entry in config["resolved"].get(CARD, []))
    for part, flags in MADE_OF.items():  # also of runs that were trained before this was recorded
        for before in filter(None, map(config.get(part, {}).get, flags)):
            yield from _found(Path(before).expanduser(), seen)


def _run_of(folder: Path) -> Path | None:
    """The run that a folder is, or is a part of: a config.json that says what was resolved."""
    for place in (folder, *folder.absolute().parents[:PARTS]):
        if isinstance(_json(place / "config.json").get("resolved"), dict):
            return place
    return None


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file. A damaged one must not count as a clean record."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged, so it is not known what the model was trained against: {error}") from error
    return value if isinstance(value, dict) else {}
