"""Imports point down the layers only, and the light ones stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS: dict[str, int] = {
    **dict.fromkeys(["errors", "records", "config", "tasks", "masks", "progress"], 0),
    **dict.fromkeys(["addresses", "pictures", "orders", "storage", "manifest", "images", "results", "runs"], 1),
    **dict.fromkeys(
        ["download", "weights", "shapes", "slots", "attention", "layers", "probe", "model", "engine", "demo"], 2
    ),
    **dict.fromkeys(
        ["autoscaling", "metrics", "stage", "ask", "placement", "replica", "pool", "batch", "cluster", "driver"], 3
    ),
    **dict.fromkeys(["dataset", "gateway", "headless", "submit", "offline", "online"], 3),
    **dict.fromkeys(["report", "doctor", "display"], 4),
    **dict.fromkeys(["cli", "cli_jobs"], 5),
}
# Third-party packages a layer may import at all; an entry for a module overrides its layer's.
ALLOWED: dict[int | str, set[str]] = {
    0: {"pydantic", "numpy", "yaml"},
    1: {"pydantic", "numpy", "pyarrow", "boto3", "botocore", "PIL", "httpx"},
    2: {"pydantic", "numpy", "torch", "transformers", "tokenizers", "huggingface_hub", "safetensors", "PIL", "sklearn"},
    "download": {"filelock"},
    3: {"pydantic", "numpy", "pyarrow", "ray", "torch"},
    "gateway": {"pydantic", "fastapi", "starlette", "httpx"},
    "submit": {"ray", "aiohttp", "yaml"},
    4: {"pyarrow", "rich"},
    "doctor": {"torch", "boto3", "botocore", "huggingface_hub"},
    5: {"typer", "yaml"},
}


def modules() -> list[Path]:
    return sorted((ROOT / "pipeline").rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(ROOT / "pipeline").with_suffix("").parts
    return parts[0]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(str(node.module))
            if node.module == "pipeline":
                found |= {f"pipeline.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    name = room(path)
    if name == "__init__":
        assert not imports(path)
        return
    layer = LAYERS[name]
    for module in imports(path):
        top, _, rest = module.partition(".")
        if top == "pipeline":
            target = rest.partition(".")[0]
            assert not target or target not in LAYERS or LAYERS[target] <= layer, f"{name} reaches up to {target}"
        elif top not in sys.stdlib_module_names:
            assert top in ALLOWED.get(name, ALLOWED[layer]), f"{name} (layer {layer}) imports {top}"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("pipeline", {"torch", "ray", "transformers", "pyarrow", "boto3"}),
        ("pipeline.cli", {"torch", "ray", "transformers", "pyarrow", "boto3"}),
        ("pipeline.tasks", {"torch", "ray", "transformers", "pyarrow"}),
        ("pipeline.results", {"torch", "ray", "transformers"}),
        ("pipeline.report", {"torch", "ray", "transformers"}),
        ("pipeline.demo", {"torch", "ray", "transformers"}),
    ],
)
def test_what_an_import_loads(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(','.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not heavy & set(loaded.strip().split(","))
