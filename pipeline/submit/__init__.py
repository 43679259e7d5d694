"""Jobs on a cluster, through Ray's job API: what of a job is sent, what is refused, and where a job stands."""

from pipeline.submit.client import Jobs, SubmittedJob
from pipeline.submit.package import Package, pack
from pipeline.submit.secrets import variables

__all__ = ["Jobs", "Package", "SubmittedJob", "pack", "variables"]
