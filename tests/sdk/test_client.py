"""Where the server is, which key is sent, and that both clients offer the same."""

from __future__ import annotations

import inspect

import pytest

from tests.support.fake_api import API_KEY, FakeApi
from tunesmith import AsyncTunesmith, ConfigurationError, Tunesmith

NOUNS = ("files", "fine_tunes", "models", "chat.completions", "completions")


def verbs_of(client: object, noun: str) -> dict[str, list[str]]:
    """Verbs of a noun with their parameter names."""
    for part in noun.split("."):
        client = getattr(client, part)
    return {
        name: list(inspect.signature(verb).parameters)
        for name, verb in inspect.getmembers(client, callable)
        if not name.startswith("_") and name != "twin"
    }


class TestBaseUrl:
    @pytest.mark.parametrize("given", ["http://h:8000", "http://h:8000/", "http://h:8000/v1", " http://h:8000/v1/ "])
    def test_with_or_without_v1(self, given: str) -> None:
        assert Tunesmith(base_url=given, api_key="k").base_url == "http://h:8000"

    def test_a_path_before_v1_is_kept(self) -> None:
        assert Tunesmith(base_url="https://h/tune/v1", api_key="k").base_url == "https://h/tune"

    def test_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert Tunesmith(api_key="k").base_url == "http://127.0.0.1:8000"
        monkeypatch.setenv("TUNESMITH_BASE_URL", "http://elsewhere:9/v1")
        assert AsyncTunesmith(api_key="k").base_url == "http://elsewhere:9"
        assert Tunesmith(api_key="k", base_url="http://here:1").base_url == "http://here:1"

    @pytest.mark.parametrize("wrong", ["h:8000", "ftp://h", "http://", "http://h?x=1"])
    def test_what_is_none(self, wrong: str) -> None:
        with pytest.raises(ConfigurationError, match="is not a base URL"):
            Tunesmith(base_url=wrong, api_key="k")

    def test_a_proxy_does_not_stand_before_this_machine(self, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        with Tunesmith(base_url=api.url, api_key=API_KEY) as client:
            assert client.models.list().data


class TestApiKey:
    def test_from_the_environment(self, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TUNESMITH_API_KEY", f"{API_KEY}\n")
        with Tunesmith(base_url=api.url) as client:
            client.models.list()
        assert api.received[0].headers["authorization"] == f"Bearer {API_KEY}"
        assert api.received[0].headers["user-agent"].startswith("tunesmith-python/")

    def test_none(self) -> None:
        with pytest.raises(ConfigurationError, match="set TUNESMITH_API_KEY") as caught:
            AsyncTunesmith()
        assert caught.value.code == "missing_api_key"

    @pytest.mark.parametrize("wrong", ["sk-ключ", "sk one", "sk-a\nX: b"])
    def test_a_mangled_key_is_not_repeated_in_the_message(self, wrong: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            Tunesmith(api_key=wrong)
        assert caught.value.code == "malformed_api_key"
        assert wrong not in str(caught.value)

    def test_it_is_not_shown(self) -> None:
        assert "sk-1" not in repr(Tunesmith(api_key="sk-1")) + repr(AsyncTunesmith(api_key="sk-1"))


@pytest.mark.parametrize("noun", NOUNS)
def test_both_clients_have_the_same_verbs(noun: str) -> None:
    assert verbs_of(Tunesmith(api_key="k"), noun) == verbs_of(AsyncTunesmith(api_key="k"), noun) != {}


async def test_the_synchronous_client_works_inside_a_running_loop(client: Tunesmith) -> None:
    assert client.models.list().data
