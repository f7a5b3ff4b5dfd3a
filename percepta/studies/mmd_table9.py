"""MMD-DDM, table 9: finetuning through a sampler that adds noise (DDPM) and through one that adds none (DDIM)."""

from percepta.studies._common import DATA
from percepta.studies._mmd import CIFAR, FEWER, SIZES, Drawn, Tuned, facts, fid_columns, judge
from percepta.studies.engine.study import Row, Study

STUDY = Study(
    name="mmd-table9",
    summary="MMD-DDM, table 9: DDPM and DDIM as the chain",
    ask="Is the method bound to a deterministic sampler? The gradient passes through fresh noise that is drawn once.",
    printed=f"{CIFAR}; finetuned in Inception's features (table 9; the DDIM rows and DDPM itself are those of table 1).",
    rows=(
        Row("DDPM", Drawn("--sampler ddpm"), (76.3, 42.1, 25.9)),
        Row("DDIM", Drawn("--sampler ddim --spacing leading --clip False"), (32.7, 13.6, 7.50)),
        Row("MMD-DDM through DDPM", Tuned(chain="--solver ddpm --spacing leading"), (6.65, 5.19, 4.48)),
        Row("MMD-DDM through DDIM, eta 1", Tuned(chain="--solver ddim --spacing leading --eta 1")),
        Row("MMD-DDM through DDIM", Tuned(), (5.48, 3.80, 3.55)),
    ),
    columns=fid_columns(FEWER),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
)
