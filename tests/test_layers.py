"""Who may import whom. The source is read, not run."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

SRC = Path(__file__).parents[1] / "src"

# A part of the package, and the other parts that it may import. Private modules other than _keys (helpers such as
# _random) may be imported by all, and import no part.
ARROWS = {
    "_keys": set(),
    "dynamics": set(),
    "metrics": set(),
    "pp": set(),
    "datasets": {"dynamics", "metrics", "pp"},
    "models": {"dynamics", "metrics"},
    "read": {"_keys"},
    "write": {"_keys"},
    "get": {"_keys", "dynamics", "metrics", "models", "read", "write"},
    "pl": {"_keys", "get"},
    "stats": {"dynamics", "get", "metrics", "models", "read", "write"},
    "tl": {"dynamics", "get", "metrics", "models", "read", "write"},
}

# A library, and where alone it may be imported.
ONLY_IN = {
    "matplotlib": ("dynapath.pl",),
    "numba": ("dynapath.metrics", "dynapath.models", "dynapath.stats.increment", "dynapath.stats.pooling"),
    "scvi": ("dynapath.models",),
}

# Parts that know arrays or tensors only.
WITHOUT_ANNDATA = ("dynapath.dynamics", "dynapath.metrics")


class Import(NamedTuple):
    importer: str
    imported: str
    line: int
    for_types_only: bool

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}, imports {self.imported}"


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((SRC / "dynapath").rglob("*.py"))}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def part(module: str) -> str:
    """The part of the package that a module belongs to: `dynapath.tl._fit` to `tl`; the face to none."""
    return module.split(".")[1] if "." in module else ""


def is_helper(name: str) -> bool:
    return name.startswith("_") and name != "_keys"


def targets(node: ast.Import | ast.ImportFrom, module: str, is_package: bool) -> Iterator[str]:
    """Modules that a statement imports; of `from a import b`, a.b where that is one of our modules, else a."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        parents = module.split(".")
        parents = parents[: len(parents) - node.level + is_package]
        base = ".".join([*parents, base] if base else parents)
    for alias in node.names:
        name = f"{base}.{alias.name}"
        yield name if name in MODULES else base


def imports_of(module: str) -> Iterator[Import]:
    path = MODULES[module]

    def visit(node: ast.AST, for_types_only: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target in targets(node, module, path.name == "__init__.py"):
                yield Import(module, target, node.lineno, for_types_only)
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, for_types_only or guarded)

    return visit(ast.parse(path.read_text()), False)


IMPORTS = [found for module in MODULES for found in imports_of(module)]
INTERNAL = [found for found in IMPORTS if within(found.imported, "dynapath")]


def test_the_source_was_found():
    assert "dynapath" in MODULES


def test_every_part_has_its_place():
    parts = {part(module) for module in MODULES} - {""}
    assert {name for name in parts if not is_helper(name)} <= set(ARROWS)


def test_the_arrows_themselves_make_no_circle():
    TopologicalSorter(ARROWS).prepare()


def test_a_part_imports_only_what_it_may():
    wrong = []
    for found in INTERNAL:
        importer, imported = part(found.importer), part(found.imported)
        if importer in ("", imported) or is_helper(imported):
            continue
        allowed = ARROWS.get(importer, set())
        # What get returns may be named in annotations by those who read through it.
        if found.for_types_only and "get" in allowed:
            allowed = allowed | ARROWS["get"]
        if imported not in allowed:
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_imported_only_where_it_belongs(library):
    wrong = [
        str(found)
        for found in IMPORTS
        if within(found.imported, library) and not any(within(found.importer, home) for home in ONLY_IN[library])
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", WITHOUT_ANNDATA)
def test_parts_for_arrays_do_not_know_anndata(package):
    outside = ("anndata", "scanpy", "scvi", "pandas")
    wrong = [
        str(found)
        for found in IMPORTS
        if within(found.importer, package) and any(within(found.imported, library) for library in outside)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_two_modules_import_each_other():
    graph = {module: set() for module in MODULES if module != "dynapath"}
    for found in INTERNAL:
        if found.importer in graph and not found.for_types_only:
            graph[found.importer].add(found.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))
