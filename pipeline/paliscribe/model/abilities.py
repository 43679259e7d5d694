"""What a model can do, as far as it is known: told to callers, so that a page offers nothing else."""

from dataclasses import dataclass

from paliscribe import demo
from paliscribe.config import ModelSpec
from paliscribe.grammar.tasks import KINDS
from paliscribe.model.weights import DEMO


@dataclass(frozen=True, slots=True)
class Abilities:
    """Kinds of task and languages (empty: many, or not known) of a model, and what it knows, in a sentence."""

    tasks: tuple[str, ...] = tuple(KINDS)
    languages: tuple[str, ...] = ()
    about: str = ""


def abilities(spec: ModelSpec) -> Abilities:
    """The abilities of a model. Of another than the demo, those of PaliGemma's mix checkpoints are assumed."""
    return Abilities(demo.TASKS, demo.LANGUAGES, demo.KNOWS) if spec.id == DEMO else Abilities()
