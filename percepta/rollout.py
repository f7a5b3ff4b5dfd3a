"""Rollout: the images that a few sampling steps make, as an Estimate, with the exact gradient through the whole chain.

    x_T ~ N(0, 1),  x_{i+1} = step_i(x_i; theta),  loss(x_K)

The plain graph of K steps of a whole batch needs K times the memory of a training step. Three ways to the same gradient:

    full         one graph through all steps
    checkpoint   one graph, each step computed again in the backward pass (torch.utils.checkpoint)
    replay       no graph at all while it samples; the loss is differentiated at x_K, a leaf; then the steps are run again from their
                 stored x_i, the last one first, a micro-batch at a time: the memory of one step of one micro-batch, whatever K and the batch

They differ in the order in which micro-batches are summed. `auto` looks at the memory that is free at its first batch, and so two runs of it may
differ in the last bits; the others depend on nothing but the seed.

A step is a function of its State, its noise and torch's generator (dropout). Noise is drawn by name and the generator is seeded by step
and row, so that a step is the same to the bit whenever it is run. Which sampler it is, nobody asks.
Where the chain runs in latents, decoding is its last step: what comes out are images, and nobody behind it knows of latents.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from percepta.distributed import summed
from percepta.estimate import Batch, Estimate, take
from percepta.formulation import Denoiser
from percepta.path import Times
from percepta.rng import Rng, mix, seed_torch
from percepta.samplers import as_grid, guided
from percepta.samplers.images import Decoder
from percepta.samplers.step import AnyDenoiser, Bound, State, Step, start, step_noise

Backprop = Literal["auto", "replay", "checkpoint", "full"]
AUTO_SHARE = 0.5  # of the free memory that a full graph may take


@dataclass(frozen=True)
class Part:
    """Some rows of a rollout, which go through the chain together."""

    rows: slice
    denoise: Bound
    rng: Rng


@dataclass(frozen=True)
class Rollout:
    """An estimator: x0_hat by `step` over `times` from noise, one image per row of the batch, beside the batch's own x0 (unpaired).

    Conditions are those of the batch: labels drawn as in the data. `micro` rows go through the chain together; with dropout in the network
    its masks depend on it, as in any micro-batching. `decoder` makes images of what the chain ends at; `shape` is then that of a latent.
    """

    denoiser: Denoiser
    step: Step
    times: Times
    guidance: float = 1.0
    backprop: Backprop = "replay"
    micro: int | None = None
    decoder: Decoder | None = None
    shape: tuple[int, ...] | None = None
    _chosen: list[Backprop] = field(default_factory=list, repr=False, compare=False)  # what `auto` came to, at the first batch

    def __post_init__(self) -> None:
        as_grid(self.denoiser.path, self.times)
        if self.step.calls is None:
            raise ValueError(
                f"the sampler {self.step.name} chooses its steps as it goes, and a rollout has a fixed number: use another one"
            )
        if self.micro is not None and self.micro < 1:
            raise ValueError(f"a micro-batch has 1 image or more, got {self.micro}")
        if self.backprop not in ("auto", "replay", "checkpoint", "full"):
            raise ValueError(f"backprop is auto, replay, checkpoint or full, got {self.backprop!r}")
        if (self.decoder is None) != (self.shape is None):
            raise ValueError("a decoder and the shape of its latents [c, h, w] belong together: give both, or neither")

    @property
    def pairs(self) -> list[tuple[float, float]]:
        return list(pairwise(self.times.tolist()))

    @property
    def length(self) -> int:
        """Steps of the sampler, and one that decodes."""
        return len(self.times) - 1 + (self.decoder is not None)

    def __call__(self, batch: Batch, rng: Rng) -> Estimate:
        parts = list(self._parts(batch, rng))
        x_T = [
            start(self.denoiser.path, self.pairs[0][0], part.rng.normal("x_T", self.shape or batch.x0.shape[1:], batch.x0.dtype))
            for part in parts
        ]
        how = self.backprop
        if how == "auto":
            if not self._chosen:
                tight = torch.tensor([float(self._affordable(parts, x_T) == "replay")], device=batch.x0.device)
                self._chosen[:] = ["replay" if summed(tight).item() else "full"]  # on all ranks alike
            how = self._chosen[0]
        if not torch.is_grad_enabled():
            how = "full"
        if how == "replay":
            return self._leaf(batch, parts, x_T)
        made = [self._chain(part, x, how == "checkpoint") for part, x in zip(parts, x_T, strict=True)]
        return Estimate(torch.cat(made), batch.x0, paired=False, cond=batch.cond)

    def _parts(self, batch: Batch, rng: Rng) -> Iterator[Part]:
        denoiser: AnyDenoiser = guided(self.denoiser, self.guidance)
        size = self.micro or len(batch)
        for first in range(0, len(batch), size):
            rows = slice(first, min(first + size, len(batch)))
            yield Part(rows, Bound(denoiser, take(batch.cond, rows)), rng.select(rows))

    def _run(self, part: Part, i: int, state: State) -> State:
        """Step i: the same to the bit whenever it is run."""
        if i == len(self.times) - 1:
            assert self.decoder is not None
            return State(self.decoder.decode(state.x))
        seed_torch(mix(part.rng.seed, part.rng.stream, "rollout", part.rng.step, i, part.rng.ordinals[0]), state.x.device)
        return self.step(part.denoise, state, *self.pairs[i], step_noise(self.step, part.rng, i, state.x))

    def _chain(self, part: Part, x: Tensor, again: bool) -> Tensor:
        """x_K with its graph; with `again` each step is computed a second time in the backward pass."""
        state = State(x)
        for i in range(self.length):
            state = self._checkpointed(part, i, state) if again else self._run(part, i, state)
        return state.x

    def _checkpointed(self, part: Part, i: int, state: State) -> State:
        def run(x: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
            after = self._run(part, i, State(x, memory))
            return (after.x, *after.memory)

        x, *memory = checkpoint(run, state.x, *state.memory, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore
        return State(x, tuple(memory))

    def _leaf(self, batch: Batch, parts: Sequence[Part], x_T: Sequence[Tensor]) -> Estimate:
        """Sample without a graph and keep the States; the Estimate knows how to go on from a gradient at x_K."""
        precision = Precision.now(batch.x0.device)
        kept: list[list[State]] = []
        ends: list[Tensor] = []
        with torch.no_grad(), precision(cache=False):
            for part, x in zip(parts, x_T, strict=True):
                states = [State(x)]
                for i in range(self.length):
                    states.append(self._run(part, i, states[-1]))
                kept.append(states[:-1])
                ends.append(states[-1].x)

        def onward(grad: Tensor) -> None:
            for part, states in zip(parts, kept, strict=True):
                self._replay(part, states, grad[part.rows], precision)

        x0_hat = torch.cat(ends).requires_grad_()
        return Estimate(x0_hat, batch.x0, paired=False, cond=batch.cond, onward=onward)

    def _replay(self, part: Part, states: Sequence[State], grad: Tensor, precision: "Precision") -> None:
        """Add the gradient of the chain to the parameters: its steps once more, the last one first."""
        params = [p for p in self.denoiser.parameters() if p.requires_grad]
        grads: list[Tensor | None] = [grad]
        for i in reversed(range(len(states))):
            wanted = i > 0  # nobody asks for the gradient of x_T, but a compiled network has a graph for either kind of leaf
            leaves = [x.detach().requires_grad_() for x in (states[i].x, *states[i].memory)]
            with torch.enable_grad(), precision():
                after = self._run(part, i, State(leaves[0], tuple(leaves[1:])))
            # nothing reads what the last step remembers
            ends = [(x, g) for x, g in zip((after.x, *after.memory), grads, strict=False) if g is not None and x.requires_grad]
            torch.autograd.backward([x for x, _ in ends], [g for _, g in ends], inputs=[*params, *(leaves if wanted else ())])
            grads = [leaf.grad for leaf in leaves]

    def _affordable(self, parts: Sequence[Part], x_T: Sequence[Tensor]) -> Backprop:
        """`full` where its graph fits in half of the free memory, else `replay`: what one step of one part saves, counted."""
        steps, first = len(self.pairs), x_T[0]
        one = self._saved(parts[0], 0, first) * steps
        if self.decoder is not None:
            one += self._saved(parts[0], steps, first)
        whole = one * sum(len(x) for x in x_T) / len(first)
        to_come = 3 * sum(p.nbytes for p in self.denoiser.parameters() if p.requires_grad)  # gradients and Adam's moments
        return "full" if whole < AUTO_SHARE * (free_memory(first.device) - to_come) else "replay"

    def _saved(self, part: Part, i: int, x: Tensor) -> int:
        """Bytes that the graph of step i keeps."""
        sizes: list[int] = []
        params = {p.untyped_storage().data_ptr() for p in self.denoiser.parameters()}

        def count(x: Tensor) -> None:
            """Nothing is kept: nobody walks backward here, and a node that holds its own output would never be freed."""
            sizes.append(0 if x.untyped_storage().data_ptr() in params else x.nbytes)

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            self._run(part, i, State(x.detach().clone().requires_grad_(i == len(self.pairs))))
        return sum(sizes)


@dataclass(frozen=True)
class Precision:
    """The autocast that a step began in, to be entered again where the replay runs: outside of it."""

    device: str
    enabled: bool
    dtype: Any

    @staticmethod
    def now(device: torch.device) -> "Precision":
        return Precision(device.type, torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type))

    def __call__(self, cache: bool = True) -> AbstractContextManager:
        """Without `cache` where there is no graph: a weight that was cast there must not be taken for one that has a gradient."""
        return torch.autocast(self.device, self.dtype, self.enabled, cache)


def free_memory(device: torch.device) -> float:
    """Bytes that can still be had on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        with open("/proc/meminfo") as lines:
            return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except OSError:  # no Linux: nothing is known
        return 0.0
