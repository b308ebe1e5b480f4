"""All that training may move in a module, its parameters and every buffer of it, to be kept and put back bit by bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that an optimizer moves, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad and p.numel()}


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """The module's own tensors by name: parameters, and buffers whether or not `state_dict` holds them."""
    parameters = {name: p.detach() for name, p in module.named_parameters() if p.numel()}
    return parameters | {name: buffer.detach() for name, buffer in module.named_buffers()}


def hidden_state(module: nn.Module) -> str | None:
    """The module that keeps what is no tensor (`get_extra_state`), which no checkpoint here holds; None for none."""
    found = (name for name, m in module.named_modules() if type(m).get_extra_state is not nn.Module.get_extra_state)
    return next((name or type(module).__name__ for name in found), None)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values in memory of their own."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


@torch.no_grad()
def put_back(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a module the state that `state_of` found in one of its kind; a buffer may have grown since it was built.

    Raises:
        KeyError: the tensors are another module's; the first that differs is named.
    """
    buffers = {
        f"{path}.{name}" if path else name: (owner, name)
        for path, owner in module.named_modules()
        for name in owner._buffers
    }
    parameters = dict(module.named_parameters())
    if missing := sorted(state_of(module).keys() - tensors.keys()):
        raise KeyError(f"{missing[0]} is missing")
    for name, tensor in tensors.items():
        now = parameters.get(name)
        if now is None and name not in buffers:
            raise KeyError(f"{name} is unknown")
        if now is None:
            owner, own_name = buffers[name]
            now = owner._buffers[own_name]
            is_expanded = now is not None and 0 in now.stride()  # its numbers share memory
            if now is None or is_expanded or (now.shape, now.dtype) != (tensor.shape, tensor.dtype):
                setattr(owner, own_name, tensor.clone())
                continue
        elif (now.shape, now.dtype) != (tensor.shape, tensor.dtype):
            raise KeyError(f"{name} is {tensor.dtype}{list(tensor.shape)}, expected {now.dtype}{list(now.shape)}")
        now.copy_(tensor)


def adam_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Adam's moments as `<moment>.<parameter>`; of a parameter that never had a gradient there are none."""
    return {
        f"{moment}.{name}": value.detach()
        for name, parameter in parameters.items()
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def put_adam_back(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]
) -> None:
    """Give Adam the moments that `adam_state` found, of those parameters that had a gradient.

    Raises:
        KeyError: a moment is missing or of another shape.
    """
    for name, parameter in parameters.items():
        found = {moment: state[f"{moment}.{name}"] for moment in _MOMENTS if f"{moment}.{name}" in state}
        if not found:
            continue
        for moment in _MOMENTS:
            expected = torch.Size() if moment == "step" else parameter.shape
            if moment not in found or found[moment].shape != expected:
                raise KeyError(f"Adam's {moment} of {name} is missing or of another shape")
        # in the parameter's own order in memory: Adam walks through both side by side
        optimizer.state[parameter] = {
            moment: of.to(parameter.device, copy=True) if moment == "step" else torch.empty_like(parameter).copy_(of)
            for moment, of in found.items()
        }
