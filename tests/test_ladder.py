"""Who may import whom: the ladder of the package, read from its source without importing it."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tntune"

LADDER = (
    ("errors",),
    ("files",),
    ("contract",),
    ("tt",),
    ("maps",),
    ("adapters", "theory", "checkpoint"),
    ("convert", "plugins"),
    ("peft", "experiments", "report"),
    ("cli",),
)
"""Rooms from the ground up: each imports from lower steps only, so never from a room of its own step."""

STEP = {room: step for step, rooms in enumerate(LADDER) for room in rooms}

BORDERS = {
    "opt_einsum": {"contract"},
    "safetensors": {"adapters", "checkpoint"},
    "peft": {"peft", "experiments"},
    "transformers": {"peft", "experiments"},
    "accelerate": {"peft", "experiments"},
    "tests": set(),
    "examples": set(),
    "benchmarks": set(),
    "theory": set(),
}
"""Root of an import -> the only rooms that may write it."""

BY_NAME = {
    "tntune.report.plots": "matplotlib is an extra and takes half a second: it loads when a figure is drawn",
    "tntune.experiments.loading": "tasks and figures need extras, and a task may be the user's own",
}
"""Modules that may import by name, never one of ours, and why."""

GLOBAL_STATE = {
    "set_backend",
    "set_default_dtype",
    "set_default_device",
    "torch.manual_seed",
    "torch.random.manual_seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "np.random.seed",
    "numpy.random.seed",
    "random.seed",
}
"""Names of state that outlives a call; a bare one stands for every owner. Own generators may be seeded."""

UNIX = {"fork", "forkserver", "SIGKILL", "SIGALRM", "geteuid", "getuid", "mkfifo", "fcntl", "pwd", "resource"}
"""Names that Windows does not have, or, for the ways to start a process, that macOS does not bear."""

READERS = {"read_text", "write_text", "open", "fdopen"}
"""Calls that turn bytes to text."""

Modules = dict[str, ast.Module]  # dotted name -> tree; a package goes by its folder's name


def read(package: Path) -> Modules:
    """Every module below a package's folder, parsed."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imports(tree: ast.AST, modules: Modules) -> Iterator[str]:
    """Each module that the tree imports, inside functions too; a relative one keeps its dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                inner = f"{base}.{alias.name}"  # a module, unless the package has a name of that spelling
                yield inner if inner in modules and alias.name not in bound(modules[base]) else base


def room(module: str) -> str:
    """The second part of a dotted name: `tt` for `tntune.tt.train`, nothing for the root."""
    return module.split(".")[1] if "." in module else ""


def own_imports(modules: Modules) -> Iterator[tuple[str, str]]:
    """Pairs (module, module of the same package that it imports)."""
    for name, tree in modules.items():
        for target in imports(tree, modules):
            if target.startswith(".") or target.split(".")[0] == name.split(".")[0]:
                yield name, target


# The rules: each returns what breaks it, in words.


def climbs(modules: Modules) -> list[str]:
    """Imports that go up the ladder, sideways, to the root, or by dots; and rooms that stand on no step."""
    lost = [f"{name} stands on no step" for name in modules if room(name) and room(name) not in STEP]
    top = len(LADDER)
    return lost + [
        f"{name} imports {target}"
        for name, target in own_imports(modules)
        if room(name) != room(target) and STEP.get(room(target), top) >= STEP.get(room(name), top + 1)
    ]


def detours(modules: Modules) -> list[str]:
    """Imports inside the package that go through an `__init__` in place of the defining module."""
    packages = {name.rpartition(".")[0] for name in modules}
    return [
        f"{name} imports {target}, a package"
        for name, target in own_imports(modules)
        if name not in packages and target in packages
    ]


def cycles(modules: Modules) -> list[str]:
    """The first circle of imports, if there is one."""
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, target in own_imports(modules):
        graph[name].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" <- ".join(error.args[1])]
    return []


def hidden(modules: Modules) -> list[str]:
    """Imports inside functions, and imports by name, which dodge every other rule."""
    found = []
    for name, tree in modules.items():
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        inner = {n for f in functions for n in ast.walk(f) if isinstance(n, ast.Import | ast.ImportFrom)}
        found += [f"{name} imports inside a function, line {n.lineno}" for n in inner]
        dynamic = set() if name in BY_NAME else {"import_module", "__import__"}
        found += [f"{name} uses {word}" for word in words(tree) if word.rpartition(".")[2] in dynamic]
    return found


def borders(modules: Modules) -> list[str]:
    """Third parties, and folders beside the package, imported where they must not be."""
    return [
        f"{name} imports {target}"
        for name, tree in modules.items()
        for target in imports(tree, modules)
        if room(name) not in BORDERS.get(target.split(".")[0], {room(name)})
    ]


def global_state(modules: Modules) -> list[str]:
    """Uses of state that outlives a call."""
    return [
        f"{name} uses {word}"
        for name, tree in modules.items()
        for word in words(tree)
        if word in GLOBAL_STATE or word.rpartition(".")[2] in GLOBAL_STATE
    ]


def words(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that the tree uses or imports from somewhere, such as `torch.manual_seed`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Name | ast.Attribute):
            yield ast.unparse(node)


def one_system(modules: Modules) -> list[str]:
    """What other systems lack or do otherwise: names of Unix, and text in the encoding of the system."""
    found = []
    for name, tree in modules.items():
        written = [
            n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
        ]
        used = [word.rpartition(".")[2] for word in words(tree)]
        found += [f"{name} uses {word}" for word in dict.fromkeys(used + written) if word in UNIX]
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        found += [f"{name} has {ast.unparse(call)} without encoding" for call in calls if guesses(call)]
    return found


def guesses(call: ast.Call) -> bool:
    """Whether a call reads or writes text and leaves the encoding to the system."""
    name, words = ast.unparse(call.func), [word.arg for word in call.keywords]
    if name in ("os.open", "read_text", "write_text") or "encoding" in words:  # bytes; ours, which are UTF-8
        return False
    modes = [a.value for a in call.args[:2] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    if name.endswith(".open"):  # of a path, which the mode tells from other objects
        return bool(modes) and not any("b" in mode for mode in modes)
    return name.rpartition(".")[2] in READERS and not any("b" in mode for mode in modes)


def unlisted(modules: Modules) -> list[str]:
    """Packages whose `__init__` has no `__all__`, or lists a name that it does not have."""
    packages = {name.rpartition(".")[0] for name in modules} - {""}
    found = []
    for name in sorted(packages):
        listed = all_of(modules[name])
        found += [f"{name} has no __all__"] if listed is None else []
        found += [
            f"{name} lists {word}, which it lacks"
            for word in sorted(set(listed or []) - bound(modules[name]))
        ]
    return found


def all_of(tree: ast.Module) -> list[str] | None:
    """The literal value of `__all__`, where there is one."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(ast.unparse(target) == "__all__" for target in node.targets):
            return list(ast.literal_eval(node.value))
    return None


