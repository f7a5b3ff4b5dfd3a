"""Where and in which precision a step runs: device, autocast, memory layout, compilation."""

import shutil
import sysconfig
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import nn

CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # modes of torch.compile that record them on a GPU
DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto` is CUDA, then Apple's MPS, then the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                "--device cuda was asked for, but torch sees no CUDA device; see `percepta doctor`, or use --device cpu"
            )
        return torch.device("cuda", local_rank)
    if name not in ("cpu", "mps"):
        raise ValueError(f"--device {name!r} is not known: auto, cpu, cuda or mps")
    return torch.device(name)


def check_precision(mixed: str, device: torch.device) -> None:
    if mixed not in DTYPES:
        raise ValueError(f"--mixed-precision {mixed!r} is not known: {', '.join(DTYPES)}")
    if mixed == "fp16" and device.type != "cuda":
        raise ValueError(
            f"--mixed-precision fp16 needs a CUDA device (on {device.type} it is emulated, a thousand times slower); use bf16"
        )
    if mixed == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError("this GPU has no bf16; use --mixed-precision fp16")


def autocast(mixed: str, device: torch.device) -> AbstractContextManager:
    dtype = DTYPES[mixed]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def compile_network(network: nn.Module, device: torch.device, mode: str | None) -> bool:
    """Compile in place (names of parameters stay). Off by itself, with a warning, where no compiler can be found."""
    missing = missing_compiler(device)
    if missing:
        warnings.warn(f"--compile is off: {missing}", stacklevel=2)
        return False
    network.compile(mode=mode)
    return True


def walk_backward_again() -> None:
    """Networks that are compiled from now on keep what the backward pass saved, so that it can be walked once per term.

    By default a compiled backward pass gives its buffers away, and refuses to run twice. The numbers are the same; memory is a little more.
    """
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False  # pyright: ignore[reportPrivateImportUsage]


def missing_compiler(device: torch.device) -> str | None:
    if device.type == "mps":
        return "torch.compile is not reliable on MPS"
    if device.type == "cuda":
        try:
            import triton  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError:
            return "triton is not installed (pip install triton)"
        return None
    if not (shutil.which("g++") or shutil.which("clang++")):
        return "no C++ compiler on PATH (apt install g++)"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python's headers are missing (apt install python3-dev)"
    return None


def memory_mib(device: torch.device) -> float:
    """Peak memory so far: of the allocator on a GPU, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
