"""Module calls while a forward is recorded: which are opened, and the frames that remember them."""

from __future__ import annotations

import linecache
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn
from torch.fx import Node

from synccache.fx.inputs import Structure

FROM_NOWHERE = (
    "no torch operation of this forward made (an extension, numpy, or a value kept from another "
    "call)"
)


@dataclass(eq=False, slots=True)
class Frame:
    """One call of a module that was opened: what went in, what came out, and who called it."""

    path: str
    parent: Frame | None
    arguments: Any = None  # (args, kwargs) with nodes for tensors; None if not expressible
    result: Structure | None = None
    result_nodes: list[Node] = field(default_factory=list)
    kind: str = ""
    autocast: tuple[Any, ...] = ()

    def stack(self) -> list[Frame]:
        """The frames from the outermost to this one."""
        return (self.parent.stack() if self.parent else []) + [self]


class Unplaceable(Exception):
    """A tensor that a graph could not pass on; the module called at ``path`` must stay closed."""

    def __init__(self, path: str, line: str, what: str = FROM_NOWHERE) -> None:
        super().__init__(path)
        self.path, self.line, self.what = path, line, what


class SeesModuleCalls(Protocol):
    """What ``module_calls_seen`` reports to."""

    paused: bool

    def call_module(self, module: nn.Module, args: Any, kwargs: Any) -> Any: ...


_active = threading.local()
_patch_lock = threading.Lock()
_patch_depth = 0
plain_module_call = nn.Module.__call__


def _seen_module_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    recorder = getattr(_active, "recorder", None)
    if recorder is None or recorder.paused:
        return plain_module_call(module, *args, **kwargs)
    return recorder.call_module(module, args, kwargs)


@contextmanager
def module_calls_seen(recorder: SeesModuleCalls) -> Iterator[None]:
    """``nn.Module.__call__`` reports to the recorder of its own thread; undone at the end."""
    global _patch_depth
    with _patch_lock:
        _patch_depth += 1
        nn.Module.__call__ = _seen_module_call  # type: ignore[method-assign]
    _active.recorder = recorder
    try:
        yield
    finally:
        _active.recorder = None
        with _patch_lock:
            _patch_depth -= 1
            if _patch_depth == 0:
                nn.Module.__call__ = plain_module_call  # type: ignore[method-assign]


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is called, not opened: torch's own, compiled, scripted or offloaded ones."""
    if isinstance(module, torch.jit.ScriptModule) or _is_compiled(module):
        return True
    if getattr(module, "_compiled_call_impl", None) is not None or is_offloaded(module):
        return True
    if has_hooks(module):
        return True  # hooks may change what goes in and out: they run where the module is called
    return is_torch_leaf(module)


def is_torch_leaf(module: nn.Module) -> bool:
    """Whether a module is one of torch's own without children, which does what its class says."""
    own = type(module).__module__.startswith(("torch.nn.", "torch.ao."))
    return own and (isinstance(module, nn.MultiheadAttention) or not module._modules)


def is_opaque(module: nn.Module) -> bool:
    """Whether a module called whole may do what nobody sees, so that it must run on every call."""
    plain = is_torch_leaf(module) and not has_hooks(module) and not is_offloaded(module)
    return not plain or "forward" in vars(module)


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate or diffusers hooked it: its weights may come and go around each call."""
    registry = getattr(module, "_diffusers_hook", None)
    return hasattr(module, "_hf_hook") or bool(registry is not None and registry.hooks)


def stance(name: Any) -> AbstractContextManager[Any]:
    """``torch.compiler.set_stance`` where a compiler was imported; importing it takes seconds."""
    return torch.compiler.set_stance(name) if "torch._dynamo" in sys.modules else nullcontext()


def _is_compiled(module: nn.Module) -> bool:
    compiler = sys.modules.get("torch._dynamo")
    return compiler is not None and isinstance(module, compiler.OptimizedModule)


def has_hooks(module: nn.Module) -> bool:
    """Whether forward hooks were put on the module itself."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def caching_hooks(model: nn.Module) -> list[str]:
    """Names of diffusers' hooks that keep state from call to call: its own caching methods."""
    registries = [getattr(m, "_diffusers_hook", None) for m in model.modules()]
    hooks = {n: h for r in registries if r is not None for n, h in r.hooks.items()}
    return sorted(name for name, hook in hooks.items() if hook._is_stateful)


def own_forward(model: nn.Module) -> Callable[..., Any]:
    """The forward that is recorded: without accelerate's hook on the model itself, which
    ``CachedModel`` runs around it (it brings weights that no recorded operation makes)."""
    wrapped = vars(model).get("_old_forward") if hasattr(model, "_hf_hook") else None
    return model.forward if wrapped is None else wrapped


def autocast_state() -> tuple[Any, ...]:
    """(device kind, dtype, enabled) of each kind of autocast region that is open now."""
    return (
        ("cpu", torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")),
        ("cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")),
    )


def user_line() -> str:
    """The innermost line of the running forward that is neither torch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/torch/" not in name and "/synccache/fx/" not in name:
            line = linecache.getline(name, frame.f_lineno).strip()
            return f"{name.rsplit('/', 1)[-1]}:{frame.f_lineno} `{line}`"
        frame = frame.f_back
    return "an unknown line"
