"""MMD-DDM, table 7: the kernel of the MMD."""

from percepta.studies._common import DATA
from percepta.studies._mmd import CIFAR, FEWER, SIZES, Drawn, Tuned, facts, fid_columns, judge
from percepta.studies.engine.study import Row, Study

STUDY = Study(
    name="mmd-table7",
    summary="MMD-DDM, table 7: kernels of the MMD",
    ask="The linear kernel sees means only. Do kernels that see more give better samples?",
    printed=f"{CIFAR}; finetuned in Inception's features (table 7).",
    rows=(
        Row("DDIM, not finetuned", Drawn("--sampler ddim --spacing leading --clip False"), (32.7, 13.6, 7.50)),
        Row("linear", Tuned(kernel="linear"), (5.61, 4.69, 4.06)),
        Row("rbf", Tuned(kernel="rbf"), (5.89, 3.88, 3.61)),
        Row("cubic", Tuned(kernel="cubic"), (5.48, 3.80, 3.55)),
    ),
    columns=fid_columns(FEWER),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
)
