"""A second device without hardware: tensors that lie on ``gpu:0`` for torch, autograd and our code, and in the host's memory in truth.

What a GPU would refuse is refused here: operations on tensors of two devices, a generator of the wrong device, NumPy on what is not the
host's. What makes the host wait for a GPU is noted. Kernels, memory formats and speed are the host's: this shows that a program would run
on a device of its own, not how fast. The device is torch's ``PrivateUse1``, its backend written in Python: one per process, for good, and
there before the process's first backward pass, which starts a thread for every device; so tests use it in a process of its own (``apart``).
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map_only

aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# The host has to know the outcome before it can go on.
WAITS = {
    aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default,
    aten._unique2.default, aten.unique_dim.default, aten.repeat_interleave.Tensor, aten.bincount.default,
}  # fmt: skip
MATHEMATICAL = 0  # torch's number for attention in the open


class TwoDevices(RuntimeError):
    """An operation met tensors, or a generator, of two devices."""


def _backend() -> torch.device:
    if backend_registration._get_privateuse1_backend_name() != "gpu":

        class Backend:
            """What ``torch.gpu`` is asked."""

            is_available = staticmethod(lambda: True)
            is_initialized = staticmethod(lambda: True)
            device_count = staticmethod(lambda: 1)
            current_device = staticmethod(lambda: 0)
            get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16, torch.float32])
            _is_in_bad_fork = staticmethod(lambda: False)
            manual_seed_all = staticmethod(lambda seed: None)

        backend_registration._setup_privateuseone_for_python_backend("gpu", backend_module=Backend)
    return torch.device("gpu:0")


class NoDouble(TypeError):
    """A number of double precision, where the device is one that has none."""


class There(Tensor):
    """A tensor of the second device; ``here`` holds its numbers."""

    wide = True  # whether such a device has double precision

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        if not cls.wide and here.dtype in (torch.float64, torch.complex128):
            raise NoDouble(f"a tensor {tuple(here.shape)} of double precision on gpu:0{_place()}")
        return Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype, device=_backend()
        )  # fmt: skip

    def __init__(self, here: Tensor) -> None:
        self.here = here

    def __repr__(self, **_: Any) -> str:
        return f"There({self.here!r})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(function, args, kwargs or {}, [])


def _call(function: Any, args: Any, kwargs: Any, waits: list[str]) -> Any:
    """Run an operation on the numbers that its tensors hold; what it makes lies where a GPU's would."""
    tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
    there = any(isinstance(x, There) for x in tensors)
    asked = kwargs.get("device")
    made_there = torch.device(asked).type == "gpu" if asked is not None else there
    if function is aten.copy_.default:
        made_there = isinstance(args[0], There)
    elif function is aten._fused_sdp_choice.default:
        return MATHEMATICAL
    if function in COPIES:
        if _crosses(tensors, made_there) and not (kwargs.get("non_blocking") or args[2:3] == (True,)):
            waits.append(f"a copy between the devices{_place()}")
    elif there:
        _refuse_mixtures(function, args, tensors)
        if function in WAITS or (function in INDEXING and _has_mask(args[1])):
            waits.append(f"{function}{_place()}")
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    bare_args, bare_kwargs = tree_map_only(There, lambda x: x.here, (args, kwargs))
    result = OWN_KERNELS.get(function, function)(*bare_args, **bare_kwargs)
    if not made_there:
        return result
    result = tree_map_only(Tensor, There, result)
    return return_and_correct_aliasing(function, args, kwargs, result) if there else result


def _crosses(tensors: list[Tensor], made_there: bool) -> bool:
    return any(isinstance(tensor, There) != made_there for tensor in tensors)


def _has_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _refuse_mixtures(function: Any, args: Any, tensors: list[Tensor]) -> None:
    indices = {id(index) for index in args[1] if index is not None} if function in INDEXING else set()
    for tensor in tensors:
        number = tensor.ndim == 0 and torch.Tag.pointwise in function.tags
        if not (isinstance(tensor, There) or number or id(tensor) in indices):
            raise TwoDevices(f"{function}: a tensor {tuple(tensor.shape)} of the host among tensors of gpu:0")


def _gru_cell(given: Tensor, hidden: Tensor, state: Tensor, *biases: Tensor) -> tuple[Tensor, Tensor]:
    """What the host has no kernel for: (B, 3 H) twice and (B, H) -> the next state, and what its gradients need."""
    if biases:
        given, hidden = given + biases[0], hidden + biases[1]
    (r, z, n), (hidden_r, hidden_z, hidden_n) = given.chunk(3, -1), hidden.chunk(3, -1)
    reset, update = (r + hidden_r).sigmoid(), (z + hidden_z).sigmoid()
    new = (n + reset * hidden_n).tanh()
    return new + update * (state - new), torch.cat([reset, update, new, state, hidden_n], -1)


