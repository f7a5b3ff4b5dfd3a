"""LPL, figure 12: a latent disturbed in one patch. How far does a latent reach in the image?"""

from percepta.studies._common import DATA
from percepta.studies._probes import ROWS, SIZES, autoencoders, facts, probe, reading
from percepta.studies.engine.study import At, Column, Figure, Study


def figures(at: At) -> list[Figure]:
    text = "Squared error of the image, logarithm to base 10, where the latent inside the square has noise of half its variance."
    return [Figure(name, text, probe(at, vae, "perturbation"), "figures/perturbation.png") for name, vae in autoencoders(at)]


STUDY = Study(
    name="lpl-fig12",
    summary="LPL, figure 12: a local disturbance of the latent",
    ask="An error of one latent: does it stay where it is? The share of the squared error outside the patch's own pixels would be 0.",
    printed="a picture only, of the error over the whole image; no number is printed.",
    rows=ROWS,
    columns=(
        Column("share of the error outside the patch", "share_outside", better=""),
        Column("more than one latent away", "beyond-1", better=""),
        Column("more than two latents away", "beyond-2", better=""),
        Column("pixels outside that change", "changed_outside", better=""),
    ),
    judge=reading("perturbation"),
    sizes=SIZES,
    facts=facts,
    data=DATA,
    figures=figures,
)
