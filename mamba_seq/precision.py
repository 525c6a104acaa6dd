"""The type that is computed in: autocast's where it is on, else that of the weights."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

NOTHING = nullcontext()  # one for all calls: entering autocast costs as much as a small operation


def computing_type(device: str, weight: Tensor) -> torch.dtype:
    """Return the type that a linear map of that weight computes in on a kind of device."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def without_autocast(like: Tensor) -> AbstractContextManager[None]:
    """Return a context that leaves types as they are, on the device of `like`."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else NOTHING
