"""LaDiffGAN, table 1: U-GAT-IT and UNIT, with and without the supervision of latent diffusion models, both ways.

Pocket scale: outlines of shapes become filled ones and back, and the truth is known to the judgement; --target FOLDER gives a second pair of domains. The
paper's: a folder with trainA, trainB, testA and testB (--data), selfie2anime or another one of its four.
"""

from percepta.studies._ladiffgan import (
    COST,
    DATA,
    NONE,
    PAIRED,
    QUALITY,
    SECONDS,
    SIZES,
    Translator,
    facts,
    judge,
    other_images,
    untranslated,
)
from percepta.studies.engine.study import Column, Row, Study

COLUMNS: tuple[Column, ...] = (*QUALITY, *PAIRED, *COST, *SECONDS)


def printed(*values: float) -> tuple[float | None, ...]:
    """FID and KID x100 of s2a, then of a2s: the first columns."""
    return (*values, *(None,) * (len(COLUMNS) - len(values)))


STUDY = Study(
    name="ladiffgan-table1",
    summary="LaDiffGAN, table 1: two translators, each with the supervision of latent diffusion models and without",
    ask="Does it help a translator that diffusion models of both domains watch over it while it is trained, by how much, and what does that cost? "
    "Training never sees which images belong together; the judgement does.",
    printed="FID and KID x100 of selfie2anime at 256 px, of 100 test images each way (table 1): A is selfie, B anime. Its loss formulas are not public: "
    "the supervised rows are our reading of them (docs/interpretation.md).",
    rows=(
        Row("U-GAT-IT", Translator(flags=NONE), printed(94.5116, 2.62, 111.573, 1.57)),
        Row("LaDiffGAN (U-GAT-IT)", Translator(), printed(91.6198, 1.97, 111.457, 1.52)),
        Row("U-GAT-IT + Diffusion-GAN", Translator(flags=f"{NONE} --diffusion-gan")),
        Row("UNIT", Translator("unit", NONE), printed(116.813, 5.14, 137.740, 4.04)),
        Row("LaDiffGAN (UNIT)", Translator("unit"), printed(109.164, 4.33, 137.739, 4.42)),
        Row("CycleGAN", Translator("cyclegan", NONE), scales=("paper",)),
        Row("MUNIT", Translator("munit", NONE), scales=("paper",)),
        Row("not translated", untranslated, yardstick=True),
        Row("other images of the target", other_images, yardstick=True),
    ),
    columns=COLUMNS,
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
)
