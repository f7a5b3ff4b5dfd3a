"""What the studies share that look at autoencoders (LPL, figures 11 to 13): which ones, and `percepta probe` on each.

Images are looked at at four times the side that the other studies of the scale train at: an autoencoder's latents are that much smaller.
"""

from dataclasses import dataclass

from percepta.studies._common import budget
from percepta.studies.engine.study import OUT, At, Column, Images, Impossible, Job, Reading, Row
from percepta.weights import has_weights

TIMES = {"pocket": 4, "paper": 1}
NEEDED = "name an autoencoder with --init: a folder, such as a copy of sdxl-vae"


@dataclass(frozen=True)
class Sizes:
    """Flags of the training of our own autoencoder, and how many images are looked at."""

    size: int
    train: str
    num: int


SIZES = {
    "pocket": Sizes(
        16, "--network ae-pocket --perceptual none --steps 400 --batch 8 --lr 2e-3 --warmup 20 --lr-schedule cosine --checkpoint-every 100", 32
    ),
    "paper": Sizes(256, "", 1000),
}  # fmt: skip


def side(at: At) -> int:
    return at.size * TIMES[at.scale]


def own(at: At, column: Column, seed: int) -> Images:
    """An autoencoder trained on the data; the seed of a study has no part in it."""
    words = ("train", "autoencoder", "--data", at.data, "--size", str(side(at)), *at.sizes.train.split())
    return Job((*words, "--seed", "0", "--sample-every", "0", "--out", OUT))


def tiny(at: At, column: Column, seed: int) -> Images:
    if not has_weights("taef2_fp16"):
        raise Impossible("the weights of TAEF2 are not here: `percepta doctor` says where to get them")
    return "taef2"


def given(at: At, column: Column, seed: int) -> Images:
    if at.init is None:
        raise Impossible(NEEDED)
    return at.init


ROWS = (
    Row("trained on these images, factor 4", own, scales=("pocket",)),
    Row("TAEF2, factor 8", tiny, scales=("pocket",)),
    Row("the one of --init", given),
)


def probe(at: At, vae: Images, what: str) -> Job:
    flags = ("--data", at.data, "--size", str(side(at)), "--num", str(at.sizes.num))
    return Job(("probe", vae, "--what", what, *flags, "--json", "--out", OUT))


def reading(what: str):
    """The judge of a study: the column's number of this probe."""

    def judge(at: At, images: Images, column: Column, seed: int) -> Reading:
        return Reading(probe(at, images, what), f"numbers.{column.place}")

    return judge


def autoencoders(at: At) -> list[tuple[str, Images | str]]:
    """(label, autoencoder) of the rows of a scale that can be had; the others are told in the table."""
    found: list[tuple[str, Images | str]] = []
    for row in ROWS:
        if at.scale in row.scales and row.make is not None:
            try:
                found.append((row.label, row.make(at, Column("", ""), 0)))
            except Impossible:
                continue
    return found


def facts(at: At) -> list[tuple[str, str]]:
    about = [("Data", f"{at.data}, {side(at)} px"), ("Looked at", f"{at.sizes.num:,} images, evenly spread over the set")]
    if at.sizes.train:
        about.append(("The autoencoder trained here", f"{budget(at.sizes.train)}: train autoencoder {at.sizes.train}"))
    return about
