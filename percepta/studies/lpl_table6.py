"""LPL, table 6: is it where LPL weighs, or what it sees? Weights of noise levels without a decoder."""

from percepta.studies._common import DATA
from percepta.studies._lpl import FID, IMAGENET, SIZES, Model, facts, judge
from percepta.studies.engine.study import Row, Study

STUDY = Study(
    name="lpl-table6",
    summary="LPL, table 6: re-weighting noise levels instead",
    ask="LPL counts at low noise only. Would the squared error do as well if it weighed these levels more?",
    printed=f"{IMAGENET}, 512 px (table 6).",
    rows=(
        Row("squared error", Model("--loss none"), (4.88,)),
        Row("weighed as LPL would (equation 15)", Model("--loss reweight"), (5.43,)),
        Row("min-SNR", Model("--loss none --weight min-snr"), (5.04,)),
        Row("LPL", Model("--loss lpl"), (3.79,)),
    ),
    columns=(FID,),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
)
