"""Captions where they are found: in a line of metadata, in a NAME.txt beside NAME.png, in a member of a shard."""

from pathlib import Path
from typing import Any

MAX_BYTES = 2**16  # of one caption
KEYS = ("text", "caption")  # what a caption is called in metadata and in columns


def caption_of(row: dict[str, Any], where: str) -> str | None:
    """The caption in a line of metadata, whichever name it has there."""
    found = next((row[key] for key in KEYS if row.get(key) is not None), None)
    if found is not None and not isinstance(found, str):
        raise ValueError(f"{where}: a caption is a text, got {found!r:.80}")
    return found


def caption_in(data: bytes, where: str) -> str:
    """The caption that a .txt holds: one text, whatever its lines."""
    try:
        return " ".join(data.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: is no text in UTF-8: {error}") from error


def caption_beside(image: Path) -> str | None:
    """The text of NAME.txt beside NAME.png; None where there is none."""
    file = image.with_suffix(".txt")
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise ValueError(f"{file}: is longer than {MAX_BYTES:,} bytes, too much for a caption")
    return caption_in(data, str(file))
