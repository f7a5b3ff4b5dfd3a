"""MMD-DDM, table 5: is the gain real outside the space that was trained in? The same samples, judged in it and in another."""

from percepta.studies._common import DATA, judged, real
from percepta.studies._mmd import SIZES, Drawn, Tuned, facts
from percepta.studies.engine.study import At, Column, Images, Reading, Row, Study

TRAINED, OTHER = "Inception FID; pocket: in the encoder it was trained in", "CLIP-FD; pocket: in another encoder"


def judge(at: At, images: Images, column: Column, seed: int) -> Reading:
    """Pocket: the domain encoder that the model of this seed was finetuned in, and the one that judges all. Paper: Inception, and CLIP."""
    trained, other = (
        (at.sizes.beside.format(seed=seed), at.sizes.judge) if at.scale == "pocket" else (at.sizes.judge, at.sizes.beside)
    )
    if column.group == TRAINED:
        return Reading(judged(at, images, trained), "metrics.fid")
    return Reading(judged(at, images, other), "metrics.fid" if at.scale == "pocket" else "metrics.clip-fd")


STUDY = Study(
    name="mmd-table5",
    summary="MMD-DDM, table 5: the trained space and another one",
    ask="A distance in the space of the loss falls whether or not images get better. Does one in another space fall as well?",
    printed="Inception FID and CLIP-FD (clean-fid, ViT-B/32) of 50,000 samples of CIFAR-10; the finetuned model is that of Inception (table 5).",
    rows=(
        Row("DDIM", Drawn("--sampler ddim --spacing leading --clip False"), (32.7, 13.6, 13.7, 6.87)),
        Row("MMD-DDM, Inception", Tuned(0), (5.48, 3.80, 2.11, 2.01), scales=("paper",)),
        Row("MMD-DDM, CLIP", Tuned(1), scales=("paper",)),
        Row("MMD-DDM, domain (paper: Inception)", Tuned(0), (5.48, 3.80, 2.11, 2.01), scales=("pocket",)),
        Row("held-out real images", real, yardstick=True),
    ),
    columns=tuple(Column(f"{k} steps", "metrics.fid", k, group=group) for group in (TRAINED, OTHER) for k in (5, 10)),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
)
