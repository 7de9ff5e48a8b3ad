"""Where the server is, which key is sent, and that both clients offer the same."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_api import API_KEY, FakeApi
from tunesmith import AsyncTunesmith, ConfigurationError, Tunesmith
from tunesmith._http_settings import tls_context

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

    @pytest.mark.parametrize(
        "wrong",
        [
            *("h:8000", "ftp://h", "http://", "http://h?x=1", "http://h\x01", f"http://{'a' * 64}"),
            *("http://h:abc", "http://[::1", "http://exa_mple..com", "localhost:99999", "http://h:99999"),
            *("http://a b:80", "http://.h", "http://h:0"),
        ],
    )
    def test_what_is_none(self, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConfigurationError, match=r"is not a base URL.* base_url=… ") as caught:
            Tunesmith(base_url=wrong, api_key="k")
        assert caught.value.code == "invalid_base_url"
        if wrong.isprintable():
            monkeypatch.setenv("TUNESMITH_BASE_URL", wrong)
            with pytest.raises(ConfigurationError, match=r"is not a base URL.* TUNESMITH_BASE_URL"):
                AsyncTunesmith(api_key="k")

    @pytest.mark.parametrize("host", ["my_server", "a.b.", "1.2.3.4", "[::ffff:1.2.3.4]", "[fe80::1%eth0]", "tön.de"])
    def test_hosts_of_all_kinds(self, host: str) -> None:
        assert Tunesmith(base_url=f"http://{host}:80", api_key="k").base_url == f"http://{host}:80"

    def test_a_proxy_does_not_stand_before_this_machine(self, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        with Tunesmith(base_url=api.url, api_key=API_KEY) as client:
            assert client.models.list().data


class TestEnvironment:
    @pytest.fixture(autouse=True)
    def nothing_is_set(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        for name in list(os.environ):
            if name.lower().endswith("_proxy") or name.startswith("SSL"):
                monkeypatch.delenv(name)
        tls_context.cache_clear()
        yield
        tls_context.cache_clear()

    @pytest.mark.parametrize("client", [Tunesmith, AsyncTunesmith])
    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("ALL_PROXY", "socks5://h:1", "socksio"),
            ("https_proxy", "gopher://h", "scheme"),
            ("HTTP_PROXY", "h:abc", "port"),
            ("NO_PROXY", "http://h:abc", "port"),
        ],
    )
    def test_a_proxy_of_no_use_is_named(
        self, client: type[Tunesmith], name: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "socksio", None)
        monkeypatch.setenv("HTTPS_PROXY", "http://fine:1")
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigurationError, match=rf"The proxy in {name} .*{reason}") as caught:
            client(api_key="k", base_url="https://h")
        assert caught.value.code == "invalid_proxy"

    @pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSLKEYLOGFILE"])
    def test_a_file_of_no_use_is_named(self, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
        monkeypatch.setenv(name, str(tmp_path / "none" / "file"))
        with pytest.raises(ConfigurationError, match=f"The file in {name} cannot be used: No such file") as caught:
            Tunesmith(api_key="k", base_url="https://h")
        assert caught.value.code == "invalid_certificates"

    def test_a_file_without_certificates(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "empty.pem").touch()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "empty.pem"))
        with pytest.raises(ConfigurationError, match="SSL_CERT_FILE"):
            AsyncTunesmith(api_key="k", base_url="https://h")


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
