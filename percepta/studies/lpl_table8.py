"""LPL, table 8: arithmetic of a training step, counted on the paper's shapes. Nothing is trained, and both scales are the paper's."""

from dataclasses import dataclass

from percepta.studies._common import DATA, SHAPES
from percepta.studies.engine.study import At, Column, Images, Job, Reading, Row, Study

NETWORK, VAE, FACTOR = "mmdit-xl-2", "sdxl", 8
BATCH = {256: 64, 512: 16}  # images of a step: what makes the printed plain steps; table 7 prints 16 at 512 px


@dataclass(frozen=True)
class Sizes:
    size: int


@dataclass(frozen=True)
class Counted:
    """`percepta probe flops` with these flags; `window` is the side of the window that is decoded, as a part of the latent's."""

    flags: str
    window: float = 1.0

    def __call__(self, at: At, column: Column, seed: int) -> Images:
        size = column.setting
        shape = ("--network", NETWORK, "--vae", VAE, "--size", str(size), "--batch", str(BATCH[size]))
        crop = () if self.window == 1 else ("--crop", str(round(self.window * size / FACTOR)))
        return Job(("probe", "flops", *shape, *self.flags.split(), *crop, "--json"))


def judge(at: At, images: Images, column: Column, seed: int) -> Reading:
    assert isinstance(images, Job)
    return Reading(images, column.place)


def facts(at: At) -> list[tuple[str, str]]:
    return [
        ("Network", f"{NETWORK}: 28 blocks, 1152 wide, 16 heads, patches of 2, one class token; latents of 32 and 64"),
        ("Autoencoder", f"{VAE}: factor 8; every step encodes its images, once"),
        (
            "Counted",
            "convolutions, matrix products and fused attention, forward and backward, a multiplication and an addition being two",
        ),
        ("Images of a step", ", ".join(f"{batch} at {size} px" for size, batch in BATCH.items())),
    ]


GATED = "--tau 3 --schedule"
STUDY = Study(
    name="lpl-table8",
    summary="LPL, table 8: arithmetic of a training step",
    ask="What does LPL add to a step, and what is saved by not decoding noisy samples and by stopping at an early layer of the decoder?",
    printed="TFLOP per iteration; neither batch nor what was counted is said. The plain steps are met within 0.3%, images being encoded in every step; "
    "the share of samples that LPL's were counted with is not printed, and is none of tau 3 on a usual schedule.",
    rows=(
        Row("plain", Counted("--share 0"), (63.389, None, 69.342, None)),
        Row("LPL, all layers, all samples", Counted("--share 1")),
        Row("LPL, all layers, 30.6% of samples: fits what is printed", Counted("--share 0.306"), (99.987, 1.577, 106.581, 1.537)),
        Row("LPL, all layers, tau 3, linear betas", Counted(f"{GATED} linear")),
        Row("LPL, all layers, tau 3, flow", Counted(f"{GATED} flow")),
        Row("LPL, layers 0 to 3, tau 3, linear betas", Counted(f"{GATED} linear --layers 0,1,2,3")),
        Row("LPL, layers 0 to 2, tau 3, linear betas", Counted(f"{GATED} linear --layers 0,1,2")),
        Row("LPL, windows of 5/8, tau 3, linear betas", Counted(f"{GATED} linear", 5 / 8)),
        Row("LPL, layers 0 to 1, tau 3, flow", Counted(f"{GATED} flow --layers 0,1")),
        Row("LPL, windows of 7/16, tau 3, flow", Counted(f"{GATED} flow", 7 / 16)),
    ),
    columns=tuple(
        Column(label, place, size, better="", group=f"{size} px")
        for size in BATCH
        for label, place in (("TFLOP", "tflop.lpl"), ("over plain", "tflop.ratio"))
    ),
    judge=judge,
    sizes={"pocket": Sizes(16), "paper": Sizes(256)},
    facts=facts,
    data={"pocket": DATA["pocket"], "paper": (SHAPES, f"{SHAPES},seed=1")},
)
