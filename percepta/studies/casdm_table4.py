"""Cas-DM, table 4: what the second network is, and what it reads."""

from percepta.studies._casdm import COST, PRINTED, QUALITY, SIZES, Trained, facts, judge
from percepta.studies._common import DATA
from percepta.studies.engine.study import Row, Study

STUDY = Study(
    name="casdm-table4",
    summary="Cas-DM, table 4: a second U-Net, a network without down- and upsampling, and one that reads the noise as well",
    ask="The second network's task is to sharpen an image that is there already. Does it need a U-Net?",
    printed=f"{PRINTED} (table 4; its sFID is not printed).",
    rows=(
        Row("phi: U-Net", Trained("casdm"), (6.80, None, 8.88, None, None)),
        Row("phi: U-Net, LPIPS", Trained("casdm", "lpips"), (6.40, None, 8.69, None, None)),
        Row("phi: Fix-Res CNN", Trained("casdm --phi fixres"), (6.40, None, 8.78, None, None)),
        Row("phi: Fix-Res CNN, LPIPS", Trained("casdm --phi fixres", "lpips"), (6.28, None, 8.67, None, None)),
        Row(
            "phi: Fix-Res CNN, reads x0* and eps'", Trained("casdm --phi fixres --phi-reads x0+eps"), (7.08, None, 8.66, None, None)
        ),
    ),
    columns=(*QUALITY, *COST),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
)
