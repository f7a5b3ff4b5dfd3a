"""Several processes under torchrun: the only file that imports torch.distributed.

Data parallel by hand: each rank computes its share of the global loss (its rows over all rows), gradients are summed in flat
buckets. A parameter that got no gradient on a rank counts as zero there, and shares may be
uneven; every rank has at least one row. One process needs none of this and every function here is then the identity.
"""

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

BUCKET_BYTES = 32 * 2**20  # one all-reduce per 32 MiB: few launches, little extra memory
T = TypeVar("T")


class Interrupted(Exception):
    """Raised inside long jobs (sampling, evaluation) at the next safe place after a signal came."""


@dataclass(frozen=True)
class World:
    """This process among all. `rank` 0 is the only one that writes."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0


def launched() -> bool:
    """Whether torchrun (or accelerate launch, or srun with its variables) started this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device_type: str = "cpu", timeout_s: float = 600.0) -> Iterator[World]:
    """Join the process group for the time of the context; a collective that waits longer than `timeout_s` fails with its rank's name.

    Inside another such context it is the same group: a run that trains what it stands on joins once.
    """
    if dist.is_available() and dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
        return
    if not launched():
        yield World()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
    if device_type == "cuda":
        torch.cuda.set_device(local_rank)
    try:
        _meet("nccl" if device_type == "cuda" else "gloo", datetime.timedelta(seconds=timeout_s))
    except RuntimeError as error:
        raise RuntimeError(
            f"rank {os.environ.get('RANK', '?')} of {os.environ['WORLD_SIZE']}: the processes did not all meet within {timeout_s:g} s "
            f"(--dist-timeout); one of them did not start, or cannot reach {os.environ.get('MASTER_ADDR', '?')}: {error}"
        ) from error
    global _patient
    # its own group: a rank that ends is noticed at once, but one that works alone for hours is waited for
    _patient = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=30))
    try:
        yield World(dist.get_rank(), dist.get_world_size(), local_rank)
    finally:
        _patient = None
        dist.destroy_process_group()


def _meet(backend: str, timeout: datetime.timedelta) -> None:
    """Join; after a restart by torchrun under names of its own, for its store still has the addresses of the processes before."""
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restart == "0" or os.environ.get("GROUP_WORLD_SIZE", "1") != "1":  # agents of several machines count restarts by themselves
        dist.init_process_group(backend, timeout=timeout)
        return
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=timeout)))
    dist.init_process_group(
        backend, timeout=timeout, store=dist.PrefixStore(f"restart-{restart}", store), rank=rank, world_size=size
    )


def active() -> bool:
    return not _alone and dist.is_available() and dist.is_initialized()


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process is one of one: what would be shared out over ranks is done here, while the others `wait_for_first`."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def world() -> World:
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0"))) if active() else World()


def _named(error: RuntimeError) -> RuntimeError:
    return RuntimeError(
        f"rank {world().rank} of {world().size} failed in a collective: another rank stopped or is too slow "
        f"(--dist-timeout): {error}"
    )


@torch.no_grad()
def reduce_gradients(params: Sequence[Tensor]) -> None:
    """Sum gradients over all ranks, in place. One that a rank does not have counts as zero; one that none has stays away."""
    if not active():
        return
    try:
        for bucket in _buckets(params):
            there = [p.grad is not None for p in bucket]
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([*(g.reshape(-1) for g in grads), torch.tensor(there).to(grads[0])])
            dist.all_reduce(flat)
            *sums, ranks = flat.split([*(g.numel() for g in grads), len(bucket)])
            counts = [1.0] * len(bucket) if all(there) else ranks.tolist()
            for p, grad, total, count in zip(bucket, grads, sums, counts, strict=True):
                # into the gradient's own memory layout, which is the parameter's: fused optimizers walk both as flat memory
                p.grad = grad.copy_(total.view(p.shape)) if count else None
    except RuntimeError as error:
        raise _named(error) from error


def _buckets(params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for p in params:
        if bucket and (size + p.numel() * p.element_size() > BUCKET_BYTES or p.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(p)
        size += p.numel() * p.element_size()
    if bucket:
        yield bucket


def summed(values: Tensor) -> Tensor:
    """The sum of a small tensor over ranks; no gradient."""
    if active():
        values = values.clone()
        try:
            dist.all_reduce(values)
        except RuntimeError as error:
            raise _named(error) from error
    return values


def broadcast_parameters(tensors: Sequence[Tensor]) -> None:
    """Rank 0's values to all, in place: equal starts whatever each rank did before."""
    if active():
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def barrier() -> None:
    if active():
        try:
            dist.barrier()
        except RuntimeError as error:
            raise _named(error) from error


_patient: Any = None
_alone = False


def wait_for_first() -> None:
    """Wait, however long it takes, for what rank 0 does alone: encoding latents, drawing a grid, exporting."""
    if active():
        try:
            dist.barrier(group=_patient)
        except RuntimeError as error:
            raise _named(error) from error


def agreed(values: Tensor) -> Tensor:
    """The sum of a small CPU tensor over ranks, for which a rank waits however long another works alone."""
    if active():
        values = values.clone()
        try:
            dist.all_reduce(values, group=_patient)
        except RuntimeError as error:
            raise _named(error) from error
    return values


def by_first(work: Callable[[], T], doing: str) -> T | None:
    """What `work` gives on rank 0, None on the others, which wait for it (encoding latents, training an encoder, reading a reference).

    A signal that comes meanwhile to rank 0 sends all of them home, Interrupted `doing`.
    """
    made, stopped = None, False
    if world().first:
        try:
            with alone():
                made = work()
        except Interrupted:
            stopped = True
    if agreed(torch.tensor([float(stopped)])).item():
        raise Interrupted(doing)
    return made


def send_bytes(data: bytes | None, source: int) -> bytes:
    """What rank `source` gives as `data`, on every rank; waits as `agreed` does. The others give None."""
    if not active():
        assert data is not None
        return data
    try:
        size = torch.tensor([0 if data is None else len(data)])
        dist.broadcast(size, source, group=_patient)
        sent = torch.empty(int(size), dtype=torch.uint8) if data is None else torch.frombuffer(bytearray(data), dtype=torch.uint8)
        dist.broadcast(sent, source, group=_patient)
    except RuntimeError as error:
        raise _named(error) from error
    return sent.numpy().tobytes()


class _Gather(torch.autograd.Function):
    """All ranks' rows in rank order; the backward sums every rank's gradient of our rows."""

    @staticmethod
    def forward(ctx, x: Tensor, counts: tuple[int, ...]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.counts = counts
        most = max(counts)
        padded = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])]) if len(x) < most else x.contiguous()
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        rank = dist.get_rank()
        first = sum(ctx.counts[:rank])
        return grad[first : first + ctx.counts[rank]], None


def gather_rows(x: Float[Tensor, "n *d"]) -> Float[Tensor, "N *d"]:
    """The rows of all ranks, in rank order, WITH gradient; ranks may have different numbers of rows, none included.

    Every rank then computes the same loss of all rows, and the loop scales it by the rank's share of the rows. The backward pass sums
    the ranks' gradients, the shares add up to one: the kernel batch of a per-batch objective is the global batch and its gradient is
    that of one process, uneven ranks included.
    """
    if not active():
        return x
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64)
    counts[dist.get_rank()] = len(x)
    try:
        sizes = summed(counts.to(x.device)).tolist()
        return _Gather.apply(x, tuple(int(n) for n in sizes))  # pyright: ignore[reportReturnType]
    except RuntimeError as error:
        raise _named(error) from error
