"""The optimizer, its learning rate, its state by name, and the norm of a gradient.

Learning rates are pure functions of how far training is, so that a resumed run needs no scheduler state. The optimizer's state is a
flat dictionary by parameter NAME, for safetensors: a changed order of parameters cannot mix up moments.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
FUSED_ON = ("cpu", "cuda")  # on the CPU fused is 2.5 times the default, and foreach is slower than it
MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(
    params: nn.Module | Iterable[tuple[str, Tensor]],
    name: str = "adamw",
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """Adam or AdamW over the trainable parameters, fused where the device can. Defaults: Dhariwal and Nichol 2021 (no decay)."""
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; known: {', '.join(OPTIMIZERS)}")
    if isinstance(params, nn.Module):
        params = params.named_parameters()  # pyright: ignore[reportAttributeAccessIssue]
    named = [(k, p) for k, p in params if p.requires_grad]
    names = {k for k, _ in named}
    if len(names) != len(named) or not named:
        raise ValueError(f"an optimizer needs trainable parameters with a name each, got {len(named)} with {len(names)} names")
    fused = all(p.device.type in FUSED_ON and p.is_floating_point() for _, p in named)
    return OPTIMIZERS[name](named, lr=lr, betas=betas, weight_decay=weight_decay, eps=eps, fused=fused)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


# ---- learning rate


def _constant(n: float, s: "Schedule") -> float:
    return 1.0


def _cosine(n: float, s: "Schedule") -> float:
    return s.final + (1 - s.final) * (1 + math.cos(math.pi * s.progress(n))) / 2


def _linear(n: float, s: "Schedule") -> float:
    return s.final + (1 - s.final) * (1 - s.progress(n))


def _late_linear(n: float, s: "Schedule") -> float:
    """Constant for the first half, then linear (CycleGAN, U-GAT-IT)."""
    return 1 - (1 - s.final) * max(0.0, 2 * s.progress(n) - 1)


def _edm2(n: float, s: "Schedule") -> float:
    """Karras et al. 2024: constant up to `reference`, then falling as one over the square root."""
    return 1 / math.sqrt(max(n / s.reference, 1.0))


KINDS: dict[str, Callable[[float, "Schedule"], float]] = {
    "constant": _constant, "cosine": _cosine, "linear": _linear, "late-linear": _late_linear, "edm": _constant, "edm2": _edm2,
}  # fmt: skip


@dataclass(frozen=True)
class Schedule:
    """The learning rate after `n`, counted like `warmup`, `total` and `reference`: steps, or images as in EDM.

    It rises linearly from 0 over `warmup` and then follows `kind`. "edm" is a constant with a warm-up (Karras et al. 2022: 10
    million images), "edm2" the inverse square root; "cosine" and "linear" end at `final` times lr after `total`.
    """

    lr: float = 1e-4
    kind: str = "constant"
    warmup: float = 0
    total: float | None = None
    final: float = 0.0
    reference: float = 70_000  # steps; Karras et al. 2024, ImageNet-512

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown learning rate schedule {self.kind!r}; known: {', '.join(KINDS)}")
        if self.lr <= 0 or self.warmup < 0 or not 0 <= self.final <= 1 or self.reference <= 0:
            raise ValueError(f"a schedule needs lr > 0, warmup >= 0, 0 <= final <= 1, reference > 0; got {self}")
        if self.kind == "edm" and not self.warmup:
            raise ValueError("'edm' needs a warm-up: 10e6, where it is counted in images")
        if self.kind in ("cosine", "linear", "late-linear") and (self.total is None or self.total <= self.warmup):
            raise ValueError(f"{self.kind!r} needs a total above the warm-up of {self.warmup}, got {self.total}")

    def progress(self, n: float) -> float:
        """From 0 at the end of the warm-up to 1 at `total`, and 1 after it."""
        assert self.total is not None, self
        return min(max((n - self.warmup) / (self.total - self.warmup), 0.0), 1.0)

    def lr_at(self, n: float) -> float:
        """A pure function: step n (from 0) trains with lr_at(n)."""
        return self.lr * (min(n / self.warmup, 1.0) if self.warmup else 1.0) * KINDS[self.kind](n, self)


# ---- state by name


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """name/step, name/exp_avg, name/exp_avg_sq of each parameter; one that was never moved has name/step = 0 alone."""
    out = {}
    for k, p in _named(optimizer).items():
        state = optimizer.state.get(p, {})
        out[f"{k}/step"] = torch.as_tensor(state.get("step", 0.0), dtype=torch.float32).detach().cpu()
        out |= {f"{k}/{moment}": state[moment] for moment in MOMENTS if moment in state}
    return out


@torch.no_grad()
def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse, exact. Learning rates and decays are the run's, not the checkpoint's. Names that do not fit are an error."""
    named = _named(optimizer)
    moved = [k for k in named if f"{k}/step" in tensors and float(tensors[f"{k}/step"]) > 0]
    expected = {f"{k}/step" for k in named} | {f"{k}/{moment}" for k in moved for moment in MOMENTS}
    if odd := sorted(expected ^ tensors.keys()):
        missing, unknown = [k for k in odd if k in expected], [k for k in odd if k not in expected]
        raise ValueError(f"the optimizer state does not fit these parameters: {len(missing)} missing {missing[:3]}, "
                         f"{len(unknown)} unknown {unknown[:3]}; resume with the network of the run")  # fmt: skip
    if odd := [f"{k}/{m}" for k in moved for m in MOMENTS if tensors[f"{k}/{m}"].shape != named[k].shape]:
        raise ValueError(f"the optimizer state does not fit these parameters: {odd[:3]} have other shapes")
    optimizer.state.clear()
    fused = {id(p): bool(group["fused"]) for group in optimizer.param_groups for p in group["params"]}
    for k in moved:
        p = named[k]
        step = tensors[f"{k}/step"].to(p.device if fused[id(p)] else "cpu", copy=True)
        # moments in the parameter's own memory layout: fused kernels walk both as flat memory
        moments = {m: torch.empty_like(p, memory_format=torch.preserve_format).copy_(tensors[f"{k}/{m}"]) for m in MOMENTS}
        optimizer.state[p] = {"step": step, **moments}


