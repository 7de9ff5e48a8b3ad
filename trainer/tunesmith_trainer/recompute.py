"""Owns computing decoder layers a second time in the backward pass instead of keeping what they computed.
Must not know when that is needed, nor what is minimised."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from tunesmith_trainer.base_shapes import decoder_layers


def recompute(model: nn.Module, layers: int) -> None:
    """Lets the first `layers` decoder layers keep only their input for the backward pass; losses and gradients stay.

    The first, because the backward pass comes to them last: by then the other layers have let go of what they kept.
    """
    for layer in decoder_layers(model)[:layers]:
        # Nothing random is drawn in a step, so that there is no random state to keep.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
