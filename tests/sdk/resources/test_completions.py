"""`client.completions`."""

from __future__ import annotations

import json

from tests.support.fake_api import FakeApi
from tunesmith import AsyncTunesmith, Tunesmith

MODEL = "smollm2-135m-instruct"


class TestCreate:
    def test_a_whole_answer(self, api: FakeApi, client: Tunesmith) -> None:
        answer = client.completions.create(model=MODEL, prompt="Hi", max_tokens=3)
        assert answer.choices[0].text == "Hello."
        assert api.received[0].json == {"model": MODEL, "prompt": "Hi", "stream": False, "max_tokens": 3}

    def test_a_stream(self, api: FakeApi, client: Tunesmith) -> None:
        piece = {"id": "c", "created": 1, "model": MODEL, "choices": [{"index": 0, "text": "Hel"}]}
        api.stream_pieces = [f"data: {json.dumps(piece)}\n\ndata: [DONE]\n\n".encode()]
        with client.completions.create(model=MODEL, prompt=[1, 2], stream=True) as pieces:
            assert [piece.choices[0].text for piece in pieces] == ["Hel"]

    async def test_async_twin(self, async_client: AsyncTunesmith) -> None:
        answer = await async_client.completions.create(model=MODEL, prompt="Hi")
        assert answer.choices[0].text == "Hello."
