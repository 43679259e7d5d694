"""Which metrics and labels an expression of PromQL names, and whether an exporter shows them."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser as promql
from prometheus_client.parser import text_string_to_metric_families

VARIABLES = {"$__rate_interval": "5m"}  # of Grafana, where PromQL wants a duration; others are inside strings


@dataclass(frozen=True, slots=True)
class Use:
    """A metric as one expression names it."""

    metric: str
    labels: frozenset[str]  # that it is matched, grouped or joined by
    values: frozenset[tuple[str, str]]  # labels that must be equal to these


def uses(expression: str) -> list[Use]:
    """Every metric of an expression. Raises ValueError for what is not PromQL."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return list(_uses(promql.parse(expression), frozenset()))


def query_uses(query: str) -> list[Use]:
    """The metric of a dashboard's variable: `label_values(SELECTOR, LABEL)`."""
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    if found is None:
        raise ValueError(f"not label_values: {query}")
    return [Use(use.metric, use.labels | {found[2]}, use.values) for use in uses(found[1])]


def shown(text: str) -> dict[str, list[dict[str, str]]]:
    """The series of an exporter by name; a label that is empty is none, as Prometheus has it."""
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append({key: value for key, value in sample.labels.items() if value})
    return found


def missing(named: Iterable[Use], series: dict[str, list[dict[str, str]]]) -> list[str]:
    """What is named and not shown, in words."""
    problems = set()
    for use in named:
        found = series.get(use.metric, [])
        if not found:
            problems.add(f"no metric {use.metric}")
        elif not any(use.labels <= labels.keys() and use.values <= set(labels.items()) for labels in found):
            wanted = ", ".join([*sorted(use.labels), *(f"{label}={value}" for label, value in sorted(use.values))])
            problems.add(f"no series of {use.metric} with {wanted}")
    return sorted(problems)


def _uses(node: Any, outer: frozenset[str]) -> Iterator[Use]:
    """Below a node; `outer`: labels that aggregations and joins above it need."""
    match node:
        case promql.VectorSelector():
            if node.name is None or node.matchers.or_matchers:
                raise ValueError(f"name the metric: {node}")
            matchers = node.matchers.matchers
            equal = {(m.name, m.value) for m in matchers if m.op == promql.MatchOp.Equal}
            yield Use(node.name, outer | {m.name for m in matchers}, frozenset(equal))
        case promql.MatrixSelector():
            yield from _uses(node.vector_selector, outer)
        case promql.AggregateExpr():
            labels = node.modifier.labels if node.modifier is not None else []
            yield from _uses(node.expr, outer | set(labels))
        case promql.BinaryExpr():
            matching = node.modifier.matching if node.modifier is not None else None
            joined = outer | set(matching.labels if matching is not None else [])
            yield from _uses(node.lhs, joined)
            yield from _uses(node.rhs, joined)
        case promql.Call():
            for argument in node.args:
                yield from _uses(argument, outer)
        case promql.ParenExpr() | promql.SubqueryExpr() | promql.UnaryExpr():
            yield from _uses(node.expr, outer)
        case promql.NumberLiteral() | promql.StringLiteral():
            return
        case _:
            raise ValueError(f"unknown part of PromQL: {type(node).__name__}")
