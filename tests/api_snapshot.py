"""The public names of every package with their signatures, as text: what a user may rely on.

python tests/api_snapshot.py    # rewrites tests/api_snapshot.txt; read the difference before it is kept
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

HOME = Path(__file__).parents[1]
PAGE = Path(__file__).with_suffix(".txt")


def packages(home: Path = HOME) -> list[str]:
    """Every package of tntune, by its dotted name."""
    found = (home / "tntune").rglob("__init__.py")
    return sorted(".".join(path.parent.relative_to(home).parts) for path in found)


def snapshot(home: Path = HOME) -> str:
    """A line for every public name: what it is, its signature, and below it the members of a class.

    Read from the source, so that it is the same with and without the extras, in every version of Python.
    """
    lines: list[str] = []
    for package in packages(home):
        tree = _tree(home, package)
        lines.append(f"[{package}]")
        sources = _sources(tree)
        for name in sorted(_listed(tree)):
            lines += _shown(name, *_defined(home, sources.get(name, (package, name))))
        lines.append("")
    return "\n".join(lines)


def _tree(home: Path, module: str) -> ast.Module:
    """The parsed source of a module or package."""
    path = home.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text())


def _listed(tree: ast.Module) -> list[str]:
    """What ``__all__`` lists."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []


def _sources(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Where each imported name comes from: the module, and its name there."""
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module)
    return {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in imports
        for alias in node.names
    }


def _defined(home: Path, source: tuple[str, str]) -> tuple[ast.AST | None, str]:
    """The definition of a name, followed through packages, and the module that it is in."""
    module, name = source
    if module.split(".")[0] != "tntune":
        return None, module
    tree = _tree(home, module)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node, module
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if name in [ast.unparse(target) for target in targets]:
            return node, module
    onward = _sources(tree).get(name)
    return _defined(home, onward) if onward else (None, module)


def _shown(name: str, node: ast.AST | None, module: str) -> Iterator[str]:
    """The lines of one name."""
    if isinstance(node, ast.FunctionDef):
        yield f"def {name}{_signature(node)}"
    elif isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        yield f"class {name}({bases})"
        yield from (f"    {line}" for line in _members(node))
    else:
        yield f"{name}: in {module}"


def _members(node: ast.ClassDef) -> Iterator[str]:
    """Fields, properties and methods that users see, in their order."""
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and not ast.unparse(item.target).startswith("_"):
            default = f" = {ast.unparse(item.value)}" if item.value else ""
            yield f"{ast.unparse(item.target)}: {ast.unparse(item.annotation)}{default}"
        elif isinstance(item, ast.FunctionDef) and (not item.name.startswith("_") or item.name == "__init__"):
            marks = [ast.unparse(mark) for mark in item.decorator_list]
            kind = (
                "property " if "property" in marks else "classmethod " if "classmethod" in marks else "def "
            )
            yield f"{kind}{item.name}{_signature(item)}"


def _signature(node: ast.FunctionDef) -> str:
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(node.args)}){returned}"


if __name__ == "__main__":
    PAGE.write_text(snapshot())
    sys.stdout.write(f"{PAGE.name}: {len(snapshot().splitlines())} lines\n")