def _gru_cell_backward(gradient: Tensor, workspace: Tensor, has_bias: bool) -> tuple[Tensor | None, ...]:
    reset, update, new, state, hidden_n = workspace.chunk(5, -1)
    for_new = gradient * (1 - update) * (1 - new**2)
    for_update = gradient * (state - new) * update * (1 - update)
    for_reset = for_new * hidden_n * reset * (1 - reset)
    given = torch.cat([for_reset, for_update, for_new], -1)
    hidden = torch.cat([for_reset, for_update, for_new * reset], -1)
    return given, hidden, gradient * update, *((x.sum(0) if has_bias else None) for x in (given, hidden))


def _lstm_cell(given: Tensor, hidden: Tensor, cell: Tensor, *biases: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gates = (given + hidden + sum(biases)).chunk(4, -1)
    entry, forget, new, exit_ = gates[0].sigmoid(), gates[1].sigmoid(), gates[2].tanh(), gates[3].sigmoid()
    cell = forget * cell + entry * new
    return exit_ * cell.tanh(), cell, torch.cat([entry, forget, new, exit_], -1)


def _lstm_cell_backward(
    gradient: Tensor | None, of_cell: Tensor | None, before: Tensor, cell: Tensor, workspace: Tensor, has_bias: bool
) -> tuple[Tensor | None, ...]:
    entry, forget, new, exit_ = workspace.chunk(4, -1)
    gradient = torch.zeros_like(cell) if gradient is None else gradient
    turned = cell.tanh()
    through = gradient * exit_ * (1 - turned**2) + (0 if of_cell is None else of_cell)
    gates = [
        through * new * entry * (1 - entry),
        through * before * forget * (1 - forget),
        through * entry * (1 - new**2),
        gradient * turned * exit_ * (1 - exit_),
    ]
    return torch.cat(gates, -1), through * forget, torch.cat(gates, -1).sum(0) if has_bias else None


OWN_KERNELS = {
    aten._thnn_fused_lstm_cell.default: _lstm_cell,
    aten._thnn_fused_lstm_cell_backward_impl.default: _lstm_cell_backward,
    aten._efficientzerotensor.default: torch.zeros,  # forward derivatives begin with tensors without numbers, which no kernel may see
    aten._thnn_fused_gru_cell.default: _gru_cell,
    aten._thnn_fused_gru_cell_backward.default: _gru_cell_backward,
}


def _place() -> str:
    """Where in this project it was asked for."""
    ours = [
        f
        for f in traceback.extract_stack()
        if {"models", "pipeline"} & set(Path(f.filename).parts) and "site-packages" not in f.filename
    ]
    return f" in {ours[-1].name}, {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""


class _Dispatch(TorchDispatchMode):
    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(function, args, kwargs or {}, self._waits)


class _Generator(torch.Generator):
    """The host's generator, under the name of a device."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls)
        made.of = torch.device(device).type
        return made


class _Calls(TorchFunctionMode):
    """What the dispatcher does not see: which Python object a generator was, and numbers that become a tensor there."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            return self._from_numbers(function, args, kwargs)
        if function is Tensor.tolist and isinstance(args[0], There):
            self._waits.append(f"tolist{_place()}")
            return args[0].here.tolist()
        if function is Tensor.numpy and isinstance(args[0], There):
            raise TypeError("can't convert a gpu:0 tensor to numpy. Use Tensor.cpu() first.")
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            args = (
                args[0],
                tree_map_only(list, torch.tensor, args[1], is_leaf=lambda x: isinstance(x, list)),
                *args[2:],
            )
        generator = kwargs.get("generator")
        if generator is not None:
            out = kwargs.get("out", args[0] if args and isinstance(args[0], Tensor) else None)
            device = kwargs.get("device") or (out.device if out is not None else "cpu")
            if torch.device(device).type != getattr(generator, "of", "cpu"):
                raise TwoDevices(
                    f"{function.__name__}: a generator of {getattr(generator, 'of', 'cpu')} draws on {device}"
                )
        return function(*args, **kwargs)

    def _from_numbers(self, function: Any, args: Any, kwargs: Any) -> Any:
        kwargs = dict(kwargs)
        device = kwargs.pop("device", None)
        if function is Tensor.new_tensor:
            like, *args = args
            device = device or like.device
            function, kwargs = torch.tensor, {"dtype": like.dtype, **kwargs}
        made = function(*args, **kwargs)
        return made if device is None else made.to(device)


def apart() -> ProcessPoolExecutor:
    """A process that has the second device and one thread; ``apart().submit(function, ...).result()``."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_begin)


def _begin() -> None:
    torch.set_num_threads(1)
    _backend()


def _no_gradients(mode: Any) -> None:
    """What inference mode does that can be done with tensors such as these."""
    mode._inference_mode_context = torch.set_grad_enabled(not mode.mode)


@contextmanager
def second_device(double: bool = True) -> Iterator[tuple[torch.device, list[str]]]:
    """Within the block ``gpu:0`` exists. Yields the device, and a growing list of what made the host wait for it.

    ``double``: whether it has double precision; Apple's MPS has none.
    """
    waits: list[str] = []
    patches = mock.patch("torch.Generator", _Generator), mock.patch("torch.inference_mode.__enter__", _no_gradients)
    with patches[0], patches[1], mock.patch.object(There, "wide", double), _Calls(waits), _Dispatch(waits):
        yield _backend(), waits