def bound(tree: ast.Module) -> set[str]:
    """Names that a module's top level imports, assigns or defines."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {ast.unparse(target) for target in node.targets}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
    return names


RULES = (climbs, detours, cycles, hidden, borders, global_state, one_system, unlisted)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_keeps_the_rule(rule: Callable[[Modules], list[str]]) -> None:
    modules = read(PACKAGE)
    assert len(modules) > 20  # an empty folder would keep every rule
    assert rule(modules) == []


# The rules themselves: a small house that keeps them all, then one breach at a time.

HOUSE = {
    "__init__.py": "from house.tt.train import dense\n\n__all__ = ['dense']",
    "errors.py": "class HouseError(Exception): ...",
    "contract/__init__.py": "from house.contract.plan import plan\n\n__all__ = ['plan']",
    "contract/plan.py": "import opt_einsum\nfrom house.errors import HouseError\ndef plan(): ...",
    "tt/__init__.py": "__all__ = []",
    "tt/train.py": "import torch\nfrom house.contract.plan import plan\nz = torch.Generator().manual_seed(0)",
    "adapters/__init__.py": "__all__ = []",
    "adapters/linear.py": "import safetensors.torch\nfrom house.tt import train",
}

BREACHES = [
    (
        climbs,
        "contract/up.py",
        "from house.tt.train import dense",
        "house.contract.up imports house.tt.train",
    ),
    (
        climbs,
        "theory/side.py",
        "import house.adapters.linear",
        "house.theory.side imports house.adapters.linear",
    ),
    (climbs, "tt/root.py", "from house import dense", "house.tt.root imports house"),
    (climbs, "tt/dots.py", "from .train import dense", "house.tt.dots imports .train"),
    (climbs, "utils.py", "", "house.utils stands on no step"),
    (
        detours,
        "maps/lora.py",
        "from house.contract import plan as p",
        "house.maps.lora imports house.contract, a package",
    ),
    (cycles, "contract/plan.py", "from house.contract import plan", "house.contract"),
    (hidden, "tt/late.py", "def f():\n    import torch", "house.tt.late imports inside a function, line 2"),
    (
        hidden,
        "tt/late.py",
        "async def f():\n    if 1:\n        from x import y",
        "imports inside a function, line 3",
    ),
    (
        hidden,
        "tt/late.py",
        "from importlib import import_module",
        "house.tt.late uses importlib.import_module",
    ),
    (hidden, "tt/late.py", "peft = __import__('peft')", "house.tt.late uses __import__"),
    (borders, "tt/path.py", "import opt_einsum as oe", "house.tt.path imports opt_einsum"),
    (borders, "convert/save.py", "from safetensors.torch import save_file", "imports safetensors.torch"),
    (borders, "adapters/hub.py", "from peft import LoraConfig", "house.adapters.hub imports peft"),
    (borders, "report/hub.py", "import transformers", "house.report.hub imports transformers"),
    (borders, "tt/oracle.py", "from tests.support.tolerance import close", "imports tests.support.tolerance"),
    (
        global_state,
        "tt/a.py",
        "import tensorly as tl\ntl.set_backend('pytorch')",
        "house.tt.a uses tl.set_backend",
    ),
    (global_state, "tt/a.py", "import torch\ntorch.manual_seed(0)", "house.tt.a uses torch.manual_seed"),
    (global_state, "tt/a.py", "from torch import manual_seed", "house.tt.a uses torch.manual_seed"),
    (
        global_state,
        "tt/a.py",
        "import torch\ntorch.set_default_dtype(torch.half)",
        "uses torch.set_default_dtype",
    ),
    (one_system, "tt/a.py", "import os\nos.fork()", "house.tt.a uses fork"),
    (one_system, "tt/a.py", "context = get_context('fork')", "house.tt.a uses fork"),
    (one_system, "tt/a.py", "text = path.read_text()", "has path.read_text() without encoding"),
    (one_system, "tt/a.py", "file = open('a', 'w')", "has open('a', 'w') without encoding"),
    (one_system, "tt/a.py", "file = path.open('w')", "has path.open('w') without encoding"),
    (unlisted, "tt/__init__.py", "from house.tt.train import dense", "house.tt has no __all__"),
    (unlisted, "tt/__init__.py", "__all__ = ['dense']", "house.tt lists dense, which it lacks"),
]


def build(root: Path, files: dict[str, str]) -> Modules:
    """Write a package `house` and read it back."""
    for name, text in files.items():
        path = root / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return read(root / "house")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_finds_nothing_in_a_good_house(rule: Callable[[Modules], list[str]], tmp_path: Path) -> None:
    assert rule(build(tmp_path, HOUSE)) == []


@pytest.mark.parametrize(("rule", "name", "text", "message"), BREACHES)
def test_rule_finds_the_breach(
    rule: Callable[[Modules], list[str]], name: str, text: str, message: str, tmp_path: Path
) -> None:
    (found,) = rule(build(tmp_path, HOUSE | {name: text}))
    assert message in found


# What only running can tell.

EXTRAS = ("peft", "transformers", "accelerate", "matplotlib")


@pytest.mark.parametrize("blocked", [(), EXTRAS], ids=["extras there", "extras blocked"])
def test_import_is_silent_and_without_extras(blocked: tuple[str, ...]) -> None:
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked!r}))
import tntune
assert not [name for name in {EXTRAS!r} if sys.modules.get(name)], sorted(sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
