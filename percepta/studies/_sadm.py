"""What the studies of SADM (Yang et al. 2024) share: one recipe, with its structure left out, with it, and with a critic that learns to see it.

    train sadm --structure-weight 0 | --sat-steps 0 | --rounds 3  ->  sample  ->  evaluate

Rows of a study have the same network, images, steps, batch and rate. At pocket scale Psi is `domain`, an encoder of the data with the run's own
seed, and the samples are judged in that of the seed JUDGE, and as pixels: no model was trained against either.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from percepta.spaces.extractor import split_name, weights_behind
from percepta.studies._common import JUDGE, budget, judged, reference, samples
from percepta.studies.engine.study import OUT, At, Column, Images, Impossible, Job, Reading
from percepta.weights import has_weights

ROUNDS = 3  # "3 or 4", half of the steps of each with the critic at work
SECOND = "pixels"


@dataclass(frozen=True)
class Sizes:
    """Flags of a kind of model (ddpm of tables 5 and figures, edm of table 3, dit of tables 2 and 4) and of its sampling; `psi` is the space of the
    structure, `weight` what it weighs. `tune`: flags of a finetuning, beside its rates; `moving`, its steps with the critic at work."""

    size: int
    psi: str
    steps: dict[str, int]
    train: dict[str, str]
    draw: dict[str, str]
    weight: str
    critic: str
    tune: str
    rates: tuple[str, str]
    moving: int
    num: int
    judge: str
    common: Mapping[str, str] = field(
        default_factory=dict
    )  # of a kind whose rows go on from one checkpoint: the flags of its training


SMALL = "--batch 32 --lr 1e-3 --warmup 20 --lr-schedule cosine --ema-decay 0.995 --checkpoint-every 200"
COMMON = "--predict edm --network unet-pocket --times-per sample --batch 64 --lr 1e-3 --warmup 50 --lr-schedule cosine --ema-decay 0.995 --checkpoint-every 300"
ON = "--batch 32 --lr 3e-4 --warmup 10 --lr-schedule cosine --ema-decay 0.98 --checkpoint-every 100"
POCKET = Sizes(
    size=16,
    psi="domain",
    steps={"ddpm": 240, "edm": 240, "common": 1200, "dit": 500, "base": 900, "tune": 60},
    # nothing is to be seen of a distribution that a model has not got near: rows go on from one checkpoint, as in the paper's second stage
    common={"ddpm": COMMON, "edm": COMMON},
    train={
        "ddpm": f"--conditional no {ON}",
        "edm": ON,
        "dit": f"--predict eps --network dit-pocket {SMALL}",
        "base": f"--predict eps --network dit-pocket {SMALL}",
    },
    draw={
        "ddpm": "--sampler heun --steps 10",
        "edm": "--sampler heun --steps 10",
        "dit": "--sampler dpmpp --steps 10 --guidance 1.5",
        "tune": "--sampler dpmpp --steps 10",
    },
    # a weight of 1, as in the paper, beside a mean over pixels is nearly all of the gradient here
    weight="--structure-share 0.2",
    critic="--critic-lr 1e-4",
    tune="--log-every 5 --batch 32 --warmup 5 --lr-schedule cosine --ema-decay 0.95 --checkpoint-every 20",
    rates=("5e-4", "5e-3"),
    moving=10,
    num=512,
    judge=f"--metrics fid,pr --space domain,{SECOND} --seed {JUDGE}",
)
PAPER = Sizes(
    size=32,
    psi="inception-2048",
    steps={"ddpm": 800_000, "edm": 500_000, "dit": 500_000, "tune": 28_000},
    train={
        "ddpm": "--predict eps --network unet-cifar --conditional no --flip --batch 128 --lr 2e-4 --warmup 5000 --ema-decay 0.9999 --checkpoint-every 5000",
        "edm": "--preset paper-{edm} --checkpoint-every 5000",
        "dit": "--preset paper-imagenet{size} --vae {init} --checkpoint-every 5000",
    },
    draw={
        "ddpm": "--sampler ddpm --steps 1000",
        "edm": "--sampler heun --steps 18",
        "dit": "--sampler ddpm --steps 250 --guidance 1.5",
        "tune": "--sampler ddpm --steps 50 --guidance 1.5",
    },
    weight="--structure-weight 1",
    critic="",
    tune="--batch 32 --checkpoint-every 1000",
    rates=("1e-4", "1e-3"),
    moving=4_000,
    num=50_000,
    judge="--metrics fid,is,pr --space inception-2048",
)
SIZES = {"pocket": POCKET, "paper": PAPER}


def kind_flags(at: At, kind: str) -> list[str]:
    """The flags of a kind of model, with the preset that fits the size, and the autoencoder where its network reads latents."""
    text: str = at.sizes.train[kind]
    if "{init}" in text and at.init is None:
        raise Impossible("name a latent pipeline with --init: its autoencoder is needed")
    edm = "cifar10" if at.size <= 32 else "ffhq64"
    return [word.format(edm=edm, size=at.size, init=at.init) for word in text.split()]


def said(at: At, kind: str) -> str:
    """The flags for a reader, also where they cannot be had."""
    return " ".join(kind_flags(at if at.init else replace(at, init="AUTOENCODER"), kind))


def guided(at: At, steps: int, how: str, moving: int | None = None, weight: str = "") -> list[str]:
    """`how` is base, sg or sat. `moving`: so many last steps are adversarial; else half of each of ROUNDS rounds."""
    if how == "base":
        return ["--structure-weight", "0", "--steps", str(steps), "--sat-steps", "0"]
    strong = (weight or at.sizes.weight).split()
    if how == "sg":
        return [*strong, "--steps", str(steps), "--sat-steps", "0"]
    critic = at.sizes.critic.split()
    if moving is not None:
        return [*strong, "--steps", str(steps), "--sat-steps", str(moving), *critic]
    half = round(steps / (2 * ROUNDS))
    return [*strong, "--steps", str(2 * half * ROUNDS), "--sat-steps", str(half), "--rounds", str(ROUNDS), *critic]


def psi_of(at: At, space: str, seed: int, how: str) -> tuple[tuple[str, ...], tuple[Job, ...]]:
    """(flags, jobs before): nothing where there is no structure; an encoder of the data is trained by a job of its own, which others find."""
    if how == "base":
        return (), ()
    family, layer = split_name(space)
    names = weights_behind(family)
    if family == "inception" and (layer or "2048") not in ("64", "192", "768"):
        names = names[:-1]  # the last one is the partial file
    if names and not any(map(has_weights, names)):
        raise Impossible(f"the weights of {space} are not here: `percepta doctor` says where to get them")
    return ("--space", space), (reference(at, f"--metrics fid --space domain --seed {seed}"),) if family == "domain" else ()


@dataclass(frozen=True)
class Model:
    """`percepta train sadm`, from scratch or from the common checkpoint of its kind. A number in the column's setting is the part of the steps; `flags` are this row's own."""

    how: str
    flags: str = ""
    kind: str = "ddpm"
    space: str = ""
    part: float = 1.0
    weight: str = ""

    def train(self, at: At, column: Column, seed: int) -> Job:
        sizes: Sizes = at.sizes
        part = column.setting if isinstance(column.setting, float) else self.part
        own, before = psi_of(at, self.space or sizes.psi, seed, self.how)
        words = ("train", "sadm", "--data", at.data, "--size", str(at.size), *kind_flags(at, self.kind), *own, *self.flags.split())
        length = guided(at, round(part * sizes.steps[self.kind]), self.how, weight=self.weight)
        if self.kind in sizes.common:
            words = (*words, "--init", self.checkpoint(at))
        return Job((*words, *length, "--seed", str(seed), "--sample-every", "0", "--out", OUT), before)

    def checkpoint(self, at: At) -> Job:
        """Trained once for all rows and seeds, without structure; with labels or without, as the row."""
        flags = f"{at.sizes.train[self.kind]} {self.flags}".split()
        labels = flags[flags.index("--conditional") :][:2] if "--conditional" in flags else []
        words = ("train", "sadm", "--data", at.data, "--size", str(at.size), *at.sizes.common[self.kind].split(), *labels)
        return Job((*words, *guided(at, at.sizes.steps["common"], "base"), "--seed", "0", "--sample-every", "0", "--out", OUT))

    def __call__(self, at: At, column: Column, seed: int) -> Job:
        if self.kind != "dit" and at.init is not None:
            raise Impossible("these models are trained from scratch: leave --init away")
        return samples(at, self.train(at, column, seed), seed, at.sizes.draw[self.kind])


@dataclass(frozen=True)
class Conditional:
    """A model whose labels are used, or not, as the column says ("yes", "no")."""

    model: Model

    def __call__(self, at: At, column: Column, seed: int) -> Images:
        return replace(self.model, flags=f"{self.model.flags} --conditional {column.setting}")(at, Column("", ""), seed)


def judge(at: At, images: Images, column: Column, seed: int) -> Reading:
    """The scale's own judgement; the Inception Score, where a pocket table has it, in its own space."""
    if column.place == "metrics.nll":
        raise Impossible("the likelihood is not computed here")
    if column.place == "metrics.is" and at.scale == "pocket":
        if not all(map(has_weights, weights_behind("inception"))):
            raise Impossible("the weights of inception-logits are not here: `percepta doctor` says where to get them")
        return Reading(judged(at, images, "--metrics is"), column.place)
    if SECOND in column.place and at.scale == "paper":
        raise Impossible("the second space is the pocket scale's")
    return Reading(judged(at, images, at.sizes.judge), column.place)


