"""The arrows and the rules of the house, read off the syntax of every product file.

run_lib -> modes -> training, evaluation -> samplers, models, data -> sde_lib; configs import nothing of ours.
"""

import ast
import sys
from pathlib import Path

import pytest

from sde_lib import SDES

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "sde_lib": set(),
    "models": {"sde_lib"},
    "samplers": {"sde_lib"},
    "data": {"sde_lib"},
    "training": {"samplers", "models", "data", "sde_lib"},
    "guidance": {"sde_lib"},
    "evaluation": {"guidance", "samplers", "models", "data", "sde_lib"},
    "configs": set(),
    "modes": {"training", "evaluation", "guidance", "samplers", "models", "data", "sde_lib"},
    "run_lib": {"modes", "training", "samplers", "sde_lib", "configs"},
}
"""Room -> the other rooms of ours that it may import."""
OURS = {*MAY_IMPORT, "tests", "benchmarks", "oracles"}
PROCESS_CLASSES = {process.__name__ for process in SDES.values()}
HOMES_OF_999 = {"models/score_model.py", "sde_lib/cosine.py"}


def room_of(path):
    return Path(path).parts[0].removesuffix(".py")


def imported_modules(tree, path):
    """Every module that a file imports, at any depth of its code, relative and dynamic imports among them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = [*Path(path).parts[: -node.level]] if node.level else []
            yield ".".join([*above, *filter(None, [node.module])])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__", "find_spec"):
                yield str(node.args[0].value)


def forbidden_imports(tree, path):
    room = room_of(path)
    for module in imported_modules(tree, path):
        top = module.split(".")[0]
        if top in OURS - {room} - MAY_IMPORT[room]:
            yield f"imports {module}"
        if top == "ml_collections" and room not in ("configs", "modes", "run_lib") and Path(path).name != "builders.py":
            yield f"imports {module}: ConfigDict stops at the modes and the builders"
        if room == "configs" and top not in ("configs", "ml_collections") and top not in sys.stdlib_module_names:
            yield f"imports {module}: a config is values"


def names_in(node):
    return {
        n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute)
    }


def asked_processes(tree, path):
    """isinstance(..., VPSDE), and its like by type(...) or match."""
    if room_of(path) == "sde_lib":
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            asked = names_in(node.args[1])
        elif isinstance(node, ast.Compare) and "type" in names_in(node):
            asked = names_in(node)
        elif isinstance(node, ast.MatchClass):
            asked = names_in(node.cls)
        else:
            continue
        for name in sorted(asked):
            if name.endswith("SDE"):
                yield f"line {node.lineno} asks for {name}: a process is known by its formulas alone"


def named_processes(tree, path):
    """Process classes or their names in samplers/."""
    if room_of(path) != "samplers":
        return
    processes = PROCESS_CLASSES | set(SDES)
    for node in ast.walk(tree):
        words = [getattr(node, field, None) for field in ("id", "attr", "value", "name")]
        for word in words:
            if isinstance(word, str) and word in processes:
                yield f"the process {word} is named"


def triple_nones(tree, path):
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
            nones = sum(isinstance(e, ast.Constant) and e.value is None for e in node.slice.elts)
            if nones >= 3:
                yield f"line {node.lineno} broadcasts by {nones} times None: use match_dims"


def asserts(tree, path):
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield f"line {node.lineno} asserts: raise ValueError or TypeError"


def stray_999(tree, path):
    if Path(path).as_posix() in HOMES_OF_999:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value == 999:
            yield f"line {node.lineno} has a 999: time becomes a condition in models/score_model.py"


RULES = {
    rule.__name__: rule
    for rule in (forbidden_imports, asked_processes, named_processes, triple_nones, asserts, stray_999)
}


def product_files():
    found = [ROOT / f"{room}.py" for room in MAY_IMPORT if (ROOT / f"{room}.py").is_file()]
    found += [path for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]
    return [path.relative_to(ROOT).as_posix() for path in found]


@pytest.mark.parametrize("path", product_files())
def test_a_file_keeps_the_rules(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"), path)
    broken = [f"{path}: {fault}" for rule in RULES.values() for fault in rule(tree, path)]
    assert not broken, "\n".join(broken)


def test_the_files_are_found():
    files = set(product_files())
    assert {"sde_lib/sde.py", "samplers/base.py", "models/unet.py", "data/__init__.py"} <= files
    assert {room_of(path) for path in files} <= set(MAY_IMPORT)


def test_every_room_of_the_package_is_watched():
    """A new top-level package with code must be given its place in the house."""
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {path.stem for path in ROOT.glob("*.py")}
    assert rooms - {"tests", "benchmarks", "conftest", "setup"} <= set(MAY_IMPORT)


# The rules themselves: each must see what it is there for, and nothing else.


@pytest.mark.parametrize(
    ("rule", "path", "code"),
    [
        ("forbidden_imports", "sde_lib/x.py", "from models import UNet"),
        ("forbidden_imports", "sde_lib/x.py", "import samplers.base as b"),
        ("forbidden_imports", "models/x.py", "def f():\n    from samplers import get_sampler"),
        ("forbidden_imports", "samplers/x.py", "if TYPE_CHECKING:\n    from models import UNet"),
        ("forbidden_imports", "data/x.py", "import training"),
        ("forbidden_imports", "training/x.py", "from evaluation.generate import generate"),
        ("forbidden_imports", "evaluation/x.py", "from training import loop"),
        ("forbidden_imports", "evaluation/x.py", "import importlib\nimportlib.import_module('run_lib')"),
        ("forbidden_imports", "training/deep/x.py", "from ...evaluation import generate"),
        ("forbidden_imports", "configs/x.py", "import torch"),
        ("forbidden_imports", "configs/x.py", "from sde_lib import SDES"),
        ("forbidden_imports", "training/loop.py", "from ml_collections import ConfigDict"),
        ("forbidden_imports", "run_lib.py", "import tests"),
        ("forbidden_imports", "run_lib.py", "from evaluation import generate"),
        ("forbidden_imports", "modes/x.py", "import run_lib"),
        ("forbidden_imports", "modes/x.py", "from configs import default"),
        ("forbidden_imports", "training/x.py", "from modes import Run"),
        ("forbidden_imports", "evaluation/x.py", "import modes.likelihood"),
        ("asked_processes", "models/x.py", "isinstance(sde, VPSDE)"),
        ("asked_processes", "samplers/x.py", "isinstance(sde, (int, sde_lib.VESDE))"),
        ("asked_processes", "training/x.py", "isinstance(sde, VPSDE | CosineVPSDE)"),
        ("asked_processes", "evaluation/x.py", "type(sde) is EDMSDE"),
        ("asked_processes", "run_lib.py", "match sde:\n    case VESDE():\n        pass"),
        ("named_processes", "samplers/x.py", "from sde_lib import VESDE"),
        ("named_processes", "samplers/x.py", "if name == 'vp': pass"),
        ("triple_nones", "models/x.py", "x[:, None, None, None]"),
        ("asserts", "data/x.py", "def f(x):\n    assert x > 0"),
        ("stray_999", "training/x.py", "t * 999"),
        ("stray_999", "samplers/x.py", "999.0 * t"),
    ],
)
def test_a_rule_sees_a_fault(rule, path, code):
    assert list(RULES[rule](ast.parse(code), path))


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("sde_lib/x.py", "from sde_lib.sde import SDE\nisinstance(sde, VPSDE)\nimport torch"),
        ("models/x.py", "from sde_lib import SDE\nfrom models.layers import zero\nx[:, None, None]\nf: SDE"),
        (
            "training/builders.py",
            "from ml_collections import ConfigDict\nfrom models import MODELS\nfrom . import loop",
        ),
        ("evaluation/x.py", "from samplers import get_sampler\nimport data.digits"),
        ("run_lib.py", "import training, modes\nfrom ml_collections import config_flags"),
        (
            "modes/x.py",
            "import training, evaluation, data\nfrom models import EMA\nfrom ml_collections import ConfigDict",
        ),
        (
            "configs/x.py",
            "from configs import default\nimport math\nfrom ml_collections import ConfigDict\nname = 'vp'",
        ),
        ("samplers/x.py", "'''vp and ve: prose'''\nisinstance(grid, str)\nx[None, None]\n0.9999"),
        ("models/score_model.py", "999 * t"),
        ("data/x.py", "import dataclasses\nfrom datasets import load"),
    ],
)
def test_no_rule_sees_a_fault_where_there_is_none(path, code):
    tree = ast.parse(code)
    assert not [fault for rule in RULES.values() for fault in rule(tree, path)]
