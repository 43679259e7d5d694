"""Chat completions with OpenAI's client."""

from typing import Any

import openai
import pytest
from models import demo_model
from online.conftest import KEY, Endpoint, data_url

from paliscribe.demo.answers import scene_items
from paliscribe.demo.scenes import Scene


@pytest.fixture
def client(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{endpoint.address}/v1", api_key=KEY, max_retries=0)


def messages(picture: bytes, prompt: str) -> Any:
    image = {"type": "image_url", "image_url": {"url": data_url(picture)}}
    return [{"role": "user", "content": [image, {"type": "text", "text": prompt}]}]


def test_list_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]


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


def test_turns_and_system_prompts_are_rejected(client: openai.OpenAI, picture: bytes) -> None:
    for role in ("system", "assistant", "user"):
        conversation: Any = [{"role": role, "content": "Be brief."}, *messages(picture, "caption en")]
        with pytest.raises(openai.BadRequestError, match="neither turns nor a system prompt"):
            client.chat.completions.create(model="demo", messages=conversation)


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
