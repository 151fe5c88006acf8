"""Models that are spread over devices, or larger than memory: where a weight really is.

accelerate hangs a hook on a module: before the module runs it brings inputs (and, where they are offloaded, weights)
to the module's device, and afterwards it drops the weights again. Between calls an offloaded parameter is an empty
tensor on the device "meta"; its numbers are in the hook's map, in memory or on disk. Whoever wants to read or exchange
a weight therefore asks here; models without such hooks are read as they are.
"""

from __future__ import annotations

from collections import ChainMap
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook  # type: ignore[import-untyped]
from accelerate.utils import set_module_tensor_to_device  # type: ignore[import-untyped]
from torch import Tensor, nn
from transformers import PreTrainedModel

from rompatch.errors import ModelError

META = "meta"


def tensor_of(module: nn.Module, name: str = "weight") -> Tensor:
    """The numbers of *module*'s own parameter *name*: the parameter's where it has them, else out of the hook's map.

    Not to be written to: it may be the base's own memory, or a view of its file.

    Raises:
        ModelError: there are none: the model was made on the device "meta".
    """
    hook = _offloading_hook(module, name)
    parameter: Tensor = getattr(module, name)
    # The map first: a pass that was stopped midway may have left a tensor in the module.
    tensor: Tensor = parameter if hook is None else hook.weights_map[name].to(parameter.dtype)
    if tensor.device.type == META:
        raise _no_weights(name)
    return tensor.detach()


def parameter_of(model: nn.Module, name: str) -> Tensor:
    """The same by the parameter's full name in *model*. Raises what :func:`tensor_of` raises."""
    path, _, own = name.rpartition(".")
    return tensor_of(model.get_submodule(path), own)


def is_offloaded(model: nn.Module) -> bool:
    """Whether some weights of *model* are brought in only while their module runs."""
    return any(parameter.device.type == META for parameter in model.parameters())


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids go: the device on which the embeddings are looked up.

    ``model.device`` says "meta" where the embeddings are offloaded.

    Raises:
        ModelError: the model has no weights.
    """
    embeddings = model.get_input_embeddings()
    weight = next(embeddings.parameters())
    if weight.device.type != META:
        return weight.device
    for hook in _hooks(embeddings):
        if hook.execution_device is not None:
            return torch.device(hook.execution_device)
    raise _no_weights("embeddings")


def check_weights(model: nn.Module) -> None:
    """Whether every parameter of *model* has numbers, wherever they are.

    Raises:
        ModelError: one is on the device "meta" with nothing behind it.
    """
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.device.type == META and _offloading_hook(module, name) is None:
                raise _no_weights(f"{path}.{name}" if path else name)


class WeightSlot:
    """The weight of one module, exchangeable: in the parameter itself, or in the hook's view of what is offloaded.

    Neither the base's memory nor its file nor an offload folder is ever written to.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._hook = _offloading_hook(module, "weight")
        self._own: Any = tensor_of(module) if self._hook is None else self._hook.weights_map

    def stored(self) -> Tensor:
        """The base's tensor, whatever is in its place now; read anew where it is offloaded."""
        if self._hook is None:
            return self._own  # type: ignore[no-any-return]
        tensor: Tensor = self._own["weight"]
        return tensor.to(self._module.weight.dtype)  # type: ignore[arg-type]

    def exchange(self, tensor: Tensor) -> None:
        """Let the module run with *tensor*, of the weight's shape and dtype."""
        if self._hook is None:
            self._module.weight.data = tensor
        else:
            self._use(ChainMap({"weight": tensor}, self._own))

    def restore(self) -> None:
        """Let the module run with the base's tensor again, bit for bit."""
        if self._hook is None:
            self._module.weight.data = self._own
        else:
            self._use(self._own)

    def _use(self, weights: Any) -> None:
        assert self._hook is not None
        self._hook.weights_map = weights
        if self._module.weight.device.type != META:  # left there by a pass that was stopped midway
            set_module_tensor_to_device(self._module, "weight", META)


def _hooks(module: nn.Module) -> list[AlignDevicesHook]:
    hook = getattr(module, "_hf_hook", None)
    chain = getattr(hook, "hooks", (hook,))
    return [one for one in chain if isinstance(one, AlignDevicesHook)]


def _offloading_hook(module: nn.Module, name: str) -> AlignDevicesHook | None:
    for hook in _hooks(module):
        if hook.offload and hook.weights_map is not None and name in hook.weights_map:
            return hook
    return None


def _no_weights(name: str) -> ModelError:
    return ModelError(
        "The model has no weights to compute with.",
        expected="weights in memory, on a device, or offloaded by accelerate",
        found=f"{name} on the device 'meta', and nothing behind it",
        next_step='Load the model with its weights: `load_base(...)`, or `from_pretrained(..., device_map="auto")`.',
    )
