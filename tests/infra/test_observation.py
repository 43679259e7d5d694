"""Grafana dashboard and Prometheus alerts: format, runbook sections, unit tests.

tests/front/test_join.py compares their metrics with those of a running pool.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

import promql
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "infra/prometheus"
# Exported by Ray on nodes with a GPU only, so not available in tests.
GPU_NODES = {"ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gram_available"}


RUNS = {"ray_paliscribe_run_rows_left"}
WATCHDOG = "PaliscribeWatchdog"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Labels(Strict):
    severity: Literal["critical", "warning", "none"]


class Annotations(Strict):
    summary: str = Field(min_length=10, max_length=120)
    runbook_url: str = Field(pattern=r"^docs/operations\.md#[a-z]+$")


class Alert(Strict):
    alert: str = Field(pattern="^Paliscribe[A-Z][A-Za-z]+$")
    expr: str
    hold: Annotated[str, Field(alias="for", pattern=r"^\d+[sm]$")]
    labels: Labels
    annotations: Annotations


class Group(Strict):
    name: str = Field(pattern="^paliscribe-[a-z]+$")
    rules: list[Alert] = Field(min_length=1)


class Rules(Strict):
    groups: list[Group] = Field(min_length=1)


def alerts() -> list[Alert]:
    rules = Rules.model_validate(yaml.safe_load((PROMETHEUS / "rules.yaml").read_text()))
    return [rule for group in rules.groups for rule in group.rules]


def dashboard() -> dict[str, Any]:
    return json.loads((ROOT / "infra/grafana/dashboard.json").read_text())


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """All expressions of the dashboard with their legends."""
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]


def named() -> list[promql.Use]:
    """All metrics used by dashboard and alerts, except those of GPU nodes and of runs."""
    found = [use for alert in alerts() for use in promql.uses(alert.expr)]
    found += [use for expression, _ in queries() for use in promql.uses(expression)]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            found += promql.query_uses(variable["definition"])
    return [use for use in found if use.metric not in GPU_NODES | RUNS]


def of_runs() -> list[promql.Use]:
    """The metrics used by alerts that a driver exports while its run goes on."""
    return [use for alert in alerts() for use in promql.uses(alert.expr) if use.metric in RUNS]


def test_alerts_have_unique_names_and_existing_labels() -> None:
    names = [alert.alert for alert in alerts()]
    assert len(set(names)) == len(names) >= 10
    for alert in alerts():
        labels = set(re.findall(r"\$labels\.(\w+)", alert.annotations.summary))
        known = {label for use in promql.uses(alert.expr)[:1] for label in use.labels}
        assert labels <= known, f"{alert.alert}: unknown label in its summary"


def test_invalid_alert_fields_are_detected() -> None:
    rules = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())
    rules["groups"][0]["rules"][0]["lables"] = {}
    with pytest.raises(ValueError, match="lables"):
        Rules.model_validate(rules)


def test_every_alert_has_a_runbook_section() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    sections = re.findall(r"^### (Paliscribe\w+)$", text, re.MULTILINE)
    assert sorted(sections) == sorted(alert.alert for alert in alerts())
    for alert in alerts():
        assert alert.annotations.runbook_url == f"docs/operations.md#{alert.alert.lower()}"
        body = text.partition(f"### {alert.alert}\n")[2].partition("\n### ")[0].partition("\n## ")[0]
        assert len(body.split()) > 20, f"{alert.alert}: what it means and what to do"


def test_prometheus_config_has_the_rules_and_rays_service_discovery() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
    assert [(PROMETHEUS / name).exists() for name in config["rule_files"]] == [True]
    [scrape] = config["scrape_configs"]
    [discovery] = scrape["file_sd_configs"]
    assert [Path(path).name for path in discovery["files"]] == [PROMETHEUS_SERVICE_DISCOVERY_FILE]


def test_panels_are_described_and_do_not_overlap() -> None:
    found = dashboard()["panels"]
    assert len({panel["id"] for panel in found}) == len(found)
    for panel in panels():
        assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"] and panel["targets"]
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", "data sources must not be hard-coded"
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for one, other in combinations(found, 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (one["title"], other["title"])
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in found)


def test_dashboard_rows() -> None:
    rows = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]
    assert rows == ["Is it answering?", "How fast?", "How full?", "What fails?", "What hardware?"]


def test_dashboard_variables_are_defined_and_used() -> None:
    known = {variable["name"] for variable in dashboard()["templating"]["list"]} | {"__rate_interval"}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps([panel["targets"] for panel in panels()])))
    assert used == known


def test_labels_in_legends_exist() -> None:
    for expression, legend in queries():
        labels = set(re.findall(r"\{\{(\w+)\}\}", legend))
        assert all(labels <= use.labels for use in promql.uses(expression)), (expression, legend)


def test_metrics_of_gpu_nodes_exist_in_ray() -> None:
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    assert {name.removeprefix("ray_") for name in GPU_NODES} <= set(METRICS_GAUGES)
    used = {use.metric for expression, _ in queries() for use in promql.uses(expression)}
    assert used >= GPU_NODES, "unused exception"


def test_the_checker_finds_missing_metrics() -> None:
    text = (
        '# TYPE a_total counter\na_total{x="1",empty="",y="2"} 3\n# TYPE h histogram\nh_bucket{le="1"} 1\nh_count 1\n'
    )
    series = promql.shown(text)

    def problems(expression: str) -> list[str]:
        return promql.missing(promql.uses(expression), series)

    assert not problems('sum by (x) (rate(a_total{y="2"}[$__rate_interval])) / on (x) sum by (x) (a_total offset 5m)')
    assert not problems("histogram_quantile(0.5, sum by (le) (rate(h_bucket[5m])))")
    assert problems("a") == problems("sum(a)") == ["no metric a"]
    assert problems("max_over_time(sum(b_total)[1h:1m]) > 0 unless -(a_total)") == ["no metric b_total"]
    assert problems('a_total{y="3"}') == ["no series of a_total with y, y=3"]
    assert problems("sum by (z) (a_total)") == ["no series of a_total with z"]
    assert problems("sum by (empty) (a_total)") == ["no series of a_total with empty"]
    assert problems("a_total * on (z) group_left () h_bucket") == [
        "no series of a_total with z",
        "no series of h_bucket with z",
    ]
    with pytest.raises(ValueError):
        promql.uses("sum by (x (a_total)")


@pytest.fixture
def promtool() -> str:
    """Path of promtool (Debian package `prometheus`). Skips if it is not installed, unless NEED_PROMTOOL is set."""
    if (found := shutil.which("promtool")) is None:
        assert not os.environ.get("NEED_PROMTOOL"), "promtool is not installed"
        pytest.skip("promtool is not installed")
    return found


def test_promtool_accepts_the_files(promtool: str) -> None:
    for words in (["config", str(PROMETHEUS / "prometheus.yaml")], ["rules", str(PROMETHEUS / "rules.yaml")]):
        done = subprocess.run([promtool, "check", *words], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_other_way_to_find_nodes_is_valid_and_rays(promtool: str, tmp_path: Path) -> None:
    """The lines of prometheus.yaml that are commented out, in the place of file_sd_configs."""
    from ray.dashboard.modules.reporter import reporter_head

    text = (PROMETHEUS / "prometheus.yaml").read_text()
    before, _, after = text.partition("    file_sd_configs:\n")
    other = "".join(f"{line.replace('# ', '', 1)}\n" for line in after.splitlines() if line.startswith("    #"))
    (tmp_path / "rules.yaml").write_text((PROMETHEUS / "rules.yaml").read_text())
    (tmp_path / "prometheus.yaml").write_text(before + other)
    [scrape] = yaml.safe_load(before + other)["scrape_configs"]
    [discovery] = scrape["http_sd_configs"]
    assert f'"{discovery["url"].partition(":8265")[2]}"' in Path(reporter_head.__file__).read_text()
    words = [promtool, "check", "config", "--syntax-only", str(tmp_path / "prometheus.yaml")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_only_then(promtool: str) -> None:
    path = Path(__file__).parent / "alerts.yaml"
    tested = [case for test in yaml.safe_load(path.read_text())["tests"] for case in test["alert_rule_test"]]
    for alert in alerts():
        cases = [case for case in tested if case["alertname"] == alert.alert]
        assert any(case.get("exp_alerts") for case in cases), f"{alert.alert}: no test in which it fires"
        silent = any(not case.get("exp_alerts") for case in cases)
        assert silent is (alert.alert != WATCHDOG), f"{alert.alert}: no test in which it does not fire"
    done = subprocess.run([promtool, "test", "rules", path], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_watchdog_goes_outside_and_critical_alerts_page() -> None:
    config = yaml.safe_load((PROMETHEUS / "alertmanager.yaml").read_text())
    route, receivers = config["route"], {receiver["name"] for receiver in config["receivers"]}
    [heartbeat, pages] = route["routes"]
    assert {route["receiver"], heartbeat["receiver"], pages["receiver"]} == receivers and len(receivers) == 3
    assert heartbeat["matchers"] == [f'alertname="{WATCHDOG}"'] and heartbeat["repeat_interval"] == "1m"
    assert pages["matchers"] == ['severity="critical"']
    [inhibit] = config["inhibit_rules"]
    assert WATCHDOG in inhibit["target_matchers"][1], "the switch is never silenced"
