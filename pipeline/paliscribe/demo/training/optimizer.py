"""Muon for matrices and AdamW for the other parameters, in float32."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic that moves singular values towards 1
MOMENTUM = 0.95


class Muon:
    """Orthogonalized momentum updates. Matrices of equal shape are stacked, which is faster on a CPU."""

    def __init__(self, groups: Iterable[tuple[list[Tensor], float]]) -> None:
        """`groups`: matrices, or convolutions as [out, rest], with a factor on their learning rate."""
        stacks: dict[tuple[torch.Size, float], list[Tensor]] = {}
        for parameters, factor in groups:
            for parameter in parameters:
                stacks.setdefault((parameter.flatten(1).shape, factor), []).append(parameter)
        self._stacks = [(parameters, factor) for (_, factor), parameters in stacks.items()]
        self._momenta = [torch.zeros(len(p), *p[0].flatten(1).shape) for p, _ in self._stacks]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update at a learning rate."""
        for (parameters, factor), momentum in zip(self._stacks, self._momenta, strict=True):
            gradient = torch.stack([_gradient(p).flatten(1) for p in parameters])
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = _orthogonal(gradient.lerp(momentum, MOMENTUM))
            scale = 0.2 * max(update.shape[1:]) ** 0.5
            for parameter, change in zip(parameters, update, strict=True):
                parameter.add_(change.view_as(parameter), alpha=-rate * factor * scale)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """State needed to resume."""
        return {"momenta": self._momenta}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Resume from a saved state."""
        for momentum, stored in zip(self._momenta, state["momenta"], strict=True):
            momentum.copy_(stored)


class Optimizer:
    """Both optimizers over a set of modules."""

    def __init__(self, modules: Iterable[tuple[nn.Module, float]]) -> None:
        """`modules`: each with a factor on its learning rate."""
        matrices: list[tuple[list[Tensor], float]] = []
        rest: list[dict[str, object]] = []
        for module, factor in modules:
            named = dict(module.named_parameters())
            tables = {name for name in named if "embed_tokens" in name or "position" in name}
            chosen = {name for name, p in named.items() if p.ndim >= 2 and name not in tables}
            matrices.append(([named[name] for name in sorted(chosen)], factor))
            rest.append({"params": [p for name, p in named.items() if name not in chosen], "factor": factor})
        self.parameters = [p for parameters, _ in matrices for p in parameters]
        self.parameters += [p for group in rest for p in group["params"]]  # type: ignore[attr-defined]
        self.muon = Muon(matrices)
        self.adamw = torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, muon_rate: float, adamw_rate: float) -> None:
        """Clip gradients to norm 1, step both optimizers and clear the gradients."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.muon.step(muon_rate)
        for group in self.adamw.param_groups:
            group["lr"] = adamw_rate * group["factor"]
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, object]:
        """State needed to resume."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Resume from a saved state."""
        self.muon.load_state_dict(state["muon"])  # type: ignore[arg-type]
        self.adamw.load_state_dict(state["adamw"])  # type: ignore[arg-type]


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _orthogonal(stack: Tensor, steps: int = 5) -> Tensor:
    """Orthogonalize a stack [n, rows, columns] by Newton-Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    tall = stack.shape[1] > stack.shape[2]
    x = stack.mT if tall else stack
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result
