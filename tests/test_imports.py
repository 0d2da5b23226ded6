"""Who may import whom: the table of CONTRIBUTING.md, held to the code."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LEAVES = {"ops", "data", "optim", "metrics", "state", "plots", "run", "errors"}
LOOP = LEAVES | {"models", "step", "recipe", "experiment", "loop", "trained"}
ALLOWED = {
    **{leaf: set() for leaf in LEAVES},
    "run": {"recipe", "errors"},
    "layers": {"ops"},
    "models": {"layers", "ops"},
    "step": {"data", "metrics", "optim", "state"},
    "recipe": {"data", "models", "optim", "errors"},
    **dict.fromkeys(("experiment", "loop", "trained"), LOOP),
    "commands": LOOP | {"commands"},
    "__main__": {"commands", "errors"},
    "__init__": {"models", "trained"},
}


def room(path):
    return path.relative_to(ROOT / "xception_jax").parts[0].removesuffix(".py")


def imported_modules(path):
    """Dotted names of everything a file imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def our_rooms(path):
    names = [name.split(".") for name in imported_modules(path)]
    return {name[1] for name in names if name[0] == "xception_jax" and len(name) > 1}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "xception_jax").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_a_room_imports_only_what_lies_below_it(path):
    own = room(path)
    forbidden = our_rooms(path) - ALLOWED[own] - {own}
    assert not forbidden, f"{own} imports {forbidden}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.name)
def test_recipes_import_only_ml_collections(path):
    assert {name.split(".")[0] for name in imported_modules(path)} <= {"ml_collections", "configs"}


def test_ops_know_neither_flax_nor_optax():
    for path in (ROOT / "xception_jax/ops").glob("*.py"):
        roots = {name.split(".")[0] for name in imported_modules(path)}
        assert roots <= {"jax", "xception_jax", "functools", "collections"}, path


def test_nothing_imports_tensorflow():
    for path in [*ROOT.glob("*.py"), *(ROOT / "xception_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]:
        roots = {name.split(".")[0] for name in imported_modules(path)}
        assert not roots & {"tensorflow", "torch", "keras"}, path
