"""Checkpoints that are there or not there, never half, and that say so when a bit of them has changed.

A checkpoint is a folder `checkpoint-<step>` of *.safetensors, state.json and MANIFEST.json. It is written under a temporary name
BESIDE its place (a rename across file systems is a copy, and no longer atomic), every file and the folder are flushed to the disk,
the manifest with the size and sha256 of each file comes last, and one rename commits the whole. Old checkpoints are deleted only
after that: renamed away first, then removed, so that an interrupted deletion never looks like a checkpoint. Hashes are taken from
the bytes on their way to the disk, tensor by tensor: saving needs the memory of the largest tensor, not of a second model.

Nothing here is ever unpickled. One process writes; any number may read.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from percepta.absent import absent

MANIFEST, STATE = "MANIFEST.json", "state.json"
TEMPORARY, DELETED = ".tmp-", ".deleted-"  # prefixes of a save that has not been committed, and of a deletion that has not ended
FORMAT = 1
CHUNK = 1 << 24
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read: the message says which, why, and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved. `extra` names files in the folder that the save did not write: they are reported, and not read."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    path: Path
    extra: tuple[str, ...] = ()


def save(
    folder: str | Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any],
    keep_last: int | None = 2, keep_every: int | None = None, keep_best: int = 0, score: float | None = None,
) -> Path:  # fmt: skip
    """Writes folder/checkpoint-<step> from `tensors` (file stem -> name -> tensor) and a JSON `state`, then deletes old ones.

    Kept are the newest `keep_last` (None: all), multiples of `keep_every` steps, and the `keep_best` lowest scores. If anything
    cannot be written, the older checkpoints are as they were. Tuples in the state are read back as lists, numbers exactly.
    """
    _check(step, tensors, state, keep_last, keep_every, keep_best, score)
    folder = Path(folder)
    target = folder / f"checkpoint-{step}"
    temporary = folder / f"{TEMPORARY}{target.name}-{uuid.uuid4().hex[:8]}"
    doing = "making the folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tidy(folder)
        os.mkdir(temporary)
        files = {}
        for stem, named in tensors.items():
            doing = f"writing {stem}.safetensors"
            files[f"{stem}.safetensors"] = _write(temporary / f"{stem}.safetensors", _safetensors(named))
        doing = f"writing {STATE}"
        files[STATE] = _write(temporary / STATE, [_json(state)])
        doing = f"writing {MANIFEST}"
        _sync(temporary)  # the files are on the disk before a manifest vouches for them
        _write(temporary / MANIFEST, [_render({"format": FORMAT, "step": step, "score": score, "files": files})])
        _sync(temporary)
        doing = "putting it in its place"
        _commit(temporary, target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)  # what is left of it, `tidy` removes at the next save
        raise CheckpointError(_cannot_save(error, target, doing)) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if keep_last is not None:
        _rotate(folder, step, keep_last, keep_every, keep_best)
    return target


def load(path: str | Path) -> Checkpoint:
    """Reads one checkpoint, verified; or the newest good one of a run's folder, with a warning for each damaged newer one."""
    path = Path(path)
    if step_of(path) is not None or (path / MANIFEST).is_file():
        return _read(path)
    checkpoint, skipped = latest_good(path)
    for bad, reason in skipped:
        warnings.warn(f"skipped {bad}: {reason}", stacklevel=2)
    if checkpoint is None:
        reasons = "".join(f"\n  {bad}: {reason}" for bad, reason in skipped)
        raise CheckpointError(f"no checkpoint can be read from {path}{reasons or ': there is no checkpoint-<step> folder in it'}")
    return checkpoint


def latest_good(folder: str | Path) -> tuple[Checkpoint | None, list[tuple[Path, str]]]:
    """The newest checkpoint whose every byte is as it was saved, and the newer ones that are not, each with a line that says why.

    Changes nothing on the disk. A committed save is preferred; one that was complete but for the last rename is better than none.
    """
    folder, skipped = Path(folder), []
    places = [path for _, path in sorted(_listed(folder), reverse=True)]
    for path in places + sorted(folder.glob(f"{TEMPORARY}*")):
        try:
            return _read(path), skipped
        except CheckpointError as error:
            if path in places:
                skipped.append((path, str(error).removeprefix(f"{path}: ")))
    return None, skipped


