"""LPL, figure 20: up to which noise level the loss counts."""

from percepta.studies._common import DATA
from percepta.studies._lpl import FID, IMAGENET, SIZES, Model, facts, judge
from percepta.studies.engine.study import Row, Study

STUDY = Study(
    name="lpl-fig20",
    summary="LPL, figure 20: the threshold of the noise level",
    ask="A guess from much noise is blurred, and a perceptual loss then asks for what cannot be known. Where should it stop?",
    printed=f"{IMAGENET}. The figure prints a curve, best between 3 and 6.",
    rows=tuple(Row(f"tau {tau}", Model(f"--loss lpl --max-level {tau}")) for tau in ("0.5", "1", "3", "6", "None")),
    columns=(FID,),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
)
