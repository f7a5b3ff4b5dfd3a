"""The command line as users know it: frozen flags, help that reads like a manual page, one-line errors, one JSON object."""

import ast
import dataclasses
import difflib
import importlib
import inspect
import json
import os
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from percepta.cli import COMMANDS, main
from percepta.cli.parse import parse
from percepta.recipes import recipes
from percepta.training.settings import Settings

FROZEN = Path(__file__).parents[1] / "assets" / "cli.txt"
REGENERATE = "PERCEPTA_REGENERATE"  # set it to write tests/assets/cli.txt anew, after a flag was changed on purpose
RECIPES = recipes()
TINY = ["--data", "shapes:length=8", "--size", "8", "--steps", "1", "--batch", "2", "--sample-every", "0", "--sample-num", "2"]


def command_classes() -> dict[str, type]:
    """The record behind each command: `sample` -> Sample, `cache latents` -> Latents. `train` has its recipes instead."""
    out = {}
    for name in COMMANDS:
        module = importlib.import_module(f"percepta.cli.{name}")
        mine = [v for v in vars(module).values() if dataclasses.is_dataclass(v) and v.__module__ == module.__name__]
        out |= {name if cls.__name__.lower() == name else f"{name} {cls.__name__.lower()}": cls for cls in mine}
    return out


CLASSES = command_classes()
HELPS = [*CLASSES, *(f"train {name}" for name in RECIPES)]


