"""Cas-DM, table 1: seven methods, with and without LPIPS."""

from percepta.studies._casdm import COST, PRINTED, QUALITY, SIZES, Trained, facts, judge
from percepta.studies._common import DATA, real
from percepta.studies.engine.study import Row, Study

STUDY = Study(
    name="casdm-table1",
    summary="Cas-DM, table 1: noise, image, both by one network, both by two; with LPIPS and without",
    ask="Does a metric function help a diffusion model, and does it take two networks to let it? The cascade does twice the work in each call: the row at equal compute says what that alone is worth.",
    printed=f"{PRINTED} (table 1; the row at equal compute is not the paper's).",
    rows=(
        Row("DDPM, eps", Trained("ddpm --predict eps"), (6.79, 4.97, 8.76, None, None)),
        Row("DDPM, eps, equal compute: twice the steps", Trained("ddpm --predict eps", times=2)),
        Row("DDPM, x0", Trained("ddpm --predict x0"), (17.78, 6.69, 7.74, None, None)),
        Row("DDPM, x0 + LPIPS", Trained("ddpm --predict x0", "lpips"), (9.34, 6.94, 8.83, None, None)),
        Row("Dual Diffusion", Trained("dual"), (6.52, 4.60, 8.72, None, None)),
        Row("Dual Diffusion + LPIPS", Trained("dual", "lpips"), (5.65, 4.89, 8.76, None, None)),
        Row("Cas-DM", Trained("casdm"), (6.80, 5.03, 8.88, None, None)),
        Row("Cas-DM + LPIPS", Trained("casdm", "lpips"), (6.40, 4.87, 8.69, None, None)),
        Row("held-out real images", real, yardstick=True),
    ),
    columns=(*QUALITY, *COST),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
)
