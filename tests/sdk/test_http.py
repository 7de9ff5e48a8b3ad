"""Retries, time-outs and idempotency keys, against a real server."""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from tests.sdk.conftest import Pauses
from tests.support.fake_answers import error_answer
from tests.support.fake_api import API_KEY, FakeApi, Fault
from tests.support.loopback_http import Answer, LoopbackServer
from tunesmith import (
    APIConnectionError,
    APITimeoutError,
    AsyncTunesmith,
    BadRequestError,
    InternalServerError,
    RateLimitError,
    Tunesmith,
    UnexpectedResponseError,
)
from tunesmith._http import path_of


class TestRetries:
    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
    def test_passing_trouble_is_retried(self, api: FakeApi, client: Tunesmith, status: int) -> None:
        api.faults += [Fault(error_answer(status, "busy", "busy"))] * 2
        assert [model.id for model in client.models.list()] == ["smollm2-135m-instruct"]
        assert len(api.received) == 3

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422])
    def test_a_refusal_is_not_retried(self, api: FakeApi, client: Tunesmith, status: int) -> None:
        api.faults.append(Fault(error_answer(status, "no", "no")))
        with pytest.raises(Exception, match="no"):
            client.models.list()
        assert len(api.received) == 1

    def test_the_last_failure_is_raised(self, api: FakeApi, client: Tunesmith) -> None:
        api.faults += [Fault(error_answer(500, f"failure {number}", "internal")) for number in (1, 2, 3)]
        with pytest.raises(InternalServerError, match="failure 3"):
            client.models.list()

    def test_back_off_doubles_with_jitter(self, api: FakeApi, pauses: Pauses) -> None:
        api.faults += [Fault(error_answer(500, "down", "internal"))] * 7
        with Tunesmith(base_url=api.url, api_key=API_KEY, max_retries=6) as patient, pytest.raises(InternalServerError):
            patient.models.list()
        for pause, full in zip(pauses.lengths, (0.5, 1, 2, 4, 8, 8), strict=True):
            assert 0.75 * full <= pause <= full

    @pytest.mark.parametrize(
        ("headers", "expected"),
        [
            ({"retry-after": "7"}, 7.0),
            ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
            ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
            ({"retry-after": "0"}, 0.0),
        ],
    )
    def test_the_server_says_when(
        self, api: FakeApi, client: Tunesmith, pauses: Pauses, headers: dict[str, str], expected: float
    ) -> None:
        api.faults.append(Fault(error_answer(429, "slow down", "slow_down", headers=headers)))
        client.models.list()
        assert pauses.lengths == [expected]

    def test_the_server_says_when_by_date(self, api: FakeApi, client: Tunesmith, pauses: Pauses) -> None:
        moment = format_datetime(datetime.now(UTC) + timedelta(seconds=50), usegmt=True)
        api.faults.append(Fault(error_answer(503, "loading", "model_loading", headers={"retry-after": moment})))
        client.models.list()
        assert 40 < pauses.lengths[0] <= 50

    def test_a_long_wait_is_left_to_the_caller(self, api: FakeApi, client: Tunesmith, pauses: Pauses) -> None:
        api.faults.append(Fault(error_answer(429, "tomorrow", "quota", headers={"retry-after": "3600"})))
        with pytest.raises(RateLimitError):
            client.models.list()
        assert pauses.lengths == []

    def test_the_server_may_forbid_a_retry(self, api: FakeApi, client: Tunesmith) -> None:
        api.faults.append(Fault(error_answer(500, "broken", "internal", headers={"x-should-retry": "false"})))
        with pytest.raises(InternalServerError):
            client.models.list()
        assert len(api.received) == 1

    def test_the_server_may_ask_for_a_retry(self, api: FakeApi, client: Tunesmith) -> None:
        api.faults.append(Fault(error_answer(409, "moment", "busy", headers={"x-should-retry": "true"})))
        client.models.list()
        assert len(api.received) == 2

    def test_a_dropped_connection_is_retried(self, api: FakeApi, client: Tunesmith) -> None:
        api.faults.append(Fault())
        client.models.list()
        assert len(api.received) == 2

    def test_no_server(self, api: FakeApi, client: Tunesmith, pauses: Pauses) -> None:
        api.stop()
        with pytest.raises(APIConnectionError, match="is it running") as caught:
            client.models.list()
        assert caught.value.code == "connection_failed"
        assert len(pauses.lengths) == 2

    def test_a_server_without_tls(self, api: FakeApi, client: Tunesmith) -> None:
        base_url = str(client.base_url).replace("http:", "https:")
        with (
            Tunesmith(base_url=base_url, api_key=API_KEY, max_retries=0) as secure,
            pytest.raises(APIConnectionError, match=r"SSL.*SSL_CERT_FILE") as caught,
        ):
            secure.models.list()
        assert caught.value.code == "tls_failed"

    async def test_async_twin(self, api: FakeApi, async_client: AsyncTunesmith) -> None:
        api.faults += [Fault(), Fault(error_answer(503, "restarting", "unavailable"))]
        assert (await async_client.models.retrieve("smollm2-135m-instruct")).owned_by == "tunesmith"
        assert len(api.received) == 3


