"""Clients of OpenAI's API: each asks as its documentation says, plain, streamed and in a conversation."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from online.conftest import CONFIG, KEY, Endpoint, EngineBackend, data_url, listen

from paliscribe.demo.answers import caption, detection
from paliscribe.demo.scenes import Scene
from paliscribe.online.service import Served, Service

ROOT = Path(__file__).parents[2]
LITELLM = "litellm==1.110.2"  # 200 MB, so it is installed for its test only
NODE = "openai@6.49.0"
SYSTEM = "You are a helpful assistant. Answer briefly."
UNREACHABLE = re.compile(
    "ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|EHOSTUNREACH|ENETUNREACH|ETIMEDOUT|ERR_SOCKET_TIMEOUT"
)
ASK_IN_NODE = """
import OpenAI from "openai";
const [baseURL, apiKey, url] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const content = [{ type: "text", text: "caption en" }, { type: "image_url", image_url: { url, detail: "auto" } }];
const messages = [{ role: "system", content: "Be brief." }, { role: "user", content }];
const models = [];
for await (const model of client.models.list()) models.push(model.id);
const { id } = await client.models.retrieve("demo");
const plain = await client.chat.completions.create({ model: "demo", messages, temperature: 0 });
let streamed = "";
const stream = await client.chat.completions.create({ model: "demo", messages, stream: true });
for await (const chunk of stream) streamed += chunk.choices[0]?.delta?.content || "";
const runner = client.chat.completions.stream({ model: "demo", messages });
const final = (await runner.finalChatCompletion()).choices[0].message.content;
const wrong = await client.chat.completions.create({ model: "gpt", messages }).catch((error) => error);
const said = { models, id, streamed, final, wrong: [wrong.status, wrong.code] };
console.log(JSON.stringify({ ...said, plain: plain.choices[0].message.content }));
"""
ASK_LITELLM = """
import json, os, sys
import litellm

base, key, url = sys.argv[1:]
content = [{"type": "text", "text": "caption en"}, {"type": "image_url", "image_url": {"url": url}}]
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
call = dict(model="openai/demo", api_base=base, api_key=key, messages=messages, temperature=0)
plain = litellm.completion(**call).choices[0].message.content
chunks = litellm.completion(**call, stream=True)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
try:
    litellm.completion(**call | {"model": "openai/gpt"})
except litellm.NotFoundError as error:
    print(json.dumps([plain, streamed, "available: demo" in str(error)]))
"""


@pytest.fixture(scope="module")
def base(endpoint: Endpoint) -> Iterator[str]:
    """The base URL of an endpoint that takes conversations, with the demo and the key of the others."""
    served = Served("demo", "r", 112, EngineBackend(endpoint.engine))
    server, thread = listen(Service(CONFIG.model_copy(update={"last_picture": True}), [served]), endpoint.keys)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def url(picture: bytes) -> str:
    return data_url(picture)


def conversation(url: str, prompt: str = "caption en") -> Any:
    """What a chat client sends for a second question about a picture."""
    first = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "ocr"}]
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": first},
        {"role": "assistant", "content": "nothing"},
        {"role": "user", "content": prompt},
    ]


def test_openai_in_python(base: str, url: str, scene: Scene) -> None:
    import openai

    client = openai.OpenAI(base_url=base, api_key=KEY, max_retries=0)
    call: Any = {"model": "demo", "messages": conversation(url)}
    assert client.chat.completions.create(**call).choices[0].message.content == caption(scene)
    with client.chat.completions.stream(**call) as stream:
        assert stream.get_final_completion().choices[0].message.content == caption(scene)


@pytest.mark.long
def test_langchain(base: str, url: str, scene: Scene) -> None:
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=base, api_key=KEY, model="demo", temperature=0, max_retries=0)
    _, _, data = url.partition(",")
    for part in (
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image", "base64": data, "mime_type": "image/png"},  # LangChain's own form
    ):
        asked: list[Any] = [SystemMessage(SYSTEM), HumanMessage([{"type": "text", "text": "caption en"}, part])]
        assert model.invoke(asked).content == caption(scene)
    assert "".join(str(chunk.content) for chunk in model.stream(asked)) == caption(scene)
    found = model.invoke([*asked, AIMessage(caption(scene)), HumanMessage("detect yellow star")])
    assert str(found.content).endswith(detection(scene, ("yellow star",)).boxes[0][0])
    assert [answer.content for answer in model.batch([asked, asked])] == [caption(scene)] * 2


def test_huggingface_hub(base: str, url: str, scene: Scene) -> None:
    from huggingface_hub import InferenceClient

    client = InferenceClient(base_url=base, api_key=KEY)
    messages: Any = conversation(url)
    assert client.chat.completions.create(messages, model="demo").choices[0].message.content == caption(scene)
    chunks = client.chat_completion(messages, model="demo", stream=True, max_tokens=64)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == caption(scene)


def test_llm(base: str, picture: bytes, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simon Willison's command: a model of extra-openai-models.yaml, a picture as an attachment, a second question."""
    home = tmp_path / "llm"
    home.mkdir()
    (home / "extra-openai-models.yaml").write_text(
        f"- model_id: paliscribe\n  model_name: demo\n  api_base: {base}\n  api_key_name: paliscribe\n  vision: true\n"
    )
    (tmp_path / "scene.png").write_bytes(picture)
    monkeypatch.setenv("LLM_USER_PATH", str(home))
    from click.testing import CliRunner
    from llm.cli import cli

    def llm(*words: str) -> str:
        done = CliRunner().invoke(cli, ["prompt", *words, "-m", "paliscribe", "--key", KEY])
        assert done.exit_code == 0, done.output
        return done.stdout.strip()

    assert llm("caption en", "-a", str(tmp_path / "scene.png"), "-s", SYSTEM) == caption(scene)
    assert llm("-c", "ocr", "--no-stream") == ""  # of the same picture, which has no text


