"""Where and on what a figure was measured."""

import os
import platform
import subprocess
from typing import Any


def machine() -> dict[str, Any]:
    """Processor, cores, GPU, versions and commit of this measurement."""
    import torch

    model = "unknown"
    with open("/proc/cpuinfo") as info:  # noqa: PTH123 - not a file
        for line in info:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or "unknown",
    }
