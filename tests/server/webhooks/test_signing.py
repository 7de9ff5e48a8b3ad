"""Signatures are those of Standard Webhooks, and secrets come out of the server's own."""

from __future__ import annotations

import base64

from tunesmith_server.auth import Signer
from tunesmith_server.webhooks.signing import endpoint_secret, hint, signed_headers


def test_the_example_of_the_standard() -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    message_id = "msg_p5jXN8AQM9LWM0D4loKWxJek"

    headers = signed_headers(message_id, 1614265330, b'{"test": 2432232314}', [secret])

    assert headers == {
        "webhook-id": message_id,
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_secrets_differ_by_server_endpoint_and_version_and_last() -> None:
    signer = Signer(b"one")
    secrets = [
        endpoint_secret(signer, "whe_1", 1),
        endpoint_secret(signer, "whe_1", 2),
        endpoint_secret(signer, "whe_2", 1),
        endpoint_secret(Signer(b"two"), "whe_1", 1),
    ]

    assert len(set(secrets)) == 4
    assert all(len(base64.b64decode(secret.removeprefix("whsec_"))) == 32 for secret in secrets)
    assert endpoint_secret(Signer(b"one"), "whe_1", 1) == secrets[0]
    assert hint(secrets[0]) == f"whsec_…{secrets[0][-4:]}"
