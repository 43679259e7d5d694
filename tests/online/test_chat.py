"""Chat completions with OpenAI's client."""

from typing import Any

import httpx
import openai
import pytest
from models import demo_model
from online.conftest import CONFIG, KEY, Endpoint, EngineBackend, data_url, encoded, listen

from paliscribe.demo.answers import scene_items
from paliscribe.demo.drawing import draw
from paliscribe.demo.sampling import sample_scene
from paliscribe.demo.scenes import TEST_SEEDS, Scene
from paliscribe.online.keys import Keys
from paliscribe.online.service import Served, Service

HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def client(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{endpoint.address}/v1", api_key=KEY, max_retries=0)


def messages(picture: bytes, prompt: str) -> Any:
    image = {"type": "image_url", "image_url": {"url": data_url(picture)}}
    return [{"role": "user", "content": [image, {"type": "text", "text": prompt}]}]


def test_models(client: openai.OpenAI) -> None:
    [listed] = client.models.list()
    assert client.models.retrieve("demo") == listed and listed.id == "demo"
    for unknown in ("gpt-4", "google/paligemma-3b"):
        with pytest.raises(openai.NotFoundError) as refused:
            client.models.retrieve(unknown)
        assert refused.value.code == "model_not_found" and "available: demo" in str(refused.value)


def test_a_plain_answer(client: openai.OpenAI, scene: Scene, picture: bytes) -> None:
    caption = next(item for item in scene_items(scene) if item.task == "caption")
    answer = client.chat.completions.create(model="demo", messages=messages(picture, caption.prompt))
    [choice] = answer.choices
    assert choice.message.content == caption.answer and choice.finish_reason == "stop"
    assert answer.model == "demo" and answer.object == "chat.completion"
    assert answer.usage is not None
    model = demo_model()
    assert answer.usage.prompt_tokens == model.image_tokens + len(model.tokenize(caption.prompt))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_equals_the_plain_answer(client: openai.OpenAI, picture: bytes) -> None:
    call: Any = {"model": "demo", "messages": messages(picture, "detect circle ; square ; triangle")}
    plain = client.chat.completions.create(**call)
    chunks = list(client.chat.completions.create(**call, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == plain.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage == plain.usage
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert finishes[-1] == "stop" and set(finishes[:-1]) == {None} and len(chunks) > 4
    assert len({chunk.id for chunk in chunks}) == 1


def test_logprobs_have_the_text_of_each_token(client: openai.OpenAI, picture: bytes) -> None:
    call: Any = {"model": "demo", "messages": messages(picture, "caption en"), "logprobs": True}
    plain = client.chat.completions.create(**call)
    content = plain.choices[0].logprobs.content
    assert "".join(token.token for token in content) == plain.choices[0].message.content
    assert all(token.logprob <= 0 and bytes(token.bytes).decode() == token.token for token in content)
    assert plain.usage is not None and len(content) == plain.usage.completion_tokens
    streamed = [
        (token.token, token.logprob)
        for chunk in client.chat.completions.create(**call, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert [value for _, value in streamed] == pytest.approx([token.logprob for token in content])


def test_options_reach_the_engine(client: openai.OpenAI, picture: bytes) -> None:
    def ask(**options: Any) -> Any:
        found = client.chat.completions.create(model="demo", messages=messages(picture, "caption en"), **options)
        return found.choices[0]

    whole = ask().message.content
    assert ask(max_tokens=2).finish_reason == "length" == ask(max_completion_tokens=2).finish_reason
    words = whole.split()
    assert ask(stop=words[1]).message.content == whole[: whole.index(words[1])]
    drawn = {ask(temperature=2.0, seed=seed).message.content for seed in range(6)}
    assert len(drawn) > 1
    assert ask(temperature=2.0, seed=3).message.content == ask(temperature=2.0, seed=3).message.content
    assert ask(temperature=2.0, top_p=1e-6, seed=3).message.content == whole


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_logprobs": 5, "logprobs": True}, "top_logprobs"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "hello"}]}, "messages[0].content"),
    ],
)
def test_unsupported_parameters_are_rejected_by_name(
    client: openai.OpenAI, picture: bytes, change: dict[str, Any], field: str
) -> None:
    call: Any = {"model": "demo", "messages": messages(picture, "caption en")} | change
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**call)
    assert refused.value.param == field and refused.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("part", "field", "words"),
    [
        ({"type": "input_image", "image_url": "x"}, "messages[0].content[1].type", "input should be 'text' or 'image_"),
        ({"type": "image", "source": {"type": "base64"}}, "messages[0].content[1].type", "input should be 'text' or"),
        ({"type": "image_url", "image_url": {"link": "x"}}, "messages[0].content[1].image_url.url", "field required"),
        ({"type": "image_url", "image_url": 5}, "messages[0].content[1].image_url", "input should be"),
        ("caption en", "messages[0].content[1]", "input should be a valid dictionary"),
    ],
)
def test_a_wrong_part_is_named(endpoint: Endpoint, part: Any, field: str, words: str) -> None:
    content = [{"type": "text", "text": "caption en"}, part]
    body = {"model": "demo", "messages": [{"role": "user", "content": content}]}
    found = httpx.post(f"{endpoint.address}/v1/chat/completions", json=body, headers=HEADERS).json()["error"]
    assert found["param"] == field and found["message"].startswith(f"{field}: {words}")


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"stop": list("abcde")}, "stop", "list should have at most 4 items"),
        ({"stop": 5}, "stop", "input should be a valid list"),
        ({"stop": ["a", 5]}, "stop[1]", "input should be a valid string"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "input should be a valid list"),
    ],
)
def test_a_field_of_two_shapes_is_named_by_the_one_that_it_has(
    endpoint: Endpoint, picture: bytes, change: dict[str, Any], field: str, words: str
) -> None:
    body = {"model": "demo", "messages": messages(picture, "caption en")} | change
    found = httpx.post(f"{endpoint.address}/v1/chat/completions", json=body, headers=HEADERS).json()["error"]
    assert found["param"] == field and found["message"].startswith(f"{field}: {words}")


