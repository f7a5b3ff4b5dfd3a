"""MMD-DDM, table 8: where the K steps lie, at even distances or denser near the clean end (quadratic)."""

from percepta.studies._common import DATA
from percepta.studies._mmd import CIFAR, FEWER, SIZES, Drawn, Tuned, facts, fid_columns, judge
from percepta.studies.engine.study import Row, Study

STUDY = Study(
    name="mmd-table8",
    summary="MMD-DDM, table 8: linear and quadratic choice of timesteps",
    ask="Does the choice of timesteps matter once the model is finetuned for it?",
    printed=f"{CIFAR}; finetuned in Inception's features (table 8; the row of even distances is that of table 1).",
    rows=(
        Row("DDIM, linear", Drawn("--sampler ddim --spacing leading --clip False"), (32.7, 13.6, 7.50)),
        Row("DDIM, quadratic", Drawn("--sampler ddim --spacing quadratic --clip False")),
        Row("MMD-DDM, linear", Tuned(), (5.48, 3.80, 3.55)),
        Row("MMD-DDM, quadratic", Tuned(chain="--solver ddim --spacing quadratic"), (5.19, 3.80, 3.67)),
    ),
    columns=fid_columns(FEWER),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
)
