"""SADM, figure 6: FID against training steps."""

from percepta.studies._common import DATA
from percepta.studies._sadm import SIZES, Model, facts_of, judge
from percepta.studies.engine.study import Column, Row, Study

PARTS = (0.25, 0.5, 1.0)

STUDY = Study(
    name="sadm-fig6",
    summary="SADM, figure 6: FID against training steps",
    ask="Does a model that keeps the structure of its batches get there in fewer steps? Each point is a training of its own, its rate fallen to 0 at its end.",
    printed="curves of DiT, MDT and SADM on ImageNet (figure 6); no number is printed.",
    rows=(
        Row("base", Model("base")),
        Row("+ structure guidance", Model("sg")),
        Row("+ structure adversarial training", Model("sat")),
    ),
    columns=tuple(Column(f"{part:.0%} of the steps", "metrics.fid", part) for part in PARTS),
    judge=judge,
    sizes=SIZES,
    facts=facts_of("ddpm"),
    data=DATA,
)
