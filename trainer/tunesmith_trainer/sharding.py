"""Owns weights that lie on all ranks in parts: splitting a model, and whole tensors from and to the parts.
Must not know data, losses, optimizers or files."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tunesmith_trainer import distributed
from tunesmith_trainer.base_shapes import decoder_layers


class Sharded(nn.Module):
    """A model in parts (FSDP2). To those who score packs it behaves like the model.

    The decoder's layers are gathered one by one as they are needed. Embeddings, last norm and head belong to this
    module, which keeps them gathered from the decoder's start to the end of the backward pass: the head is used
    outside of any module, and may be the embeddings themselves.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def base_model(self, **inputs: Any) -> Any:
        """The decoder without the head, through the hooks that gather the weights."""
        return self(**inputs)

    def forward(self, **inputs: Any) -> Any:
        """As `base_model`."""
        return self.model.base_model(**inputs)  # type: ignore[operator]  # transformers models have it

    def get_output_embeddings(self) -> nn.Module:
        """The head, gathered once the decoder has run."""
        return self.model.get_output_embeddings()  # type: ignore[operator,no-any-return]  # as above

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config


def shard(model: nn.Module) -> Sharded:
    """Splits a model's weights among the ranks, which all hold the same ones, and moves them to the ranks' devices.

    Gradients of the parts are sums over the ranks, formed in float32.
    """
    sharded = Sharded(model)
    for unit in (*decoder_layers(model), sharded):
        one = fully_shard(unit, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
        # The default is the mean over ranks; ours are already divided by the count of the whole step.
        one.set_gradient_divide_factor(1.0)
        one.set_force_sum_reduction_for_comms(True)
    return sharded


def inner(model: nn.Module) -> nn.Module:
    """The model itself, with its own names: where it is sharded, its parameters as the parts that they are."""
    if not isinstance(model, Sharded):
        return model
    model.reshard()  # type: ignore[operator]  # fully_shard has made it an FSDPModule
    return model.model


def sum_gradients(model: nn.Module) -> None:
    """Sums the trained parameters' gradients over the ranks, unless the backward pass has done so already."""
    if isinstance(model, Sharded):
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    distributed.sum_up(gradients)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict; of a sharded model, whole tensors in main memory on the leader, and nothing on other ranks.

    All ranks must call it. A tensor that goes by two names is there under its first one.
    """
    if not isinstance(model, Sharded):
        return model.state_dict()
    model = inner(model)
    state: Mapping[str, Tensor] = model.state_dict()
    first_names = {name for name, _ in model.named_parameters()}
    return on_leader({name: tensor for name, tensor in state.items() if _is_first(name, tensor, first_names)})


def on_leader(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, put together where they lie in parts, in main memory on the leader; nothing on other ranks.

    One is put together after the other, so that no device holds more than one whole.
    """
    found = {}
    for name, tensor in tensors.items():
        complete = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if distributed.leads():
            found[name] = complete.detach().cpu()
    return found


def part_of(complete: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that belongs where `like` lies; the tensor itself where nothing is sharded."""
    if not isinstance(like, DTensor):
        return complete
    # Every rank has read the whole, so that nothing needs to be sent.
    return distribute_tensor(complete.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _is_first(name: str, tensor: Tensor, first_names: set[str]) -> bool:
    return name in first_names or not isinstance(tensor, DTensor)
