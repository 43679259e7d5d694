"""Checks of this machine, its packages and its credentials."""

import contextlib
import importlib.metadata
import importlib.util
import ipaddress
import os
import shutil
import stat
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from paliscribe.config import ModelSpec
from paliscribe.errors import PaliscribeError
from paliscribe.model.weights import locate
from paliscribe.storage import StorageError, check_writable, open_store

RAY_TOKEN = Path("~/.ray/auth_token")
LISTENERS = ("ray::", "/ray/core/src/ray/", "/ray/_private/", "/ray/dashboard/", "paliscribe")  # of their command lines
LARGE = ("ray", "torch", "transformers")  # packages of thousands of modules
PACKAGES = ("ray", "torch", "transformers", "bitsandbytes", "pyarrow", "boto3", "pillow")


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check. `ok`: False only if a run would fail."""

    name: str
    ok: bool
    found: str

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dict."""
        return asdict(self)


def examine(locations: list[str]) -> list[Check]:
    """Check Python, packages, hardware, cluster, credentials, the demo model and its products, and `locations`."""
    return [
        _python(),
        *(_package(name) for name in PACKAGES),
        bytecode(),
        _machine(),
        _gpus(),
        _cluster(),
        _token(),
        _sockets(),
        _aws(),
        _hugging_face(),
        _demo_model(),
        _products(),
        *(_location(uri) for uri in locations),
    ]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= (3, 11), f"{version} (3.11 or newer is needed)")


def _package(name: str) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "not installed: pip install paliscribe")


def bytecode() -> Check:
    """Whether large packages are compiled, or will be: else each process of a run compiles them for seconds."""
    sources = [found.origin for name in LARGE if (found := importlib.util.find_spec(name)) and found.origin]
    missing = [source for source in sources if not Path(importlib.util.cache_from_source(source)).exists()]
    if not missing:
        return Check("bytecode", True, f"{', '.join(LARGE)} are compiled")
    folder = Path(missing[0]).parents[1]
    if not sys.dont_write_bytecode and os.access(folder, os.W_OK):
        return Check("bytecode", True, "packages are compiled when they are first imported")
    return Check("bytecode", True, "packages are not compiled and Python does not write bytecode: every process "
                 f"compiles them as it starts, for seconds; python -m compileall -q {folder}")  # fmt: skip


def _machine() -> Check:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    free = shutil.disk_usage(".").free
    return Check("machine", True, f"{os.cpu_count()} CPUs, {pages * size / 2**30:.0f} GiB memory, "
                 f"{free / 2**30:.0f} GiB free on this disk")  # fmt: skip


def _gpus() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("gpu", True, "none usable by torch: models run in float32 on the CPU")
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return Check("gpu", True, ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB)" for p in names))


def _cluster() -> Check:
    address = os.environ.get("RAY_ADDRESS")
    return Check("ray cluster", True, f"RAY_ADDRESS={address}" if address else "no RAY_ADDRESS: runs start Ray here")


def _token() -> Check:
    """Ray's token lets everybody who can read it run code on all of this user's clusters."""
    try:
        mode = stat.S_IMODE(RAY_TOKEN.expanduser().stat().st_mode)
    except OSError:
        return Check("ray token", True, f"no {RAY_TOKEN}: Ray creates it")
    words = "private" if not mode & 0o077 else f"others may read it: chmod 600 {RAY_TOKEN}"
    return Check("ray token", True, f"{RAY_TOKEN} ({mode:04o}), {words}")


def _sockets() -> Check:
    """Where this user's Ray and Paliscribe processes listen."""
    open_, loopback = [], 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if not any(part in words for part in LISTENERS):
                continue
            for found in process.net_connections("inet"):
                if found.status == psutil.CONN_LISTEN:
                    if ipaddress.ip_address(found.laddr.ip.removeprefix("::ffff:")).is_loopback:
                        loopback += 1
                    else:
                        open_.append(f"{found.laddr.ip}:{found.laddr.port} ({process.name()[:24]})")
    if not open_ and not loopback:
        return Check("listening", True, "no Ray runs here")
    others = f"; beyond it {len(open_)}: {', '.join(sorted(open_))}" if open_ else ", none beyond it"
    return Check("listening", True, f"{loopback} sockets on loopback{others}")


def _aws() -> Check:
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        session = boto3.Session()
        credentials = session.get_credentials()
    except BotoCoreError as error:
        return Check("aws", False, f"the AWS settings cannot be used: {error}")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    found = f"credentials from {credentials.method}" if credentials else "no credentials: s3:// is not accessible"
    return Check("aws", True, f"{found}; region {session.region_name or 'not set'}; endpoint {endpoint}")


def _hugging_face() -> Check:
    from huggingface_hub import get_token

    known = get_token() is not None
    return Check("hugging face", True, "a token is set" if known else "no token (HF_TOKEN): gated models will fail")


def _demo_model() -> Check:
    try:
        located = locate(ModelSpec())
    except PaliscribeError as error:
        return Check("demo model", False, str(error))
    return Check("demo model", True, f"{located.revision}, {located.image_size} px")


def _products() -> Check:
    """Matrix product sizes of the demo model, as probed by a replica with this number of threads."""
    import torch

    from paliscribe.model.paligemma import load

    try:
        shapes = load(ModelSpec(precision="float32"), device="cpu").shapes
    except PaliscribeError as error:
        return Check("products", False, str(error))
    return Check("products", True, f"demo model, {torch.get_num_threads()} threads: {shapes.describe()}")


def _location(uri: str) -> Check:
    try:
        store = open_store(uri)
        check_writable(store)
        objects = sum(1 for _, _ in zip(store.list(), range(1000), strict=False))
    except StorageError as error:
        return Check(uri, False, str(error))
    return Check(uri, True, f"can be listed and written ({'1,000 or more' if objects == 1000 else objects} objects)")
