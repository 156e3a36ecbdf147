"""A device for tests on machines without a GPU: its tensors hold CPU tensors, and meet those only in copies.

Every operator runs on the CPU, on what is held; one that is given tensors of both devices raises, as on CUDA. What CUDA
lets pass, passes: tensors of one number, and indices on the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._pytree import tree_iter, tree_map

NAME = "fake"
POSSIBLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
_aten = torch.ops.aten
_INDEXING = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default}
_libraries: list[Any] = []


class Held(torch.Tensor):
    """A tensor of the device; `held` is its content."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Held:
        new = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=f"{NAME}:0"
        )
        new.held = held
        return new

    def __repr__(self, **_: Any) -> str:
        return f"Held({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, *args, **(kwargs or {}))


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    values = list(tree_iter((args, kwargs)))
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    ours = [value for value in tensors if isinstance(value, Held)]
    named = [value for value in values if isinstance(value, torch.device)]
    if ours and not named and op is not _aten.copy_.default:
        indices = tensors[1:] if op in _INDEXING and tensors[0] is ours[0] else []
        for value in tensors:
            if not isinstance(value, Held) and value.dim() and not any(value is index for index in indices):
                raise RuntimeError(f"Expected all tensors to be on the same device: {op} got {NAME} and cpu")
    if op is _aten._fused_sdp_choice.default:
        return 0  # plain operators
    known = {id(value.held): value for value in ours}
    found = op(*tree_map(_content, args), **tree_map(_content, kwargs))
    if op is _aten.copy_.default:
        return args[0]
    here = named[0].type == NAME if named else bool(ours)

    def hold(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if not here:
            return value.clone() if id(value) in known else value
        return known[id(value)] if id(value) in known else Held(value)

    return tree_map(hold, found)


def _content(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == NAME:
        return torch.device("cpu")
    return value.held if isinstance(value, Held) else value


class Construction(TorchFunctionMode):
    """Goes around the dispatcher: `torch.tensor` copies with it off, `torch.arange` enlarges only what is held, and
    `tolist` refuses subclasses."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        made_here = (torch.tensor, torch.arange)
        if function in made_here and torch.device(kwargs.get("device") or "cpu").type == NAME:
            return function(*args, **(kwargs | {"device": "cpu"})).to(NAME)
        if function is torch.Tensor.tolist:
            return _content(args[0]).tolist()
        return function(*args, **kwargs)


@contextlib.contextmanager
def known() -> Iterator[None]:
    """Makes the device known to torch, once per process, and keeps what goes around the dispatcher away from it."""
    if not _libraries:
        module = backend_registration._DummyBackendModule
        module.synchronize = lambda self: None  # type: ignore[attr-defined]
        backend_registration._setup_privateuseone_for_python_backend(NAME)
        library = torch.library.Library("_", "IMPL", "PrivateUse1")
        library.fallback(lambda op, *args, **kwargs: _run(op, *args, **kwargs))
        _libraries.append(library)
    with Construction():
        yield
