"""Cas-DM, table 2: what LPIPS changes in the FID of each method: the difference of two rows of table 1."""

from percepta.studies._casdm import PRINTED, SIZES, Trained, facts
from percepta.studies._casdm import judge as judged
from percepta.studies._common import DATA
from percepta.studies.engine.study import At, Column, Images, Reading, Row, Study

PAIRS = {"DDPM, x0": "ddpm --predict x0", "Dual Diffusion": "dual", "Cas-DM": "casdm"}


def judge(at: At, images: Images, column: Column, seed: int) -> Reading:
    """With LPIPS less without, seed by seed."""
    recipe = next(recipe for recipe in PAIRS.values() if Trained(recipe, "lpips")(at, column, seed) == images)
    plain = judged(at, Trained(recipe)(at, column, seed), column, seed)
    found = judged(at, images, column, seed)
    return Reading(found.job, found.place, found.file, plain)


STUDY = Study(
    name="casdm-table2",
    summary="Cas-DM, table 2: the change of FID by LPIPS",
    ask="Negative is better. The paper's claim is the sign: LPIPS may harm a single network, and does not harm a cascade.",
    printed=f"{PRINTED} (table 2; CelebA-HQ, LSUN and ImageNet beside it: x0 +1.72, +2.86, -24.68; Dual +1.39, +2.23, -6.81; Cas-DM -0.38, -0.12, -0.80).",
    rows=tuple(
        Row(f"{name}, with LPIPS less without", Trained(recipe, "lpips"), (paper,))
        for (name, recipe), paper in zip(PAIRS.items(), (-8.44, -0.87, -0.40), strict=True)
    ),
    columns=(Column("change of FID", "metrics.fid"),),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
)
