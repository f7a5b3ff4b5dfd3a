"""Code that travels beside weights: the source of a network class, made to need nothing but torch and diffusers."""

import ast
import inspect
import sys
from pathlib import Path

ALLOWED = {*sys.stdlib_module_names, "torch", "diffusers", "numpy"}


class _Plain(ast.NodeTransformer):
    """Leaves out annotations of arguments and results, and the imports that only they need."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if node.module == "jaxtyping" else node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)


def travelling_source(cls: type) -> str:
    """The module of a class as a file for users without Percepta; ValueError where it imports what they cannot be expected to have."""
    tree = ast.parse(Path(inspect.getfile(cls)).read_text())
    tree = ast.fix_missing_locations(_Plain().visit(tree))
    for node in ast.walk(tree):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        foreign = [name for name in names if name.split(".")[0] not in ALLOWED]
        if foreign:
            raise ValueError(
                f"{cls.__name__} cannot travel with its weights: {inspect.getfile(cls)} imports {', '.join(foreign)}; "
                "keep exported network classes in a file that imports torch and diffusers only"
            )
    return ast.unparse(tree) + "\n"
