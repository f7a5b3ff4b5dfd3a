"""MMD-DDM, table 1: quality by method and number of sampling steps, on CIFAR-10. GENIE and the others below it are not built here."""

from percepta.studies._common import DATA, real
from percepta.studies._mmd import CIFAR, SIZES, STEPS, Drawn, Tuned, facts, fid_columns, judge
from percepta.studies.engine.study import Row, Study

STUDY = Study(
    name="mmd-table1",
    summary="MMD-DDM, table 1: methods by number of sampling steps",
    ask="How much better is a model that was finetuned for K steps than what any sampler gets out of the pretrained one in K steps?",
    printed=f"{CIFAR} (table 1).",
    rows=(
        Row("DDPM", Drawn("--sampler ddpm"), (76.3, 42.1, 31.4, 25.9)),
        Row("DDIM", Drawn("--sampler ddim --spacing leading --clip False"), (32.7, 13.6, 9.31, 7.50)),
        Row("DDIM, x0 clipped", Drawn("--sampler ddim --spacing leading --clip True")),
        Row("DPM-Solver++(2M)", Drawn("--sampler dpmpp")),
        Row("UniPC", Drawn("--sampler UniPCMultistep")),
        Row("PNDM (K + 1 evaluations)", Drawn("--sampler PNDM"), (35.9, 10.3, 6.61, 5.20)),
        Row("MMD-DDM, Inception", Tuned(0), (5.48, 3.80, 4.11, 3.55), scales=("paper",)),
        Row("MMD-DDM, CLIP", Tuned(1), (6.79, 4.87, 4.79, 4.52), scales=("paper",)),
        Row("MMD-DDM, domain (paper: Inception)", Tuned(0), (5.48, 3.80, 4.11, 3.55), scales=("pocket",)),
        Row("MMD-DDM, AlexNet", Tuned(1, most=10), scales=("pocket",)),
        Row("held-out real images", real, yardstick=True),
        Row("GENIE", None, (13.9, 5.97, 4.49, 3.94)),
        Row("FastDPM", None, (None, 9.90, None, 5.05)),
        Row("Learned Sampler", None, (13.8, 8.22, 6.12, 4.72)),
        Row("Analytic-DDIM", None, (None, 14.7, 9.16, 7.20)),
        Row("DPM-Solver-1", None, (None, 6.37, 3.78, 4.28)),
        Row("DPM-Solver-2", None, (None, 10.2, 4.17, 3.72)),
    ),
    columns=fid_columns(STEPS),
    judge=judge,
    sizes=SIZES,
    facts=facts,
    data=DATA,
)
