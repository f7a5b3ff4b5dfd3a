"""Settings: everything about a run that is not the method. One flag each; `config.json` holds the resolved values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LORA = ("lora", "dora")
OWNERS = {"lora_rank": LORA, "lora_alpha": LORA, "lora_targets": LORA, "prompt_tokens": ("vpt",), "bottleneck": ("adaptformer",)}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of every `percepta train` command."""

    # -- what is trained on what
    data: str = "shapes"
    """Images: a folder (class sub-folders or metadata.jsonl give labels), an .npz, tar shards, hf:NAME, or the built-in `shapes`."""
    size: int = 32
    """Side of the training images, in pixels."""
    crop: Literal["center-crop", "random-crop", "stretch", "pad", "jitter", "none"] = "center-crop"
    """How an image becomes a square of that side; `none` refuses other sizes. jitter: stretched to 286/256 of it, then a random crop."""
    flip: bool = False
    """Mirror half of the images, chosen per sample."""
    conditional: Literal["auto", "yes", "no"] = "auto"
    """Condition on class labels; auto does where the data has them. With a text pipeline as --init, no trains with the empty prompt."""
    on_bad_image: Literal["error", "skip"] = "error"
    """A file that cannot be read: stop and name it, or skip it, count it and warn."""
    network: str | None = None
    """Network preset, or a folder with a model's config.json. Default: the recipe's (see `percepta doctor`)."""
    init: str | None = None
    """Start from this pipeline, run or model folder; its schedule and prediction type are read, not asked."""
    vae: str | None = None
    """Train in the latents of this frozen autoencoder (a diffusers folder or a run of the recipe `autoencoder`). Default: that of --init."""
    peft: Literal["full", "bitfit", "diffit", "lora", "dora", "vpt", "adaptformer"] = "full"
    """What of --init is trained: full, all weights; else a few, which are saved alone: bitfit, biases; diffit, biases, norms and scales; lora and
    dora, low-rank changes; vpt, prompts; adaptformer, bottlenecks beside MLPs. All but vpt and adaptformer are merged into the model too."""
    class_table: Literal["auto", "train", "keep", "new"] = "auto"
    """The class embeddings of --init. With an adapter: trained, or kept, or made anew for other classes; auto makes them anew where the number of
    classes differs, and else keeps them for lora and dora alone. With --peft full they train, and new makes them anew."""
    lora_rank: int = 8
    """Rank of each layer's adapter: more can change more, and takes more memory."""
    lora_alpha: int | None = None
    """The adapter counts alpha/rank times. Default: the rank."""
    lora_targets: str | None = None
    """Layers to adapt, by the end of their names or by a block's name, with commas between: to_q,to_v or mid_block. Default: attention
    and MLPs of transformers, attention and residual convolutions of U-Nets."""
    prompt_tokens: int = 50
    """vpt: prompts in each block."""
    bottleneck: int = 64
    """adaptformer: channels of each bottleneck."""
    cache: Path | None = None
    """Where latents are kept between runs. Default: the user's cache folder, or PERCEPTA_CACHE."""

    # -- how long
    out: Path | None = None
    """Run folder. Default: runs/NAME."""
    steps: int = 2000
    """Optimizer steps."""
    batch: int = 64
    """Images per step, over all processes and micro-batches."""
    micro_batch: int | None = None
    """Images per forward pass and process; smaller needs less memory and gives the same numbers. Default: all at once."""
    seed: int = 0
    """Every random number of the run follows from it."""
    resume: bool = False
    """Go on from the newest good checkpoint of the run folder."""

    # -- optimizer
    optimizer: Literal["adamw", "adam"] = "adamw"
    """Which Adam."""
    lr: float = 1e-4
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's two decays."""
    weight_decay: float = 0.0
    """AdamW's decay."""
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    lr_schedule: Literal["constant", "cosine", "linear", "late-linear", "edm2"] = "constant"
    """The learning rate after the warm-up."""
    clip: float | None = 1.0
    """Largest norm of the gradient, per player; `None` does not clip."""

    # -- averaged weights
    ema: Literal["classic", "edm", "power", "none"] = "classic"
    """classic: decay per step. edm: half-life in images. power: EDM2's two power profiles with snapshots for any length afterwards."""
    ema_decay: float = 0.9999
    """classic: decay per step, rising as (1 + step)/(10 + step) at the start."""
    ema_halflife: float = 500_000
    """edm: half-life, in images."""
    ema_snapshot_every: int = 1000
    """power: steps between two snapshots."""

    # -- machine
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the network's arithmetic; weights and everything outside the network stay in float32."""
    channels_last: bool = False
    """Memory layout NHWC: faster convolutions on GPUs with mixed precision."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: Literal["no", "default", "reduce-overhead", "max-autotune"] = "no"
    """torch.compile of the network; pays on GPUs. Switched off with a warning where no compiler is found."""
    workers: int = 0
    """Processes that read images; 0 is fastest for sets that fit in memory."""
    data_memory: float = 4.0
    """GiB of decoded images to keep in memory; larger sets are read from disk at each step."""
    dist_timeout: float = 600.0
    """Seconds after which a process that waits for another one fails, under torchrun."""

    # -- what is written
    log_every: int = 20
    """Steps between two lines of metrics.jsonl."""
    sample_every: int = 500
    """Steps between two sample grids; 0 for none. With --init there is one of step 0 too."""
    sample_num: int = 64
    """Images in a grid."""
    sample_steps: int = 50
    """Sampler steps of a grid."""
    sampler: str | None = None
    """Sampler of the grids. Default: the recipe's."""
    guidance: float = 1.0
    """Classifier-free guidance of the grids; 1 is none."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    keep: int = 2
    """Newest checkpoints to keep (2 or more, so that one can always fail)."""
    keep_best: str | None = None
    """Keep the checkpoint where this metric was best as well: one of --eval-metrics, for example fid."""
    shares_every: int | None = None
    """Steps between two measurements of each term's share of the gradient; 0 for none. Default: 10 lines of the log, with two terms or more;
    none where each term would take a replay of its chain (mmd)."""
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Trackers besides metrics.jsonl."""

    # -- evaluation while it trains
    eval_every: int = 0
    """Steps between two evaluations of the averaged weights, one at the end, and with --init one of step 0; 0 for none."""
    eval_metrics: str = "fid,kid"
    """Metrics, with commas between (see `percepta evaluate --help`)."""
    eval_num: int = 5000
    """Images drawn for each evaluation; an autoencoder is judged by so many reconstructions."""
    eval_space: str | None = None
    """Spaces of the metrics that can move, with commas between. Default: Inception's, as far as its weights are here, else `domain`."""
    eval_data: str | None = None
    """What is compared with: a set as in --data, or an .npz of statistics. Default: the training data, cropped as in training."""
    eval_steps: int | None = None
    """Sampler steps of an evaluation. Default: --sample-steps."""

    # -- when numbers go wrong
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite: stop and say where, or skip the step and count it."""
    max_bad_steps: int = 10
    """skip: so many in a row go back to the newest checkpoint with new noise, twice; then the run stops."""

    def __post_init__(self) -> None:
        for name in ("size", "steps", "batch", "log_every", "checkpoint_every", "sample_num", "sample_steps", "max_bad_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.micro_batch is not None and not 1 <= self.micro_batch <= self.batch:
            raise ValueError(f"--micro-batch must lie between 1 and --batch {self.batch}, got {self.micro_batch}")
        for name in ("eval_num", "eval_steps"):
            value = getattr(self, name)
            if value is not None and value < (2 if name == "eval_num" else 1):
                raise ValueError(f"--{name.replace('_', '-')} must be at least {2 if name == 'eval_num' else 1}, got {value}")
        self._check_peft()
        if self.keep_best is not None and not self.eval_every:
            raise ValueError(f"--keep-best {self.keep_best} needs evaluations to choose by: add --eval-every")
        if self.keep < 2:
            raise ValueError(f"--keep must be at least 2, got {self.keep}: with one checkpoint a damaged file would lose the run")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema-decay must lie in [0, 1), got {self.ema_decay}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"--clip must be positive, or None for no clipping, got {self.clip}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"--betas must lie in [0, 1), got {self.betas}")
        if not self.lr > 0:
            raise ValueError(f"--lr must be positive, got {self.lr}")
        for name in ("workers", "warmup", "sample_every", "weight_decay", "eval_every", "shares_every"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"--{name.replace('_', '-')} must not be negative, got {getattr(self, name)}")

    def _check_peft(self) -> None:
        for name, owners in OWNERS.items():
            if self.peft not in owners and getattr(self, name) != getattr(type(self), name):
                flag = f"--{name.replace('_', '-')} {getattr(self, name)}"
                raise ValueError(f"{flag} is for adapters: add --peft {' or '.join(owners)}")
        if self.peft == "full" and self.class_table == "keep":
            raise ValueError("--class-table keep is for adapters: with --peft full all weights train; add --peft, or leave it out")
        if self.peft != "full" and self.init is None:
            raise ValueError(f"--peft {self.peft} trains a few weights on a pretrained model: say which with --init")
        if self.lora_rank < 1 or (self.lora_alpha is not None and self.lora_alpha < 1):
            raise ValueError(f"--lora-rank and --lora-alpha must be at least 1, got {self.lora_rank} and {self.lora_alpha}")
        if self.prompt_tokens < 1 or self.bottleneck < 1:
            raise ValueError(f"--prompt-tokens and --bottleneck must be at least 1, got {self.prompt_tokens} and {self.bottleneck}")
