"""Where weights come from: the package's demo, a folder, or a Hugging Face repository.

`locate` answers on any machine, without torch and without fetching the weights: does the model exist, may it be
read, is it a PaliGemma, which revision is it. What is wrong with a model is said here, in one line, before a
cluster is started.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pipeline.config import ModelSpec
from pipeline.errors import UsageError

DEMO = "demo"


@dataclass(frozen=True, slots=True)
class Located:
    """A model that exists. `path`: a folder, or a Hugging Face id to be loaded at the commit `revision`."""

    path: str
    revision: str
    image_size: int  # pixels a side
    family: str  # model_type of the decoder: gemma or gemma2

    @property
    def is_folder(self) -> bool:
        """Whether `path` is a folder of this machine."""
        return Path(self.path).is_dir()


def locate(spec: ModelSpec) -> Located:
    """Find the model and its exact revision. Raises UsageError: missing, gated, not a PaliGemma, out of reach."""
    folder = Path(str(files("pipeline.demo") / "checkpoint")) if spec.id == DEMO else Path(spec.id).expanduser()
    if folder.is_dir():
        if spec.revision is not None:
            raise UsageError(f"model {spec.id}: a folder has no revisions; drop `revision`")
        return _checked(spec.id, str(folder.resolve()), _config_of(folder), _digest(folder))
    if spec.id.startswith(("/", "./", "../", "~")):
        raise UsageError(f"model {spec.id}: no such folder")
    return _locate_on_hub(spec)


def _locate_on_hub(spec: ModelSpec) -> Located:
    import httpx
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

    try:
        config = Path(hf_hub_download(spec.id, "config.json", revision=spec.revision))
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
    except RevisionNotFoundError:
        raise UsageError(f"model {spec.id} has no revision {spec.revision!r}") from None
    except LocalEntryNotFoundError:
        raise UsageError(f"model {spec.id} is not in the local cache and Hugging Face cannot be reached") from None
    except EntryNotFoundError:
        raise UsageError(f"model {spec.id} has no config.json: it is not a transformers model") from None
    except (HfHubHTTPError, httpx.HTTPError) as error:
        raise UsageError(f"model {spec.id}: Hugging Face answered {error.__class__.__name__}") from None
    return _checked(spec.id, spec.id, json.loads(config.read_text()), config.parent.name)


def _checked(name: str, path: str, config: dict[str, Any], revision: str) -> Located:
    if config.get("model_type") != "paligemma":
        raise UsageError(f"model {name} is a {config.get('model_type', 'model of unknown type')}, not a PaliGemma")
    return Located(
        path=path,
        revision=revision,
        image_size=int(config["vision_config"].get("image_size", 224)),
        family=str(config["text_config"].get("model_type", "gemma")),
    )


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise UsageError(f"model {folder}: no config.json in this folder; write one with `save_pretrained`") from None
    except (OSError, ValueError):
        raise UsageError(f"model {folder}: config.json cannot be read") from None
    if not any(folder.glob("*.safetensors")):
        raise UsageError(f"model {folder}: no .safetensors file; weights in other formats are not loaded")
    return config


def _digest(folder: Path) -> str:
    """A folder's revision: a hash of everything in it that decides an answer."""
    whole = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in {".json", ".safetensors", ".model"}):
        with path.open("rb") as file:
            whole.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{whole.hexdigest()[:16]}"