def spelt(kind: object) -> str:
    """A type as a reader of a manual page would write it."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if type(None) in typing.get_args(kind):
        return " | ".join(spelt(part) for part in typing.get_args(kind) if part is not type(None)) + " | None"
    if typing.get_origin(kind) is typing.Literal:
        return ",".join(map(str, typing.get_args(kind)))
    return str(kind).replace("typing.", "") if typing.get_args(kind) or not isinstance(kind, type) else kind.__name__


def flags(cls: type) -> Iterator[str]:
    hints = typing.get_type_hints(cls, include_extras=False)
    for field in dataclasses.fields(cls):
        default = "required" if field.default is dataclasses.MISSING else f"default {field.default}"
        raw = typing.get_type_hints(cls, include_extras=True)[field.name]
        positional = typing.get_origin(raw) is typing.Annotated
        name = field.name.upper() if positional else f"--{field.name.replace('_', '-')}"
        yield f"  {name}  {spelt(hints[field.name])}  {default}"


def frozen_text() -> str:
    lines = ["# All flags with their defaults. A change here is a change for users: say so in CHANGELOG.md.", ""]
    for name, cls in CLASSES.items():
        lines += [f"percepta {name}", *flags(cls), ""]
    for name, cls in RECIPES.items():
        lines += [f"percepta train {name}", *flags(cls)]
        changed = cls.settings
        lines += [f"  of all runs, here: --{k.replace('_', '-')}  default {v}" for k, v in changed.items()]
        lines += [f"  sampler of the recipe: {cls.sampler}", ""]
    lines += ["percepta train NAME, all recipes", "  --config  FILE", *flags(Settings), ""]
    return "\n".join(lines)


def undocumented(cls: type) -> list[str]:
    """Fields of a record that no docstring follows."""
    (tree,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    out = []
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
            if not told or not after.value.value.strip():  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
                out.append(node.target.id)
    return out


def help_of(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    try:
        assert main([*command.split(), "--help"]) == 0
    except SystemExit as stop:
        assert stop.code in (0, None)
    return capsys.readouterr().out


def test_commands_and_recipes_are_found() -> None:
    assert set(CLASSES) == {
        "recipes",
        "sample",
        "translate",
        "evaluate",
        "report",
        "export",
        "convert",
        "cache latents",
        "doctor",
        "study",
        "probe",
        "probe flops",
        "probe affinity",
    }
    assert len(RECIPES) >= 4


def test_the_command_line_is_frozen() -> None:
    now = frozen_text()
    if os.environ.get(REGENERATE):
        FROZEN.write_text(now)
    then = FROZEN.read_text()
    change = "\n".join(difflib.unified_diff(then.splitlines(), now.splitlines(), "tests/assets/cli.txt", "now", lineterm="", n=0))
    assert now == then, (
        f"the command line changed; if it is meant, run this test with {REGENERATE}=1 and note it in CHANGELOG.md\n{change}"
    )


@pytest.mark.parametrize("cls", [*CLASSES.values(), *RECIPES.values(), Settings], ids=lambda cls: cls.__name__)
def test_every_flag_says_what_it_is(cls: type) -> None:
    assert dataclasses.fields(cls)
    assert not undocumented(cls)


@pytest.mark.parametrize("command", HELPS)
def test_help_shows_every_flag_and_an_example(command: str, capsys, monkeypatch) -> None:
    text = help_of(command, capsys, monkeypatch)
    assert f"Example: percepta {command}" in text
    kinds = [CLASSES[command]] if command in CLASSES else [RECIPES[command.removeprefix("train ")], Settings]
    for cls in kinds:
        for line in flags(cls):
            name = line.split()[0]
            assert name in text or name.isupper(), f"{name} is not in the help of {command}"


@pytest.mark.parametrize("command", ["", "train", "cache"])
def test_the_overview_names_what_there_is(command: str, capsys, monkeypatch) -> None:
    text = help_of(command, capsys, monkeypatch)
    wanted = {"": list(COMMANDS), "train": list(RECIPES), "cache": ["latents"]}[command]
    assert all(name in text for name in wanted)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("trian ddpm", "train"),
        ("sampel runs/first", "sample"),
        ("train dppm", "ddpm"),
        ("train autoencodr", "autoencoder"),
        ("train", "ddpm"),
        ("train ddpm --stpes 3", "--steps"),
        ("train ddpm --shedule cosine", "--schedule"),
        ("train edm --sigma-mx 80", "--sigma-max"),
        ("train flow --mixed-precison bf16", "--mixed-precision"),
        ("sample runs/first --nmu 3", "--num"),
        ("export run out --ema-lenght 0.1", "--ema-length"),
        ("cache latnets --vae x", "latents"),
        ("probe nowhere --what outliers", "nowhere"),
        ("probe nowhere --what outlier", "outliers"),
        ("probe taef2 --waht outliers", "--what"),
        ("probe taef2 --what interpolation --scales half", "--scales"),
        ("probe affinity nowhere --space domian", "nowhere"),
        ("probe affinity nowhere --levels many", "--levels"),
        ("probe flops --netwrok x", "--network"),
        ("probe flops --network mmdit-xl", "mmdit-xl-2"),
        ("probe flops --layers first", "--layers"),
        ("convert nowhere.pt out --family dit", "nowhere.pt"),
        ("convert nowhere.pt out --famly dit", "--family"),
        ("cache latents --vea x", "--vae"),
        ("doctor --dta x", "--data"),
        ("recipes --jsno", "--json"),
        ("study mmd-tabel1", "mmd-table1"),
        ("study", "missing"),
        ("study mmd-table1 --scael pocket", "--scale"),
        ("study mmd-table1 --scale paper", "--data"),
        ("study mmd-table1 --seeds 0", "--seeds"),
        ("study mmd-table1 --data ./nowhere", "nowhere"),
        ("study mmd-table1 --init ./nowhere", "nowhere"),
        ("study mmd-table1 --resume", "--resume"),
        ("train ddpm --steps many", "--steps"),
        ("train ddpm --steps 0", "--steps"),
        ("train ddpm --predict noise", "--predict"),
        ("sample", "missing"),
        ("sample nowhere --num 0", "--num"),
        ("sample nowhere", "nowhere"),
        ("train ddpm --config nowhere.json", "nowhere.json"),
        ("train ddpm --data ./nowhere", "nowhere"),
        ("doctor --data ./nowhere", "nowhere"),
    ],
)
def test_wrong_use_is_one_line_that_helps(line: str, said: str, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.strip().splitlines()) == 1, told.err
    assert said in told.err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/checkpoint-*"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with the smallest possible run of a diffusion model and of an autoencoder."""
    root = tmp_path_factory.mktemp("runs")
    assert main(["train", "ddpm", *TINY, "--out", str(root / "ddpm")]) == 0
    assert main(["train", "autoencoder", *TINY, "--perceptual", "none", "--out", str(root / "ae")]) == 0
    return root


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("recipes", {"ddpm", "edm", "flow", "autoencoder"}),
        ("study list", {"mmd-table1", "mmd-fig5"}),
        ("study mmd-table9 --plan", {"study", "commands"}),
        ("doctor", {"packages", "devices", "weights"}),
        (
            "probe {runs}/ae --data shapes:length=4 --size 16 --what outliers --out {tmp}/probe",
            {"probe", "numbers", "figures", "protocol"},
        ),
        (
            "probe affinity {runs}/ddpm --data shapes:length=60,labels=shape --space pixels --num 4 --groups 2 --out {tmp}/affinity",
            {"probe", "numbers", "figures", "protocol"},
        ),
        ("probe flops --network mmdit-pocket --size 64", {"probe", "tflop", "gflop_per_image", "asked"}),
        ("doctor --data shapes:length=9,size=8", {"ok", "num_images"}),
        ("sample {runs}/ddpm --num 2 --steps 1 --out {tmp}/grid.png", {"sampler", "steps", "seed", "weights"}),
        ("report {runs}/ddpm --out {tmp}/report.html", {"out", "bytes", "runs", "notes"}),
        ("export {runs}/ddpm {tmp}/exported", {"out", "step"}),
        ("cache latents --data shapes:length=4 --size 8 --vae {runs}/ae --cache {tmp}", {"hit", "path", "encoded"}),
    ],
)
def test_json_is_one_object_and_nothing_else(line: str, keys: set[str], runs: Path, tmp_path: Path, capsys) -> None:
    capsys.readouterr()
    assert main([*line.format(runs=runs, tmp=tmp_path).split(), "--json"]) == 0
    out = capsys.readouterr().out
    assert keys <= set(json.loads(out))


@pytest.mark.parametrize(
    ("words", "clip"),
    [
        ("run", None), ("run --clip", True), ("--clip run", True), ("run --no-clip", False), ("--no-clip run --num 3", False),
        ("run --clip True", True), ("run --clip False", False), ("run --clip=False --num 2", False), ("run --clip --num 2", True),
    ],
)  # fmt: skip
def test_a_switch_with_a_default_of_its_own(words: str, clip: bool | None) -> None:
    found = parse(CLASSES["sample"], words.split(), "percepta sample")
    assert (found.clip, str(found.source)) == (clip, "run")


def test_training_says_nothing_on_stdout(runs: Path, tmp_path: Path, capsys) -> None:
    assert main(["train", "ddpm", *TINY, "--out", str(tmp_path / "quiet")]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "done" in told.err


@pytest.mark.parametrize("argument", ["--version", "-V"])
def test_version(argument: str, capsys) -> None:
    assert main([argument]) == 0
    assert capsys.readouterr().out.startswith("percepta ")