def _named(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    groups = optimizer.param_groups
    if any("param_names" not in group for group in groups):
        raise ValueError("the optimizer's parameters have no names: make it with make_optimizer, or from named_parameters()")
    return {k: p for group in groups for k, p in zip(group["param_names"], group["params"], strict=True)}


# ---- gradients


@torch.no_grad()
def clip_gradients(params: Iterable[Tensor], max_norm: float | None = None) -> Tensor:
    """Scales the gradients to at most `max_norm` (None: measures only) and returns their norm before, float32, on their device.

    No synchronisation on a GPU. The norm is finite only if all gradients are; if it is not, they are left as they are.
    """
    grads = [p.grad for p in params if p.grad is not None]
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"gradients are clipped to a positive norm, got {max_norm}; None does not clip")
    if not grads:
        return torch.zeros(())
    norm = norm_of(grads)
    if max_norm is not None and not (norm.device.type == "cpu" and float(norm) <= max_norm):
        scale = torch.where(norm.isfinite(), (max_norm / (norm + 1e-6)).clamp(max=1.0), 1.0)
        if all(g.device == norm.device for g in grads):
            torch._foreach_mul_(grads, scale)
        else:  # a model spread over devices
            for g in grads:
                g.mul_(scale.to(g.device))
    return norm.float()


@torch.no_grad()
def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of all of them together, float32 or wider (a float16 norm overflows at 65504): not finite if any number is not."""
    wide = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    same = all(x.dtype == wide for x in tensors)  # asked for a dtype, it copies each tensor first
    norms = torch._foreach_norm(list(tensors), 2, dtype=None if same else wide)
    device = tensors[0].device
    return torch.linalg.vector_norm(torch.stack([n if n.device == device else n.to(device) for n in norms]))


def nonfinite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of tensors whose gradient has an infinity or a NaN: for the message, after a norm that is not finite."""
    return [k for k, p in named if p.grad is not None and not bool(p.grad.isfinite().all())]
