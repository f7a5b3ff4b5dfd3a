"""Typed command lines: a dataclass is a command, its fields are the flags, their docstrings the help.

tyro parses; a misspelt flag is answered in one line that names the nearest one.
"""

import contextlib
import dataclasses
import difflib
import io
import os
import re
import sys
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import tyro

T = TypeVar("T")


class Usage(ValueError):
    """Wrong use: one line, exit code 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`, did you mean X?` or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]}?" if close else ""


def parse(command: type[T], args: Sequence[str], prog: str, default: T | None = None, description: str | None = None) -> T:
    """The command with its flags filled in; Usage where they do not fit."""
    if any(a in ("-h", "--help") for a in args):
        return _tyro(command, args, prog, default, description)
    _check_flags(command, args, prog)
    args = list(_as_values(command, args))
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return _tyro(command, args, prog, default, description)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise Usage(f"{prog}: {_with_choices(command, _plain(errors.getvalue()))} (see {prog} --help)") from None


def _tyro(command: type[T], args: Sequence[str], prog: str, default: T | None, description: str | None) -> T:
    # two calls: tyro tells "no default" from a default of None by a sentinel of its own
    if default is None:
        return tyro.cli(command, args=list(args), prog=prog, description=description, config=(tyro.conf.OmitArgPrefixes,))
    return tyro.cli(
        command, args=list(args), prog=prog, description=description, default=default, config=(tyro.conf.OmitArgPrefixes,)
    )


def _check_flags(command: type, args: Sequence[str], prog: str) -> None:
    known = set(flags_of(command))
    for arg in args:
        flag = arg.split("=")[0].replace("_", "-")
        if re.match(r"--?[a-zA-Z]", flag) and flag not in known:
            raise Usage(f"{prog}: there is no flag {arg.split('=')[0]}{nearest(flag, known)} (see {prog} --help)")


def flags_of(command: type) -> Iterable[str]:
    """Every flag of a command: its fields, those of nested records, and the --no- form of switches."""
    hints = typing.get_type_hints(command)
    for field in dataclasses.fields(command):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from flags_of(kind)  # pyright: ignore[reportArgumentType]
        else:
            flag = field.name.replace("_", "-")
            yield f"--{flag}"
            if kind in (bool, bool | None):
                yield f"--no-{flag}"


def _undecided(command: type) -> Iterable[str]:
    hints = typing.get_type_hints(command)
    for field in dataclasses.fields(command):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from _undecided(kind)  # pyright: ignore[reportArgumentType]
        elif kind == bool | None:
            yield f"--{field.name.replace('_', '-')}"


def _as_values(command: type, args: Sequence[str]) -> Iterable[str]:
    """Switches with a default of their own: `--clip` is `--clip True`, and `--no-clip` is `--clip False`, which tyro knows alone."""
    switches = set(_undecided(command))
    for arg, after in zip(args, [*args, ""][1:], strict=True):
        flag = arg.replace("_", "-")
        if flag.replace("--no-", "--", 1) in switches and flag.startswith("--no-"):
            yield from (flag.replace("--no-", "--", 1), "False")
        else:
            yield arg
            if flag in switches and after not in ("True", "False", "None"):
                yield "True"


def _with_choices(command: type, said: str) -> str:
    """What a flag that is missing may be, where that is a short list."""
    missing = re.fullmatch(r"--(\S+) is missing", said)
    kind = typing.get_type_hints(command).get(missing.group(1).replace("-", "_")) if missing else None
    return f"{said}: {', '.join(typing.get_args(kind))}" if typing.get_origin(kind) is typing.Literal else said


def _plain(boxed: str) -> str:
    """tyro's framed message as one line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", boxed)
    words = [re.sub(r"[╭╮╰╯│─┌┐└┘├┤━]+|-{3,}", " ", line).strip() for line in text.splitlines()]
    kept = [
        w
        for w in words
        if w and not w.lower().startswith(("for full helptext", "parsing error", "required options", "value error"))
    ]
    line = " ".join(" ".join(kept).split())
    if line.startswith("Missing from "):
        missing = [part.split()[0] for part in line.partition(": ")[2].split("(required)")[:-1]]
        return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    line = re.sub(r"^Invalid choice (?=invalid choice)", "", line)
    return re.sub(r" Argument helptext:.*$", "", line).removeprefix("Error parsing ") or "the arguments do not fit"


def check_folder(path: Path, asked: str) -> None:
    """Usage where a folder cannot be made, or written into, here: known before hours of work, not after."""
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not there.is_dir():
        raise Usage(f"{asked}: {there} is a file, a folder is needed")
    if not os.access(there, os.W_OK | os.X_OK):
        raise Usage(f"{asked}: the folder {there} cannot be written to")


def to_stdout(text: str) -> None:
    """A command's result; everything else goes to stderr."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()
