"""Base of all settings: an immutable model that rejects unknown keys, YAML loading, and error messages."""

from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from paliscribe.errors import UsageError, did_you_mean

Kind = TypeVar("Kind", bound=BaseModel)

MAX_DIGITS = 100


class Settings(BaseModel):
    """Base class of all settings: immutable; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True, allow_inf_nan=False)


def model_shorthand(value: Any) -> Any:
    """Expand `model: ID` to `model: {id: ID}`."""
    return {"id": value} if isinstance(value, str) else value


def one_or_many(value: Any) -> Any:
    """Expand a single string to a list of one."""
    return [value] if isinstance(value, str) else value


def itself_if_one(values: tuple[str, ...]) -> Any:
    """The inverse of `one_or_many`."""
    return values[0] if len(values) == 1 else list(values)


def validated(kind: type[Kind], values: dict[str, Any], source: str) -> Kind:
    """Validate raw values. Raises UsageError with all problems in one line, each with its key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        inside = {e["loc"][:end] for e in found for end in range(len(e["loc"]))}
        # Pydantic counts only the valid items of a list, so it also reports a list of one invalid item as "too short".
        kept = [e for e in found if e["type"] != "too_short" or e["loc"] not in inside]
        problems = "; ".join(_problem(kind, e["loc"], e["type"], e["msg"]) for e in kept)
        raise UsageError(f"{source}: {problems}") from None


def load(path: Path, what: str = "job file") -> dict[str, Any]:
    """Read a YAML file into raw values, without validation. `what`: its name in messages. Raises UsageError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such {what}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error.__class__.__name__})") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise UsageError(f"{path}: not valid YAML{line}: {getattr(error, 'problem', error)}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: no {what}, which is a mapping of settings, `name: value`")
    return values


class _PlainLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML by libyaml, which parses 5 to 10 times faster and rejects more than 1,000 levels at once."""


def _plain_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """An integer. The time that PyYAML takes for one with colons, base 60, grows with the square of its length."""
    if len(node.value) > MAX_DIGITS:
        raise yaml.YAMLError(f"an integer has at most {MAX_DIGITS} characters")
    return int(loader.construct_yaml_int(node))


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _plain_int)


def plain_yaml(body: bytes) -> Any:
    """Parse untrusted YAML or JSON into raw values, without validation.

    Aliases are rejected: they can expand a small file to a very large one. Raises ValueError.
    """
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(body, Loader=_PlainLoader)):
            raise ValueError("aliases are not supported")
        return yaml.load(body, Loader=_PlainLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _problem(model: type[BaseModel], location: tuple[int | str, ...], kind: str, message: str) -> str:
    key = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        for part in location[:-1]:
            annotation = model.model_fields[part].annotation if isinstance(part, str) else model
            if get_origin(annotation) is tuple:
                annotation = get_args(annotation)[0]
            model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else model
        return f"unknown key {key!r}{did_you_mean(str(location[-1]), model.model_fields)}"
    if kind == "missing":
        return f"{key!r} is missing"
    message = message.removeprefix("Value error, ")
    return f"{key!r}: {message[0].lower()}{message[1:]}"
