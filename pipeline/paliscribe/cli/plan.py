"""Text output of `paliscribe annotate --dry-run`."""

from typing import Any

STATES = {
    "new": "new",
    "resumed": "has an interrupted run, which would go on",
    "finished": "has this run, which is finished",
    "appended": "has a finished run, to which rows would be added",
}


def plan_words(plan: dict[str, Any]) -> str:
    """The plan of a run as text."""
    model, columns = plan["model"], [f"{name} ({kind})" for name, kind in plan["columns"].items()]
    named = ", ".join(columns[:20]) + (f" and {len(columns) - 20:,} more" if len(columns) > 20 else "")
    tasks = [f"{each['task']}  ({each['kind']}, at most {each['max_tokens']} tokens)" for each in plan["tasks"]]
    counts = (
        f"{plan['rows_to_annotate']:,} rows x {len(tasks)} task{'s' * (len(tasks) > 1)} = {plan['requests']:,} requests"
    )
    before = plan["rows"] - plan["rows_to_annotate"]
    lines = [
        f"{counts}{f' ({before:,} rows are annotated already)' if before else ''}",
        f"  reads    {', '.join(plan['manifest'][:5])}{' ...' if len(plan['manifest']) > 5 else ''}, "
        "and the images that it names",
        f"  columns  {named or 'none besides id and image'}",
        *(f"  {'' if number else 'tasks':<8} {words}" for number, words in enumerate(tasks)),
        f"  model    {model['id']} at {model['revision']}, {model['image_size']} px",
        f"  writes   {plan['output']} ({STATES[plan['state']]}), shards of up to "
        f"{plan['shard_rows']:,} rows: {plan['shards']:,}",
        f"  begins   by {plan['ray']}",
        "nothing was written or started",
    ]
    return "\n".join(lines)
