"""SADM, table 3: EDM on small images, without labels and with them. The latent rows (LSGM) train an autoencoder too, which is not built here."""

from percepta.studies._common import DATA, real
from percepta.studies._sadm import SIZES, Conditional, Model, facts_of, judge
from percepta.studies.engine.study import Column, Row, Study


def edm(how: str, flags: str = "") -> Conditional:
    return Conditional(Model(how, flags, kind="edm"))


STUDY = Study(
    name="sadm-table3",
    summary="SADM, table 3: EDM with and without the structure of its batches",
    ask="Does structure adversarial training make EDM better, and does it where the labels are told as well?",
    printed="CIFAR-10: negative log likelihood in bits per dimension, and FID of 50,000 samples; behind each name the evaluations per sample. On CelebA "
    "64 and FFHQ 64: SADM 1.16 and 1.71 (71 evaluations), latent 1.28 and 1.85 (131); EDM 2.39 on FFHQ, Soft Truncation 1.90 on CelebA, EDM-G++ "
    "1.98 on FFHQ, INDM 1.75: --data and --size 64 take the network and the schedule of FFHQ.",
    rows=(
        Row("EDM, a time for each image, as published (35)", edm("base", "--times-per sample"), (2.60, 1.97, 1.79)),
        Row("EDM, one time for each step", edm("base")),
        Row("SADM (35)", edm("sat"), (2.28, 1.54, 1.47)),
        Row("held-out real images", real, yardstick=True),
        Row("EDM-G++ (35)", None, (2.55, 1.77, 1.64)),
        Row("LSGM (138)", None, (3.43, 2.10, None)),
        Row("SADM, latent (138)", None, (2.51, 1.78, 1.73)),
    ),
    columns=(
        Column("NLL", "metrics.nll", "no"),
        Column("FID, without labels", "metrics.fid", "no"),
        Column("FID, with labels", "metrics.fid", "yes"),
    ),
    judge=judge,
    sizes=SIZES,
    facts=facts_of("edm"),
    data=DATA,
)
