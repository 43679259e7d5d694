"""Commands for live calls: `paliscribe ask` and `serve`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from paliscribe import config
from paliscribe.cli.options import Json, option, without_none
from paliscribe.config import JobConfig, ModelSpec, ServeConfig


def ask(
    image: Annotated[str, typer.Argument(help="A path, s3:// or http(s):// address.")],
    prompt: Annotated[str, typer.Argument(help="PaliGemma's grammar: caption en, ocr, detect cat ; dog, ...")],
    model: Annotated[str, option(ModelSpec, "id")] = "demo",
    max_tokens: Annotated[int | None, option(JobConfig, "max_tokens")] = None,
    mask_decoder: Annotated[str | None, option(JobConfig, "mask_decoder")] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the picture with boxes, masks and text: .png, .jpg or .webp.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Open that picture in a viewer.")] = False,
    as_json: Json = False,
) -> None:
    """Answer one prompt about one image, in this process."""
    from paliscribe.grammar.advice import advice
    from paliscribe.grammar.tasks import parse_task

    if (words := advice(parse_task(prompt))) is not None:
        print(f"note: {words}", file=sys.stderr)
    if save is not None or show:
        from paliscribe.cli.drawing import check_file, has_display

        if save is not None:
            check_file(save)
        if show and not has_display():
            print("note: no display to show the picture on; --save FILE writes it", file=sys.stderr)
            show = False
    from paliscribe.api.ask import answered

    record, data = answered(image, prompt, model=model, max_tokens=max_tokens, mask_decoder=mask_decoder)
    if save is not None or show:
        from paliscribe.cli.drawing import drawn, open_viewer, write

        picture = drawn(data, record)
        if save is not None:
            write(picture, save)
        if show:
            open_viewer(picture)
    from paliscribe.cli.report import answer_words
    from paliscribe.results import record_values

    found = record_values(record)
    print(json.dumps(found) if as_json else answer_words(found))


def serve(
    endpoint: Annotated[
        str | None, typer.Argument(help="A model's id, or a YAML file of settings, which flags override.")
    ] = None,
    model: Annotated[list[str] | None, option(ModelSpec, "id", " Repeat for more.")] = None,
    host: Annotated[str | None, option(ServeConfig, "host")] = None,
    port: Annotated[int | None, option(ServeConfig, "port")] = None,
    keys: Annotated[str | None, option(ServeConfig, "keys")] = None,
    files: Annotated[str | None, option(ServeConfig, "files")] = None,
    open_: Annotated[bool | None, option(ServeConfig, "open", flag="--open")] = None,
) -> None:
    """Answer live calls over HTTP until stopped: OpenAI's chat completions, and records as a run writes them."""
    is_file = endpoint is not None and (endpoint.endswith((".yaml", ".yml", ".json")) or Path(endpoint).is_file())
    if endpoint is not None and not is_file:
        model = [endpoint, *(model or [])]
    values = config.load_endpoint(Path(endpoint)) if endpoint is not None and is_file else {}
    values |= without_none({"host": host, "port": port, "keys": keys, "files": files, "open": open_})
    if model:
        values["models"] = [{"model": name} for name in model]
    settings = config.parse_serve(values, source=endpoint if endpoint is not None and is_file else "serve")
    from paliscribe.online.checks import check, check_port
    from paliscribe.pool.joining import check_cluster, destination

    keys_given = bool(check(settings).found)
    settings = settings.model_copy(update={"port": check_port(settings.host, settings.port)})
    check_cluster()
    names = ", ".join(served.called for served in settings.models)
    print(f"starting {names}: {destination()}", file=sys.stderr, flush=True)
    from paliscribe.online.application import serve_forever

    out = sys.stdout

    def ready(address: str) -> None:
        print(f"serving {names} at {address} (Ctrl-C stops)", file=out, flush=True)
        key = "KEY" if keys_given else "none"
        print(f"OpenAI clients: OPENAI_BASE_URL={address}/v1 OPENAI_API_KEY={key}", file=sys.stderr, flush=True)

    serve_forever(settings, ready, lambda words: print(words, file=sys.stderr, flush=True))
