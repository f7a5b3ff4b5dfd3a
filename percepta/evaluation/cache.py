"""The feature cache: what a pass has computed of each chunk of images, one file per chunk and layer.

    CACHE/told/KEY.json                  what reading the chunk's images told
    CACHE/NAME-LAYER-IDENTITY/KEY.rows   their rows of features

KEY is the chunk's content and its way to pixels (imageset.py), IDENTITY the extractor's weights, resize, precision and code: another of these is
another file, never a wrong hit, and sets that share chunks share files. A file is an array or a text followed by 16 bytes of its hash, written
beside and renamed: it is there as a whole or not at all, and one that has changed since is computed again.
"""

import hashlib
import io
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from percepta.data.source import hash_of
from percepta.evaluation.imageset import Chunk, Told

SEAL = 16  # bytes of hash after the content
STALE = 3600.0  # seconds after which a file half written belongs to nobody


class Store:
    """The files of one cache folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def unit(name: str, layer: str, identity: str) -> str:
        """The folder of a layer's rows."""
        return f"{re.sub(r'[^A-Za-z0-9.]+', '-', f'{name}-{layer}')}-{hash_of(identity, name, layer)[:16]}"

    def path(self, unit: str, chunk: Chunk) -> Path:
        return self.folder / unit / f"{chunk.key}.rows"

    def told_path(self, chunk: Chunk) -> Path:
        return self.folder / "told" / f"{chunk.key}.json"

    def told(self, chunk: Chunk) -> list[Told] | None:
        """None where there is none, or it is damaged."""
        data = unsealed(self.told_path(chunk))
        if data is None:
            return None
        told = [_told(one) for one in json.loads(data)]
        return told if len(told) == chunk.stop - chunk.start else None

    def rows(self, unit: str, chunk: Chunk, count: int) -> Float32[np.ndarray, "n d"] | None:
        """The rows of the chunk's `count` readable images; None where there are none, or they are damaged."""
        data = unsealed(self.path(unit, chunk))
        if data is None:
            return None
        rows = np.load(io.BytesIO(data), allow_pickle=False)
        return rows if rows.dtype == np.float32 and rows.ndim == 2 and len(rows) == count else None

    def write_told(self, chunk: Chunk, told: Sequence[Told]) -> None:
        write_sealed(self.told_path(chunk), json.dumps([asdict(one) for one in told]).encode())

    def write_rows(self, unit: str, chunk: Chunk, rows: Float32[np.ndarray, "n d"]) -> None:
        out = io.BytesIO()
        np.save(out, rows, allow_pickle=False)
        write_sealed(self.path(unit, chunk), out.getvalue())

    def sweep(self) -> None:
        """Remove what killed writers have left."""
        for file in self.folder.glob("*/.*.tmp"):
            try:
                if time.time() - file.stat().st_mtime > STALE:
                    file.unlink()
            except FileNotFoundError:
                continue  # another process swept it


def unsealed(path: Path) -> bytes | None:
    """The content, None where there is no file or its hash is wrong."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{path}: the feature cache cannot be read: {error.strerror or error}") from error
    content, seal = data[:-SEAL], data[-SEAL:]
    return content if len(data) > SEAL and _seal(content) == seal else None


def write_sealed(path: Path, content: bytes) -> None:
    """Write beside, reach the disk, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.write(_seal(content))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(
            f"{path}: the feature cache cannot be written: {error.strerror or error}; name another folder (--cache or PERCEPTA_CACHE)"
        ) from error


def _seal(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=SEAL).digest()


def _told(value: dict) -> Told:
    """From JSON, where tuples are lists."""
    (h, w), (height, width), bad = value["size"], value["shape"], value["bad"]
    return Told(
        value["format"],
        tuple(value["changes"]),
        (h, w),
        (height, width),
        value["pixels"],
        None if bad is None else (bad[0], bad[1]),
    )
