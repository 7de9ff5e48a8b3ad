"""Server-sent events, cut anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import pytest

from tests.support.fake_answers import error_answer
from tests.support.fake_api import FakeApi, Fault
from tunesmith import APIConnectionError, APIStreamError, AsyncTunesmith, Stream, Tunesmith, UnexpectedResponseError
from tunesmith._streaming import EventDecoder
from tunesmith.types import ChatCompletionChunk

MESSAGES = [{"role": "user", "content": "Hi"}]


def chunk(text: str) -> dict[str, object]:
    """A chat chunk as vLLM sends it."""
    delta = {"content": text}
    return {"id": "c", "created": 1, "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def events_of(decoded: Iterable[object]) -> bytes:
    """The bytes of a stream of these events, without its end mark."""
    return b"".join(b"data: " + json.dumps(item, ensure_ascii=False).encode() + b"\n\n" for item in decoded)


def decoded(pieces: Sequence[bytes]) -> list[tuple[str, str]]:
    """All events in these pieces."""
    decoder = EventDecoder()
    return [(event.event, event.data) for piece in pieces for event in decoder.feed(piece)]


def open_stream(client: Tunesmith) -> Stream[ChatCompletionChunk]:
    """A streamed answer to `MESSAGES`."""
    return client.chat.completions.create(model="smollm2-135m-instruct", messages=MESSAGES, stream=True)


def text_of(chunks: Iterable[ChatCompletionChunk]) -> str:
    """The text that these chunks add up to."""
    return "".join(choice.delta.content or "" for one in chunks for choice in one.choices)


class TestEventDecoder:
    STREAM = (
        'data: {"é": "\u2028"}\r\n\r\n: comment\r\nevent: error\ndata:one\ndata: two\n\ndata: 3\r\rid: 9\n\n'.encode()
    )
    EVENTS = [("message", '{"é": "\u2028"}'), ("error", "one\ntwo"), ("message", "3")]  # noqa: RUF012

    @pytest.mark.parametrize("place", range(len(STREAM) + 1))
    def test_cut_at_any_byte(self, place: int) -> None:
        assert decoded([self.STREAM[:place], b"", self.STREAM[place:]]) == self.EVENTS

    @pytest.mark.parametrize("size", [1, 2, 3, 7])
    def test_cut_into_small_pieces(self, size: int) -> None:
        pieces = [self.STREAM[start : start + size] for start in range(0, len(self.STREAM), size)]
        assert decoded(pieces) == self.EVENTS

    def test_an_incomplete_event_is_not_an_event(self) -> None:
        assert decoded([b"data: 1\n"]) == []

    def test_fields_without_value_and_unknown_fields(self) -> None:
        assert decoded([b"data\nretry: 3\nfoo: bar\n\n"]) == [("message", "")]

    def test_byte_order_mark(self) -> None:
        assert decoded(["\ufeffdata: 1\n\n".encode()]) == [("message", "1")]


class TestStream:
    def test_chunks_arrive_in_order_whatever_the_cuts(self, api: FakeApi, client: Tunesmith) -> None:
        whole = events_of([chunk("Grüß "), chunk("dich"), {**chunk(""), "choices": []}]) + b"data: [DONE]\n\n"
        api.stream_pieces = [whole[place : place + 1] for place in range(len(whole))]
        with open_stream(client) as chunks:
            assert text_of(chunks) == "Grüß dich"

    def test_nothing_after_the_end_mark(self, api: FakeApi, client: Tunesmith) -> None:
        api.stream_pieces = [events_of([chunk("a")]) + b"data: [DONE]\n\n" + events_of([chunk("b")])]
        assert text_of(open_stream(client)) == "a"

    def test_an_error_in_the_middle(self, api: FakeApi, client: Tunesmith) -> None:
        error = {"message": "The engine stopped.", "type": "server_error", "param": None, "code": "engine_gone"}
        api.stream_pieces = [events_of([chunk("a"), {"error": error}])]
        chunks = iter(open_stream(client))
        assert text_of([next(chunks)]) == "a"
        with pytest.raises(APIStreamError, match=r"The engine stopped\.") as caught:
            next(chunks)
        assert (caught.value.code, caught.value.request_id) == ("engine_gone", "req-1")

    @pytest.mark.parametrize("cut_off", [True, False])
    def test_a_stream_without_its_end_is_not_passed_off_as_whole(
        self, api: FakeApi, client: Tunesmith, cut_off: bool
    ) -> None:
        api.stream_pieces, api.stream_is_cut_off = [events_of([chunk("a")])], cut_off
        chunks = iter(open_stream(client))
        next(chunks)
        with pytest.raises(APIConnectionError):
            next(chunks)

    @pytest.mark.parametrize("data", [b"data: hello\n\n", b"data: []\n\n", b'data: {"id": 7}\n\n'])
    def test_something_else_than_chunks(self, api: FakeApi, client: Tunesmith, data: bytes) -> None:
        api.stream_pieces = [data]
        with pytest.raises(UnexpectedResponseError):
            list(open_stream(client))

    def test_trouble_before_the_first_byte_is_retried(self, api: FakeApi, client: Tunesmith) -> None:
        api.faults.append(Fault(error_answer(503, "loading", "model_loading")))
        api.stream_pieces = [events_of([chunk("a")]) + b"data: [DONE]\n\n"]
        assert text_of(open_stream(client)) == "a"

    def test_stopping_early_gives_the_connection_back(self, api: FakeApi, client: Tunesmith) -> None:
        api.stream_pieces = [events_of([chunk("a"), chunk("b")])]
        with open_stream(client) as chunks:
            for _ in chunks:
                break
        chunks.close()
        assert client.models.list().data

    async def test_async_twin(self, api: FakeApi, async_client: AsyncTunesmith) -> None:
        api.stream_pieces = [events_of([chunk("a"), chunk("b")]) + b"data: [DONE]\n\n"]
        stream = await async_client.chat.completions.create(
            model="smollm2-135m-instruct", messages=MESSAGES, stream=True
        )
        async with stream as chunks:
            assert text_of([one async for one in chunks]) == "ab"
