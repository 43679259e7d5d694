"""How many replicas queued work calls for: the policy that Serve's own autoscaler asks."""

import math
from collections.abc import Mapping
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from paliscribe.config import PoolConfig

ROWS, SLOTS = "rows", "slots"  # what a replica reports: requests that it holds, and those that it decodes together
REPORT = 1.0  # seconds between two reports of a handle


def wanted(rows: Mapping[Any, float], slots: Mapping[Any, float], calls: float, each: int | None) -> int:
    """Replicas for so much work: every one is to hold `each` requests, by default as many as it decodes together.

    `rows`, `slots`: by replica. `calls`: calls under way, wherever they are; while there is one, a replica stays.
    """
    held = sum(rows.values())
    target = each or (max(slots.values()) if slots else 1)
    return max(math.ceil(held / max(1.0, target)), 1 if calls > 0 else 0)


class RowsPolicy:
    """Serve's interface to `wanted`; its bounds and delays are applied by Serve."""

    def __init__(self, each: int | None = None) -> None:
        self._each = each

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number of replicas that the work of now calls for."""
        metrics = context.aggregated_metrics or {}
        rows, slots = metrics.get(ROWS, {}), metrics.get(SLOTS, {})
        return wanted(rows, slots, context.total_num_requests, self._each), {}


def autoscaling(config: PoolConfig, most: int) -> AutoscalingConfig | None:
    """The autoscaler's settings, for at most `most` replicas where the pool names no number; None: a fixed number."""
    if config.max_replicas is None and config.min_replicas is None:
        return None
    least = 1 if config.min_replicas is None else config.min_replicas
    return AutoscalingConfig(
        min_replicas=least,
        max_replicas=max(config.max_replicas or most, least, 1),
        initial_replicas=least,
        metrics_interval_s=REPORT,
        look_back_period_s=2 * REPORT,
        upscale_delay_s=config.scale_up_after,
        downscale_delay_s=config.scale_down_after,
        policy=AutoscalingPolicy(
            policy_function="paliscribe.pool.autoscaling:RowsPolicy", policy_kwargs={"each": config.rows_per_replica}
        ),
    )
