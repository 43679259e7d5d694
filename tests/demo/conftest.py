import pytest


@pytest.fixture(scope="session")
def annotator():
    """The bundled checkpoint, loaded once."""
    import torch

    from paliscribe.demo import CHECKPOINT
    from paliscribe.demo.evaluation import Annotator

    torch.set_num_threads(1)
    return Annotator.load(CHECKPOINT)
