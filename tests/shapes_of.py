"""Models of the table and their inputs without values: what a plan without weights is made from."""

from typing import Any

from table_models import TableCase
from torch import Tensor, nn

READ = {"timestep", "sigma", "encoder_attention_mask", "img_ids", "txt_ids", "guidance"}
"""Arguments whose values a forward of the table reads."""


def on_meta(case: TableCase, size: int = 0) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """The model and its inputs without values, except what is no weight and what is read."""
    args, kwargs = case.inputs(seed=0, timestep=900.0, size=size)
    args = tuple(a if a.ndim == 1 else _meta(a) for a in args)
    return (
        case.model.to("meta"),
        args,
        {k: v if k in READ else _meta(v) for k, v in kwargs.items()},
    )


def _meta(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_meta(v) for v in value)
    return value.to("meta") if isinstance(value, Tensor) else value
