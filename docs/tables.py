"""Write the tables of the docs that come from the code: `python docs/tables.py` (`--check` only compares)."""

import ast
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from paliscribe import results
from paliscribe.config import FetchConfig, ImagesConfig, JobConfig, ModelSpec, PoolConfig, ServeConfig, ServedModel
from paliscribe.errors import ROW_ERROR_KINDS
from paliscribe.export import registry
from paliscribe.grammar.tasks import KINDS
from paliscribe.images.formats import READ, SIGNATURES

ROOT = Path(__file__).parents[1]

# The rooms of the package: each imports only from those above it in this list, and these third-party packages. What a
# room is for is read from its first line. tests/test_layers.py holds it.
ROOMS: list[tuple[str, str]] = [
    ("errors", ""),
    ("signals", ""),
    ("records", "numpy"),
    ("config", "pydantic yaml"),
    ("grammar", "numpy"),
    ("storage", "boto3 botocore httpx numpy pyarrow urllib3"),
    ("images", "PIL httpx numpy"),
    ("results", "numpy pyarrow pydantic"),
    ("manifest", "ijson numpy pyarrow"),
    ("verify", "duckdb numpy pyarrow"),
    ("published", "duckdb fsspec pyarrow"),
    ("evaluation", "duckdb ijson numpy pyarrow pycocotools rapidfuzz"),
    ("export", "numpy pyarrow yaml"),
    ("demo", "PIL numpy safetensors sklearn tokenizers torch transformers"),
    ("model", "PIL filelock huggingface_hub numpy pydantic safetensors tokenizers torch transformers"),
    ("engine", "numpy torch"),
    ("pool", "grpc numpy ray torch"),
    ("batch", "numpy pyarrow pydantic ray"),
    ("online", "fastapi httpx pyarrow pydantic ray starlette uvicorn"),
    ("view", "PIL duckdb numpy psutil pyarrow starlette uvicorn"),
    ("submit", "aiohttp ray yaml"),
    ("api", "IPython PIL duckdb numpy pandas polars pyarrow rich"),
    ("cli", "PIL boto3 botocore huggingface_hub numpy psutil pydantic torch typer"),
]


def settings() -> str:
    """Every setting of a job file, with default and description."""
    return _table([("", JobConfig), ("model.", ModelSpec), ("pool.", PoolConfig), ("fetch.", FetchConfig)])


def endpoint() -> str:
    """Every setting of an endpoint's file but for those of models and pools, which are a job's."""
    return _table([("", ServeConfig), ("models[].", ServedModel), ("images.", ImagesConfig)])


def _table(models: list[tuple[str, type[BaseModel]]]) -> str:
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for prefix, model in models:
        for name, field in model.model_fields.items():
            default = "required" if field.is_required() else _default(field.default)
            lines.append(f"| `{prefix}{name}` | {default} | {field.description} |")
    return "\n".join(lines)


def kinds() -> str:
    """The kinds of task with their default limits."""
    lines = ["| kind | most tokens, by default |", "|---|---|"]
    return "\n".join(lines + [f"| {kind} | {entry.max_tokens} |" for kind, entry in KINDS.items()])


def errors() -> str:
    """The kinds of dead letters."""
    return ", ".join(f"`{kind}`" for kind in ROW_ERROR_KINDS)


def formats() -> str:
    """The image formats that are read."""
    lines = ["| format | what is read |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {words} |" for name, words in READ.items()])


def other_formats() -> str:
    """The image formats that are known and not read."""
    return ", ".join([*(name for name, _ in SIGNATURES if name not in READ), "TGA"])


def rooms() -> str:
    """The rooms of the package in their order, with what each is for and what it holds."""
    lines = ["| room | what it is for | modules | third-party packages |", "|---|---|---|---|"]
    for name, packages in ROOMS:
        place = ROOT / "pipeline" / "paliscribe" / name
        first = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        words = (ast.get_docstring(ast.parse(first.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        held = sorted(path.stem for path in place.glob("*") if path.suffix == ".py" or (path / "__init__.py").is_file())
        modules = ", ".join(f"`{held_name}`" for held_name in held if held_name != "__init__")
        lines.append(f"| `{name}` | {words} | {modules} | {packages.replace(' ', ', ')} |")
    return "\n".join(lines)


def attacks() -> str:
    """What is tried against an endpoint, and what holds, by kind; the attacks are those of the tests."""
    sys.path.insert(0, str(ROOT / "tests"))
    from online.attacks import KINDS as attacked
    from online.attacks import attacks as made

    counts = Counter(attack.kind for attack in made("a key", bytes(1000), "http://host"))
    lines = [f"| what | {counts.total()} attacks | what is tried | what happens |", "|---|---:|---|---|"]
    rows = (f"| {kind} | {counts[kind]} | {tried} | {holds} |" for kind, (tried, holds) in attacked.items())
    return "\n".join([*lines, *rows])


TABLES: dict[str, Callable[[], str]] = {
    "rooms": rooms,
    "columns": results.describe,
    "settings": settings,
    "endpoint": endpoint,
    "kinds": kinds,
    "errors": errors,
    "formats": formats,
    "other formats": other_formats,
    "exports": registry.describe,
    "attacks": attacks,
}


def main() -> int:
    """Rewrite what lies between the marks of each table; 1 with --check if anything differs."""
    check, differs = "--check" in sys.argv, 0
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        before = path.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            differs += 1
            print(f"{path.name} {'differs' if check else 'written'}")
            if not check:
                path.write_text(after, encoding="utf-8")
    return 1 if check and differs else 0


def filled(text: str) -> str:
    """A page with every table between `<!-- table:NAME -->` and `<!-- end -->` made anew."""
    for name, make in TABLES.items():
        mark = f"<!-- table:{name} -->\n"
        if mark in text:
            head, _, rest = text.partition(mark)
            text = f"{head}{mark}{make()}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return text


def _default(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        return "`demo`"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value)
    return "see below" if isinstance(value, BaseModel) or repr(value) == "PydanticUndefined" else f"`{value}`"


if __name__ == "__main__":
    sys.exit(main())
