"""LPL, figure 11: latents scaled like images. Is a latent a small picture?"""

from percepta.studies._common import DATA
from percepta.studies._probes import ROWS, SIZES, autoencoders, facts, probe, reading
from percepta.studies.engine.study import At, Column, Figure, Study

MODES = ("nearest", "bilinear", "bicubic")
SCALES = (50, 130, 200)  # percent: the probe's own


def figures(at: At) -> list[Figure]:
    text = "Two images at each of the scales 0.5, 1.3 and 2: the scaled image; encoded and decoded; its latent scaled nearest, bilinear and bicubic, decoded."
    return [Figure(name, text, probe(at, vae, "interpolation"), "figures/interpolation.png") for name, vae in autoencoders(at)]


STUDY = Study(
    name="lpl-fig11",
    summary="LPL, figure 11: interpolation in latent space",
    ask="Images stay images when they are scaled. Do latents? The autoencoder's own loss is the first column of the PSNRs.",
    printed="pictures with the mean squared error of some latents, in the autoencoder's own units: bicubic at 1.3 times 2.38, bilinear at twice 1.88.",
    rows=ROWS,
    columns=tuple(
        column
        for scale in SCALES
        for column in (
            *(Column(f"latent error, {mode}", f"{mode}-{scale}.latent_mse_raw", better="", group=f"{scale / 100:g} times") for mode in MODES),
            *(Column(f"PSNR, {mode}", f"{mode}-{scale}.psnr", better="", group=f"{scale / 100:g} times") for mode in ("encoded", *MODES)),
        )
    ),
    judge=reading("interpolation"),
    sizes=SIZES,
    facts=facts,
    data=DATA,
    figures=figures,
)  # fmt: skip
