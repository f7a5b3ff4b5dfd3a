"""All that changes while a run trains, and its way into a checkpoint and back.

Random numbers are not part of it: they follow from the seed and the step (percepta/rng.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from percepta.peft import Base
from percepta.training.checkpoint import Checkpoint
from percepta.training.ema import POWER, AbstractDecay, Classic, Ema, HalfLife
from percepta.training.method import Method, Pace
from percepta.training.optim import Schedule, load_optimizer_tensors, make_optimizer, optimizer_tensors
from percepta.training.settings import Settings


@dataclass
class Player:
    """Who moves: a module, its trainable parameters, its optimizer, and for fp16 its loss scale. `pace` is its part of the scheduled learning rate."""

    name: str
    module: nn.Module
    params: list[Tensor]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None  # pyright: ignore[reportPrivateImportUsage]
    pace: float = 1.0
    clip: float | None = None
    base: Base | None = None  # frozen weights that are read from elsewhere, and not kept in checkpoints

    @property
    def stem(self) -> str:
        """Its part in the names of a checkpoint's files: a slash would be a folder."""
        return self.name.replace("/", ".")

    def kept(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the module: all of it, or all but the base's weights."""
        named: dict[str, Tensor] = dict(self.module.state_dict(keep_vars=True))
        if self.base is None:
            return {name: x.detach() for name, x in named.items()}
        frozen = {name for name, x in named.items() if isinstance(x, nn.Parameter) and not x.requires_grad}
        first = {id(x): name for name, x in reversed(named.items())}  # what blocks share is kept once
        return {name: x.detach() for name, x in named.items() if name not in frozen and first[id(x)] == name}


@dataclass
class State:
    """`step` counts optimizer steps taken, `window` sums what is logged since the last line of metrics.jsonl."""

    players: dict[str, Player]
    ema: Ema | None
    schedule: Schedule
    step: int = 0
    images: int = 0
    bad_in_a_row: int = 0
    bad_total: int = 0
    retries: int = 0
    scales: dict[str, float] = field(default_factory=dict)  # the method's own: weights that follow a share of the gradient
    window: dict[str, float] = field(default_factory=dict)
    window_steps: dict[str, int] = field(default_factory=dict)

    @property
    def stream(self) -> str:
        """Where random numbers come from: after a rollback from a source of their own, or the same step would fail again."""
        return f"train-{self.retries}" if self.retries else "train"

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        out = {f"weights-{p.stem}": p.kept() for p in self.players.values()}
        out |= {f"optimizer-{p.stem}": optimizer_tensors(p.optimizer) for p in self.players.values()}
        return out | (self.ema.tensors() if self.ema else {})

    def numbers(self) -> dict[str, Any]:
        return {
            "step": self.step, "images": self.images, "bad_in_a_row": self.bad_in_a_row, "bad_total": self.bad_total,
            "retries": self.retries, "scales": dict(self.scales), "window": self.window, "window_steps": self.window_steps,
            "scalers": {name: p.scaler.state_dict() for name, p in self.players.items() if p.scaler is not None},
            "ema": self.ema.state() if self.ema else None,
            "bases": {name: p.base.sha256 for name, p in self.players.items() if p.base is not None},
        }  # fmt: skip

    def load(self, checkpoint: Checkpoint, trains: bool = True) -> None:
        """Become what was saved; a checkpoint of another method, network or kind of average is refused. A method that is built to be
        exported has no critics: with `trains` False those that were saved are left."""
        names = {f"weights-{player.stem}" for player in self.players.values()}
        found = {stem for stem in checkpoint.tensors if stem.startswith("weights-")}
        if names != found and (trains or not names <= found):
            raise ValueError(
                f"{checkpoint.path} holds {sorted(found)}, this method trains {sorted(names)}: resume with the recipe of the run"
            )
        for name, player in self.players.items():
            check_base(player, checkpoint)
            stem = f"weights-{player.stem}"
            load_weights(player.module, checkpoint.tensors[stem], f"{checkpoint.path}/{stem}.safetensors", player.kept())
            load_optimizer_tensors(player.optimizer, checkpoint.tensors[f"optimizer-{player.stem}"])
            if (player.scaler is not None) != (name in checkpoint.state["scalers"]):
                raise ValueError(
                    f"{checkpoint.path} was trained with another --mixed-precision: fp16 keeps a loss scale, the others do not"
                )
            if player.scaler is not None:
                player.scaler.load_state_dict(checkpoint.state["scalers"][name])
        if (self.ema is None) != (checkpoint.state["ema"] is None):
            raise ValueError(
                f"{checkpoint.path} was trained {'without' if self.ema else 'with'} averaged weights: resume with the same --ema"
            )
        if self.ema is not None:
            self.ema.load(checkpoint.tensors, checkpoint.state["ema"])
        for name in ("step", "images", "bad_in_a_row", "bad_total", "retries"):
            setattr(self, name, int(checkpoint.state[name]))
        self.window, steps = dict(checkpoint.state["window"]), checkpoint.state["window_steps"]
        self.window_steps = (
            dict(steps) if isinstance(steps, dict) else dict.fromkeys(self.window, int(steps))
        )  # once one number for all
        self.scales.clear()
        self.scales.update(checkpoint.state.get("scales", {}))


def check_base(player: Player, checkpoint: Checkpoint) -> None:
    """Refuse weights that were trained beside others than those that --init gives now."""
    was, base = checkpoint.state.get("bases", {}).get(player.name), player.base
    if (was is None) != (base is None):
        raise ValueError(
            f"{checkpoint.path} was trained with{'out' if was is None else ''} an adapter: resume with the same --peft"
        )
    if base is not None and base.sha256 != was:
        raise ValueError(
            f"{checkpoint.path} holds an adapter for weights with the sha256 {was[:12]}..., and those of --init {base.name} have "
            f"{base.sha256[:12]}...: they have changed; put back the ones that the run began with"
        )


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: str, own: Mapping[str, Tensor] | None = None) -> None:
    """Every name and shape must fit; `own` is what of the module is loaded, if not all."""
    own = module.state_dict() if own is None else own
    if odd := sorted(own.keys() ^ tensors.keys()) or [k for k in own if own[k].shape != tensors[k].shape]:
        raise ValueError(f"{where} does not fit this network: {odd[:3]} are missing, unknown or of another shape")
    module.load_state_dict(dict(tensors), strict=False)


