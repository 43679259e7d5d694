"""Autoscaling policy: replicas by queued requests. Serve's autoscaler calls it."""

import math
from collections.abc import Mapping
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from paliscribe.config import PoolConfig

ROWS, SLOTS = "rows", "slots"  # metrics a replica reports: requests it holds, and requests it can decode together
REPORT_INTERVAL = 1.0  # seconds between reports


def desired_replicas(rows: Mapping[Any, float], slots: Mapping[Any, float], calls: float, each: int | None) -> int:
    """Number of replicas such that each holds at most `each` requests; default: its number of slots.

    `rows`, `slots`: by replica. `calls`: calls in flight; at least one replica stays while there are any.
    """
    held = sum(rows.values())
    target = each or (max(slots.values()) if slots else 1)
    return max(math.ceil(held / max(1.0, target)), 1 if calls > 0 else 0)


class RowsPolicy:
    """Serve's interface to `desired_replicas`; Serve applies bounds and delays."""

    def __init__(self, each: int | None = None) -> None:
        self._each = each

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The desired number of replicas, from the current metrics."""
        metrics = context.aggregated_metrics or {}
        rows, slots = metrics.get(ROWS, {}), metrics.get(SLOTS, {})
        return desired_replicas(rows, slots, context.total_num_requests, self._each), {}


def autoscaling(config: PoolConfig, most: int) -> AutoscalingConfig | None:
    """Autoscaler settings, or None for a fixed number of replicas. `most`: upper bound if the pool sets none."""
    if config.max_replicas is None and config.min_replicas is None:
        return None
    least = 1 if config.min_replicas is None else config.min_replicas
    return AutoscalingConfig(
        min_replicas=least,
        max_replicas=max(config.max_replicas or most, least, 1),
        initial_replicas=least,
        metrics_interval_s=REPORT_INTERVAL,
        look_back_period_s=2 * REPORT_INTERVAL,
        upscale_delay_s=config.scale_up_after,
        downscale_delay_s=config.scale_down_after,
        policy=AutoscalingPolicy(
            policy_function="paliscribe.pool.autoscaling:RowsPolicy", policy_kwargs={"each": config.rows_per_replica}
        ),
    )
