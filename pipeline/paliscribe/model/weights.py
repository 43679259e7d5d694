"""Where weights come from: the package's demo, a folder, a prefix of an object store, or a Hugging Face repository.

`locate` answers on any machine, without torch and without fetching the weights: does the model exist, may it be
read, is it a PaliGemma, which revision is it. What is wrong with a model is said here, in one line, before a
cluster is started.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from paliscribe.config import ModelSpec
from paliscribe.errors import UsageError
from paliscribe.model.download import HASH, NEEDED, download, model_objects, revision_of
from paliscribe.storage import StorageError, open_store

DEMO = "demo"
PREFIX = "s3://"
# PaliGemma 1 is published in float32, with a branch for each of the other precisions; PaliGemma 2 in bfloat16 alone.
BRANCHED = re.compile(r"google/paligemma-3b-[\w-]+")
BRANCHES = ("bfloat16", "float16")
INDEX = "model.safetensors.index.json"  # there where the weights are in several files
NO_SAFETENSORS = (
    "has no .safetensors file; weights in other formats, which can hold code, are not loaded: "
    "load them elsewhere and write them with `save_pretrained`"
)


@dataclass(frozen=True, slots=True)
class Located:
    """A model that exists. `path`: a folder, a prefix, or a Hugging Face id to be loaded at the commit `revision`.

    A folder's or a prefix's revision is a hash of what it holds.
    """

    path: str
    revision: str
    image_size: int  # pixels a side
    family: str  # model_type of the decoder: gemma or gemma2

    @property
    def is_folder(self) -> bool:
        """Whether `path` is a folder of this machine."""
        return Path(self.path).is_dir()

    def pin(self, spec: ModelSpec) -> ModelSpec:
        """The model at this very revision: whoever loads it gets these weights or an error, and no newer ones."""
        return spec.model_copy(update={"revision": self.revision})

    def local(self) -> tuple[str, str | None]:
        """Path and revision as transformers takes them; a prefix is fetched, once a node. Raises UsageError."""
        if self.is_folder:
            return self.path, None
        if self.path.startswith(PREFIX):
            return str(download(open_store(self.path), self.revision)), None
        return self.path, self.revision


def locate(spec: ModelSpec) -> Located:
    """Find the model and its exact revision. Raises UsageError: missing, gated, not a PaliGemma, out of reach."""
    folder = Path(str(files("paliscribe.demo") / "checkpoint")) if spec.id == DEMO else Path(spec.id).expanduser()
    if folder.is_dir():
        return _checked(spec, str(folder.resolve()), _config_of(folder), _digest(folder))
    if spec.id.startswith(PREFIX):
        return _locate_in_store(spec)
    if spec.id.startswith(("/", "./", "../", "~")):
        raise UsageError(f"model {spec.id}: no such folder")
    return _locate_on_hub(spec)


def default_branch(spec: ModelSpec) -> str | None:
    """The branch whose weights are in the precision that is asked for, where none is given and there may be one."""
    given = spec.revision is not None or spec.precision not in BRANCHES
    return None if given or not BRANCHED.fullmatch(spec.id) else spec.precision


def _locate_in_store(spec: ModelSpec) -> Located:
    try:
        store = open_store(spec.id)
        objects = model_objects(store)
        names = {found.key for found in objects}
        if not names:
            raise UsageError(f"model {store.uri}: no model is there")
        _check_files(store.uri, names)
        return _checked(spec, spec.id, _parsed(store.uri, store.get("config.json")), revision_of(objects))
    except StorageError as error:
        raise UsageError(f"model {error}") from None


def _locate_on_hub(spec: ModelSpec) -> Located:
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError

    if branch := default_branch(spec):
        try:
            return _hub_config(spec, branch)
        except (RevisionNotFoundError, LocalEntryNotFoundError):  # or not cached: main may be
            pass
    try:
        return _hub_config(spec, spec.revision)
    except RevisionNotFoundError:
        raise UsageError(f"model {spec.id} has no revision {spec.revision!r}") from None
    except LocalEntryNotFoundError:
        raise UsageError(f"model {spec.id} is not in the local cache and Hugging Face cannot be reached") from None


def _hub_config(spec: ModelSpec, revision: str | None) -> Located:
    """Ask the hub for the configuration at a revision, and whether there are weights that may be loaded."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the client's own, which has been another

    try:
        config = Path(hf_hub_download(spec.id, "config.json", revision=revision))
    except HFValidationError:
        raise UsageError(f"model {spec.id}: neither a folder nor a Hugging Face id (owner/name)") from None
    except GatedRepoError:
        raise UsageError(
            f"model {spec.id} is gated: accept its licence at https://huggingface.co/{spec.id}, "
            "then set HF_TOKEN to a token of that account"
        ) from None
    except RepositoryNotFoundError:
        raise UsageError(
            f"model {spec.id}: no such repository on Hugging Face (or a private one: set HF_TOKEN)"
        ) from None
    except (RevisionNotFoundError, LocalEntryNotFoundError):
        raise
    except EntryNotFoundError:
        raise UsageError(f"model {spec.id} has no config.json: it is not a transformers model") from None
    except (HfHubHTTPError, httpx.HTTPError) as error:
        raise UsageError(f"model {spec.id}: asking Hugging Face ended in {error.__class__.__name__}") from None
    commit = config.parent.name
    if _without_safetensors(spec.id, commit):
        raise UsageError(f"model {spec.id} {NO_SAFETENSORS}")
    return _checked(spec, spec.id, _parsed(spec.id, config.read_bytes()), commit)


def _without_safetensors(repository: str, commit: str) -> bool:
    """Whether a repository surely has no safetensors; where the hub cannot say, loading will."""
    from huggingface_hub import file_exists
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # as below

    try:
        return not any(file_exists(repository, name, revision=commit) for name in ("model.safetensors", INDEX))
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError):
        return False


def _checked(spec: ModelSpec, path: str, config: dict[str, Any], revision: str) -> Located:
    if config.get("model_type") != "paligemma":
        raise UsageError(f"model {spec.id} is a {config.get('model_type', 'model of unknown type')}, not a PaliGemma")
    if revision.startswith(HASH) and spec.revision not in (None, revision):
        if not str(spec.revision).startswith(HASH):
            raise UsageError(f"model {spec.id}: only Hugging Face repositories have revisions; drop `revision`")
        raise UsageError(f"model {spec.id}: it holds {revision} now, and not {spec.revision}")
    return Located(
        path=path,
        revision=revision,
        image_size=int(config["vision_config"].get("image_size", 224)),
        family=str(config["text_config"].get("model_type", "gemma")),
    )


def _config_of(folder: Path) -> dict[str, Any]:
    _check_files(str(folder), {path.name for path in folder.iterdir()})
    try:
        return _parsed(str(folder), (folder / "config.json").read_bytes())
    except OSError:
        raise UsageError(f"model {folder}: config.json cannot be read") from None


def _check_files(where: str, names: set[str]) -> None:
    if "config.json" not in names:
        raise UsageError(f"model {where}: no config.json there; write one with `save_pretrained`")
    if not any(name.endswith(".safetensors") for name in names):
        raise UsageError(f"model {where} {NO_SAFETENSORS}")


def _parsed(where: str, config: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(config)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise UsageError(f"model {where}: config.json cannot be read")
    return parsed


def _digest(folder: Path) -> str:
    """A folder's revision: a hash of everything in it that decides an answer."""
    whole = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in NEEDED):
        with path.open("rb") as file:
            whole.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"{HASH}{whole.hexdigest()[:16]}"
