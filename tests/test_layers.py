"""The rooms of the package: which may import which, as a table, checked against every file.

Imports inside functions count as well: they cost less at start-up, and mean the same dependence.
"""

import ast
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "percepta"

# From the ground up: a room imports itself and rooms that stand above it in this table, and of these only the ones named.
ROOMS: dict[str, tuple[str, ...]] = {
    "_version": (),
    "absent": (),
    "rng": (),
    "path": (),
    "images": (),
    "memory": (),
    "weights": (),
    "distributed": (),
    "reports": ("_version", "absent"),  # reads run folders only
    "formulation": ("rng", "path"),
    "discrepancies": (),
    "spaces": ("weights", "discrepancies"),
    "estimate": ("rng", "path", "formulation", "spaces"),
    "samplers": ("rng", "path", "formulation", "estimate"),
    "rollout": ("rng", "path", "distributed", "formulation", "estimate", "samplers"),
    "networks": ("absent", "rng", "path", "formulation", "estimate"),
    "peft": ("networks",),
    "data": ("absent", "rng", "estimate"),
    "evaluation": ("_version", "images", "weights", "distributed", "discrepancies", "spaces", "data"),
    "objectives": ("rng", "path", "distributed", "discrepancies", "formulation", "spaces", "estimate", "networks"),
    "interop": ("_version", "absent", "path", "weights", "formulation", "samplers", "networks", "peft"),
    "training": (
        "_version", "absent", "rng", "path", "images", "weights", "distributed", "formulation", "spaces", "estimate", "samplers", "networks",
        "peft", "data", "evaluation", "objectives", "interop", "rollout",
    ),
    "recipes": ("absent", "rng", "path", "images", "discrepancies", "data", "formulation", "spaces", "rollout", "estimate", "samplers", "networks", "objectives", "training"),
    "sampling": (
        "_version", "rng", "path", "images", "distributed", "formulation", "networks", "samplers", "evaluation", "interop", "training",
    ),
    "translating": ("_version", "absent", "images", "distributed", "data", "networks", "evaluation", "reports", "interop", "training", "sampling"),
    "judging": ("distributed", "evaluation", "spaces", "reports", "training", "sampling", "translating"),
    "sweeping": ("distributed", "evaluation", "reports", "training", "sampling", "judging"),
    "probes": ("absent", "rng", "path", "images", "discrepancies", "formulation", "spaces", "networks", "data", "reports"),
    "studies": ("_version", "weights", "spaces", "data", "reports", "training"),
    "cli": ("_version", "absent", "path", "images", "memory", "distributed", "spaces", "evaluation", "judging", "sweeping", "weights", "formulation", "networks", "data", "interop", "training", "recipes", "sampling", "translating", "reports", "probes", "studies"),
    "demo": ("training", "cli"),
    "__main__": ("cli",),
}  # fmt: skip
PUBLIC = "__init__"  # percepta/__init__.py names what users import and may reach into every room but these
NOT_PUBLIC = ("cli", "demo", "__main__")

