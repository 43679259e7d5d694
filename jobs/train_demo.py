"""Train the demo checkpoint from nothing: `python -m jobs.train_demo`.

About an hour and a half on two CPU cores. A run that was stopped goes on where it last saved, on the same kind of
processor and with the same torch to the very weights that it would have reached without a stop.
"""

import argparse
from pathlib import Path

from paliscribe.demo import CHECKPOINT


def main() -> None:
    """Parse the options, train, print the seconds of each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="folder of pools and states")
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="folder the checkpoint is written to")
    parser.add_argument("--stage", help="run this stage only, from the state of the one before")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="below 1: a shorter run, to see that it works")
    parser.add_argument("--start", type=Path, help="go on from this checkpoint, at the stages that teach masks")
    options = parser.parse_args()
    from paliscribe.demo.training.recipe import train

    for stage, seconds in train(options.work, options.out, options.stage, options.steps_scale, options.start).items():
        print(f"{stage}: {seconds:.0f} s")


if __name__ == "__main__":
    main()
