"""LPL, table 7: equal time instead of equal steps."""

from percepta.studies._common import DATA
from percepta.studies._lpl import FID, IMAGENET, MEMORY, RATE, SIZES, Model, facts, judge
from percepta.studies.engine.study import Row, Study

# the paper's 48 hours gave 122.5k steps of 25 images a device without LPL and 82.5k of 16 with it: so many more images in the same time
MORE = 122.5 * 25 / (82.5 * 16)

STUDY = Study(
    name="lpl-table7",
    summary="LPL, table 7: equal time",
    ask="Steps with LPL cost more. Is the time better spent on more steps without it?",
    printed=f"{IMAGENET}, 512 px, 48 hours on two nodes (table 7). Ours: the row without LPL has the same number of times more images, {MORE:.2f}; images per second beside it say what the ratio is here.",
    rows=(
        Row(f"squared error, {MORE:.2f} times the steps", Model("--loss none", times=MORE), (4.62, None, None)),
        Row("LPL", Model("--loss lpl"), (3.84, None, None)),
    ),
    columns=(FID, RATE, MEMORY),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
)
