"""Who imports whom, and how long the engine's files, classes and functions are.

Imports count wherever they stand: at the top of a file, in a function, under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import captum_transformer_lrp

PACKAGE = "captum_transformer_lrp"
ROOT = Path(captum_transformer_lrp.__file__).parent

LAYERS = [
    ["rules", "errors"],
    ["engine.graph", "engine.programs"],
    ["engine.watch"],
    ["engine.operations"],
    ["engine.lineage", "engine.phases"],
    ["engine.checkpoints", "engine.recording", "engine.stock"],
    ["attr"],
]
"""From the bottom to the top: each imports its own and those below, never those above."""

FORBIDDEN = {
    "rules": ["engine", "attr"],
    "engine.programs": ["engine.graph"],
    "engine": ["attr"],
    "engine.lineage": ["engine.watch", "engine.operations"],
    "engine.phases": ["engine.watch", "engine.operations"],
    "engine.operations": [
        "engine.watch." + name for name in ("interception", "moves", "in_place", "unit_calls")
    ],
}
"""What else a part never imports."""


def modules(root: Path, package: str) -> dict[str, Path]:
    """The modules below a folder, by their qualified name."""
    found = {}
    for path in root.rglob("*.py"):
        parts = (package, *path.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(known: Mapping[str, Path]) -> dict[str, set[str]]:
    """For each module those of the package that it imports, by any import statement."""
    return {
        name: {one for one in _imported(ast.parse(path.read_text("utf-8")), known) if one != name}
        for name, path in known.items()
    }


def _imported(tree: ast.AST, known: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                for name in (f"{node.module}.{alias.name}", node.module or ""):
                    if name in known:
                        yield name
                        break


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules of one circle, in order; none if there is no circle."""
    done: set[str] = set()

    def search(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for one in sorted(graph[name]):
            if found := search(one, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := search(name, []))), [])


def belongs(name: str, part: str) -> bool:
    return f"{name}.".startswith(f"{PACKAGE}.{part}.")


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return imports(modules(ROOT, PACKAGE))


def test_no_circle_of_imports_is_in_the_package(graph: dict[str, set[str]]) -> None:
    assert len(graph) > 100
    assert circle(graph) == []


def test_layers_import_downward_only(graph: dict[str, set[str]]) -> None:
    above: list[str] = []
    for layer in reversed(LAYERS):
        for name, imported in graph.items():
            if any(belongs(name, part) for part in layer):
                upward = [one for one in imported if any(belongs(one, part) for part in above)]
                assert not upward, f"{name} imports {upward}"
        above += layer


@pytest.mark.parametrize("part", FORBIDDEN)
def test_what_a_part_never_imports(graph: dict[str, set[str]], part: str) -> None:
    for name, imported in graph.items():
        if belongs(name, part):
            found = [one for one in imported if any(belongs(one, no) for no in FORBIDDEN[part])]
            assert not found, f"{name} imports {found}"


def test_every_file_of_the_engine_is_in_a_layer(graph: dict[str, set[str]]) -> None:
    parts = [part for layer in LAYERS for part in layer]
    engine = [name for name in graph if belongs(name, "engine") and name != f"{PACKAGE}.engine"]
    assert [name for name in engine if not any(belongs(name, part) for part in parts)] == []


def test_methods_give_arguments_rather_than_set_state() -> None:
    """What a method set on a tape or an attention would change what the next one finds."""
    found = {
        ast.unparse(node)
        for path in (ROOT / "attr").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and not ast.unparse(node).startswith(("self.", "cls."))
    }
    assert found <= {"recording.targets", "rollout.holds_back"}


def test_what_is_found_by_its_identity_is_held() -> None:
    """Another object may get the id() of one that is no more; each of these files holds its own."""
    found = {
        path.stem
        for path in (ROOT / "engine").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "id"
    }
    assert found <= {"tensor_table", "snapshot", "memory", "joins", "references", "writes"}


@pytest.mark.parametrize(
    "statement",
    [
        "from sample.b import something",
        "import sample.b",
        "def f():\n    from sample import b",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sample.b import Something",
        "class A:\n    def f(self):\n        import sample.b as other",
    ],
)
def test_a_circle_is_found_however_it_is_imported(tmp_path: Path, statement: str) -> None:
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "a.py").write_text(statement)
    (tmp_path / "b.py").write_text("from sample.a import one\none()")
    found = imports(modules(tmp_path, "sample"))
    assert set(circle(found)) == {"sample.a", "sample.b"}
    (tmp_path / "b.py").write_text("import sys")
    assert circle(imports(modules(tmp_path, "sample"))) == []


def test_files_classes_and_functions_of_the_engine_are_short() -> None:
    """Docstrings of functions do not count: a parameter more is a line more of them."""
    too_long = []
    for path in sorted((ROOT / "engine").rglob("*.py")):
        text = path.read_text("utf-8")
        if text.count("\n") > 400:
            too_long.append(f"{path.name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                docstring = ast.get_docstring(node)
                if isinstance(node, ast.FunctionDef) and docstring:
                    lines -= docstring.count("\n") + 1
                if lines > (250 if isinstance(node, ast.ClassDef) else 60):
                    too_long.append(f"{path.name}: {node.name} has {lines}")
    assert too_long == []
