"""Print rules.yaml as a PrometheusRule of the Prometheus operator: `python prometheus_rule.py | kubectl apply -f -`."""

from pathlib import Path
from typing import Any

import yaml

METADATA = {"name": "paliscribe", "namespace": "paliscribe", "labels": {"release": "prometheus"}}


def rule() -> dict[str, Any]:
    """The PrometheusRule, with the groups of rules.yaml."""
    groups = yaml.safe_load(Path(__file__).with_name("rules.yaml").read_text())
    return {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": METADATA, "spec": groups}


if __name__ == "__main__":
    print(yaml.safe_dump(rule(), sort_keys=False, width=1000), end="")