class TestIdempotency:
    def test_all_attempts_carry_one_key(self, api: FakeApi, client: Tunesmith) -> None:
        api.faults += [Fault(error_answer(503, "restarting", "unavailable")), Fault()]
        client.fine_tunes.create(model="smollm2-135m-instruct", training_file="file-1")
        keys = {request.headers["idempotency-key"] for request in api.received}
        assert (len(api.received), len(keys)) == (3, 1)

    def test_a_lost_answer_does_not_make_a_second_job(self, api: FakeApi, client: Tunesmith) -> None:
        api.faults.append(Fault(after_effect=True))
        job = client.fine_tunes.create(model="smollm2-135m-instruct", training_file="file-1")
        assert list(api.jobs) == [job.id]

    def test_a_retried_upload_repeats_the_same_bytes(self, api: FakeApi, client: Tunesmith) -> None:
        api.faults.append(Fault(error_answer(500, "disk", "internal")))
        client.files.create(file=b"some bytes")
        assert api.received[0].body == api.received[1].body

    def test_two_calls_have_two_keys(self, api: FakeApi, client: Tunesmith) -> None:
        for _ in range(2):
            client.fine_tunes.create(model="smollm2-135m-instruct", training_file="file-1")
        assert len(api.jobs) == 2

    def test_reading_needs_no_key(self, api: FakeApi, client: Tunesmith) -> None:
        client.models.list()
        assert "idempotency-key" not in api.received[0].headers


class TestTimeouts:
    def test_a_silent_server(self) -> None:
        released = threading.Event()
        server = LoopbackServer(0, lambda request: Answer() if released.wait(10) else None)
        try:
            with Tunesmith(
                base_url=f"http://127.0.0.1:{server.port}", api_key=API_KEY, timeout=0.05, max_retries=0
            ) as impatient:
                started = time.monotonic()
                with pytest.raises(APITimeoutError) as caught:
                    impatient.models.list()
            assert caught.value.code == "timed_out"
            assert time.monotonic() - started < 5
        finally:
            released.set()
            server.stop()


class TestUnexpectedAnswers:
    @pytest.mark.parametrize("body", [b"<html>hello</html>", b'{"data": 7}', b""])
    def test_another_server(self, api: FakeApi, client: Tunesmith, body: bytes) -> None:
        api.faults.append(Fault(Answer(200, body)))
        with pytest.raises(UnexpectedResponseError, match="check the base URL"):
            client.models.list()

    def test_a_redirect_is_not_followed_with_the_key(self, api: FakeApi, client: Tunesmith) -> None:
        api.faults.append(Fault(Answer(307, headers={"Location": "http://127.0.0.1:1/v1/models"})))
        with pytest.raises(Exception, match="307"):
            client.models.list()


class TestSecrets:
    def test_the_key_is_neither_logged_nor_shown(
        self, api: FakeApi, client: Tunesmith, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        api.faults.append(Fault(error_answer(400, "no", "no")))
        with pytest.raises(BadRequestError) as caught:
            client.models.list()
        assert caplog.text
        assert API_KEY not in caplog.text + repr(client) + repr(caught.value)


class TestPathOf:
    def test_parts_are_encoded(self) -> None:
        assert path_of("models", "org/model a?b") == "/v1/models/org%2Fmodel%20a%3Fb"
        assert path_of("models", "ft:base:default:x:1") == "/v1/models/ft:base:default:x:1"

    @pytest.mark.parametrize("part", ["", ".", ".."])
    def test_a_part_cannot_name_another_resource(self, part: str) -> None:
        with pytest.raises(ValueError, match="An id is expected"):
            path_of("files", part)

    def test_the_name_of_a_model_that_is_not_there_yet(self, client: Tunesmith) -> None:
        with pytest.raises(TypeError, match="An id is expected, not None"):
            client.models.retrieve(None)  # type: ignore[arg-type]
