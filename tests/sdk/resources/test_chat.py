"""`client.chat.completions`; what a stream does is tested in `tests/sdk/test_streaming.py`."""

from __future__ import annotations

import pytest

from tests.support.fake_api import FakeApi
from tunesmith import AsyncTunesmith, NotFoundError, Tunesmith

MODEL = "smollm2-135m-instruct"
MESSAGES = [{"role": "user", "content": "Hi"}]


class TestCreate:
    def test_a_whole_answer(self, api: FakeApi, client: Tunesmith) -> None:
        answer = client.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert answer.choices[0].message.content == "Hello."
        assert answer.usage is not None
        assert answer.usage.total_tokens == 5
        assert api.received[0].json == {"model": MODEL, "messages": MESSAGES, "stream": False}

    def test_whatever_else_is_given_goes_to_the_server(self, api: FakeApi, client: Tunesmith) -> None:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, top_k=5, stop=None)
        assert {"temperature": 0, "top_k": 5, "stop": None}.items() <= api.received[0].json.items()

    def test_an_answer_may_be_part_of_the_next_request(self, api: FakeApi, client: Tunesmith) -> None:
        message = client.chat.completions.create(model=MODEL, messages=MESSAGES).choices[0].message
        client.chat.completions.create(model=MODEL, messages=[*MESSAGES, message])
        assert api.received[1].json["messages"][1] == {"role": "assistant", "content": "Hello."}

    def test_unknown_model(self, client: Tunesmith) -> None:
        with pytest.raises(NotFoundError) as caught:
            client.chat.completions.create(model="ft:none", messages=MESSAGES)
        assert caught.value.code == "model_not_found"

    async def test_async_twin(self, async_client: AsyncTunesmith) -> None:
        answer = await async_client.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert answer.choices[0].message.content == "Hello."
