"""Text output of `bench.gpu`."""

from collections.abc import Callable
from typing import Any

GIB = 2**30


def words(part: str, found: Any, refused: str | None) -> str:
    """The figures of one part as text. `refused`: why there are none."""
    if refused is not None:
        return f"  {part}: NO FIGURES, {refused}"
    written: dict[str, Callable[[Any], list[str]]] = {
        "check": _check,
        "invariance": _invariance,
        "latency": _latency,
        "equal": _rates,
        "mixed": _rates,
        "steps": _steps,
    }
    first, *rest = written[part](found)
    return "\n".join([f"  {part}: {first}", *(f"    {line}" for line in rest)])


def _check(found: Any) -> list[str]:
    answers = found["answers"]
    lines = [
        f"first logits of {found['probes']} requests against float32, tolerance {found['tolerance']:.3%} of their "
        f"standard deviation, which is {found['spread']:.3f}"
    ]
    for name, label in (("first_logits", "ours"), ("first_logits_of_generate", "generate")):
        off = found[name]
        lines.append(
            f"{label:9} {off['relative']:.3%} off at worst; differences: max {off['most']:.4f}, mean "
            f"{off['mean']:.5f}; same token {off['same_token']:.1%}"
        )
    lines.append(
        f"{answers['same']:.1%} of {answers['requests']} answers equal; {len(answers['near_ties'])} with a near-tie "
        f"(closer than {answers['near_tie']:.4g})"
    )
    return lines + [f"  {near_tie(tie)}" for tie in answers["near_ties"]]


def near_tie(tie: dict[str, Any]) -> str:
    """The step at which an answer differs from its reference, as text."""
    tokens = f"token {tie['ours']} instead of {tie['theirs']}"
    return f"a near-tie: request {tie['request']}, step {tie['step']}: {tokens}, logits {tie['gap']:.4g} apart"


def _invariance(found: Any) -> list[str]:
    lines = ["equal tokens; bit-identical log-probabilities; answers equal in both"]
    for name, label in (("alone", "alone and together"), ("shuffled", "together and in another order")):
        shares = found[name]
        lines.append(
            f"{label:30} {shares['tokens']:8.2%} {shares['logprobs']:8.2%} {shares['answers']:8.2%} "
            f"of {shares['requests']}"
        )
    return lines


def _latency(found: Any) -> list[str]:
    lines = [f"ms to the first token of an online request; {found['live']:.0f} of {found['slots']} slots taken"]
    for state in ("idle", "saturated"):
        taken = found[state]
        lines.append(f"{state:10} median {taken['median']:.1f}, p95 {taken['p95']:.1f}, worst {taken['worst']:.1f}")
    return lines


def _rates(found: Any) -> list[str]:
    lines = ["images/s; engine / method; same answers"]
    for name, rate in found["images_per_second"].items():
        ratio = f"{found['ratios'][name]:6.2f} {found['same_answers'][name]:7.1%}" if name in found["ratios"] else ""
        lines.append(f"{name:14} {rate:8.2f} {ratio}".rstrip())
    lines += [f"{name:14} failed: {reason}" for name, reason in found["failed"].items()]
    if "best-generate" in found["ratios"]:
        lines.append(f"engine / best other method: {found['ratios']['best-generate']:.2f}")
    if found.get("share_of_product") is not None:
        limit = f"{found['limit']:.1f} images/s, the limit by plain matrix products"
        lines.append(f"the engine reaches {found['share_of_product']:.1%} of the {limit}")
    if found.get("share_of_known") is not None:
        lines.append(f"and {found['share_of_known']:.1%} of the known throughput of this GPU")
    memory = found["memory"]
    held = f"memory: {memory['slots']} slots of {memory['slot'] / 2**20:.1f} MiB"
    if memory["peak"] is not None:
        held += f", peak {memory['peak'] / GIB:.2f} GiB, with the others {memory['peak_of_all'] / GIB:.2f} GiB"
    return [*lines, held]


def _steps(found: Any) -> list[str]:
    lines = ["ms"]
    for step, taken in found.items():
        replayed, reads = taken.get("ms_in_graph"), taken.get("reads_gb")
        graph = f", {replayed:.2f} in a CUDA graph" if replayed is not None else ""
        lines.append(f"{step:14} {taken['ms']:8.2f}{graph}" + (f", reads {reads:.2f} GB" if reads is not None else ""))
    return lines
