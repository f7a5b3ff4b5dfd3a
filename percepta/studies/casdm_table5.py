"""Cas-DM, table 5: few and many sampling steps."""

from percepta.studies._casdm import PRINTED, SIZES, Trained, facts, judge
from percepta.studies._common import DATA
from percepta.studies.engine.study import Column, Row, Study

STUDY = Study(
    name="casdm-table5",
    summary="Cas-DM, table 5: sampling in 10 and in 100 steps",
    ask="Is the gain there where few steps are taken?",
    printed=f"{PRINTED}, and in 10 (table 5).",
    rows=(
        Row("DDPM, eps", Trained("ddpm --predict eps"), (16.57, 6.79)),
        Row("Cas-DM", Trained("casdm"), (14.91, 6.80)),
        Row("Cas-DM + LPIPS", Trained("casdm", "lpips"), (13.75, 6.40)),
    ),
    columns=(Column("10 steps", "metrics.fid", 10), Column("100 steps", "metrics.fid", 100)),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
)
