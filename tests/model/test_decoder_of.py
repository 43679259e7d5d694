"""Which decoder a model's masks have."""

import shutil
from pathlib import Path

import pytest

from paliscribe.demo import MASK_DECODER
from paliscribe.errors import UsageError
from paliscribe.model.masks import decoder_of


def test_the_demo_has_its_own_and_other_models_none() -> None:
    assert decoder_of("demo", None) is not None
    assert decoder_of("google/paligemma-3b-mix-224", None) is None


@pytest.mark.parametrize("model", ["demo", "google/paligemma-3b-mix-224"])
def test_a_given_decoder_is_used_for_every_model(model: str, tmp_path: Path) -> None:
    shutil.copy(MASK_DECODER, tmp_path / "other.npz")
    assert decoder_of(model, str(tmp_path / "other.npz")) is not None
    with pytest.raises(UsageError, match=r"nothing\.npz"):
        decoder_of(model, str(tmp_path / "nothing.npz"))
