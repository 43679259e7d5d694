"""The process that decodes one image after another for `apart`: `python -m paliscribe.images.worker`.

A request is a line of JSON and the encoded image, the answer a line of JSON and the pixels.
"""

import json
import os
import resource
import signal
import sys
from typing import Any

from paliscribe.errors import RowError
from paliscribe.images.formats import recognised
from paliscribe.images.pixels import Options, decode_here


def main() -> None:
    """Answer requests until the other side ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries must not write between answers
    answers.write(b"ready\n")
    answers.flush()
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        data = sys.stdin.buffer.read(request["length"])
        _limit_memory(request["memory"])
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])  # ends this process, also within a library
        head, pixels = _answer(data, Options(**request["options"]))
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(head).encode() + b"\n" + pixels)
        answers.flush()


def _answer(data: bytes, options: Options) -> tuple[dict[str, Any], bytes]:
    try:
        pixels, width, height = decode_here(data, options, recognised(data))
    except RowError as error:
        return {"kind": error.kind, "message": error.message}, b""
    return {"width": width, "height": height}, pixels.tobytes()


def _limit_memory(most: int) -> None:
    """Let allocations fail beyond this many bytes of data, those of the interpreter and its libraries included."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


if __name__ == "__main__":
    main()
