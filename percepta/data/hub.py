"""Hugging Face datasets: a folder written by `save_to_disk`, or `hf:NAME[:SPLIT]` from the local cache. Nothing is downloaded."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from percepta.data.captions import KEYS
from percepta.data.image import BadImage, Reading, read_bytes, read_image
from percepta.data.source import Item, Source, hash_bytes


def is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or ((path / "state.json").is_file() and (path / "dataset_info.json").is_file())


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError("Hugging Face datasets need the package datasets: pip install 'percepta[data]'") from error
    return datasets


class HuggingFace(Source):
    """The image column of one split, decoded by our own reader; labels from the ClassLabel column, or from one named label.

    `place` is a saved folder or a name in the cache. Pickles hold it alone: workers open the dataset themselves.
    """

    def __init__(self, place: str, split: str | None, cached: bool, reading: Reading | None = None) -> None:
        self.place, self.split, self.cached, self.reading = place, split, cached, reading or Reading()
        self._rows: Any = None
        features = self.rows.features
        module = _datasets()
        images = [name for name, kind in features.items() if isinstance(kind, module.Image)]
        if len(images) != 1:
            raise ValueError(f"{place}: needs exactly one image column, has {images or 'none'} among {list(features)}")
        self.image = images[0]
        classes = [name for name, kind in features.items() if isinstance(kind, module.ClassLabel)]
        if len(classes) > 1 and "label" not in classes:
            raise ValueError(f"{place}: several class columns ({', '.join(classes)}), none named label: rename the one to use")
        self.label = ("label" if "label" in classes else classes[0]) if classes else None
        self.class_names = tuple(features[self.label].names) if self.label else ()
        self.labels = tuple(self.rows[self.label]) if self.label else None
        if self.labels is not None and min(self.labels, default=0) < 0:
            raise ValueError(f"{place}: {sum(v < 0 for v in self.labels)} rows have no label (-1); drop the column or those rows")

    @classmethod
    def from_disk(cls, path: Path, reading: Reading | None = None) -> "HuggingFace":
        return cls(str(path), None, False, reading)

    @classmethod
    def from_cache(cls, spec: str, reading: Reading | None = None) -> "HuggingFace":
        name, _, split = spec.partition(":")
        return cls(name, split or "train", True, reading)

    @cached_property
    def texts(self) -> tuple[str | None, ...] | None:
        """The column `text`, or `caption`."""
        columns = {name: getattr(kind, "dtype", None) for name, kind in self.rows.features.items()}
        found = next((name for name in KEYS if columns.get(name) in ("string", "large_string")), None)
        return None if found is None else tuple(self.rows[found])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_rows": None}

    @property
    def rows(self) -> Any:
        if self._rows is None:
            rows = self._open()
            columns = [name for name, kind in rows.features.items() if isinstance(kind, _datasets().Image)]
            for column in columns:
                rows = rows.cast_column(column, _datasets().Image(decode=False))
            self._rows = rows
        return self._rows

    def _open(self) -> Any:
        datasets = _datasets()
        if self.cached:
            return self._open_cached(datasets)
        found = datasets.load_from_disk(self.place)
        if isinstance(found, datasets.DatasetDict):
            if "train" not in found:
                raise ValueError(f"{self.place}: has the splits {', '.join(found)} but no train; name one of these folders")
            return found["train"]
        return found

    def _open_cached(self, datasets: Any) -> Any:
        """From the cache, with the library offline: it would ask the hub even for what it has."""
        before, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
        try:
            return datasets.load_dataset(self.place, split=self.split)
        except (OSError, ValueError, LookupError) as error:
            raise ValueError(
                f"hf:{self.place}: is not in the local cache with the split {self.split} ({type(error).__name__}: {error}); "
                "load it once with datasets.load_dataset, or save it with save_to_disk and name the folder"
            ) from error
        finally:
            datasets.config.HF_HUB_OFFLINE = before

    def __len__(self) -> int:
        return len(self.rows)

    def _bytes(self, index: int) -> bytes:
        cell = self.rows[index][self.image]
        if cell is None:
            raise BadImage(self._name(index), "missing", "has no image")
        if cell["bytes"] is not None:
            return cell["bytes"]
        return read_bytes(Path(cell["path"]), self._name(index), self.reading.max_bytes)

    def _name(self, index: int) -> str:
        return f"{self.place}[{index}]"

    def read(self, index: int) -> Item:
        decoded = read_image(self._bytes(index), self._name(index), self.reading)
        label = None if self.labels is None else self.labels[index]
        return Item(decoded.image, label, self._name(index), decoded.format, decoded.changes)

    def encoded(self, index: int) -> tuple[str, bytes]:
        return self._name(index), self._bytes(index)

    def entries(self) -> Iterator[tuple[str, int, str, int | None]]:
        for index in range(len(self)):
            data = self._bytes(index)
            yield str(index), len(data), hash_bytes(data), None if self.labels is None else self.labels[index]
