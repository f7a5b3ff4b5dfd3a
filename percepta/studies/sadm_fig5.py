"""SADM, figure 5: affinities of noised images after denoising, beside those of their labels and of the images themselves."""

from dataclasses import replace

from percepta.studies._common import DATA, JUDGE, reference
from percepta.studies._sadm import SIZES, Model, facts_of
from percepta.studies.engine.study import OUT, At, Column, Figure, Images, Impossible, Job, Reading, Row, Study

LEVELS = (0.5, 2, 8)
BASE, SG, SAT = (Model(how) for how in ("base", "sg", "sat"))


def probe(at: At, model: Job) -> Job:
    """Of images that were not trained on, where there are some; at pocket scale in the encoder that judges."""
    data = at.held_out or at.data
    space = ("domain", "--seed", str(JUDGE)) if at.scale == "pocket" else ("inception-2048",)
    flags = ("--levels", ",".join(f"{level:g}" for level in LEVELS), "--data", data, "--size", str(at.size))
    flags = (*flags, "--space", *space)
    after = (
        (reference(replace(at, data=data, held_out=None), f"--metrics fid --space domain --seed {JUDGE}"),)
        if "domain" in space
        else ()
    )
    return Job(("probe", "affinity", model, *flags, "--json", "--out", OUT), after)


def trained(model: Model):
    def make(at: At, column: Column, seed: int) -> Job:
        if at.init is not None:
            raise Impossible("these models are trained from scratch: leave --init away")
        return model.train(at, Column("", ""), seed)

    return make


def judge(at: At, images: Images, column: Column, seed: int) -> Reading:
    assert isinstance(images, Job)
    return Reading(probe(at, images), f"numbers.{column.place}")


def figures(at: At) -> list[Figure]:
    text = "The first group of eight images, two of a class side by side, seed 0. The scale of colours is that of each figure."
    out = []
    for title, model in (("Base", BASE), ("SADM", SAT)):
        try:
            out.append(Figure(f"{title}: affinities", text, probe(at, trained(model)(at, COLUMNS[0], 0)), "figures/affinities.png"))
        except Impossible as reason:
            out.append(Figure(f"{title}: affinities", text, why=str(reason)))
    return out


def columns(level: float) -> tuple[Column, ...]:
    place, group = f"level-{round(100 * level)}", f"noise level {level:g}"
    return (
        Column("distance from the labels' affinity", f"{place}.label_distance", group=group),
        Column("correlation with the labels'", f"{place}.label_correlation", better="higher", group=group),
        Column("distance from the clean affinity", f"{place}.clean_distance", group=group),
        Column("correlation with the clean one", f"{place}.clean_correlation", better="higher", group=group),
    )


COLUMNS = tuple(column for level in LEVELS for column in columns(level))
STUDY = Study(
    name="sadm-fig5",
    summary="SADM, figure 5: affinities of denoised images",
    ask="Do images that belong together still look so to a feature network, after noise and one step of denoising? 256 images in groups of eight.",
    printed="pictures only, of eight noisy test images, for DDPM and SADM beside the affinity of the labels (figure 5); no number is printed.",
    rows=(
        Row("base", trained(BASE)),
        Row("+ structure guidance", trained(SG)),
        Row("+ structure adversarial training", trained(SAT)),
    ),
    columns=COLUMNS,
    judge=judge,
    sizes=SIZES,
    facts=facts_of("ddpm"),
    data=DATA,
    figures=figures,
)  # fmt: skip
