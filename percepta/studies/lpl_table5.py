"""LPL, table 5: which perceptual loss, in quality, speed and memory."""

from percepta.studies._common import DATA, real
from percepta.studies._lpl import FID, IMAGENET, MEMORY, RATE, SIZES, Model, facts, judge, untouched
from percepta.studies.engine.study import Row, Study


def self_perceptual(depth: int) -> Model:
    return Model(f"--loss self-perceptual --max-level None --depth {depth} --weight-rule variance")


STUDY = Study(
    name="lpl-table5",
    summary="LPL, table 5: perceptual losses for latent diffusion",
    ask="Must a perceptual loss for latents see through the decoder, or would a network that reads latents, or the model itself, do?",
    printed=f"{IMAGENET}, 512 px, after 120k steps of post-training; images per second and memory in per cent on their machines (table 5).",
    rows=(
        Row("common checkpoint, untouched", untouched, yardstick=True),
        Row("squared error", Model("--loss none"), (4.88, 16.6, None)),
        Row("latent LPIPS, all levels", Model("--loss latent-lpips --max-level None --weight-rule variance"), (7.71, 13.3, None)),
        Row("latent LPIPS, tau 3", Model("--loss latent-lpips --weight-rule variance"), (7.19, 15.8, None)),
        Row(
            "Self-Perceptual, mid block",
            Model("--loss self-perceptual --max-level None --weight-rule variance"),
            scales=("pocket",),
        ),
        Row(
            "Self-Perceptual, mid block, no squared error",
            Model("--loss self-perceptual --max-level None --alone --loss-weight 1"),
            scales=("pocket",),
        ),
        Row("Self-Perceptual, block 8", self_perceptual(8), (5.82, 13.3, None), scales=("paper",)),
        Row("Self-Perceptual, block 16", self_perceptual(16), (13.40, 11.4, None), scales=("paper",)),
        Row("Self-Perceptual, block 28", self_perceptual(28), (10.43, 9.2, None), scales=("paper",)),
        Row("LPL", Model("--loss lpl"), (3.79, 9.6, None)),
        Row("LPL, without the mask of outliers", Model("--loss lpl --outliers none")),
        Row("LPL, statistics of each side", Model("--loss lpl --norm separate"), (4.79, None, None)),
        Row("held-out real images", real, yardstick=True),
    ),
    columns=(FID, RATE, MEMORY),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
)