def tidy(folder: str | Path) -> None:
    """Ends what an interrupted process began: complete saves are committed, others and deletions removed. For the writer only."""
    folder = Path(folder)
    for path in sorted(folder.glob(f"{TEMPORARY}*")):
        try:
            target = folder / f"checkpoint-{_manifest(path)['step']}"
            _verify(path)
        except CheckpointError:
            target = None
        if target is None or target.exists():
            _remove(path)
        else:
            _commit(path, target)
    for path in folder.glob(f"{DELETED}*"):
        _remove(path)


def rotate(folder: str | Path, step: int, keep_last: int, keep_best: int = 0) -> None:
    """Deletes what `save` would have deleted after `step` was written, had it not been interrupted. For the writer only."""
    _rotate(Path(folder), step, keep_last, None, keep_best)


def step_of(path: Path) -> int | None:
    """The step in a checkpoint folder's name."""
    match = re.fullmatch(r"checkpoint-(0|[1-9]\d*)", path.name)
    return int(match[1]) if match else None


# ---- writing


def _check(
    step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any],
    keep_last: int | None, keep_every: int | None, keep_best: int, score: float | None,
) -> None:  # fmt: skip
    if step < 0 or (keep_last is not None and keep_last < 1) or (keep_every is not None and keep_every < 1) or keep_best < 0:
        raise ValueError(f"a checkpoint needs step >= 0, keep_last >= 1, keep_every >= 1, keep_best >= 0; got step {step}, "
                         f"keep_last {keep_last}, keep_every {keep_every}, keep_best {keep_best}")  # fmt: skip
    if score is not None and not math.isfinite(score):
        raise ValueError(f"a checkpoint's score must be finite, got {score}; leave it out where there is none")
    for stem, named in tensors.items():
        if not re.fullmatch(r"[\w][\w.+-]*", stem):
            raise ValueError(f"{stem!r} cannot be the name of a file of tensors: use letters, digits and ._+-")
        for name, x in named.items():
            if name == "__metadata__" or x.dtype not in DTYPES or x.layout != torch.strided or x.device.type == "meta":
                raise ValueError(f"{stem}/{name} cannot be saved: {x.dtype}, {x.layout}, {x.device}; dense tensors of numbers can")
    _check_json(state, "state")


