"""Annotate a manifest from a checkout: `ray job submit --working-dir . -- python jobs/annotate.py JOB.yaml`.

It takes the flags of `paliscribe annotate`, which is what to submit where the package is installed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pipeline"))

from paliscribe.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "annotate")
    main()
