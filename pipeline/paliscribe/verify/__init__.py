"""Verification of runs against their frozen manifests, and repair of what can be derived."""

from paliscribe.verify.findings import Finding, Report
from paliscribe.verify.repair import Repaired, repair
from paliscribe.verify.whole import verify

__all__ = ["Finding", "Repaired", "Report", "repair", "verify"]