FID = Column("FID", "metrics.fid")
PRECISION, RECALL = (Column(name.title(), f"metrics.{name}", better="higher") for name in ("precision", "recall"))
BESIDE = Column("FID in pixels", f"metrics.fid@{SECOND}")
QUALITY = (FID, PRECISION, RECALL, BESIDE)


def facts_of(*kinds: str):
    """The budget of a study of these kinds, as a reader compares it."""

    def facts(at: At) -> list[tuple[str, str]]:
        sizes: Sizes = at.sizes
        out = [("Data", f"{at.data}, {at.size} px")]
        for flags in {sizes.common[kind]: None for kind in kinds if kind in sizes.common}:
            amount = budget(f"{flags} --steps {sizes.steps['common']}")
            out.append(("Common checkpoint", f"once for all rows, {amount}: train sadm --structure-weight 0 {flags}"))
        for kind in kinds:
            steps = sizes.steps[kind]
            flags = said(at, kind)
            amount = budget(f"{flags} --steps {steps}") if "--batch" in flags else f"{steps:,} steps"
            out.append((f"Each training ({kind})", f"{amount}: train sadm {flags}"))
        return [
            *out,
            (
                "Structure",
                f"Psi is {sizes.psi}, weight {sizes.weight}; the critic takes turns in half of the steps of each of {ROUNDS} rounds {sizes.critic}",
            ),
            ("Judged", f"{sizes.num:,} samples, {sizes.draw[kinds[0]]}: evaluate {sizes.judge}"),
        ]

    return facts
