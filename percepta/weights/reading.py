"""Weights from files, without running what the files may contain.

safetensors are read as they are. Anything pickled (.pt, .pth, .bin, .ckpt) goes through torch.load(weights_only=True) in a process of its
own, with a time limit and an address-space limit where the system has one, which hands tensors back as safetensors. Archives are
checked before they are opened: no member may leave the folder, be a link, or unpack to a thousand times its size.
"""

import json
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar")
MAX_RATIO = 200  # weights hardly compress; archives of zeros do, by 1000
MAX_MEMBERS = 100_000
SMALL = 64 * 2**20  # below this many bytes a high ratio harms nobody

READER = r"""
import importlib.util, sys, torch
from safetensors.torch import save_file
source, target = sys.argv[1], sys.argv[2]
if importlib.util.find_spec("resource"):  # not on Windows; the time limit holds everywhere
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]), int(sys.argv[3])))
try:
    loaded = torch.load(source, map_location="cpu", weights_only=True)
except Exception as error:
    sys.exit("refused: " + (str(error).strip().splitlines() or [type(error).__name__])[0][:300])
tensors, seen = {}, set()
def walk(value, name):
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().contiguous().clone()
    elif isinstance(value, dict) and id(value) not in seen:
        seen.add(id(value))
        for key, part in value.items():
            walk(part, f"{name}.{key}" if name else str(key))
walk(loaded, "")
save_file(tensors, target)
"""


def read_weights(path: str | Path, timeout: float = 600.0) -> dict[str, Tensor]:
    """All tensors of a file by name, on the CPU. Nested dictionaries are joined with dots; what is no tensor is left out."""
    path = Path(path)
    if path.is_dir():
        path = _weights_in(path)
    if not path.is_file():
        raise ValueError(f"no file {path}")
    name = path.name
    if name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix in PICKLED:
        return _read_pickled(path, timeout)
    raise ValueError(f"weights are .safetensors, .safetensors.index.json, .npz, or (checked) {', '.join(PICKLED)}; got {name}")


def _weights_in(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors.index.json")) or sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise ValueError(f"{folder} holds {len(found)} weight files in safetensors; give the file")
    return found[0]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); fetch or convert it again") from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The shards that an index names, each a plain file beside it, and exactly the tensors it promises."""
    try:
        names = json.loads(index.read_text())["weight_map"]
        files = sorted(set(names.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of safetensors: {error}") from error
    for name in files:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} names the shard {name!r}: shards lie beside their index, without a path, as .safetensors")
    tensors: dict[str, Tensor] = {}
    for name in files:
        shard = index.parent / name
        if not shard.is_file():
            raise ValueError(f"the shard {name} that {index.name} names is missing in {index.parent}")
        tensors |= _read_safetensors(shard)
    missing = set(names) - set(tensors)
    if missing:
        raise ValueError(
            f"{index} promises {len(missing)} tensors that its shards do not hold: {', '.join(sorted(missing)[:3])} ..."
        )
    return {name: tensors[name] for name in names}


def _read_npz(path: Path) -> dict[str, Tensor]:
    check_zip(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise ValueError(f"{path} is refused: {error}. Only plain number arrays are read") from error


def _read_pickled(path: Path, timeout: float) -> dict[str, Tensor]:
    if zipfile.is_zipfile(path):
        check_zip(path)
    elif tarfile.is_tarfile(path):
        check_tar(path)
    limit = 16 * 2**30 + 6 * path.stat().st_size
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "weights.safetensors"
        # -I: neither the working directory nor the user's site packages can put a module in the way
        command = [sys.executable, "-I", "-W", "ignore", "-c", READER, str(path.resolve()), str(target), str(limit)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd=scratch,
                                  env={k: v for k, v in os.environ.items() if k != "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"})  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ValueError(
                f"reading {path} took more than {timeout:g} s and was stopped; convert it to safetensors where you trust it"
            ) from None
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise ValueError(
                f"{path} is refused, nothing in it was run: {reason}. It holds more than tensors, or is damaged: "
                "ask its maker for safetensors"
            )
        return _read_safetensors(target)


def check_zip(path: Path) -> None:
    """ValueError where a zip archive is broken, leaves its folder, holds links or unpacks far beyond its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} is not a whole zip archive: {error}") from error
    for member in members:
        _check_name(path, member.filename)
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"{path} is refused: its member {member.filename!r} is a link")
    _check_size(path, len(members), sum(m.file_size for m in members))


def check_tar(path: Path) -> None:
    """As check_zip, for tar archives; devices and fifos are refused too."""
    total = count = 0
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                _check_name(path, member.name)
                if not (member.isfile() or member.isdir()):
                    raise ValueError(f"{path} is refused: its member {member.name!r} is a link or a device")
                count, total = count + 1, total + member.size
                _check_size(path, count, total)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a whole tar archive: {error}") from error


def _check_name(path: Path, name: str) -> None:
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or (len(name) > 1 and name[1] == ":"):
        raise ValueError(f"{path} is refused: its member {name!r} would land outside the folder")


def _check_size(path: Path, members: int, total: int) -> None:
    packed = max(path.stat().st_size, 1)
    if members > MAX_MEMBERS:
        raise ValueError(f"{path} is refused: more than {MAX_MEMBERS:,} members")
    if total > SMALL and total > MAX_RATIO * packed:
        raise ValueError(
            f"{path} is refused: {packed:,} bytes unpack to {total:,} ({total // packed}:1); weights do not compress like that"
        )
