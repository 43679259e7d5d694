"""`paliscribe doctor`: whether packages are compiled."""

import importlib.util
import os
import py_compile
import subprocess
import sys
from pathlib import Path

from paliscribe.cli.doctor import LARGE

FOUND = "from paliscribe.cli.doctor import bytecode; print(bytecode().found)"


def found(folder: Path, **variables: str) -> str:
    """What is said where bytecode is in this folder."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = kept | {"PYTHONPYCACHEPREFIX": str(folder)} | variables
    process = subprocess.run([sys.executable, "-c", FOUND], env=environment, capture_output=True, text=True, check=True)
    return process.stdout.strip()


def test_it_says_whether_every_process_compiles_packages(tmp_path: Path) -> None:
    assert found(tmp_path) == "packages are compiled when they are first imported"
    never = found(tmp_path, PYTHONDONTWRITEBYTECODE="1")
    assert "every process compiles them" in never and "python -m compileall -q /" in never
    for name in LARGE:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        place = tmp_path / Path(spec.origin).relative_to("/").with_name(f"__init__.{sys.implementation.cache_tag}.pyc")
        py_compile.compile(spec.origin, cfile=str(place), doraise=True)
    assert found(tmp_path, PYTHONDONTWRITEBYTECODE="1") == "ray, torch, transformers are compiled"
