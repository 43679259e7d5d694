"""Jobs on a cluster, through Ray's job API: what of a job is sent, what is refused, and where a job stands."""

from paliscribe.submit.client import Jobs, SubmittedJob
from paliscribe.submit.package import Package, pack
from paliscribe.submit.secrets import variables

__all__ = ["Jobs", "Package", "SubmittedJob", "pack", "variables"]
