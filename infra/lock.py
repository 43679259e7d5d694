"""Write infra/requirements.txt: every package that paliscribe needs at run time, in the version installed here.

`python infra/lock.py` after the tests have passed with what is installed. NVIDIA's libraries are left to torch, whose
wheels name the exact version of each.
"""

import importlib.metadata
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "infra/requirements.txt"
HEAD = "# Written by infra/lock.py: the versions that the tests have passed with. NVIDIA's libraries come with torch.\n"
LEFT_TO_TORCH = ("cuda-", "nvidia-", "triton")


def wanted() -> list[Requirement]:
    """What pyproject.toml asks for at run time."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(line) for line in project["dependencies"]]


def requirements_of(package: str, extras: Iterable[str] = ()) -> list[Requirement]:
    """What an installed package asks for here, with these extras."""
    found = [Requirement(line) for line in importlib.metadata.requires(package) or []]
    chosen = ["", *extras]
    here = [r for r in found if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in chosen)]
    return [r for r in here if not canonicalize_name(r.name).startswith(LEFT_TO_TORCH)]


def closure() -> dict[str, set[str]]:
    """Name -> extras of all that is needed."""
    extras: dict[str, set[str]] = {}
    waiting = wanted()
    while waiting:
        next_one = waiting.pop()
        name = canonicalize_name(next_one.name)
        if name not in extras or not next_one.extras <= extras[name]:
            extras.setdefault(name, set()).update(next_one.extras)
            waiting += requirements_of(name, extras[name])
    return extras


if __name__ == "__main__":
    pins = [f"{name}=={Version(importlib.metadata.version(name)).public}\n" for name in sorted(closure())]
    TARGET.write_text(HEAD + "".join(pins))
