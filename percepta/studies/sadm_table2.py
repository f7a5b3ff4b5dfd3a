"""SADM, table 2: class-conditional DiT. Pocket scale: a small DiT in pixels, one size; the paper's: DiT-XL/2 in latents, 256 and 512 px."""

from dataclasses import dataclass, replace

from percepta.studies import _sadm
from percepta.studies._common import DATA, real
from percepta.studies._sadm import PRECISION, RECALL, SIZES, Model, facts_of
from percepta.studies.engine.study import At, Column, Images, Impossible, Job, Reading, Row, Study

SIDES = (256, 512)


def at_side(at: At, column: Column) -> At:
    if at.scale == "pocket":
        if column.setting != SIDES[0]:
            raise Impossible("one size at this scale")
        return at
    return replace(at, size=column.setting)


@dataclass(frozen=True)
class Dit:
    model: Model

    def __call__(self, at: At, column: Column, seed: int) -> Job:
        return self.model(at_side(at, column), column, seed)


def held(at: At, column: Column, seed: int) -> str:
    return real(at_side(at, column), column, seed)


def judge(at: At, images: Images, column: Column, seed: int) -> Reading:
    return _sadm.judge(at_side(at, column), images, column, seed)


def columns(side: int) -> tuple[Column, ...]:
    group = f"{side} px" + (" (at pocket scale: its own size)" if side == SIDES[0] else "")
    quality = (Column("FID", "metrics.fid"), Column("IS", "metrics.is", better="higher"), PRECISION, RECALL)
    return tuple(replace(column, setting=side, group=group) for column in quality)


NOT_HERE = (None,) * 4
STUDY = Study(
    name="sadm-table2",
    summary="SADM, table 2: class-conditional DiT with and without the structure of its batches",
    ask="Does structure adversarial training make a DiT better under guidance 1.5, and is it by diversity?",
    printed="FID, Inception Score, precision and recall of 50,000 samples of ImageNet at 256 and 512 px (table 2; the text of the paper says 1.43 and 2.18 "
    "for SADM's FIDs, its table and abstract what stands here).",
    rows=(
        Row("DiT, a time for each image, as published", Dit(Model("base", "--times-per sample", "dit")), (2.27, 278.24, 0.83, 0.57, *NOT_HERE)),
        Row("DiT, one time for each step", Dit(Model("base", kind="dit"))),
        Row("SADM", Dit(Model("sat", kind="dit")), (1.58, 298.46, 0.86, 0.66, 2.11, 251.82, 0.87, 0.63)),
        Row("held-out real images", held, yardstick=True),
        Row("MDT-G", None, (1.79, None, None, None, *NOT_HERE)),
        Row("DiT-G++", None, (1.83, None, None, None, *NOT_HERE)),
        Row("ADM-G, U", None, (3.94, None, None, None, *NOT_HERE)),
    ),
    columns=tuple(column for side in SIDES for column in columns(side)),
    judge=judge,
    sizes=SIZES | {"paper": replace(SIZES["paper"], size=SIDES[0])},
    facts=facts_of("dit"),
    data=DATA,
)  # fmt: skip
