"""The page `/docs`: every call described, nothing loaded, no script."""

import re
from html import escape

import httpx
from online.browser import Page
from online.conftest import Endpoint

from paliscribe.online.reference import reference


def test_every_call_and_field_is_described(endpoint: Endpoint) -> None:
    found = httpx.get(f"{endpoint.address}/docs")
    document = httpx.get(f"{endpoint.address}/openapi.json").json()
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    for path, methods in document["paths"].items():
        for method, call in methods.items():
            assert f'<span class="method">{method.upper()}</span>{path}</h2>' in found.text
            assert escape(call["summary"]) in found.text
    for field in ("messages[].content[].image_url.url", "stream_options.include_usage", "images", "last_picture"):
        assert f"<code>{field}</code>" in found.text
    anchors = re.findall(r'href="#([^"]+)"', found.text)
    assert anchors and all(f'id="{anchor}"' in found.text for anchor in anchors) and len(set(anchors)) == len(anchors)


def test_there_is_no_script_and_the_policy_allows_none(endpoint: Endpoint) -> None:
    found = httpx.get(f"{endpoint.address}/docs")
    assert "<script" not in found.text and not re.search(r"\son\w+=", found.text)
    policy = dict(part.split(" ", 1) for part in found.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and "script-src" not in policy and "connect-src" not in policy
    assert httpx.get(f"{endpoint.address}/redoc").status_code in (401, 404)
    assert httpx.get(f"{endpoint.address}/docs/oauth2-redirect").status_code in (401, 404)


def test_text_of_the_document_is_escaped() -> None:
    field = {"name": "<x-field>", "in": "query", "schema": {"type": "string", "description": "<x-words>"}}
    call = {"summary": "<x-summary>", "parameters": [field]}
    page = reference({"info": {"title": "<x-title>", "version": "1"}, "paths": {"/<x-path>": {"get": call}}})
    assert "<x-" not in page and all(
        f"&lt;x-{name}&gt;" in page for name in ("title", "path", "summary", "field", "words")
    )


def test_nothing_is_requested_from_another_origin(page: Page, endpoint: Endpoint) -> None:
    page.open(endpoint.address)
    page.requests(), page.complaints()
    page.command("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=False)
    page.driver.get(f"{endpoint.address}/docs")
    assert page.run("return document.querySelectorAll('section').length") > 5
    assert page.run("return document.documentElement.scrollWidth") <= 390
    sent = page.requests()
    assert f"{endpoint.address}/docs" in sent and all(url.startswith((f"{endpoint.address}/", "data:")) for url in sent)
    assert page.complaints() == []
    assert page.run("return document.styleSheets.length") == 1, "the style is applied under the policy"
