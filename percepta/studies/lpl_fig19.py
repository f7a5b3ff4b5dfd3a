"""LPL, figure 19: FID against the weight of classifier-free guidance."""

from dataclasses import dataclass

from percepta.studies._common import DATA, samples
from percepta.studies._lpl import IMAGENET, SIZES, Model, facts, judge
from percepta.studies.engine.study import At, Column, Images, Row, Study

WEIGHTS = (1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Guided:
    """Samples of a model by the guidance that the column says."""

    model: Model

    def __call__(self, at: At, column: Column, seed: int) -> Images:
        plain = at.sizes.draw.split(" --guidance ")[0]
        return samples(at, self.model.train(at, column, seed), seed, f"{plain} --guidance {column.setting:g}")


STUDY = Study(
    name="lpl-fig19",
    summary="LPL, figure 19: FID against guidance",
    ask="Does LPL only do what more guidance would do?",
    printed=f"{IMAGENET}. The figure prints curves; both are lowest at 2.",
    rows=(Row("squared error", Guided(Model("--loss none"))), Row("LPL", Guided(Model("--loss lpl")))),
    columns=tuple(Column(f"guidance {weight:g}", "metrics.fid", weight) for weight in WEIGHTS),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
)
