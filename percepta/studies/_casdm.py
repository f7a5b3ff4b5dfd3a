"""What the studies of Cas-DM (An et al. 2024) share: models trained from scratch, their samples, their judgement.

    train RECIPE [--metric ...] -> sample -> evaluate

Every row has the same images, steps, batch and rate; parameters and arithmetic of a network stand beside it, since a cascade has two. Pocket
scale: small images and a U-Net of 1 M parameters, LPIPS on AlexNet at 64 px, judged in an encoder of the data that nobody was trained against.
"""

from dataclasses import dataclass

from percepta.spaces.extractor import weights_behind
from percepta.spaces.metrics import METRICS
from percepta.studies._common import JUDGE, budget, judged, reference, samples
from percepta.studies.engine.study import OUT, At, Column, Images, Impossible, Job, Reading
from percepta.weights import has_weights

PRINTED = "50,000 samples of CIFAR-10, DDIM in 100 steps, the best of several checkpoints"


@dataclass(frozen=True)
class Sizes:
    """Flags of a training, how many images are drawn in how many steps, and the flags of the judgement. `lpips`: the metric of the paper's rows;
    `ddpm`: more flags of the rows with one network, which read times on the cascades' scale where T is not 1000."""

    size: int
    steps: int
    train: str
    lpips: str
    num: int
    sampler_steps: int
    judge: str
    ddpm: str = ""


POCKET = Sizes(
    size=16,
    steps=600,
    train="--batch 32 --lr 1e-3 --warmup 20 --lr-schedule cosine --ema-decay 0.995 --clip 1.0 --conditional no --checkpoint-every 200",
    lpips="lpips-alex",
    num=512,
    sampler_steps=25,
    judge=f"--metrics fid,pr --space domain --seed {JUDGE}",
)
PAPER = Sizes(
    size=32,
    steps=400_000,
    train="--network iddpm-32 --conditional no --timesteps 4000 --batch 128 --lr 1e-4 --clip None --checkpoint-every 5000",
    lpips="lpips",
    num=50_000,
    sampler_steps=100,
    judge="--metrics fid,sfid,is,pr --space inception-2048",
    ddpm="--rescale-timesteps",
)
SIZES = {"pocket": POCKET, "paper": PAPER}
METRIC_SIZE = {"pocket": 64, "paper": 224}
LEAST = {"inception-768": 75}  # what a metric needs, where that is more
BEYOND = {"sfid": "inception-spatial", "is": "inception-logits"}  # metrics with a space of their own, which may not be here


@dataclass(frozen=True)
class Trained:
    """A recipe with its flags, for `times` the usual number of steps; `metric` names one, or is "lpips", the scale's own."""

    recipe: str
    metric: str = ""
    times: int = 1

    def model(self, at: At, seed: int) -> Job:
        if at.init is not None:
            raise Impossible("these models are trained from scratch: leave --init away")
        sizes: Sizes = at.sizes
        judge, after = (), ()
        if self.metric:
            name = sizes.lpips if self.metric == "lpips" else self.metric
            need(name)
            judge = ("--metric", name, "--metric-size", str(max(METRIC_SIZE[at.scale], LEAST.get(name, 0))))
            after = (reference(at, f"--metrics fid --space domain --seed {seed}"),) if name == "domain" else ()
        length = ("--steps", str(sizes.steps * self.times), "--seed", str(seed), "--sample-every", "0")
        scale = sizes.ddpm.split() if self.recipe.startswith("ddpm") else ()
        words = ("train", *self.recipe.split(), *scale, "--data", at.data, "--size", str(at.size), *sizes.train.split())
        return Job((*words, *judge, *length, "--out", OUT), after)

    def __call__(self, at: At, column: Column, seed: int) -> Job:
        steps = column.setting or at.sizes.sampler_steps
        return samples(at, self.model(at, seed), seed, f"--sampler ddim --steps {steps}")


def need(metric: str) -> None:
    """Impossible where the weights of a metric function are not here."""
    groups = METRICS[metric].weights if metric in METRICS else ()
    if not all(any(map(has_weights, group)) for group in groups):
        raise Impossible(f"the weights of {metric} are not here: `percepta doctor` says where to get them")


def judge(at: At, images: Images, column: Column, seed: int) -> Reading:
    """What a network costs stands in the protocol of its samples; quality is judged."""
    kind, _, name = column.place.rpartition(".")
    if kind == "cost":
        if isinstance(images, str):
            raise Impossible("real images have no network")
        return Reading(images, name, "protocol.json")
    if name in BEYOND:
        if not all(map(has_weights, weights_behind("inception"))):
            raise Impossible(f"the weights of {BEYOND[name]} are not here: `percepta doctor` says where to get them")
        if at.scale == "pocket":
            return Reading(judged(at, images, f"--metrics {name}"), column.place)
    return Reading(judged(at, images, at.sizes.judge), column.place)


QUALITY = (Column("FID", "metrics.fid"), Column("sFID", "metrics.sfid"), Column("IS", "metrics.is", better="higher"))
COST = (Column("parameters", "cost.parameters", better=""), Column("GFLOP per call", "cost.gflops", better=""))


def facts(at: At) -> list[tuple[str, str]]:
    """The budget, as a reader compares it."""
    sizes: Sizes = at.sizes
    return [
        ("Data", f"{at.data}, {at.size} px"),
        ("Each training", f"{budget(f'{sizes.train} --steps {sizes.steps}')}: {sizes.train}; twice the steps where it says so"),
        ("Metric function", f"weight 0.1, at {METRIC_SIZE[at.scale]} px"),
        ("Judged", f"{sizes.num:,} samples, DDIM in {sizes.sampler_steps} steps: evaluate {sizes.judge}"),
    ]