def test_curl(base: str, url: str, scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "call.json").write_text(json.dumps({"model": "demo", "messages": conversation(url)}))
    command = ["curl", "-sS", f"{base}/chat/completions", "-H", f"Authorization: Bearer {KEY}", "-d", "@call.json"]
    json_type = ["-H", "Content-Type: application/json"]
    done = subprocess.run([*command, *json_type], capture_output=True, cwd=tmp_path, check=True, timeout=60)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == caption(scene)
    (tmp_path / "call.json").write_text(json.dumps({"model": "demo", "messages": conversation(url), "stream": True}))
    done = subprocess.run([*command, *json_type, "-N"], capture_output=True, cwd=tmp_path, check=True, timeout=60)
    events = [line.removeprefix("data: ") for line in done.stdout.decode().split("\n\n") if line]
    assert events[-1] == "[DONE]"
    said = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert "".join(said) == caption(scene)


def test_calls_as_node_and_open_webui_send_them(base: str, url: str, scene: Scene) -> None:
    """Requests of openai for Node 6.49 and of Open WebUI, written down, where Node is not installed."""
    node = {"user-agent": "OpenAI/JS 6.49.0", "accept": "application/json", "content-type": "application/json"}
    node |= {"x-stainless-lang": "js", "x-stainless-runtime": "node", "x-stainless-retry-count": "0"}
    node |= {"authorization": f"Bearer {KEY}", "connection": "keep-alive", "accept-encoding": "gzip, deflate"}
    image = {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}
    content = [{"type": "text", "text": "caption en"}, image]
    plain = {
        "model": "demo",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}],
    }
    assert httpx.get(f"{base}/models/demo", headers=node).json()["id"] == "demo"
    found = httpx.post(f"{base}/chat/completions", headers=node, json=plain | {"temperature": 0}, timeout=60).json()
    assert found["choices"][0]["message"]["content"] == caption(scene)
    webui = {"stream": True, "model": "demo", "messages": conversation(url), "stream_options": {"include_usage": True}}
    events = httpx.post(f"{base}/chat/completions", headers=node, json=webui, timeout=60).text.split("\n\n")
    assert json.loads(events[-3].removeprefix("data: "))["usage"]["completion_tokens"] > 0
    title = {"model": "demo", "messages": [{"role": "user", "content": "### Task: write a title"}], "stream": False}
    refused = httpx.post(f"{base}/chat/completions", headers=node, json=title)
    assert refused.status_code == 400 and "no user message has a picture" in refused.json()["error"]["message"]


@pytest.mark.long
def test_openai_in_node(base: str, url: str, scene: Scene, tmp_path: Path) -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        assert "NEED_NODE" not in os.environ, "needs node and npm"
        pytest.skip("needs node and npm (Debian: nodejs, npm)")
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", NODE]
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    if found := UNREACHABLE.search(done.stderr):
        pytest.skip(f"npm's registry cannot be reached: {found[0]}")
    assert done.returncode == 0, done.stderr
    (tmp_path / "ask.mjs").write_text(ASK_IN_NODE)
    done = subprocess.run(
        ["node", "ask.mjs", base, KEY, url], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["models"], said["id"], said["wrong"]) == (["demo"], "demo", [404, "model_not_found"])
    assert said["plain"] == said["streamed"] == said["final"] == caption(scene)


@pytest.mark.full
def test_litellm(base: str, url: str, scene: Scene, tmp_path: Path) -> None:
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", tmp_path / "venv"], check=True, timeout=120)
    install = [
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-compile",
        "--constraint",
        str(ROOT / "infra/constraints.txt"),
        LITELLM,
    ]
    subprocess.run(install, check=True, capture_output=True, timeout=500)
    environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # it would read a list from the web
    command = [python, "-c", ASK_LITELLM, base, KEY, url]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [caption(scene), caption(scene), True]
