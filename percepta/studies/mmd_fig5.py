"""MMD-DDM, figure 5: from one sample to another over the sphere of their noises (equation 8), 11 points, DDIM in 5 steps."""

from percepta.studies._common import DATA
from percepta.studies._mmd import SIZES, base, facts, finetuned, judge
from percepta.studies.engine.study import OUT, At, Figure, Images, Impossible, Job, Study

WALKS, STEPS = 6, 5


def walks(title: str, model: Images, text: str) -> Figure:
    """`percepta report RUN --strips N` draws them into the run's figures."""
    if isinstance(model, str):
        return Figure(title, text, why="the pretrained model was given with --init; strips are drawn of runs")
    return Figure(
        title, text, Job(("report", model, "--strips", str(WALKS), "--out", f"{OUT}/report.html")), "figures/strips.png", model
    )


def figures(at: At) -> list[Figure]:
    text = f"{WALKS} walks of 11 images between two noises; {{}}, {STEPS} steps, the same noises in both figures."
    before = walks("Pretrained", base(at), text.format("DDIM of the pretrained model"))
    try:
        after = walks("Finetuned", finetuned(at, STEPS, 0, at.sizes.spaces[0]), text.format("the chain of the finetuned model"))
    except Impossible as reason:
        after = Figure("Finetuned", "", why=str(reason))
    return [before, after]


STUDY = Study(
    name="mmd-fig5",
    summary="MMD-DDM, figure 5: interpolation between two samples",
    ask="Is the finetuned model still smooth in its noise, or has it become a list of pictures?",
    printed="pictures only, on CelebA and LSUN church (figure 5); no number is printed.",
    rows=(),
    columns=(),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
    figures=figures,
)
