"""A step whose arithmetic is left out: what it makes has the right shapes and holds zeros, so that a large network is watched in seconds.

Operations on large tensors that come from a batch or from weights are not computed; torch's own shape rules (``FakeTensorMode``) say what
would come out, and memory that nobody touches stands in for it. All else is computed: constants such as filter banks, which others may
keep, draws, positions, and whatever is small. So a step may read its positions; code that looks at the values of a large tensor sees zeros.
Products are counted as in a real step; what autograd keeps is nearly the same, for a few operations share memory unsaid.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

SMALL = 1 << 14  # elements, up to which all is computed
DECIDED_BY_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view}
ALIASES = {  # they make views and their schemas do not say so
    getattr(torch.ops.aten, name)
    for name in ("_unsafe_view", "unsafe_split", "unsafe_split_with_sizes", "lift_fresh", "_reshape_alias")
}


class ShapesOnly(TorchDispatchMode):
    """Within the block nothing large that depends on ``unknown`` (which must outlive it) is computed, forward or backward."""

    def __init__(self, unknown: Iterable[Tensor]) -> None:
        super().__init__()
        self._fake = FakeTensorMode()
        self._blank = {tensor.untyped_storage().data_ptr() for tensor in unknown}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        looks = (
            function.is_view or function.overloadpacket in ALIASES or not DECIDED_BY_VALUES.isdisjoint(function.tags)
        )
        if looks or not any(self._is_blank(tensor) for tensor in given):
            return function(*args, **kwargs)
        try:
            expected = self._expected(function, args, kwargs)
        except RuntimeError:  # no shape rule, or the operation is a mistake: then the real one says so
            return function(*args, **kwargs)
        made = [value for value in tree_leaves(expected) if isinstance(value, Tensor)]
        if all(tensor.numel() <= SMALL for tensor in given + made):
            return function(*args, **kwargs)
        if not isinstance(expected, tuple | list):
            return self._result(function, 0, expected, args, kwargs)
        return tuple(self._result(function, i, value, args, kwargs) for i, value in enumerate(expected))

    def _expected(self, function: Any, args: Any, kwargs: Any) -> Any:
        """What comes out, as shapes."""
        with self._fake:
            args, kwargs = tree_map_only(
                Tensor,
                lambda tensor: torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
                ),
                (args, kwargs),
            )
            return function(*args, **kwargs)

    def _result(self, function: Any, number: int, expected: Any, args: Any, kwargs: Any) -> Any:
        """One of the results: the argument that would be written to, where it is one, else zeros."""
        returns = function._schema.returns
        alias = returns[number].alias_info if number < len(returns) else None
        if alias is not None:
            for place, argument in enumerate(function._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.before_set == alias.before_set:
                    return kwargs[argument.name] if argument.name in kwargs else args[place]
        return tree_map_only(Tensor, self._zeros, expected)

    def _is_blank(self, tensor: Tensor) -> bool:
        return tensor.layout == torch.strided and tensor.untyped_storage().data_ptr() in self._blank

    def _zeros(self, like: Tensor) -> Tensor:
        """Of the same shape, strides and kind; the system gives such memory as zeros and holds none of it until someone reads it."""
        if like.numel() <= SMALL:
            return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype).zero_()
        elements = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
        memory = np.zeros(elements * like.element_size(), np.uint8)
        flat = torch.from_numpy(memory).view(like.dtype)
        address = flat.untyped_storage().data_ptr()
        self._blank.add(address)
        weakref.finalize(memory, self._blank.discard, address)
        return flat.as_strided(like.shape, like.stride())