def _check_json(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r}: JSON has text keys only, use str(key)")
            _check_json(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for k, item in enumerate(value):
            _check_json(item, f"{where}[{k}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}: a checkpoint's state holds finite numbers only")
    elif not (value is None or isinstance(value, str | int | float)):
        raise ValueError(f"{where} is a {type(value).__name__}: a checkpoint's state is JSON, put tensors into `tensors`")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _render(manifest: dict[str, Any]) -> bytes:
    """The manifest's bytes: a function of its content, which it hashes, so that a change in any byte shows."""
    body = {k: v for k, v in manifest.items() if k != "self"}
    return _json(body | {"self": hashlib.sha256(_json(body)).hexdigest()})


def _safetensors(named: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, one tensor at a time: 8 bytes of header length, a JSON header, the data."""
    order = sorted(named, key=lambda name: (-named[name].element_size(), name))  # wide types first: every tensor is aligned
    header, offset = {}, 0
    for name in order:
        x = named[name]
        size = x.numel() * x.element_size()
        header[name] = {"dtype": DTYPES[x.dtype], "shape": list(x.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        if named[name].numel():
            yield named[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write(path: Path, parts: Any) -> dict[str, Any]:
    """Writes and flushes one file; its size and the hash of what was meant to be written."""
    digest, size = hashlib.sha256(), 0
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for part in parts:
            view = memoryview(part)
            digest.update(view)
            size += len(view)
            while view:
                view = view[os.write(file, view[:CHUNK]) :]
        os.fsync(file)
    finally:
        os.close(file)
    return {"sha256": digest.hexdigest(), "size": size}


def _sync(folder: Path) -> None:
    """Flushes a folder's list of names."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _commit(temporary: Path, target: Path) -> None:
    """The rename that makes a checkpoint. One of the same step (damaged, or of an earlier try) gives way, unless we fail."""
    old = target.with_name(f"{DELETED}{target.name}-{uuid.uuid4().hex[:8]}")
    replaces = target.exists()
    if replaces:
        os.rename(target, old)
    try:
        os.rename(temporary, target)
    except BaseException:
        if replaces:
            os.rename(old, target)
        raise
    _sync(target.parent)
    if replaces:
        _remove(old)


def _remove(path: Path) -> None:
    """What cannot be removed (a network disk keeps files that someone reads) is no failure: the next `tidy` tries again."""
    try:
        shutil.rmtree(path)
    except OSError as error:
        warnings.warn(f"{path} could not be deleted yet: {error}", stacklevel=3)


def _cannot_save(error: OSError, target: Path, doing: str) -> str:
    reason = error.strerror or str(error)
    try:
        free = f"{shutil.disk_usage(target.parent).free / 2**20:,.0f} MiB free there"
    except OSError as unknown:
        free = f"free space unknown ({unknown.strerror})"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "free space or raise the limit, or choose another folder" if full else "check the disk and the folder's permissions"
    return f"{target} was not saved, {doing}: {reason} ({free}). Older checkpoints are as they were; {advice}, then resume."


def _rotate(folder: Path, step: int, keep_last: int, keep_every: int | None, keep_best: int) -> None:
    """Deletes what no rule keeps. What has no good manifest is neither counted nor deleted; `step` always stays."""
    scores = {}
    for k, path in _listed(folder):
        try:
            scores[k] = _manifest(path)["score"]
        except CheckpointError:  # `latest_good` reports it
            continue
    kept = {step, *sorted(scores)[-keep_last:]} | {k for k in scores if keep_every and k % keep_every == 0}
    kept |= set(sorted((k for k in scores if scores[k] is not None), key=lambda k: (scores[k], k))[:keep_best])
    for k in sorted(set(scores) - kept):
        gone = folder / f"{DELETED}checkpoint-{k}-{uuid.uuid4().hex[:8]}"
        try:
            os.rename(folder / f"checkpoint-{k}", gone)
        except OSError as error:  # the new checkpoint is safe: not a failure of the save
            warnings.warn(f"{folder / f'checkpoint-{k}'} could not be deleted: {error}", stacklevel=3)
        else:
            _remove(gone)


# ---- reading


def _listed(folder: Path) -> list[tuple[int, Path]]:
    """(step, place) of everything that has a checkpoint's name."""
    if not folder.is_dir():
        return []
    return [(step, path) for path in folder.iterdir() if (step := step_of(path)) is not None]


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest, checked against its own hash and against the folder's name."""
    try:
        raw = (path / MANIFEST).read_bytes()
    except OSError as error:
        reason = f"{MANIFEST} cannot be read ({error.strerror}): the save did not end, or the file was lost"
        raise CheckpointError(f"{path}: {reason}") from error
    try:
        manifest = json.loads(raw)
    except ValueError as error:
        raise CheckpointError(f"{path}: {MANIFEST} is damaged: it is not JSON any more") from error
    if not isinstance(manifest, dict) or raw != _render(manifest):
        raise CheckpointError(f"{path}: {MANIFEST} is damaged: it does not fit its own hash")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {manifest.get('format')!r}, but this version reads {FORMAT}: a newer one wrote it")
    files = manifest.get("files")
    if not isinstance(files, dict) or STATE not in files or any(set(f) != {"sha256", "size"} for f in files.values()):
        raise CheckpointError(f"{path}: {MANIFEST} does not list the files of a checkpoint")
    if (step := step_of(path)) is not None and step != manifest["step"]:
        raise CheckpointError(f"{path}: the folder holds step {manifest['step']}: it was renamed; give it its name back")
    return manifest


def _verify(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The manifest, and the names of files that it does not know. Any missing or changed byte is an error."""
    manifest = _manifest(path)
    there = {entry.name for entry in path.iterdir()}
    for name, expected in manifest["files"].items():
        if name != os.path.basename(name) or name not in there:
            raise CheckpointError(f"{path}: {name} is missing")
        try:
            size = (path / name).stat().st_size
            if size != expected["size"]:
                raise CheckpointError(f"{path}: {name} has {size} bytes, {expected['size']} were saved")
            with (path / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"{path}: {name} cannot be read ({error.strerror})") from error
        if digest != expected["sha256"]:
            raise CheckpointError(
                f"{path}: {name} is damaged: sha256 {digest[:12]}... where {expected['sha256'][:12]}... was saved"
            )
    return manifest, tuple(sorted(there - set(manifest["files"]) - {MANIFEST}))


def _read(path: Path) -> Checkpoint:
    if not path.is_dir():
        raise CheckpointError(f"{path}: not a folder" if path.exists() else absent(path, "a checkpoint"))
    tensors = {}
    try:
        manifest, extra = _verify(path)
        for name in manifest["files"]:
            if name != STATE:
                tensors[name.removesuffix(".safetensors")] = load_file(path / name)
        state = json.loads((path / STATE).read_bytes())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return Checkpoint(manifest["step"], tensors, state, path, extra)
