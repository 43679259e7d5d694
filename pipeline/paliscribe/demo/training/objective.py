"""The loss over answers: cross-entropy, with soft labels for box tokens, since a near bin is almost correct."""

import torch
from torch import Tensor
from transformers import PaliGemmaForConditionalGeneration

from paliscribe.demo.training.packing import COARSE, Rows, coarse_bin

SOFTNESS = 0.8  # standard deviation of a box label, in coarse bins
BOX_WEIGHT = 0.5  # of a box token in the loss


def answer_loss(model: PaliGemmaForConditionalGeneration, features: Tensor, rows: Rows, first_location: int) -> Tensor:
    """Mean loss of the rows' answers, given vision features [images, 64, 128]."""
    # Not [rows.images]: the gradient of indexing is summed by threads in nondeterministic order.
    seen = model.model.multi_modal_projector(features).index_select(0, rows.images)
    embedded = torch.cat([seen, model.get_input_embeddings()(rows.tokens)], 1)
    hidden = model.model.language_model(
        inputs_embeds=embedded, attention_mask=rows.mask, position_ids=rows.positions, use_cache=False
    ).last_hidden_state[:, seen.shape[1] :]
    logs = model.lm_head(hidden[rows.answer_places[:, 0], rows.answer_places[:, 1]]).log_softmax(-1)  # [n, vocabulary]
    losses = -logs.gather(1, rows.targets[:, None])[:, 0]
    bins = rows.targets - first_location
    boxed = (bins >= 0) & (bins < 1024)
    if boxed.any():
        coarse = torch.tensor([coarse_bin(value) for value in range(0, 1024 + COARSE, COARSE)])
        soft = _soft_labels(len(coarse))[(bins[boxed] + COARSE - 1) // COARSE]
        losses = losses.masked_scatter(boxed, -(soft * logs[boxed][:, first_location + coarse]).sum(-1))
    weights = torch.where(boxed, BOX_WEIGHT, rows.weights)
    mean: Tensor = (losses * weights).sum() / weights.sum()
    return mean


def _soft_labels(count: int) -> Tensor:
    """Soft labels [count, count]: row i is the distribution over coarse bins where the true one is i."""
    places = torch.arange(count)
    return torch.softmax(-((places[:, None] - places[None]) ** 2) / (2 * SOFTNESS**2), dim=1)
