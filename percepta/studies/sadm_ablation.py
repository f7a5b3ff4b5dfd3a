"""SADM, ablations (the appendix that has the paper's is not public): the space Psi, the relation R, the distance D, the size of the batch.

Half of the steps of table 5, structure guidance alone; the rows of Psi, R and D give the structure a fifth of the gradient's norm. A batch of another size sees the same number of images in other steps, and has a base of its own.
"""

from dataclasses import dataclass, replace

from percepta.studies._common import DATA, real
from percepta.studies._sadm import QUALITY, SIZES, Model, facts_of, judge
from percepta.studies.engine.study import At, Column, Job, Row, Study

PART = 0.5
SHARE = 0.2


@dataclass(frozen=True)
class Batch:
    """The model with `times` as many images in a batch, and so many fewer steps."""

    model: Model
    times: float

    def __call__(self, at: At, column: Column, seed: int) -> Job:
        flags = at.sizes.train[self.model.kind].split()
        batch = round(int(flags[flags.index("--batch") + 1]) * self.times)
        return replace(self.model, flags=f"--batch {batch}", part=PART / self.times)(at, column, seed)


def half(how: str, flags: str = "", space: str = "", weight: str = "") -> Model:
    return Model(how, flags, space=space, part=PART, weight=weight)


def shared(space: str = "", flags: str = "") -> Model:
    """Spaces, relations and distances have gaps of other sizes: what is equal is the part of the gradient that the structure has."""
    return half("sg", flags, space, f"--structure-share {SHARE}")


STUDY = Study(
    name="sadm-ablation",
    summary="SADM, ablations: Psi, lambda, R, D and the size of the batch",
    ask="What is it that helps: which network compares, what an affinity is, how two are compared, or how many images are compared with each other?",
    printed="nothing: the appendix with the paper's ablations is not public.",
    rows=(
        Row("base", half("base")),
        Row("structure guidance", half("sg")),
        Row("a tenth of that share", half("sg", weight="--structure-share 0.02"), scales=("pocket",)),
        Row("lambda 1, beside a mean over pixels", half("sg", weight="--structure-weight 1"), scales=("pocket",)),
        Row("Psi: Inception", shared("inception-2048"), scales=("paper",)),
        Row("Psi: an encoder of the data", shared("domain")),
        Row("Psi: AlexNet", shared("alex")),
        Row("Psi: pixels", shared("pixels")),
        Row("Psi: CLIP", shared("clip"), scales=("paper",)),
        Row("Psi: DINOv2", shared("dinov2"), scales=("paper",)),
        Row("R: Euclidean distance", shared(flags="--relation euclidean")),
        Row("R: Gaussian kernel", shared(flags="--relation kernel")),
        Row("D: L1", shared(flags="--distance l1")),
        Row("|B| a quarter, base", Batch(half("base"), 0.25)),
        Row("|B| a quarter", Batch(half("sg"), 0.25)),
        Row("held-out real images", real, yardstick=True),
    ),
    columns=QUALITY,
    judge=judge,
    sizes=SIZES,
    facts=facts_of("ddpm"),
    data=DATA,
)
