"""The decoder of a model's masks."""

from paliscribe.demo import MASK_DECODER
from paliscribe.grammar.masks import MaskDecoder
from paliscribe.model.weights import DEMO
from paliscribe.results.record import load_mask_decoder


def decoder_of(model: str, uri: str | None) -> MaskDecoder | None:
    """The mask decoder at an address; without one, that of the demo for the model `demo`, and None for others.

    Raises UsageError if it is unreadable or invalid.
    """
    if uri is None and model == DEMO:
        return MaskDecoder.from_npz(MASK_DECODER.read_bytes())
    return load_mask_decoder(uri)
