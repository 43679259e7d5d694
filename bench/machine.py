"""Description of the machine of a measurement; waiting for its device and freeing its memory."""

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
    """Wait until the device has finished all submitted work."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def release(device: str) -> None:
    """Collect garbage, reference cycles included, and release cached device memory."""
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
