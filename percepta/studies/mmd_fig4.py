"""MMD-DDM, figure 4: the nearest training images of samples, before and after finetuning. Does the gain come from copying?"""

from percepta.studies._common import DATA, JUDGE, reference, samples
from percepta.studies._mmd import SIZES, base, facts, finetuned
from percepta.studies.engine.study import OUT, At, Column, Figure, Images, Impossible, Job, Reading, Row, Study

STEPS = 5
COPYING = "copying.json"  # what --neighbours leaves beside its figures


def pretrained(at: At, column: Column, seed: int) -> Job:
    return samples(at, base(at), seed, f"--sampler ddim --spacing leading --clip False --steps {STEPS}")


def tuned(at: At, column: Column, seed: int) -> Job:
    return samples(at, finetuned(at, STEPS, seed, at.sizes.spaces[0]), seed)


def compared(at: At, images: Images) -> Job:
    """Neighbours in CLIP, as in the paper; at pocket scale in the encoder that judges."""
    space = f"--metrics fid --space domain --seed {JUDGE}" if at.scale == "pocket" else "--metrics clip-fd"
    flags = f"--size {at.size} {space} --neighbours 8 --json".split()
    held = () if at.held_out is None else ("--held-out", at.held_out)
    after = (reference(at, at.sizes.judge),) if at.scale == "pocket" else ()
    return Job(("evaluate", images, at.data, *flags, *held, "--out", OUT), after)


def judge(at: At, images: Images, column: Column, seed: int) -> Reading:
    if column.place in ("held_out", "nearer") and at.held_out is None:
        raise Impossible("no held-out images were given (--held-out)")
    return Reading(compared(at, images), column.place, COPYING)


def figures(at: At) -> list[Figure]:
    out = []
    for who, make in (("Pretrained", pretrained), ("Finetuned", tuned)):
        caption = f"{who}, {STEPS} steps, seed 0. Left a sample, right its four nearest training images; the lower half are the samples nearest to any."
        try:
            job = compared(at, make(at, COLUMNS[0], 0))
        except Impossible as reason:
            out.append(Figure(f"{who}: nearest training images", caption, why=str(reason)))
        else:
            out.append(Figure(f"{who}: nearest training images", caption, job, "figures/neighbours.png"))
    return out


COLUMNS = (
    Column("median distance to the nearest training image", "generated", better=""),
    Column("the same of held-out images", "held_out", better=""),
    Column("share nearer than 99% of held-out images", "nearer"),
    Column("samples that are a training image", "same"),
)
STUDY = Study(
    name="mmd-fig4",
    summary="MMD-DDM, figure 4: nearest training images",
    ask="Do finetuned models copy training images? About 0.01 in the third column is what images get that no model has seen.",
    printed="pictures only, the four nearest training images in CLIP space (figure 4); no number is printed.",
    rows=(Row("pretrained, DDIM", pretrained), Row("finetuned, MMD-DDM", tuned)),
    columns=COLUMNS,
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
    figures=figures,
)
