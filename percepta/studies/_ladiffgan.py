"""What the studies of LaDiffGAN (2024) share: two domains, what supervises their translators, the translators, and their judgement.

    train autoencoder, of A and of B  ->  train prior, of A and of B  ->  train ladiffgan --prior-a ...  ->  evaluate RUN

Autoencoders and diffusion models are trained once (seed 0) for all rows and seeds; a translator that nothing supervises does not wait for them. The pairs of
the test images are known to the judgement alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from percepta.data.domains import Domains, find_domains
from percepta.data.open import is_shapes, open_source
from percepta.data.transforms import still
from percepta.studies._common import JUDGE, budget
from percepta.studies.engine.study import OUT, At, Column, Images, Impossible, Job, Reading

SHAPES = "shapes:labels=shape,textures=plain,backgrounds=paper,length=1000"  # of these outlines and filled shapes, and of 1000 other scenes to judge by
DATA = {"pocket": (SHAPES, None), "paper": None}
SECOND = "second"  # the setting of columns of the domains that --target gives
NONE = "--latent-gan none --denoising none"


@dataclass(frozen=True)
class Sizes:
    """Flags of each phase. `gan` has those of each kind of generator, beside those of all (`every`)."""

    size: int
    autoencoder: str
    prior: str
    features: str
    every: str
    gan: Mapping[str, str]
    judge: str


POCKET = Sizes(
    size=32,
    autoencoder="--perceptual none --steps 600 --batch 16 --lr 2e-3 --warmup 20 --lr-schedule cosine --checkpoint-every 200",
    prior="--steps 500 --batch 32 --lr 1e-3 --warmup 20 --lr-schedule cosine --ema-decay 0.99 --checkpoint-every 200",
    features="--steps 500 --batch 32 --lr 1e-3 --warmup 20 --lr-schedule cosine --ema-decay 0.99 --checkpoint-every 200",
    every="--crop center-crop --batch 4 --lr 1e-3 --steps 800 --channels 16 --blocks 1 --checkpoint-every 100",
    gan=MappingProxyType({"ugatit": "--cam-weight 1", "unit": "--vgg-weight 0"}),
    judge=f"--metrics fid,kid --space domain --seed {JUDGE}",
)
PAPER = Sizes(
    size=256,
    autoencoder="--crop stretch --flip --steps 100000 --batch 32 --checkpoint-every 2000",
    prior="--crop stretch --flip --steps 200000 --batch 32 --lr 3e-4 --checkpoint-every 2000",
    features="--crop stretch --flip --steps 200000 --batch 32 --lr 3e-4 --checkpoint-every 2000",
    every="--steps 1000000 --checkpoint-every 5000",
    gan=MappingProxyType({"ugatit": "--no-light", "unit": "", "munit": "", "cyclegan": ""}),
    judge="--metrics fid,kid --space inception-2048",
)
SIZES = {"pocket": POCKET, "paper": PAPER}


def facts(at: At) -> list[tuple[str, str]]:
    """The budget, as a reader compares it."""
    sizes: Sizes = at.sizes
    second = f"; second: {at.targets[0]}" if at.targets else ""
    return [
        ("Domains", f"{at.data}{second}, {at.size} px; no pair of images is known in training"),
        ("Autoencoders, of A and of B", f"once for all rows, {budget(sizes.autoencoder)}: train autoencoder {sizes.autoencoder}"),
        ("Diffusion models, of A and of B", f"once for all rows, {budget(sizes.prior)}: train prior {sizes.prior}"),
        ("Each translator", f"train ladiffgan {sizes.every}"),
        *((f"Each {kind}", f"beside that {flags}") for kind, flags in sizes.gan.items() if flags),
        ("Judged", f"on the test sets, both ways: evaluate {sizes.judge}"),
    ]


def domains(at: At) -> Domains:
    """The sets behind a name. Of a folder that is not there, as in a plan, those of the usual names."""
    if is_shapes(at.data) or Path(at.data).is_dir():
        return find_domains(at.data)
    return Domains(*(str(Path(at.data) / part) for part in ("trainA", "trainB", "testA", "testB")))


def trained(kind: str, data: str, at: At, *words: str | Job) -> Job:
    """A phase: once for all rows, seed 0."""
    flags = getattr(at.sizes, "features" if kind == "ddpm" else kind).split()
    words = ("train", kind, *words, "--data", data, "--size", str(at.size), "--conditional", "no", *flags)
    return Job((*words, "--seed", "0", "--sample-every", "0", "--out", OUT))


def phases(at: At, flags: str) -> tuple[str | Job, ...]:
    """What these flags of `train ladiffgan` need, as flags that name it."""
    said = flags.split()
    asked = {name: said[said.index(f"--{name}") + 1] if f"--{name}" in said else "A" for name in ("latent-gan", "denoising")}
    if set(asked.values()) == {"none"}:
        return ()
    sets = domains(at)
    coders = {"a": trained("autoencoder", sets.train_a, at), "b": trained("autoencoder", sets.train_b, at)}
    out: list[str | Job] = []
    for domain, data in (("a", sets.train_a), ("b", sets.train_b)):
        own, other = coders[domain], coders["b" if domain == "a" else "a"]
        if asked["latent-gan"] != "none":
            out += [f"--autoencoder-{domain}", own]
        if asked["denoising"] != "none":
            out += [f"--prior-{domain}", trained("prior", data, at, "--own", own, "--other", other)]
        if asked["latent-gan"] == "B":
            out += [f"--features-{domain}", trained("ddpm", data, at, "--schedule", "linear", "--vae", own)]
    return tuple(out)


def placed(at: At, column: Column) -> At:
    """Where a column's numbers are to be had: the study's own domains, or the second ones."""
    if at.init is not None:
        raise Impossible("translators are trained from scratch: leave --init away")
    if at.held_out is not None:
        raise Impossible("domains bring their test images along (testA, testB): leave --held-out away")
    if column.setting != SECOND:
        return at
    if not at.targets:
        raise Impossible("no second pair of domains was given (--target FOLDER, with trainA, trainB, testA and testB)")
    return replace(at, data=at.targets[0])


@dataclass(frozen=True)
class Translator:
    """`percepta train ladiffgan --generator KIND`, supervised unless `flags` say otherwise."""

    kind: str = "ugatit"
    flags: str = ""

    def __call__(self, at: At, column: Column, seed: int) -> Job:
        there = placed(at, column)
        sizes: Sizes = there.sizes
        flags = f"{sizes.every} {sizes.gan[self.kind]} {self.flags}".split()
        words = ("train", "ladiffgan", "--source", there.data, "--size", str(there.size), "--generator", self.kind, *flags)
        return Job((*words, *phases(there, self.flags), "--seed", str(seed), "--sample-every", "0", "--out", OUT))


def untranslated(at: At, column: Column, seed: int) -> str:
    """The test images of the domain that a translation starts from: what doing nothing would get."""
    return tests(placed(at, column))["ab".index(direction(column)[0])]


def tests(at: At) -> tuple[str, str]:
    """The test sets of A and of B."""
    try:
        return domains(at).tests()
    except ValueError as error:
        raise Impossible(str(error)) from error


def direction(column: Column) -> str:
    """a2b or b2a, of a column that judges images; others are about a training."""
    if not column.place.startswith("metrics."):
        raise Impossible("nothing was trained")
    return column.place.rpartition("/")[2]


def other_images(at: At, column: Column, seed: int) -> str:
    """Training images of the domain that is to be reached: what a perfect translator would get."""
    sets = domains(placed(at, column))
    return sets.train_b if direction(column) == "a2b" else sets.train_a


def judge(at: At, images: Images, column: Column, seed: int) -> Reading:
    """Translations of the test sets, both ways at once; sets of images against the test set that a translation should resemble."""
    there = placed(at, column)
    if column.place.startswith("timing."):
        assert isinstance(images, Job)
        return Reading(images, column.place.removeprefix("timing."), "timing.jsonl")
    if isinstance(images, Job):
        before = tuple(compared(there, *pair) for pair in (tests(there), tests(there)[::-1]))
        return Reading(Job(("evaluate", images, *there.sizes.judge.split(), "--json", "--out", OUT), before), column.place)
    metric, _, way = column.place.rpartition("/")
    if metric not in ("metrics.fid", "metrics.kid"):
        raise Impossible("nothing was translated")
    return Reading(compared(there, images, tests(there)["ab".index(way[-1])]), metric)


def compared(at: At, images: str, real: str) -> Job:
    """Of two sets; it also trains the encoder of `real`, once, so that jobs that run side by side then find it."""
    words = at.sizes.every.split()
    crop = still(words[words.index("--crop") + 1] if "--crop" in words else "jitter")  # what the recipe does unless told
    cut = () if crop == "center-crop" else ("--crop", crop)
    have, most = counted(images), counted(tests(at)[real == tests(at)[0]])
    few = ("--num", str(most)) if have is not None and most is not None and have > most else ()  # as many as are translated
    return Job(("evaluate", images, real, *few, "--size", str(at.size), *cut, *at.sizes.judge.split(), "--json"))


def counted(images: str) -> int | None:
    """How many there are; None where they are not here."""
    return len(open_source(images)) if is_shapes(images) or Path(images).is_dir() else None


WAYS = (("A→B", "a2b"), ("B→A", "b2a"))


def both(
    group: str, label: str, metric: str, better: Literal["lower", "higher"] = "lower", setting: str | None = None
) -> list[Column]:
    """Of A to B, and of B to A. KID is told a hundredfold, as in the paper."""
    times = 100 if metric == "kid" else 1
    return [Column(f"{label}, {way}", f"metrics.{metric}/{place}", setting, better, group, times) for way, place in WAYS]


def in_turn(*pairs: list[Column]) -> tuple[Column, ...]:
    """One direction after the other."""
    return tuple(column for way in zip(*pairs, strict=True) for column in way)


SETS, TRUTH, TRAINING, OTHER = "sets of images", "each image against its truth", "training", "second domains"
QUALITY = in_turn(both(SETS, "FID", "fid"), both(SETS, "KID x100", "kid"))
PAIRED = in_turn(
    both(TRUTH, "PSNR", "psnr", "higher"),
    both(TRUTH, "LPIPS", "lpips-to-truth"),
    both(TRUTH, "shape kept", "shape-accuracy", "higher"),
    both(TRUTH, "colour kept", "colour-accuracy", "higher"),
)
COST = (
    Column("images per s", "timing.images_per_s", better="higher", group=TRAINING),
    Column("MiB", "timing.memory_mib", group=TRAINING),
)
SECONDS = in_turn(
    both(OTHER, "FID", "fid", setting=SECOND),
    both(OTHER, "KID x100", "kid", setting=SECOND),
    both(OTHER, "PSNR", "psnr", "higher", SECOND),
)
