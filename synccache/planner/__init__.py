"""The planner: what to hold, under a byte budget. Numbers in, an optimal and printed choice out.

Knows neither torch nor policies. `synccache.planner.cp_sat` is not imported here: it needs OR-Tools
and is asked for by name.
"""

from synccache.planner.chain import plan_chain
from synccache.planner.dynamic_program import (
    Partition,
    fewest_residual_bytes,
    partition,
    partitions_by_count,
)
from synccache.planner.plan import Alternative, Memory, Plan, PlannedRegion
from synccache.planner.problem import (
    MEASURED,
    ChainProblem,
    DriftSource,
    Gap,
    Live,
    segment_table,
    segments_for_ratio,
)
from synccache.planner.quantities import format_bytes, parse_bytes

__all__ = [
    "MEASURED",
    "Alternative",
    "ChainProblem",
    "DriftSource",
    "Gap",
    "Live",
    "Memory",
    "Partition",
    "Plan",
    "PlannedRegion",
    "fewest_residual_bytes",
    "format_bytes",
    "parse_bytes",
    "partition",
    "partitions_by_count",
    "plan_chain",
    "segment_table",
    "segments_for_ratio",
]
