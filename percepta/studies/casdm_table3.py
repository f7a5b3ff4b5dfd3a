"""Cas-DM, table 3: which metric function. Its layers and weights are not printed: ours are in docs/concepts/spaces.md."""

from percepta.studies._casdm import PRINTED, SIZES, Trained, facts, judge
from percepta.studies._common import DATA
from percepta.studies.engine.study import Column, Row, Study

STUDY = Study(
    name="casdm-table3",
    summary="Cas-DM, table 3: LPIPS, ResNet, Inception, Swin and others as the metric function",
    ask="Is it LPIPS, whose channels were weighed by people's judgement, or would any classifier's features do?",
    printed=f"{PRINTED} (table 3).",
    rows=(
        Row("Cas-DM", Trained("casdm"), (6.80, 8.88)),
        Row("+ LPIPS", Trained("casdm", "lpips"), (6.40, 8.69)),
        Row("+ LPIPS, SqueezeNet", Trained("casdm", "lpips-squeeze")),
        Row("+ ResNet-50", Trained("casdm", "resnet"), (6.64, 8.75)),
        Row("+ Inception", Trained("casdm", "inception"), (6.94, 8.75), scales=("paper",)),
        Row("+ Inception, to Mixed_6e (paper: Inception)", Trained("casdm", "inception-768"), (6.94, 8.75), scales=("pocket",)),
        Row("+ Swin-T", Trained("casdm", "swin"), (6.98, 8.72)),
        Row("+ ConvNeXt-T", Trained("casdm", "convnext"), scales=("paper",)),
        Row("+ DINOv2", Trained("casdm", "dinov2"), scales=("paper",)),
        Row("+ an encoder of the data", Trained("casdm", "domain")),
    ),
    columns=(Column("FID", "metrics.fid"), Column("IS", "metrics.is", better="higher")),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
)
