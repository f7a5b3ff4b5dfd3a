"""LaDiffGAN, samples: test images, what each translator of table 1 makes of them, and the way back; beside the truth, where it is known."""

from percepta.studies import ladiffgan_table1
from percepta.studies._ladiffgan import DATA, SECOND, SIZES, WAYS, facts, judge
from percepta.studies.engine.study import At, Column, Figure, Impossible, Row, Study

SEED = 0


def figures(at: At) -> list[Figure]:
    """Of each row that is trained at this scale, both ways; of the second domains too, where they were given."""
    rows = [row for row in ladiffgan_table1.STUDY.rows_at(at.scale) if row.make is not None and not row.yardstick]
    return [
        figure(at, row, way, place, setting)
        for setting in (None, SECOND)[: 1 + bool(at.targets)]
        for row in rows
        for way, place in WAYS
    ]


def figure(at: At, row: Row, way: str, place: str, setting: str | None) -> Figure:
    """It is drawn where a run is judged, into the run."""
    title = f"{row.label}, {way}" + (", second domains" if setting else "")
    column = Column("", f"metrics.fid/{place}", setting)
    assert row.make is not None
    try:
        run = row.make(at, column, SEED)
        job = judge(at, run, column, SEED).job
    except Impossible as reason:
        return Figure(title, "", why=str(reason))
    truth = ", and the image that it should have become, which no training saw" if at.scale == "pocket" and not setting else ""
    text = f"From left to right: an image of {way[0]}, its translation to {way[-1]}, the way back{truth}. The first images of the test set, seed {SEED}."
    return Figure(title, text, job, f"figures/translations-{place}.png")


STUDY = Study(
    name="ladiffgan-samples",
    summary="LaDiffGAN, samples: images, translations and the way back, of each method",
    ask="What does the supervision change in the pictures? Shapes that are left half open, colours that are swapped, and translations that hide what they need for the way back are easier seen than measured.",
    printed="pictures only, in the supplement; no number is printed.",
    rows=(),
    columns=(),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
    figures=figures,
)