def decays(settings: Settings) -> AbstractDecay | Mapping[str, AbstractDecay]:
    if settings.ema == "power":
        return POWER
    return Classic(settings.ema_decay) if settings.ema == "classic" else HalfLife(settings.ema_halflife)


def make_state(method: Method, settings: Settings, device: torch.device) -> State:
    """Optimizers and averages for a method that is on its device."""
    players = {}
    for name, module in method.players.items():
        pace = method.paces.get(name, Pace(settings.lr, settings.clip, settings.weight_decay))
        optimizer = make_optimizer(module, settings.optimizer, settings.lr, settings.betas, pace.weight_decay)
        params = [p for group in optimizer.param_groups for p in group["params"]]
        scaler = torch.amp.GradScaler(device.type) if settings.mixed_precision == "fp16" else None  # pyright: ignore[reportPrivateImportUsage]
        base = method.adapter.base if method.adapter is not None and name == "model" else None
        players[name] = Player(name, module, params, optimizer, scaler, pace.lr / settings.lr, pace.clip, base)
    schedule = Schedule(settings.lr, settings.lr_schedule, settings.warmup, settings.steps)
    # a non-finite loss or gradient never reaches the weights (loop.py), so the averages need no guard of their own
    ema = None if settings.ema == "none" else Ema(method.model, decays(settings), guard=False)
    return State(players, ema, schedule, scales=method.scales)
