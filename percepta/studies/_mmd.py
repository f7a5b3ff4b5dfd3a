"""What the studies of MMD-DDM (Aiello et al. 2023) share: one pretrained base, its finetuned models, their samples, their judgement.

    base -> train mmd --sampler-steps K -> sample -> evaluate        rows `Tuned`
    base ----------------------------------> sample -> evaluate      rows `Drawn`: what needs no finetuning

Pocket scale: the built-in shapes; spaces that need no weights. The model is finetuned in the space `domain` of its own seed, an encoder of
the data, and judged in that of the seed JUDGE, which it was not trained against.
"""

from dataclasses import dataclass

from percepta.spaces.extractor import split_name, weights_behind
from percepta.studies._common import JUDGE, budget, judged, reference, samples
from percepta.studies.engine.study import OUT, At, Column, Images, Impossible, Job, Reading
from percepta.weights import has_weights

STEPS = (5, 10, 15, 20)
DDIM = "--solver ddim --spacing leading"  # the chain of the paper; spelt out, so that equal work has equal commands
FEWER = (5, 10, 20)  # the columns of tables 7 to 9
CIFAR = "Inception FID of 50,000 samples, by torch-fidelity, of unconditional models of CIFAR-10, 32 px"


@dataclass(frozen=True)
class Sizes:
    """Flags of the two trainings, and how much is drawn. `judge`: flags of the usual judgement; `beside`: of one in another space."""

    size: int
    pretrain: str
    finetune: str
    num: int
    judge: str
    beside: str
    spaces: tuple[str, ...]


POCKET = Sizes(
    size=16,
    pretrain="--steps 2400 --batch 64 --lr 1e-3 --warmup 50 --lr-schedule cosine --ema-decay 0.998 --checkpoint-every 300",
    finetune="--steps 20 --batch 64 --micro-batch 32 --lr 1e-4 --checkpoint-every 5",
    num=512,
    judge=f"--metrics fid,pr --space domain --seed {JUDGE}",
    beside="--metrics fid --space domain,pixels --seed {seed}",  # the very encoder that the model of this seed was finetuned in
    spaces=("domain", "alex"),
)
PAPER = Sizes(
    size=32,
    pretrain="--network unet-cifar --conditional no --schedule linear --flip --steps 800000 --batch 128 --lr 2e-4 --warmup 5000 "
    "--ema-decay 0.9999 --checkpoint-every 5000",
    finetune="--conditional no --steps 500 --batch 128 --micro-batch 64 --lr 5e-6 --clip None --checkpoint-every 50",
    num=50_000,
    judge="--metrics fid,sfid,is,pr --space inception-2048",
    beside="--metrics clip-fd",
    spaces=("inception-2048", "clip"),
)
SIZES = {"pocket": POCKET, "paper": PAPER}


def base(at: At) -> Images:
    """The pretrained model: --init, or trained here once for all. Its previews take 5 DDIM steps, which figure 5 draws by."""
    if at.init is not None:
        return at.init
    words = ("train", "ddpm", "--data", at.data, "--size", str(at.size), *at.sizes.pretrain.split())
    return Job((*words, "--sample-every", "0", "--sampler", "ddim", "--sample-steps", "5", "--out", OUT))


def finetuned(at: At, steps: int, seed: int, space: str, kernel: str = "cubic", chain: str = DDIM) -> Job:
    """`percepta train mmd` from the base, K = `steps`."""
    need(space)
    words = ("train", "mmd", "--init", base(at), "--data", at.data, "--size", str(at.size), *at.sizes.finetune.split())
    flags = ("--sampler-steps", str(steps), *chain.split(), "--space", space, "--kernel", kernel)
    after = (reference(at, at.sizes.beside.format(seed=seed)),) if space == "domain" else ()
    return Job((*words, *flags, "--seed", str(seed), "--sample-every", "0", "--out", OUT), after)


def need(space: str) -> None:
    """Impossible where the weights of a space are not here."""
    family, layer = split_name(space)
    names = weights_behind(family)
    if family == "inception" and (layer or "2048") not in ("64", "192", "768", "spatial"):
        names = names[:-1]  # the last one is the partial file
    if names and not any(map(has_weights, names)):
        raise Impossible(f"the weights of {space} are not here: `percepta doctor` says where to get them")


@dataclass(frozen=True)
class Drawn:
    """Samples of the pretrained model by a sampler's flags, in as many steps as the column says."""

    flags: str

    def __call__(self, at: At, column: Column, seed: int) -> Job:
        return samples(at, base(at), seed, f"{self.flags} --steps {column.setting}")


@dataclass(frozen=True)
class Tuned:
    """Samples of a model finetuned for the column's steps, drawn by the chain that it was finetuned for."""

    space: int = 0  # the first or second of the scale's spaces
    kernel: str = "cubic"
    chain: str = DDIM
    most: int = 20  # finetuning for more steps than these would make a study longer than it should be

    def __call__(self, at: At, column: Column, seed: int) -> Job:
        if column.setting > self.most:
            raise Impossible(
                f"this row is finetuned for {self.most} steps at most at this scale, which keeps the study under half an hour"
            )
        model = finetuned(at, column.setting, seed, at.sizes.spaces[self.space], self.kernel, self.chain)
        return samples(at, model, seed)


def judge(at: At, images: Images, column: Column, seed: int) -> Reading:
    return Reading(judged(at, images, at.sizes.judge), column.place)


def fid_columns(steps: tuple[int, ...]) -> tuple[Column, ...]:
    return tuple(Column(f"{k} steps", "metrics.fid", k) for k in steps)


def facts(at: At) -> list[tuple[str, str]]:
    """The budget, as a reader compares it."""
    sizes: Sizes = at.sizes
    pretrained = (
        f"{at.init}, as it was given" if at.init else f"once for all rows, {budget(sizes.pretrain)}: train ddpm {sizes.pretrain}"
    )
    return [
        ("Data", f"{at.data}, {at.size} px"),
        ("Pretrained model", pretrained),
        ("Each finetuning", f"{budget(sizes.finetune)}: train mmd {sizes.finetune}"),
        ("Judged", f"{sizes.num:,} samples: evaluate {sizes.judge}"),
    ]
