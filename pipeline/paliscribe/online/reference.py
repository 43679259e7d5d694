"""The page `/docs`: the OpenAPI document as plain HTML, without a script."""

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final

from paliscribe.online.page import COLOURS, restricted, styled

MAX_DEPTH: Final = 4  # of fields within fields
STYLE: Final = (
    COLOURS
    + """
main { padding-bottom: 3rem; display: grid; gap: 1rem; }
h2 { font-size: 1.0625rem; overflow-wrap: anywhere; }
h3 { font-size: .875rem; margin: 1rem 0 .375rem; }
nav { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: .25rem 1rem; }
nav a { text-decoration: none; overflow-wrap: anywhere; }
nav a:hover { text-decoration: underline; }
.method { display: inline-block; min-width: 4.25rem; color: var(--quiet); font-weight: 400; font-size: .875rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th { text-align: left; font-weight: 600; }
th, td { padding: .375rem .75rem .375rem 0; border-top: 1px solid var(--line); vertical-align: top; }
"""
)
HEADERS: Final = restricted({"style-src": styled(STYLE), "img-src": "data:"})  # the icon


def reference(document: Mapping[str, Any]) -> str:
    """The page that describes every call of an OpenAPI document."""
    calls = [
        (method.upper(), path, call)
        for path, methods in document["paths"].items()
        for method, call in methods.items()
        if isinstance(call, dict)
    ]
    info = document["info"]
    title = escape(f"{info['title']} {info['version']}")
    contents = "".join(
        f'<a href="#{_anchor(method, path)}"><span class="method">{method}</span>{escape(path)}</a>'
        for method, path, _ in calls
    )
    parts = "".join(_call(document, method, path, call) for method, path, call in calls)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title}: the API</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{title}: the API</h1><p>As a document: <a href="openapi.json">openapi.json</a></p>'
        '<a href="./">The page to try it</a></header>\n'
        f'<main>\n<nav class="card" aria-label="Calls">{contents}</nav>\n{parts}</main>\n</body>\n</html>\n'
    )


def _anchor(method: str, path: str) -> str:
    return escape(f"{method}-{path.strip('/').replace('/', '-')}".lower(), quote=True)


def _call(document: Mapping[str, Any], method: str, path: str, call: Mapping[str, Any]) -> str:
    """The section of one call."""
    content: dict[str, dict[str, Any]] = call.get("requestBody", {}).get("content", {"": {}})
    kind, body = next(iter(content.items()))
    parameters = [
        (each["name"], each["schema"], each.get("required", False), f"in the {each['in']}")
        for each in call.get("parameters", [])
    ]
    parts = [
        f'<h2><span class="method">{method}</span>{escape(path)}</h2>',
        f"<p>{escape(call.get('summary', ''))}</p>",
    ]
    if parameters:
        parts.append(_table("Parameters", [_row(document, *parameter) for parameter in parameters]))
    if rows := list(_fields(document, body.get("schema", {}))):
        parts.append(_table(f"Body: {kind}", rows))
    parts.append(f"<h3>With curl</h3><pre>{escape(_curl(document, method, path, kind, body))}</pre>")
    errors = [
        f"<tr><td>{escape(status)}</td><td>{escape(reply.get('description', ''))}</td></tr>"
        for status, reply in call.get("responses", {}).items()
        if not status.startswith("2") and status != "422"  # FastAPI names 422, which is answered with 400
    ]
    if errors:
        parts.append(f"<h3>Errors</h3><table>{''.join(errors)}</table>")
    return f'<section class="card" id="{_anchor(method, path)}">{"".join(parts)}</section>\n'


def _table(title: str, rows: Sequence[str]) -> str:
    head = "<tr><th>field</th><th>type</th><th>meaning</th></tr>"
    return f'<h3>{escape(title)}</h3><div class="wide"><table>{head}{"".join(rows)}</table></div>'


def _row(document: Mapping[str, Any], name: str, schema: Mapping[str, Any], required: bool, more: str = "") -> str:
    words = [schema.get("description", ""), more, "required" if required else ""]
    meaning = "; ".join(word.rstrip(".") for word in words if word)
    return (
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_type(document, schema))}</td>"
        f"<td>{escape(meaning)}</td></tr>"
    )


def _fields(document: Mapping[str, Any], schema: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[str]:
    """A row for each field of an object, and of the objects in it."""
    whole = _resolved(document, schema)
    for name, field in whole.get("properties", {}).items():
        yield _row(document, prefix + name, field, name in whole.get("required", []))
        inner, mark = field, ""
        for each in _choices(field):
            if each.get("type") == "array":
                inner, mark = each["items"], "[]"
            elif "$ref" in each:
                inner = each
        if depth < MAX_DEPTH:
            yield from _fields(document, inner, f"{prefix}{name}{mark}.", depth + 1)


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" in schema:
        found: Mapping[str, Any] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return found
    return schema


def _choices(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(schema.get("anyOf") or schema.get("oneOf") or [schema])


def _type(document: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """A schema's type in words, such as `array of string, or null`."""
    words = []
    for each in _choices(schema):
        whole = _resolved(document, each)
        if whole.get("type") == "array":
            words.append(f"array of {_type(document, whole['items'])}")
        elif "enum" in whole or "const" in whole:
            words.append(" or ".join(json.dumps(value) for value in whole.get("enum", [whole.get("const")])))
        else:
            words.append("file" if "contentMediaType" in whole else whole.get("format", whole.get("type", "any")))
    return ", or ".join(dict.fromkeys(words))


def _curl(document: Mapping[str, Any], method: str, path: str, kind: str, body: Mapping[str, Any]) -> str:
    """A curl command of a call. ADDRESS and KEY are the caller's to set."""
    lines = ["curl -sS" if method == "GET" else f"curl -sS -X {method}", '-H "Authorization: Bearer $KEY"']
    if kind == "multipart/form-data":
        fields = _resolved(document, body["schema"])
        for name in fields.get("required", []):
            is_file = _type(document, fields["properties"][name]).endswith("file")
            lines.append(f"-F {name}={'@FILE' if is_file else name.upper()}")
    elif kind:
        example = _resolved(document, body.get("schema", {})).get("example", {})
        lines += [f"-H 'Content-Type: {kind}'", f"-d '{json.dumps(example)}'"]
    return " \\\n  ".join([*lines, f'"$ADDRESS{path}"'])
