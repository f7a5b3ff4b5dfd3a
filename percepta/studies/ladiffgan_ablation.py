"""LaDiffGAN, ablation (the paper's is not public): each of its two losses alone, the other readings of them, and noised critics instead."""

from percepta.studies._ladiffgan import COST, DATA, NONE, PAIRED, QUALITY, SIZES, Translator, facts, judge
from percepta.studies.engine.study import Row, Study

ALONE = {"gan": "--denoising none", "denoising": "--latent-gan none"}


def row(label: str, flags: str) -> Row:
    return Row(label, Translator(flags=flags))


STUDY = Study(
    name="ladiffgan-ablation",
    summary="LaDiffGAN, ablation: each loss alone, its other readings, and Diffusion-GAN",
    ask="Which of the two losses helps, does it matter how they are read (A is the default), and would noise in front of the usual critics do as well?",
    printed="nothing: the paper's ablation is not public, and neither are its formulas; A, B and C are readings of its abstract (docs/interpretation.md).",
    rows=(
        row("no supervision", NONE),
        row("latent GAN alone", ALONE["gan"]),
        row("denoising alone", ALONE["denoising"]),
        row("both: LaDiffGAN", ""),
        row("Diffusion-GAN", f"{NONE} --diffusion-gan"),
        row("both, and Diffusion-GAN", "--diffusion-gan"),
        row("latent GAN B: matched features, alone", f"--latent-gan B {ALONE['gan']}"),
        row("denoising B: real latents, told a translation, alone", f"--denoising B {ALONE['denoising']}"),
        row("denoising C: score distillation, alone", f"--denoising C {ALONE['denoising']}"),
        row("both, a fifth of the gradient each", "--latent-gan-share 0.2 --denoising-share 0.2"),
    ),
    columns=(*QUALITY, *PAIRED, *COST),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
)
