"""Who may import whom: the table of docs/internals.md, held to the code."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ALLOWED = {
    "errors": set(),
    "settings": {"errors"},
    **{room: {"errors"} for room in ("ops", "run")},
    **{room: {"errors", "settings"} for room in ("data", "optim", "metrics", "sharding")},
    **{room: set() for room in ("state", "plots")},
    "layers": {"ops"},
    "models": {"layers", "ops", "errors", "settings"},
    "step": {"metrics", "optim", "state"},
    "recipe": {"data", "models", "optim", "run", "sharding", "errors", "settings"},
}
ALL = {*ALLOWED, "task", "evaluation", "report", "loop", "trained"}
ALLOWED |= dict.fromkeys(("task", "evaluation", "report", "loop", "trained"), ALL)
ALLOWED |= {"commands": ALL | {"commands"}, "__main__": {"commands", "errors"}, "__init__": {"models", "trained"}}
# Modules of one layer that must not import each other in a circle, from the lowest to the highest.
LAYERS = ("task", "evaluation", "report", "loop")


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
def test_configs_import_only_ml_collections_and_the_defaults(path):
    names = {name for name in imported_modules(path) if name.split(".")[0] not in ("ml_collections", "configs")}
    assert names <= {"xception_jax.recipe.default_config", "xception_jax.recipe.small_settings"}


def test_higher_modules_import_lower_ones():
    for place, name in enumerate(LAYERS):
        assert not our_rooms(ROOT / f"xception_jax/{name}.py") & set(LAYERS[place + 1 :]), name


def test_step_loop_and_checkpoints_know_no_images():
    """What is independent of the modality imports nothing of images, and no word of theirs is in its code."""
    for name in ("step", "state", "loop", "evaluation", "trained", "sharding", "run/checkpoint", "data/pipeline"):
        path = ROOT / f"xception_jax/{name}.py"
        assert not [module for module in imported_modules(path) if "images" in module], name
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        words = {word for n in names for word in n.lower().split("_")}
        assert not words & {"image", "images", "pixels", "channels", "mean"}, name


def test_workers_of_the_pipeline_import_no_models():
    """A worker process imports `data` to read; it needs neither models nor the training step."""
    for path in (ROOT / "xception_jax/data").rglob("*.py"):
        assert not our_rooms(path) - {"data", "errors", "settings"}, path


def test_ops_know_neither_flax_nor_optax():
    for path in (ROOT / "xception_jax/ops").glob("*.py"):
        roots = {name.split(".")[0] for name in imported_modules(path)}
        assert roots <= {"jax", "xception_jax", "functools", "collections", "typing"}, path


def test_nothing_imports_tensorflow():
    for path in [*ROOT.glob("*.py"), *(ROOT / "xception_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]:
        roots = {name.split(".")[0] for name in imported_modules(path)}
        assert not roots & {"tensorflow", "torch", "keras"}, path
