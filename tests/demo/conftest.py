from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from paliscribe.demo.evaluation import Annotator


@pytest.fixture(scope="session")
def annotator() -> "Annotator":
    """The bundled checkpoint, loaded once."""
    import torch

    from paliscribe.demo import CHECKPOINT
    from paliscribe.demo.evaluation import Annotator

    torch.set_num_threads(1)
    return Annotator.load(CHECKPOINT)
