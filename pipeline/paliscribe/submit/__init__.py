"""Submits jobs to a Ray cluster through its job API: packaging, checks for secrets, status, logs, stop."""

from paliscribe.submit.client import Jobs, SubmittedJob
from paliscribe.submit.package import Package, pack
from paliscribe.submit.secrets import variables

__all__ = ["Jobs", "Package", "SubmittedJob", "pack", "variables"]
