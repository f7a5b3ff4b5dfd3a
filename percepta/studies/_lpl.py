"""What the studies of LPL (Berrada et al. 2025) share: one autoencoder, one common checkpoint in its latents, models that go on from it, their judgement.

    autoencoder -> train lpl --loss none -> train lpl --init ... -> sample -> evaluate         post-training
    autoencoder -> train lpl ... ------------------------------> sample -> evaluate            from scratch

Pocket scale: the built-in shapes and an autoencoder trained on them, a flow in its latents, judged in an encoder of the images that nothing was trained
against. Paper scale: --init is a latent pipeline that was trained by squared errors, with its autoencoder.
"""

from dataclasses import dataclass

from percepta.studies._common import JUDGE, budget, judged, samples
from percepta.studies.engine.study import OUT, At, Column, Images, Impossible, Job, Reading

IMAGENET = "FID of class-conditional ImageNet against its training set, 250 steps, guidance 2"


@dataclass(frozen=True)
class Sizes:
    """Flags of the three trainings, the steps of a post-training and of a training from scratch, and how images are drawn and judged."""

    size: int
    autoencoder: str
    pretrain: str
    tune: str
    steps: int
    scratch: int
    num: int
    draw: str
    judge: str
    depths: tuple[int, ...] = ()  # of a transformer, for Self-Perceptual


POCKET = Sizes(
    size=16,
    autoencoder="--perceptual none --steps 5000 --batch 16 --lr 2e-3 --warmup 20 --lr-schedule cosine --checkpoint-every 500",
    pretrain="--predict flow --steps 1200 --batch 64 --lr 1e-3 --warmup 50 --ema-decay 0.995 --checkpoint-every 300",
    tune="--batch 32 --lr 3e-4 --warmup 10 --ema-decay 0.99 --checkpoint-every 100",
    steps=200,
    scratch=600,
    num=512,
    draw="--sampler heun --steps 10 --guidance 2",
    judge=f"--metrics fid,pr --space domain --seed {JUDGE}",
)
PAPER = Sizes(
    size=512,
    autoencoder="",
    pretrain="",
    tune="--batch 256 --lr 1e-4 --mixed-precision bf16 --checkpoint-every 5000",
    steps=120_000,
    scratch=600_000,
    num=50_000,
    draw="--sampler rk4 --steps 250 --guidance 2",
    judge="--metrics fid --space inception-2048",
    depths=(8, 16, 28),
)
SIZES = {"pocket": POCKET, "paper": PAPER}


def autoencoder(at: At) -> Job | str:
    """--init's, or one that is trained here once for all rows."""
    if at.init is not None:
        return at.init
    if not at.sizes.autoencoder:
        raise Impossible("name a latent pipeline with --init")
    words = ("train", "autoencoder", "--data", at.data, "--size", str(at.size), *at.sizes.autoencoder.split())
    return Job((*words, "--seed", "0", "--sample-every", "0", "--out", OUT))


def base(at: At) -> Job | str:
    """The common checkpoint: --init, or a model trained by squared errors alone."""
    if at.init is not None:
        return at.init
    words = ("train", "lpl", "--loss", "none", "--vae", autoencoder(at), "--data", at.data, "--size", str(at.size))
    return Job((*words, *at.sizes.pretrain.split(), "--seed", "0", "--sample-every", "0", "--out", OUT))


@dataclass(frozen=True)
class Model:
    """`percepta train lpl` with these flags: from the common checkpoint, or from `scratch`. A column's setting, where it is a number of steps, is obeyed."""

    flags: str
    times: float = 1.0  # so many times the steps
    scratch: bool = False
    steps_of_column: bool = False

    def train(self, at: At, column: Column, seed: int) -> Job:
        sizes: Sizes = at.sizes
        most = sizes.scratch if self.scratch else sizes.steps
        steps = round(most * (column.setting if self.steps_of_column else self.times))
        words: tuple[str | Job, ...] = (
            "train",
            "lpl",
            "--vae",
            autoencoder(at),
            "--data",
            at.data,
            "--size",
            str(at.size),
            *sizes.tune.split(),
        )
        begin = ("--predict", "flow") if self.scratch else ("--init", base(at))
        return Job(
            (*words, *begin, *self.flags.split(), "--steps", str(steps), "--seed", str(seed), "--sample-every", "0", "--out", OUT)
        )

    def __call__(self, at: At, column: Column, seed: int) -> Images:
        return samples(at, self.train(at, column, seed), seed, at.sizes.draw)


def untouched(at: At, column: Column, seed: int) -> Images:
    """The common checkpoint as it is."""
    model = base(at)
    return samples(at, model, seed, at.sizes.draw)  # pyright: ignore[reportArgumentType]


def judge(at: At, images: Images, column: Column, seed: int) -> Reading:
    """Quality is judged; what a training cost stands in its own log."""
    if column.place.startswith("timing."):
        model = next((word for word in images.words if isinstance(word, Job)), None) if isinstance(images, Job) else None
        if model is None or "lpl" not in model.words:
            raise Impossible("nothing was trained")
        return Reading(model, column.place.removeprefix("timing."), "timing.jsonl")
    return Reading(judged(at, images, at.sizes.judge), column.place)


FID = Column("FID", "metrics.fid")
RATE = Column("images per s", "timing.images_per_s", better="higher")
MEMORY = Column("MiB", "timing.memory_mib")


def facts(at: At) -> list[tuple[str, str]]:
    """The budget, as a reader compares it."""
    sizes: Sizes = at.sizes
    given = f"{at.init}, as it was given"
    return [
        ("Data", f"{at.data}, {at.size} px"),
        (
            "Autoencoder",
            given if at.init else f"once for all rows, {budget(sizes.autoencoder)}: train autoencoder {sizes.autoencoder}",
        ),
        (
            "Common checkpoint",
            given if at.init else f"once for all rows, {budget(sizes.pretrain)}: train lpl --loss none {sizes.pretrain}",
        ),
        ("Each training", f"{sizes.steps:,} steps from there, or {sizes.scratch:,} from scratch: train lpl {sizes.tune}"),
        ("Judged", f"{sizes.num:,} samples, {sizes.draw}: evaluate {sizes.judge}"),
    ]
