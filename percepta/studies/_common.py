"""What the studies of all papers share: drawing and judging images, real ones as a yardstick, and the pocket scale's data.

The sizes of a paper (`At.sizes`) have `num`, how many images are drawn, and `judge`, the flags of the usual judgement.
"""

from percepta.studies.engine.study import OUT, At, Column, Images, Impossible, Job

JUDGE = 1000  # nothing is trained with this seed, so this domain encoder was trained against by none
SHAPES = "shapes:labels=shape,length=4000"  # the set of `make demo`: an encoder that is there is found
DATA = {"pocket": (SHAPES, f"{SHAPES},seed=1"), "paper": None}


def samples(at: At, model: Images, seed: int, flags: str = "") -> Job:
    return Job(("sample", model, "--num", str(at.sizes.num), *flags.split(), "--seed", str(seed), "--out", OUT))


def judged(at: At, images: Images, flags: str) -> Job:
    """`percepta evaluate` against the data; sets that are given by name are cut to the same number of images."""
    beside = at.scale == "pocket" or "--space domain" in flags  # a scale whose jobs run side by side
    after = (reference(at, flags),) if beside and isinstance(images, Job) else ()
    count = () if isinstance(images, Job) else ("--num", str(at.sizes.num))
    return Job(("evaluate", images, at.data, *count, "--size", str(at.size), *flags.split(), "--json"), after)


def reference(at: At, flags: str) -> Job:
    """Judges real images first, which reads the reference, and trains its `domain` encoder, once: jobs that run side by side then all find it."""
    return judged(at, at.held_out or at.data, flags)


def real(at: At, column: Column, seed: int) -> str:
    """Images of the same kind that no model has seen: what a perfect model of so many samples would get."""
    if at.held_out is None:
        raise Impossible("no held-out images were given (--held-out)")
    return at.held_out


def budget(flags: str) -> str:
    words = flags.split()
    steps, batch = (int(words[words.index(flag) + 1]) for flag in ("--steps", "--batch"))
    return f"{steps:,} steps of {batch} images, {steps * batch:,} in all"
