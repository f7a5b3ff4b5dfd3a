"""LPL, figures 14 to 18: FID against training steps, from scratch and after a common checkpoint."""

from percepta.studies._common import DATA
from percepta.studies._lpl import IMAGENET, SIZES, Model, facts, judge
from percepta.studies.engine.study import Column, Row, Study

PARTS = (0.25, 0.5, 1.0)

STUDY = Study(
    name="lpl-fig14-18",
    summary="LPL, figures 14 to 18: FID against training steps",
    ask="When does LPL begin to pay: from the first step, or only on a model that is trained already?",
    printed=f"{IMAGENET}. The figures print curves; the paper says that 20k steps of LPL are the least that helps.",
    rows=(
        Row("from scratch, squared error", Model("--loss none", scratch=True, steps_of_column=True)),
        Row("from scratch, LPL", Model("--loss lpl", scratch=True, steps_of_column=True)),
        Row("post-training, squared error", Model("--loss none", steps_of_column=True)),
        Row("post-training, LPL", Model("--loss lpl", steps_of_column=True)),
    ),
    columns=tuple(Column(f"{part:.0%} of the steps", "metrics.fid", part) for part in PARTS),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
)
