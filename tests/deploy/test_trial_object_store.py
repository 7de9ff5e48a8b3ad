"""The trial's S3 server, started as its manifest says, takes objects into a bucket that nobody has made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError

from tests.deploy.manifests import rendered
from tests.support.live_server import free_ports, wait_until
from tests.support.s3_server import S3Server

LISTENERS = (
    *("s3.port.grpc", "s3.port.lance", "master.port", "master.port.grpc"),
    *("volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"),
)


def test_it_starts_and_takes_objects(tmp_path: Path) -> None:
    trial = rendered("trial")
    (container,) = trial.named("StatefulSet", "object-store")["spec"]["template"]["spec"]["containers"]
    weed, *arguments = container["command"]
    port, *others = free_ports(1 + len(LISTENERS))
    # The last of a flag counts.
    arguments = [word.replace("/data", str(tmp_path)) for word in arguments] + [f"-s3.port={port}"]
    arguments += [f"-{name}={other}" for name, other in zip(LISTENERS, others, strict=True)]
    server = S3Server(f"http://127.0.0.1:{port}", "access", "secret")
    assert {variable["name"] for variable in container["env"]} <= server.environment.keys()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name(weed)), *arguments],
            cwd=tmp_path,
            env=os.environ | server.environment,
            stdout=log,
            stderr=log,
        )
    try:
        bucket = urlsplit(trial.environment("server")["TUNESMITH_STORAGE_URL"]).netloc

        def takes_objects() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text()[-4000:]
            try:
                server.client().put_object(Bucket=bucket, Key="platform/files/one", Body=b"rows")
            except (BotoCoreError, ClientError):
                return False
            return True

        wait_until(takes_objects, 60, lambda: (tmp_path / "log").read_text()[-4000:])
        assert server.client().get_object(Bucket=bucket, Key="platform/files/one")["Body"].read() == b"rows"
    finally:
        process.kill()
        process.wait()