OPTIONAL = {
    "datasets",
    "webdataset",
    "transformers",
    "trackio",
    "wandb",
    "tensorboard",
    "torchdiffeq",
    "triton",
    "accelerate",
    "onnx",
    "onnxscript",
    "onnxruntime",
}
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def modules() -> dict[str, Path]:
    """Every file of the package by its dotted name without `percepta.`; a folder's __init__ has the folder's name."""
    out = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        out[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return out


MODULES = modules()


def imported(tree: ast.AST) -> Iterator[str]:
    """Every absolute module name that a file imports, wherever in it; `from a import b` gives a.b, which may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "relative imports are not used here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(tree: ast.AST) -> Iterator[str]:
    """The modules of the package that a file imports, by their names in MODULES."""
    for name in imported(tree):
        first, _, rest = name.partition(".")
        if first == "percepta":
            while rest and rest not in MODULES:
                rest = rest.rpartition(".")[0]
            yield rest or PUBLIC


def wrong_imports(module: str, source: str) -> list[str]:
    """The imports of a file that the table does not allow."""
    room = module.split(".")[0]
    wrong = []
    for name in sorted(set(ours(ast.parse(source)))):
        other = name.split(".")[0]
        if room == PUBLIC:
            allowed = other not in NOT_PUBLIC
        else:
            allowed = other == room or other in ROOMS[room]
        if not allowed:
            wrong.append(name)
    return wrong


def module_level(tree: ast.Module) -> Iterator[str]:
    """What importing the file imports: everything outside functions, and outside `if TYPE_CHECKING`."""

    def walk(nodes: list[ast.stmt]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                continue
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield from imported(node)
            for block in ("body", "orelse", "finalbody"):
                yield from walk(getattr(node, block, []))
            for handler in getattr(node, "handlers", []):
                yield from walk(handler.body)

    yield from walk(tree.body)


def test_the_table_names_every_room_and_no_other() -> None:
    assert len(MODULES) >= 85, f"only {len(MODULES)} files found: is {PACKAGE} the package?"
    assert {name.split(".")[0] for name in MODULES} - {PUBLIC} == set(ROOMS)


def test_the_table_has_no_cycle() -> None:
    rooms = list(ROOMS)
    for place, (room, allowed) in enumerate(ROOMS.items()):
        assert set(allowed) <= set(rooms[:place]), f"{room} may import only what stands above it in the table"


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_table(module: str) -> None:
    wrong = wrong_imports(module, MODULES[module].read_text())
    assert not wrong, f"{module} imports {wrong}: not allowed for its room"


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("path", "import percepta.rng", ["rng"]),
        ("formulation", "def f():\n    from percepta.samplers.grids import grid", ["samplers.grids"]),
        ("networks.adapter", "from percepta import training", ["training"]),
        ("samplers.front", "from percepta.samplers.step import Step\nfrom percepta.path import Times\nimport torch", []),
        ("training.loop", "from percepta import distributed\nfrom percepta.cli import main", ["cli"]),
        ("estimate", "from percepta import __version__", [PUBLIC]),
        (PUBLIC, "from percepta.cli import main\nfrom percepta.path import Cosine", ["cli"]),
    ],
)
def test_a_planted_import_is_found(module: str, source: str, wrong: list[str]) -> None:
    assert wrong_imports(module, source) == wrong


@pytest.mark.parametrize("module", MODULES)
def test_the_habits_of_the_house(module: str) -> None:
    text = MODULES[module].read_text()
    tree = ast.parse(text)
    names = set(imported(tree))
    assert len(text.splitlines()) <= 400, "a file has at most 400 lines"
    assert not {n.split(".")[0] for n in names} & PICKLERS, "nothing is pickled or unpickled here"
    if module != "distributed":
        assert not any(f"{n}.".startswith("torch.distributed.") for n in names), "only distributed.py imports torch.distributed"
        reads = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert "torch.distributed" not in reads, "only distributed.py uses torch.distributed"
    early = {n.split(".")[0] for n in module_level(tree)} & OPTIONAL
    assert not early, f"optional packages are imported in the function that needs them: {early}"
    assert not ("jaxtyping" in {n.split(".")[0] for n in names} and "__future__.annotations" in names), (
        "the import hook reads annotations"
    )


@pytest.mark.parametrize("module", MODULES)
def test_no_stub_and_no_unpickling_call(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Raise) and node.exc is not None:
            assert "NotImplementedError" not in ast.unparse(node.exc), f"line {node.lineno}: a stub"
        if isinstance(node, ast.Call):
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert given.get("allow_pickle", "False") == "False", f"line {node.lineno}: allow_pickle"
            if ast.unparse(node.func) == "torch.load":
                assert given.get("weights_only") == "True", f"line {node.lineno}: torch.load without weights_only=True"


def test_module_level_sees_through_blocks_and_not_into_functions() -> None:
    source = "import a\ntry:\n    import b\nexcept ImportError:\n    import c\nclass K:\n    import d\ndef f():\n    import e\n"
    assert list(module_level(ast.parse(source))) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("what", ["import percepta", "import percepta.cli; percepta.cli.main(['--help'])"])
def test_start_is_light(what: str) -> None:
    """Processor time, not wall time: a busy machine does not make it fail."""
    code = f"import sys; {what}; heavy = {{'torch', 'numpy', 'diffusers'}} & set(sys.modules); sys.exit(f'imported {{heavy}}' if heavy else 0)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 2.0
