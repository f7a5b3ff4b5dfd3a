"""From what a user types after --data to a Source.

`shapes`, `shapes:size=16,labels=shape`, a folder of images, a .npz file, a folder of tar shards or a brace pattern of them
(`shards-{000..009}.tar`), a saved Hugging Face dataset or `hf:NAME[:SPLIT]` from the local cache.
"""

import difflib
from dataclasses import fields
from pathlib import Path

from percepta.absent import absent
from percepta.data.hub import HuggingFace, is_saved_dataset
from percepta.data.image import Reading
from percepta.data.layouts import Npz, folder_names, open_folder
from percepta.data.shapes import Shapes
from percepta.data.shards import Shards, expand
from percepta.data.source import Pairs, Source

DOMAIN_FOLDERS = (("A", "B"), ("trainA", "trainB"))
TEST_FOLDERS = {"testA", "testB"}


def open_source(spec: str | Path, size: int | None = None, reading: Reading | None = None) -> Source:
    """One set of images. `size` is what sources that draw at any size use unless the spec says otherwise."""
    text = str(spec)
    if is_shapes(text):
        return _shapes(text, size)
    if text.startswith("hf:"):
        return HuggingFace.from_cache(text[3:], reading)
    if "{" in Path(text).name:
        return Shards(expand(text), reading)
    path = Path(text)
    if not path.exists():
        raise ValueError(absent(path))
    if path.is_file():
        if path.suffix == ".npz":
            return Npz(path)
        if path.suffix == ".tar":
            return Shards([path], reading)
        raise ValueError(f"{path}: is a file; data is a folder of images, a .npz, a .tar of images, hf:NAME or shapes")
    pair = domain_folders(path)
    if pair is not None:
        raise ValueError(
            f"{path}: holds two domains ({pair[0]}/ and {pair[1]}/): name one of them ({path / pair[1]}), or use both for translation "
            f"(percepta train ladiffgan --source {path})"
        )
    if is_saved_dataset(path):
        return HuggingFace.from_disk(path, reading)
    tars = sorted(path.glob("*.tar"))
    return Shards(tars, reading) if tars else open_folder(path, reading)


def open_pairs(spec: str | Path, other: str | Path | None = None, size: int | None = None, reading: Reading | None = None) -> Pairs:
    """Two unpaired domains: a folder with A/ and B/ (or trainA/ and trainB/), two sources, or `shapes` (outline to filled)."""
    if other is not None:
        return Pairs(open_source(spec, size, reading), open_source(other, size, reading))
    a, b = both_domains(str(spec))
    return Pairs(open_source(a, size, reading), open_source(b, size, reading))


def both_domains(text: str) -> tuple[str, str]:
    """The two domains that one name stands for, A and B, each as `open_source` takes it."""
    if is_shapes(text):
        if "domain=" in text:
            raise ValueError(f"{text}: a pair of domains holds both; leave the domain out, or name two sources")
        return shapes_text(text, domain="outline"), shapes_text(text, domain="filled")
    path = Path(text)
    if not path.exists():
        raise ValueError(absent(path))
    pair = domain_folders(path) if path.is_dir() else None
    if pair is not None:
        return str(path / pair[0]), str(path / pair[1])
    names = folder_names(path) if path.is_dir() else ()
    one = next((name for pair in DOMAIN_FOLDERS for name in pair if name in names), None)
    raise ValueError(
        f"{path}: translation needs two domains: a folder with A/ and B/ (or trainA/ and trainB/), or two paths, --source and --target"
        + (
            ""
            if one is None
            else f"; it holds {one}/ without the other one, beside {', '.join(n for n in names if n != one) or 'nothing'}"
        )
    )


def domain_folders(path: Path) -> tuple[str, str] | None:
    """The two domain folders, where the layout is that of unpaired translation. Two classes named A and B need metadata.jsonl."""
    if (path / "metadata.jsonl").is_file():
        return None
    names = set(folder_names(path))
    if names - TEST_FOLDERS == {"A", "B"}:
        return DOMAIN_FOLDERS[0]
    return DOMAIN_FOLDERS[1] if names >= set(DOMAIN_FOLDERS[1]) else None


def is_shapes(text: str) -> bool:
    return text == "shapes" or text.startswith("shapes:")


def shapes_text(text: str, **options: str) -> str:
    """These shapes with other options."""
    parts = [part.partition("=") for part in text.partition(":")[2].split(",") if part]
    said = {key: value for key, _, value in parts}
    return "shapes:" + ",".join(f"{key}={value}" for key, value in {**said, **options}.items())


def _shapes(text: str, size: int | None) -> Shapes:
    kinds = {field.name: type(field.default) for field in fields(Shapes)}
    options: dict[str, int | str] = {} if size is None else {"size": size}
    for part in filter(None, text.partition(":")[2].split(",")):
        key, _, value = part.partition("=")
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, 1)
            raise ValueError(
                f"{text}: unknown option {key!r}" + (f"; did you mean {near[0]}?" if near else "") + f" Known: {', '.join(kinds)}"
            )
        try:
            options[key] = int(value) if kinds[key] is int else value
        except ValueError as error:
            raise ValueError(f"{text}: {key} must be a whole number, got {value!r}") from error
    return Shapes(**options)  # pyright: ignore[reportArgumentType]
