"""Where and on what a figure was measured, and that machine's memory given back between figures."""

import gc
import os
import platform
import subprocess
from typing import Any


def machine() -> dict[str, Any]:
    """Processor, cores, GPU, versions and commit of this measurement; the commit is None outside a repository."""
    import torch

    model = "unknown"
    with open("/proc/cpuinfo") as info:  # noqa: PTH123 - not a file
        for line in info:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def wait(device: str) -> None:
    """Until the device has done all that it was told to."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def release(device: str) -> None:
    """Free what nobody refers to any more, reference cycles included, and give its memory on the device back."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _commit() -> str | None:
    try:
        found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return None
    return found.stdout.strip() or None