def test_shapes_and_options_that_clients_send(endpoint: Endpoint, picture: bytes) -> None:
    image = {"type": "image_url", "image_url": data_url(picture)}
    body: dict[str, Any] = {
        "model": "demo",
        "stop": None,
        "modalities": ["text"],
        "top_k": -1,
        "best_of": 1,
        "verbosity": "medium",
    }
    body |= {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": [], "tool_choice": "auto"}
    body |= {
        "response_format": {"type": "text"},
        "n": 1,
        "top_logprobs": None,
        "max_tokens": 4096,
        "temperature": 1e-38,
    }
    body["messages"] = [{"role": "user", "content": [{"type": "text", "text": "ocr"}, image]}]
    plain = {"model": "demo", "messages": messages(picture, "ocr")}
    said = [
        httpx.post(f"{endpoint.address}/v1/chat/completions", json=each, headers=HEADERS, timeout=60)
        for each in (body, plain)
    ]
    assert [reply.status_code for reply in said] == [200, 200], said[0].text
    assert said[0].json()["choices"] == said[1].json()["choices"]


def test_turns_and_system_prompts_are_rejected(client: openai.OpenAI, picture: bytes) -> None:
    for role in ("system", "assistant", "user"):
        conversation: Any = [{"role": role, "content": "Be brief."}, *messages(picture, "caption en")]
        with pytest.raises(openai.BadRequestError, match="neither turns nor a system prompt"):
            client.chat.completions.create(model="demo", messages=conversation)


def test_the_last_picture_of_a_conversation(client: openai.OpenAI, endpoint: Endpoint, picture: bytes) -> None:
    def ask(conversation: Any) -> str:
        call: Any = {"model": "demo", "messages": conversation, "extra_body": {"last_picture": True}}
        return str(client.chat.completions.create(**call).choices[0].message.content)

    def said(role: str, content: Any) -> dict[str, Any]:
        return {"role": role, "content": content}

    other = encoded(draw(sample_scene(TEST_SEEDS + 14)))
    first, second = messages(other, "caption en"), messages(picture, "ocr")
    plain, of_other = (
        str(
            client.chat.completions.create(model="demo", messages=messages(each, "caption en"))
            .choices[0]
            .message.content
        )
        for each in (picture, other)
    )
    assert plain != of_other
    system, turn = said("system", "Be brief."), said("assistant", of_other)
    assert ask([system, *messages(picture, "caption en")]) == plain
    assert ask([said("developer", [{"type": "text", "text": "Be brief."}]), *first]) == of_other
    asked_again = said("user", "caption en")
    assert ask([system, *first, turn, *second, said("assistant", None), asked_again]) == plain
    assert ask([system, *second, turn, *first, turn, asked_again]) == of_other
    both = [*second[0]["content"][:1], *first[0]["content"]]
    assert ask([said("user", both)]) == of_other
    for conversation, words in (
        ([system, asked_again], "no user message has a picture"),
        ([system], "no user message has a picture"),
        ([*first, turn, said("user", second[0]["content"][:1])], "the last user message has no text"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            ask(conversation)


def test_an_endpoint_may_take_the_last_picture_by_default(endpoint: Endpoint, picture: bytes) -> None:
    served = Served("demo", "r", 112, EngineBackend(endpoint.engine))
    server, thread = listen(Service(CONFIG.model_copy(update={"last_picture": True}), [served]), Keys({}))
    try:
        address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1/chat/completions"
        call = {"model": "demo", "messages": [{"role": "system", "content": "Be brief."}, *messages(picture, "ocr")]}
        assert httpx.post(address, json=call, timeout=60).status_code == 200
        refused = httpx.post(address, json=call | {"last_picture": False}).json()["error"]
        assert refused["param"] == "messages" and "`last_picture: true`" in refused["message"]
    finally:
        server.should_exit = True
        thread.join(10)


def test_errors_map_to_the_clients_exceptions(client: openai.OpenAI, endpoint: Endpoint, picture: bytes) -> None:
    with pytest.raises(openai.NotFoundError, match="available: demo"):
        client.chat.completions.create(model="gpt", messages=messages(picture, "caption en"))
    stranger = openai.OpenAI(base_url=f"{endpoint.address}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with pytest.raises(openai.BadRequestError, match="no image format"):
        client.chat.completions.create(model="demo", messages=messages(b"no picture", "caption en"))
    with pytest.raises(openai.BadRequestError, match="is a special token"):
        client.chat.completions.create(model="demo", messages=messages(picture, "caption <image>"))
    with pytest.raises(openai.BadRequestError, match="tokens beside the image"):
        client.chat.completions.create(model="demo", messages=messages(picture, "answer en " + "why " * 490))
    braces = client.chat.completions.create(model="demo", messages=messages(picture, "caption {en}"))
    assert braces.choices[0].message.content is not None


def test_a_disconnect_cancels_the_request_and_frees_its_slot(
    client: openai.OpenAI, endpoint: Endpoint, picture: bytes
) -> None:
    import time

    model = endpoint.engine.model
    ends, model.end_tokens = model.end_tokens, frozenset()
    try:
        stream = client.chat.completions.create(
            model="demo", messages=messages(picture, "caption en"), stream=True, max_tokens=400
        )
        next(iter(stream))
        stream.close()
        until = time.monotonic() + 10
        while endpoint.engine.stats().live and time.monotonic() < until:
            time.sleep(0.01)
        assert endpoint.engine.stats().live == 0
        assert not endpoint.engine._generations
    finally:
        model.end_tokens = ends
