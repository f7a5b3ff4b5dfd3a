"""SADM, table 5: nothing, structure guidance, structure adversarial training."""

from percepta.studies._common import DATA, real
from percepta.studies._sadm import QUALITY, SIZES, Model, facts_of, judge
from percepta.studies.engine.study import Row, Study

EACH = "--times-per sample"

STUDY = Study(
    name="sadm-table5",
    summary="SADM, table 5: base, structure guidance, structure adversarial training",
    ask="Does it help to keep the structure of a batch, and does a critic of it help more? The paper's claim is diversity: recall. One noise level for all "
    "images of a step, as its algorithm has it, is a change of its own: the base has it too, and the lower rows are without it.",
    printed="FID of 50,000 samples of CIFAR-10; of ImageNet and CelebA below (table 5). Recall is figure 2's, of ADM-G.",
    rows=(
        Row("base", Model("base"), (3.17, None, None, None)),
        Row("+ structure guidance", Model("sg"), (2.64, None, None, None)),
        Row("+ structure adversarial training", Model("sat"), (2.33, None, None, None)),
        Row("base, a time for each image", Model("base", EACH)),
        Row("+ structure guidance, a time for each image", Model("sg", EACH)),
        Row("+ structure adversarial training, a time for each image", Model("sat", EACH)),
        Row("held-out real images", real, yardstick=True),
        Row("the paper's base, ImageNet", None, (4.59, None, 0.52, None)),
        Row("the paper's + SG, ImageNet", None, (3.57, None, None, None)),
        Row("the paper's + SAT, ImageNet", None, (3.14, None, 0.61, None)),
        Row("the paper's base, CelebA", None, (2.32, None, None, None)),
        Row("the paper's + SG, CelebA", None, (1.82, None, None, None)),
        Row("the paper's + SAT, CelebA", None, (1.64, None, None, None)),
    ),
    columns=QUALITY,
    judge=judge,
    sizes=SIZES,
    facts=facts_of("ddpm"),
    data=DATA,
)
