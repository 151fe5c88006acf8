"""A site: the weight matrix that is edited, found in a live model.

The table in :mod:`rompatch.architectures` names the module for known architectures. Unknown ones are searched by
structure: in every decoder layer there must be exactly one linear module that maps the MLP's width back to the hidden
size. Where more than one module fits (mixture-of-experts among them) we refuse to guess and list the candidates.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rompatch.architectures import ARCHITECTURES, Architecture
from rompatch.errors import ArchitectureError, SiteError
from rompatch.offload import tensor_of
from rompatch.patch import SiteRef

_BLOCK_BYTES = 1 << 24
"""How much of a weight is converted or moved at a time."""

_PLAIN = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32" for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def tensor_sha256(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's bytes: row-major, in its own dtype. Shape and dtype are recorded beside it, not in it.

    Some rows at a time, so that a tensor elsewhere or in another order is never copied whole.
    """
    rows = tensor.detach().reshape(1) if tensor.dim() == 0 else tensor.detach()
    digest = hashlib.sha256()
    for block in rows.split(_rows_per_block(rows)):
        digest.update(block.contiguous().view(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def _rows_per_block(tensor: torch.Tensor) -> int:
    return max(1, _BLOCK_BYTES * len(tensor) // max(1, tensor.nbytes))


@dataclass(frozen=True)
class Site:
    """One editable matrix of a live model.

    ``weight`` is the parameter as the module stores it; where it is offloaded, only its shape and dtype are there. Its
    numbers are in ``stored()``, and in ``matrix()`` as the equations see them: W, (d_out, d_in).
    """

    layer: int
    module_name: str
    module: nn.Module
    transposed: bool

    @property
    def parameter_name(self) -> str:
        """Full name of the parameter ("model.layers.4.mlp.down_proj.weight")."""
        return f"{self.module_name}.weight"

    @property
    def weight(self) -> nn.Parameter:
        """The parameter as stored: (d_out, d_in), or (d_in, d_out) where ``transposed``."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The module's bias (d_out,), or None."""
        return tensor_of(self.module, "bias") if isinstance(getattr(self.module, "bias", None), torch.Tensor) else None

    def stored(self) -> torch.Tensor:
        """The weight as stored, (d_out, d_in) or (d_in, d_out): not to be written to; brought in where it is offloaded.

        Raises:
            ModelError: the model has no weights.
        """
        return tensor_of(self.module)

    def matrix(self) -> torch.Tensor:
        """W, (d_out, d_in): a view of :meth:`stored`, transposed where the module stores W^T."""
        weight = self.stored()
        return weight.T if self.transposed else weight

    def product(self, keys: torch.Tensor) -> torch.Tensor:
        """W k for each row of *keys*: (n, d_in) -> (n, d_out), float64 on the processor, some rows of W at a time."""
        matrix, rows = self.matrix(), keys.double().cpu()
        blocks = matrix.split(_rows_per_block(matrix))
        return torch.cat([rows @ block.cpu().double().T for block in blocks], dim=1)

    def norm(self) -> float:
        """||W||_F, summed in float64, some rows at a time."""
        matrix = self.matrix()
        blocks = matrix.split(_rows_per_block(matrix))
        return math.hypot(*(float(block.cpu().double().norm()) for block in blocks))

    @property
    def d_out(self) -> int:
        """Rows of W: the width of the residual stream."""
        return int(self.weight.shape[1 if self.transposed else 0])

    @property
    def d_in(self) -> int:
        """Columns of W: the width of the MLP."""
        return int(self.weight.shape[0 if self.transposed else 1])

    def ref(self) -> SiteRef:
        """The site by name and by content (hashes the tensor)."""
        return SiteRef(
            layer=self.layer,
            parameter=self.parameter_name,
            d_out=self.d_out,
            d_in=self.d_in,
            transposed=self.transposed,
            dtype=dtype_name(self.weight.dtype),
            sha256=tensor_sha256(self.stored()),
        )


def is_transposed(module: nn.Module, name: str) -> bool:
    """Whether *module* stores W^T. Decided by its type, never by its shape.

    Raises:
        ArchitectureError: the module is neither ``Conv1D`` nor ``Linear``, or its weights are quantised.
    """
    weight = getattr(module, "weight", None)
    plain = isinstance(weight, torch.Tensor) and weight.dtype in _PLAIN
    # Quantised layers may be subclasses of Linear; their packed weights give them away.
    if isinstance(module, (Conv1D, nn.Linear)) and plain:
        return isinstance(module, Conv1D)
    found = type(module).__name__
    raise ArchitectureError(
        f"The module {name} cannot be edited.",
        expected="a Linear or Conv1D module with plain float weights",
        found=f"{found} of {dtype_name(weight.dtype)}" if isinstance(weight, torch.Tensor) else found,
        next_step="Quantised or wrapped layers must be loaded in float32, float16 or bfloat16.",
    )


def find_architecture(model: PreTrainedModel, pattern: str | None = None) -> Architecture:
    """The row for *model*: from the user's *pattern*, from the table, else by structure.

    Args:
        model: a causal language model.
        pattern: module name with ``{}`` for the layer index ("model.layers.{}.mlp.down_proj"), or None.

    Raises:
        ArchitectureError: nothing fits, or more than one module does.
    """
    model_type = str(getattr(model.config, "model_type", "unknown"))
    if pattern is not None:
        return _from_pattern(model, model_type, pattern)
    row = ARCHITECTURES.get(model_type)
    if row is not None and _get_module(model, row.module(0)) is not None:
        return row
    return _from_structure(model, model_type)


def n_layers(model: PreTrainedModel, architecture: Architecture) -> int:
    """How many decoder layers *model* has."""
    layers = _get_module(model, architecture.layers)
    assert isinstance(layers, nn.ModuleList)
    return len(layers)


def layer_modules(model: PreTrainedModel, architecture: Architecture) -> nn.ModuleList:
    """The list of decoder layers."""
    layers = _get_module(model, architecture.layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def site_at(model: PreTrainedModel, architecture: Architecture, layer: int) -> Site:
    """The site at *layer*.

    Raises:
        SiteError: the model has no such layer, or that layer has no such module.
    """
    count = n_layers(model, architecture)
    if not 0 <= layer < count:
        raise SiteError(
            f"The model has no layer {layer}.",
            expected=f"a layer from 0 to {count - 1}",
            found=layer,
            next_step="Leave --layer out to use the preset.",
        )
    name = architecture.module(layer)
    module = _get_module(model, name)
    if module is None:
        raise SiteError(f"Layer {layer} has no module {name}.", next_step="Name one with --module, {} for the layer.")
    return Site(layer=layer, module_name=name, module=module, transposed=is_transposed(module, name))


def site_of_parameter(model: PreTrainedModel, ref: SiteRef) -> Site:
    """The site that a patch names, in *model*.

    Raises:
        SiteError: the model has no such parameter.
    """
    name = ref.parameter.removesuffix(".weight")
    module = _get_module(model, name)
    if module is None:
        raise SiteError(
            f"The model has no parameter {ref.parameter}.",
            expected="the base model that the patch names",
            found=str(getattr(model.config, "model_type", "unknown")),
            next_step="Load the patch's own base, or compute the fact anew on this one.",
        )
    return Site(layer=ref.layer, module_name=name, module=module, transposed=is_transposed(module, name))


def site_named(model: PreTrainedModel, name: str) -> Site:
    """The module *name* of *model* as a site, wherever it is; its layer is the first number in its name, else 0.

    Raises:
        SiteError: the model has no such module.
        ArchitectureError: it is no Linear or Conv1D module with plain weights.
    """
    module = _get_module(model, name)
    if module is None:
        close = difflib.get_close_matches(name, (known for known, _ in model.named_modules()), n=1)
        hint = f"Did you mean {close[0]!r}?" if close else None
        raise SiteError(f"The model has no module {name[:200]!r}.", next_step=hint)
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    layer = 0 if number is None else int(number[1])
    return Site(layer=layer, module_name=name, module=module, transposed=is_transposed(module, name))


def _get_module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _from_pattern(model: PreTrainedModel, model_type: str, pattern: str) -> Architecture:
    match = re.fullmatch(r"([\w.]+)\.\{\}\.([\w.]+)", pattern)
    if match is None:
        raise ArchitectureError(
            f"The module pattern {pattern!r} cannot be read.",
            expected='a dotted name with {} for the layer: "model.layers.{}.mlp.down_proj"',
        )
    row = Architecture(model_type, match[1], match[2])
    layers = _get_module(model, row.layers)
    if not isinstance(layers, nn.ModuleList) or _get_module(model, row.module(0)) is None:
        raise ArchitectureError(
            f"The model has no module {row.module(0)}.",
            found=", ".join(_candidates(model)[:8]) or "no linear modules inside numbered layers",
            next_step="Name one of those with --module, {} in the place of the layer number.",
        )
    is_transposed(model.get_submodule(row.module(0)), row.module(0))
    return row


def _candidates(model: PreTrainedModel) -> list[str]:
    """Patterns of linear modules inside layer 0 of the model's layer lists."""
    return sorted(
        f"{path}.{{}}.{inner}"
        for path, layers in _layer_lists(model)
        for inner, module in layers[0].named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    )


def _layer_lists(model: PreTrainedModel) -> list[tuple[str, nn.ModuleList]]:
    config = model.config.get_text_config()
    depth = getattr(config, "num_hidden_layers", None)
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and len(module) == depth
    ]


def _from_structure(model: PreTrainedModel, model_type: str) -> Architecture:
    hidden = getattr(model.config.get_text_config(), "hidden_size", None)
    found = []
    for path, layers in _layer_lists(model):
        for inner, module in layers[0].named_modules():
            if not isinstance(module, (nn.Linear, Conv1D)):
                continue
            rows, columns = (module.weight.T if isinstance(module, Conv1D) else module.weight).shape
            # Out of a wider MLP into the residual stream; attention's output projection is square or narrower.
            if rows == hidden and columns > rows and "attn" not in inner and "attention" not in inner:
                found.append(Architecture(model_type, path, inner))
    if len(found) == 1:
        return found[0]
    raise ArchitectureError(
        f"The architecture {model_type!r} is not in the table, and its structure does not tell the down-projection.",
        expected="one linear module per layer from the MLP's width to the hidden size",
        found=", ".join(row.pattern for row in found[:8]) or _fused_experts(model) or "none",
        next_step='Name the module: --module "model.layers.{}.mlp.down_proj" ({} stands for the layer). '
        "Mixture-of-experts layers have one per expert: name one expert's, where the experts are modules; experts "
        "that share one tensor cannot be edited.",
        candidates=[row.pattern for row in found] or _candidates(model),
    )


def _fused_experts(model: PreTrainedModel) -> str:
    """Three-dimensional parameters of layer 0, in words: experts that share one tensor."""
    return ", ".join(
        f"{path}.{{}}.{name}, experts in one tensor of {tuple(parameter.shape)}"
        for path, layers in _layer_lists(model)
        for name, parameter in layers[0].named_parameters()
        if parameter.dim() == 3
    )
