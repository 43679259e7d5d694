"""Write the lock files: pinned versions of all dependencies, as installed in the current environment.

`make lock` resolves the newest versions that pyproject.toml allows in a separate environment and runs this there.
infra/requirements.txt has the run-time dependencies, for container images and nodes; infra/constraints.txt adds those
of tests, linters and training, for `make setup`. NVIDIA's libraries are left out: torch's wheels pin their versions.
"""

import importlib.metadata
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
REQUIREMENTS, CONSTRAINTS = ROOT / "infra/requirements.txt", ROOT / "infra/constraints.txt"
HEAD = (
    "# Written by infra/lock.py: the versions that the tests have passed with. NVIDIA's libraries come with torch.\n"
    f"# Python {sys.version_info.major}.{sys.version_info.minor}\n"
)
LEFT_TO_TORCH = ("cuda-", "nvidia-", "triton")


def wanted(*extras: str) -> list[Requirement]:
    """Requirements in pyproject.toml, with these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


def requirements_of(package: str, extras: Iterable[str] = ()) -> list[Requirement]:
    """Requirements of an installed package on this platform, with these extras; pip is each environment's own."""
    found = [Requirement(line) for line in importlib.metadata.requires(package) or []]
    chosen = ["", *extras]
    here = [r for r in found if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in chosen)]
    names = [canonicalize_name(r.name) for r in here]
    return [r for r, name in zip(here, names, strict=True) if not name.startswith(LEFT_TO_TORCH) and name != "pip"]


def closure(waiting: list[Requirement]) -> dict[str, set[str]]:
    """All transitive requirements: name -> extras."""
    extras: dict[str, set[str]] = {}
    while waiting:
        next_one = waiting.pop()
        name = canonicalize_name(next_one.name)
        if name not in extras or not next_one.extras <= extras[name]:
            extras.setdefault(name, set()).update(next_one.extras)
            waiting += requirements_of(name, extras[name])
    return extras


def pins(names: Iterable[str]) -> str:
    """Pins of the installed versions, one line per package."""
    return "".join(f"{name}=={Version(importlib.metadata.version(name)).public}\n" for name in sorted(names))


def main() -> None:
    """Write both lock files."""
    needed = closure(wanted())
    more = closure(wanted("test", "lint", "train")).keys() - needed.keys()
    REQUIREMENTS.write_text(HEAD + pins(needed))
    CONSTRAINTS.write_text(f"{HEAD}-c {REQUIREMENTS.name}\n{pins(more)}")


if __name__ == "__main__":
    main()
