"""The rooms of the package stand in one order, and each imports only from those above it; light ones stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from tables import ROOMS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pipeline" / "paliscribe"
ALLOWED = dict(ROOMS)
ORDER = list(ALLOWED)
FUNCTION = 60  # lines
MODULE = 350


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def is_module(name: str) -> bool:
    path = PACKAGE.parent / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for_types = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    apart = {inner for node in for_types for inner in ast.walk(node)}
    for node in set(ast.walk(tree)) - apart:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:  # it may be a module
                name = f"{node.module}.{alias.name}"
                found.add(name if is_module(name) else str(node.module))
    return found


def own(path: Path) -> set[Path]:
    """The modules of the package that one imports, those inside functions too."""
    files = (PACKAGE.parent / name.replace(".", "/") for name in imports(path) if name.split(".")[0] == "paliscribe")
    made = {each for file in files for each in (file.with_suffix(".py"), file / "__init__.py")}
    return {each for each in made if each.is_file()} - {PACKAGE / "__init__.py", path}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_up_the_list(path: Path) -> None:
    name = room(path)
    if name in ("__init__", "__main__"):
        assert own(path) <= {PACKAGE / "api/__init__.py", PACKAGE / "cli/main.py"}
        return
    for module in own(path):
        if room(module) != name:
            assert ORDER.index(room(module)) < ORDER.index(name), f"{name} reaches down to {module}"
    packages = {each.split(".")[0] for each in imports(path)} - {"paliscribe"} - sys.stdlib_module_names
    assert packages <= set(ALLOWED[name].split()), f"{name} imports {packages}"


def test_there_is_no_cycle() -> None:
    graph = {path: own(path) for path in modules()}
    done: set[Path] = set()

    def visit(path: Path, above: tuple[Path, ...]) -> None:
        assert path not in above, " -> ".join(str(each.relative_to(PACKAGE)) for each in (*above, path))
        if path not in done:
            for each in graph[path]:
                visit(each, (*above, path))
            done.add(path)

    for path in graph:
        visit(path, ())


def test_test_files_have_different_names() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), "pytest imports them by their names alone"


def test_every_room_is_in_the_list() -> None:
    assert {room(path) for path in modules()} - {"__init__", "__main__"} == set(ORDER)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    lines = text.splitlines()
    assert len(lines) <= MODULE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            said = any("# long:" in line for line in lines[node.lineno - 1 : node.body[0].lineno])
            assert length <= FUNCTION or said, f"{node.name}: {length} lines"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("paliscribe", {"torch", "ray", "transformers", "pyarrow", "boto3", "numpy", "pydantic"}),
        ("paliscribe.cli.main", {"torch", "ray", "transformers", "pyarrow", "boto3"}),
        ("paliscribe.grammar.tasks", {"torch", "ray", "transformers", "pyarrow"}),
        ("paliscribe.results", {"torch", "ray", "transformers"}),
        ("paliscribe.cli.report", {"torch", "ray", "transformers"}),
        ("paliscribe.demo", {"torch", "ray", "transformers"}),
        ("paliscribe.view.listening", {"torch", "ray", "transformers", "pandas"}),
    ],
)
def test_what_an_import_loads(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(','.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not heavy & set(loaded.strip().split(","))
