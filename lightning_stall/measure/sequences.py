"""How the gradient of a loss spreads over the places of the sequences that a model reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.nn import Embedding, Module

from lightning_stall.measure.quiet import quiet

SHORT = 9  # places below which nothing is lost on the way


class Sequences:
    """Follows the gradient to every float sequence in a batch, (N, T, F) or (T, N, F), and to what embeddings make.

    Args:
        batch: as `training_step` receives it; its tensors are not changed.
        module: whose embeddings are watched until `release`.
    """

    def __init__(self, batch: Any, module: Module) -> None:
        self.found: list[tuple[str, Tensor]] = []
        self.batch = apply_to_collection(batch, Tensor, self._follow)
        self._hooks = [
            part.register_forward_hook(quiet(self._watch(name)))
            for name, part in module.named_modules()
            if isinstance(part, Embedding)
        ]

    def release(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def profiles(self, loss: Tensor) -> Iterator[tuple[str, list[float]]]:
        """Name and gradient norm of each place, for either axis that may be time; leaves no gradient behind."""
        if not self.found:
            return
        grads = torch.autograd.grad(loss, [t for _, t in self.found], allow_unused=True)
        for (name, _), grad in zip(self.found, grads, strict=True):
            for axis in (0, 1):
                if grad is not None and grad.shape[axis] >= SHORT:
                    others = [i for i in range(grad.ndim) if i != axis]
                    yield name, torch.linalg.vector_norm(grad.float(), dim=others).tolist()

    def _follow(self, tensor: Tensor) -> Tensor:
        if tensor.ndim != 3 or not tensor.is_floating_point() or type(tensor) is not Tensor:
            return tensor
        followed = tensor.detach().clone().requires_grad_()
        self.found.append(("the batch's sequences", followed))
        return followed

    def _watch(self, name: str) -> Callable[[Module, Any, Any], None]:
        def hook(module: Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 3 and output.requires_grad:
                self.found.append((f"`{name}`'s output", output))

        return hook
