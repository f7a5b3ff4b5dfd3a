"""Where the jobs of all studies of a folder lie. A job is done when its small JSON is there, and not before.

    DIR/studies.json                 scale, data, start, version: what everything in the folder has in common, by content
    DIR/work/train-mmd-1f0c.../      what the command left (its --out)
    DIR/work/train-mmd-1f0c....json  the command, its seconds, and what it printed as JSON: it is done
    DIR/work/train-mmd-1f0c....log   what it told
    DIR/mmd-table1/table.html        what came out

Jobs are known by their command and those of their inputs, so that studies share them, and a study that is called again goes on.
"""

import fcntl
import hashlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from percepta._version import __version__
from percepta.data import open_source
from percepta.data.domains import find_domains
from percepta.data.open import domain_folders
from percepta.studies.engine.study import OUT, At, Job
from percepta.training.folder import write_json

IDENTITY = "studies.json"
SPOKEN = {  # the rest are flags
    "percepta": "Percepta",
    "fingerprint": "images with the fingerprint",
    "weights": "weights behind --init with the sha256",
}
# the fingerprints of all sets of these flags that were used here, by name: a study may add one
ADDED = {"held_out": "--held-out", "targets": "--target"}


class Store:
    """The folder of one or several studies; `open` before anything is run, `close` afterwards."""

    def __init__(self, root: Path) -> None:
        self.root, self.work = root, root / "work"
        self._lock: IO[str] | None = None

    def open(self, at: At, resume: bool = False) -> None:
        """Take the folder for work at this scale; refuse one that holds another scale's, or is in use."""
        if resume and not (self.root / IDENTITY).is_file():
            raise ValueError(f"--resume: {self.root} holds no studies to go on with")
        if self.root.is_dir() and any(self.root.iterdir()) and not (self.root / IDENTITY).is_file():
            raise ValueError(f"{self.root} is not empty and holds no studies: give another --out")
        now = identity(at)
        if (self.root / IDENTITY).is_file():
            now = check_identity(self.root, now)
        self.work.mkdir(parents=True, exist_ok=True)
        self._lock = (self.root / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise ValueError(
                f"another study is at work in {self.root}: wait for it, or give another --out (it then shares nothing)"
            ) from error
        write_json(self.root / IDENTITY, now)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def lock(self) -> int:
        """For children: the folder stays taken until the last of them has left, even where this process is killed."""
        assert self._lock is not None, "the folder is not open"
        return self._lock.fileno()

    def folder(self, job: Job) -> Path:
        return self.work / job.name

    def words(self, job: Job) -> list[str]:
        """The command as it is run, without `percepta`."""
        out = str(self.folder(job))
        return [w.replace(OUT, out) if isinstance(w, str) else str(self.folder(w)) for w in job.words]

    def command(self, job: Job) -> str:
        """As a user would type it."""
        return shlex.join(["percepta", *self.words(job)])

    def file(self, job: Job, ending: str) -> Path:
        return self.work / f"{job.name}.{ending}"

    def record(self, job: Job) -> dict[str, Any] | None:
        """What a finished job left; None where it is not done. A damaged record is no record: the job is done again."""
        try:
            found = json.loads(self.file(job, "json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) and "seconds" in found else None

    def finish(self, job: Job, seconds: float, result: Any) -> dict[str, Any]:
        """The record, whole or not at all."""
        spent = round(self.spent(job) + seconds, 2)
        record = {"command": self.command(job), "seconds": spent, "percepta": __version__, "result": result}
        write_json(self.file(job, "json"), record)
        self.file(job, "time").unlink(missing_ok=True)
        return record

    def spent(self, job: Job) -> float:
        """Seconds of earlier attempts that were interrupted."""
        try:
            return float(self.file(job, "time").read_text())
        except (FileNotFoundError, ValueError):
            return 0.0

    def spend(self, job: Job, seconds: float) -> None:
        self.file(job, "time").write_text(f"{self.spent(job) + seconds:.2f}\n")


def identity(at: At) -> dict[str, Any]:
    """What all work in a folder has in common: images and weights by their content, so that changed ones are not taken for the old ones."""
    return {
        "percepta": __version__, "scale": at.scale, "data": at.data, "size": at.size, "init": at.init,
        "fingerprint": content(at.data, at.size), "weights": at.init and weights_behind(Path(at.init)),
        **{key: {name: content(data_of(name), at.size) for name in found}
           for key, found in (("held_out", (at.held_out,) if at.held_out else ()), ("targets", at.targets))},
    }  # fmt: skip


def content(data: str, size: int) -> str:
    """The fingerprint of a set of images; of a folder that holds two domains those of all of its sets."""
    if not Path(data).is_dir() or domain_folders(Path(data)) is None:
        return open_source(data, size).fingerprint
    found = find_domains(data)
    parts = (found.train_a, found.train_b, found.test_a, found.test_b)
    return " ".join(open_source(part, size).fingerprint for part in parts if part is not None)


def data_of(target: str) -> str:
    """Behind NAME=, where a set of images was given with one."""
    name, sign, data = target.partition("=")
    return data if sign and name.isalnum() else target


def weights_behind(init: Path) -> str:
    """sha256 of what --init gives to a training: weights and configurations, names and bytes. A run's log and checkpoints are none of it."""
    parts, total = sorted(_parts(init)), hashlib.sha256()
    if not parts:
        raise ValueError(f"--init {init}: there are no weights")
    for name, file in parts:
        with file.open("rb") as opened:
            total.update(f"{name}\t{hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _parts(init: Path) -> Iterator[tuple[str, Path]]:
    folder = init / "model" if (init / "model" / "model_index.json").is_file() else init
    for file in folder.rglob("*"):
        if file.is_file() and file.suffix in (".json", ".safetensors", ".bin"):
            yield str(file.relative_to(folder)), file
    if not (folder / "model_index.json").is_file():  # a bare model: its scheduler may lie beside it
        places = (folder.parent / "scheduler" / "scheduler_config.json", folder.parent / "scheduler_config.json")
        yield from (("beside", file) for file in places if file.is_file())


def check_identity(root: Path, now: dict[str, Any]) -> dict[str, Any]:
    """The identity of the folder from now on; ValueError where it was begun with something else."""
    try:
        was = json.loads((root / IDENTITY).read_text())
    except ValueError as error:
        raise ValueError(f"{root / IDENTITY} is damaged: give another --out ({error})") from error
    changed = [
        f"{SPOKEN.get(key, f'--{key}')} {_short(was.get(key))} (now {_short(value)})"
        for key, value in now.items()
        if key not in ADDED
        and was.get(key) != value
        and (key in was or key != "weights")  # a folder may be older than that it is kept
    ]
    held = {key: was.get(key, {}) for key in ADDED}
    changed += [
        f"{flag} {name} with the fingerprint {_short(held[key][name])} (now {_short(value)})"
        for key, flag in ADDED.items()
        for name, value in now[key].items()
        if held[key].get(name, value) != value
    ]
    if changed:
        raise ValueError(f"{root} holds studies with {', '.join(changed)}: go on as they were begun, or give another --out")
    return {**now, **{key: held[key] | now[key] for key in ADDED}}


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
