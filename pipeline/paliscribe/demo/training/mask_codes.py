"""Trains the demo's mask codes: an autoencoder of 4x4 vectors a mask, a codebook of 128, and the decoder.

The decoder has the layers and names of the authors' `vae-oid.npz`. The encoder is needed only to find the codes of
the prototypes; it is not part of the checkpoint.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from paliscribe.demo.masks import Prototype, drawn, in_box, prototype_mask, prototypes
from paliscribe.demo.sampling import sample_scene
from paliscribe.grammar.masks import CODEBOOK, CODES, MaskDecoder

WIDTH = 64  # of a codebook vector; the authors have 512
SEED = 20261
SHAPES = 4000
FREE_STEPS, CODED_STEPS = 240, 200  # without codes, then of the decoder behind codes
BATCH = 32
RATE = 2e-3
CLUSTERINGS = 20
DECODER = "decoder.npz"


class Residual(nn.Module):
    """Two 3x3 convolutions and a 1x1 one beside the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(),
            nn.Conv2d(128, 128, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[n, 128, h, w] to the same shape."""
        added: Tensor = self.net(x)
        return x + added


def build_encoder() -> nn.Sequential:
    """Masks [n, 1, 64, 64] to vectors [n, WIDTH, 4, 4]."""
    layers: list[nn.Module] = []
    for inside, outside in ((1, 16), (16, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inside, outside, 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(128, WIDTH, 1))


def build_decoder() -> nn.Sequential:
    """Vectors [n, WIDTH, 4, 4] to masks [n, 1, 64, 64], in the authors' layers."""
    layers: list[nn.Module] = [nn.Conv2d(WIDTH, 128, 1), nn.ReLU(), Residual(), Residual()]
    for inside, outside in ((128, 128), (128, 64), (64, 32), (32, 16)):
        layers += [nn.ConvTranspose2d(inside, outside, 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(16, 1, 1))


def load_or_train(folder: Path, scale: float = 1.0) -> dict[str, list[int]]:
    """The codes of each prototype by `KIND TILT`, 16 each; trained if absent. `folder` gets `DECODER` too.

    `scale` below 1: fewer shapes and steps, for tests.
    """
    file = folder / "codes.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shapes = max(CODES, int(SHAPES * scale))
        codes = _train(folder / DECODER, crops(shapes), scale)
        file.write_text(json.dumps(codes))  # written last: marks the folder as complete
    found: dict[str, list[int]] = json.loads(file.read_text())
    return found


def crops(count: int, first_seed: int = 0) -> NDArray[np.float32]:
    """Masks [count, 64, 64], -1 to 1, of the first shapes of scenes from `first_seed` on, each in its box."""
    found: list[NDArray[np.float32]] = []
    while len(found) < count:
        scene = sample_scene(first_seed)
        found += [in_box(drawn(shape, scene.width, scene.height), shape) for shape in scene.shapes]
        first_seed += 1
    return np.stack(found[:count]) * 2 - 1


def name(chosen: Prototype) -> str:
    """A prototype as in answers: `KIND TILT`."""
    return f"{chosen[0]} {chosen[1]}"


def save_decoder(decoder: nn.Sequential, codebook: Tensor, file: IO[bytes]) -> None:
    """Write a decoder and its codebook [128, WIDTH] under the authors' names, in float16."""
    arrays: dict[str, Any] = {f"decoder.{key}": value.detach().numpy() for key, value in decoder.named_parameters()}
    arrays[CODEBOOK] = codebook.numpy()
    np.savez_compressed(file, **{key: value.astype(np.float16) for key, value in arrays.items()})


def reconstruction(decoder: MaskDecoder, codes: Mapping[str, list[int]]) -> dict[str, float]:
    """IoU of each decoded prototype with the prototype."""
    ious: dict[str, float] = {}
    for chosen in prototypes():
        found, wanted = decoder.decode(np.array([codes[name(chosen)]]))[0] > 0, prototype_mask(chosen) > 0.5
        ious[name(chosen)] = float((found & wanted).sum() / (found | wanted).sum())
    return ious


def _train(file: Path, shapes: NDArray[np.float32], scale: float) -> dict[str, list[int]]:
    torch.manual_seed(SEED)
    encoder, decoder = build_encoder(), build_decoder()
    known = torch.from_numpy(np.stack([prototype_mask(each) for each in prototypes()]) * 2 - 1)[:, None]
    masks = torch.from_numpy(shapes)[:, None]
    for batch in _steps(
        max(12, round(FREE_STEPS * scale)), masks, known, [*encoder.parameters(), *decoder.parameters()]
    ):
        loss = functional.mse_loss(decoder(encoder(batch)), batch)
        torch.autograd.backward(loss)
    with torch.no_grad():
        parts = [*(masks[start : start + 256] for start in range(0, len(masks), 256)), known]
        codebook = clusters(torch.cat([_vectors(encoder(part)) for part in parts]))
    for batch in _steps(max(12, round(CODED_STEPS * scale)), masks, known, list(decoder.parameters())):
        with torch.no_grad():
            coded = codebook[_nearest(_vectors(encoder(batch)), codebook)].view(-1, 4, 4, WIDTH).permute(0, 3, 1, 2)
        loss = functional.mse_loss(decoder(coded), batch)
        torch.autograd.backward(loss)
    with file.open("wb") as opened:
        save_decoder(decoder, codebook, opened)
    with torch.no_grad():
        codes = _nearest(_vectors(encoder(known)), codebook).view(-1, 16).tolist()
    return {name(chosen): found for chosen, found in zip(prototypes(), codes, strict=True)}


def _steps(count: int, masks: Tensor, known: Tensor, parameters: list[nn.Parameter]) -> Iterator[Tensor]:
    """Batches of masks and all prototypes; after each the parameters take a step."""
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=count, pct_start=0.1)
    for _ in range(count):
        yield torch.cat([masks[torch.randint(len(masks), (BATCH,))], known])
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)


def _vectors(grids: Tensor) -> Tensor:
    """[n, WIDTH, 4, 4] to [16 n, WIDTH], row by row."""
    return grids.permute(0, 2, 3, 1).flatten(0, 2)


def _nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest of the codebook's vectors."""
    distances = codebook.square().sum(1) - 2 * vectors @ codebook.T
    return distances.argmin(1)


def clusters(vectors: Tensor) -> Tensor:
    """Centres [128, WIDTH] of the vectors, by k-means from centres far from each other."""
    centres = vectors[:1]
    nearest = torch.full((len(vectors),), torch.inf)
    while len(centres) < CODES:
        nearest = torch.minimum(nearest, (vectors - centres[-1]).square().sum(1))
        chosen = torch.multinomial(nearest + 1e-12, 1)
        centres = torch.cat([centres, vectors[chosen]])
    for _ in range(CLUSTERINGS):
        owner = _nearest(vectors, centres)
        sums = torch.zeros_like(centres).index_add_(0, owner, vectors)
        counts = torch.bincount(owner, minlength=CODES)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres
