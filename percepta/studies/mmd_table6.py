"""MMD-DDM, table 6: other metrics of the models of table 1: Inception Score, sFID, precision, recall."""

from percepta.studies._common import DATA, judged, real
from percepta.studies._mmd import SIZES, STEPS, Drawn, Tuned, facts, need
from percepta.studies.engine.study import At, Column, Images, Reading, Row, Study

METRICS = (
    ("Inception Score", "is", "higher"),
    ("sFID", "sfid", "lower"),
    ("Precision", "precision", "higher"),
    ("Recall", "recall", "higher"),
)
SPACE = {"is": "inception-logits", "sfid": "inception-spatial"}  # the two that have a space of their own


def judge(at: At, images: Images, column: Column, seed: int) -> Reading:
    """At pocket scale precision and recall are those of table 1's judgement; the other two need Inception, and a pass through it."""
    metric = column.place.rpartition(".")[2]
    if metric in SPACE:
        need(SPACE[metric])
        if at.scale == "pocket":
            return Reading(judged(at, images, f"--metrics {metric}"), column.place)
    return Reading(judged(at, images, at.sizes.judge), column.place)


STUDY = Study(
    name="mmd-table6",
    summary="MMD-DDM, table 6: Inception Score, sFID, precision and recall",
    ask="Do the finetuned models win by looking right, or by making all kinds of images?",
    printed="50,000 samples of CIFAR-10 by the ADM evaluator (table 6).",
    rows=(
        Row(
            "DDIM",
            Drawn("--sampler ddim --spacing leading --clip False"),
            (6.95, 8.17, 8.43, 8.54, 22.2, 10.73, 9.35, 7.36, 0.51, 0.60, 0.61, 0.63, 0.31, 0.46, 0.50, 0.52),
        ),
        Row(
            "MMD-DDM, Inception",
            Tuned(0),
            (9.39, 9.91, 9.85, 9.94, 7.20, 6.09, 5.75, 5.46, 0.63, 0.65, 0.65, 0.67, 0.56, 0.59, 0.60, 0.58),
            scales=("paper",),
        ),
        Row(
            "MMD-DDM, CLIP",
            Tuned(1),
            (9.10, 9.38, 9.52, 9.19, 8.25, 6.07, 6.04, 4.90, 0.65, 0.67, 0.67, 0.68, 0.53, 0.56, 0.57, 0.57),
            scales=("paper",),
        ),
        Row("MMD-DDM, domain", Tuned(0), scales=("pocket",)),
        Row("held-out real images", real, yardstick=True),
    ),
    columns=tuple(
        Column(f"{k} steps", f"metrics.{name}", k, "higher" if better == "higher" else "lower", title)
        for title, name, better in METRICS
        for k in STEPS
    ),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
)
