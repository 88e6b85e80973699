"""Frozen parts inside a module: counted and moved with it, but neither saved nor loaded. They come from the weights folder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class WithFrozenParts(nn.Module):
    """A module whose ``state_dict`` holds nothing of the parts named in ``frozen`` (names of attributes, dotted below it).

    A pretrained VAE of 55 million weights would otherwise lie in every checkpoint. ``load_state_dict`` stays strict for the rest.
    """

    frozen: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_keep_own)

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> Any:
        state = super().state_dict(*args, prefix=prefix, **kwargs)
        for name in list(state):
            if self._is_frozen(name, prefix):
                del state[name]
        return state

    def _is_frozen(self, name: str, prefix: str) -> bool:
        return any(name.startswith(f"{prefix}{part}.") for part in self.frozen)


def _keep_own(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """What is not in ``state`` on purpose is put there as it is."""
    assert isinstance(module, WithFrozenParts)
    own = nn.Module.state_dict(module, prefix=prefix)
    state.update({name: value for name, value in own.items() if module._is_frozen(name, prefix)})
