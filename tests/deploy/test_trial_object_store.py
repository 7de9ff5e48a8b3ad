"""The trial's S3 server, started as its manifest says, takes objects into a bucket that nobody has made.

It has as much room as its disk, and so has the one of the compose file, which is started in the same way. The port
beside S3, which would give keys to whoever asks, speaks to nobody.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import yaml
from botocore.exceptions import BotoCoreError, ClientError

from tests.deploy.manifests import rendered
from tests.support.live_server import wait_until
from tests.support.ports import free_ports
from tests.support.s3_server import S3Server

LISTENERS = (
    *("s3.port.grpc", "s3.port.lance", "master.port", "master.port.grpc"),
    *("volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"),
)
COMPOSE = Path(__file__).resolve().parents[2] / "deploy" / "compose.yaml"
VOLUME_BYTES = 1 << 30


def test_it_starts_and_takes_objects(tmp_path: Path) -> None:
    trial = rendered("trial")
    pod = trial.named("StatefulSet", "object-store")["spec"]["template"]["spec"]
    (seal,), (container,) = pod["initContainers"], pod["containers"]
    port, *others = free_ports(1 + len(LISTENERS))
    listeners = dict(zip(LISTENERS, others, strict=True))
    weed, *arguments = placed(container["command"], tmp_path)
    arguments += [f"-s3.port={port}", *(f"-{name}={other}" for name, other in listeners.items())]
    server = S3Server(f"http://127.0.0.1:{port}", "access", "secret")
    environment = {
        variable["name"]: placed([variable["value"]], tmp_path)[0]
        if "value" in variable
        else server.environment[variable["name"]]
        for variable in container["env"]
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "seal").mkdir()
    subprocess.run(placed(seal["command"], tmp_path), check=True, capture_output=True)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name(weed)), *arguments],
            cwd=tmp_path,
            env=os.environ | environment,
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
        volumes = topology(listeners["master.port"])
        room = volumes["Max"] * VOLUME_BYTES
        assert room > shutil.disk_usage(tmp_path).free / 2, "the object store would be full before its disk"
        assert volumes["Max"] - volumes["Free"] == 2, "on a small disk the bucket would take them all, or be left none"
        assert speaks_grpc(listeners["filer.port.grpc"]), "this is how a port looks that asks for no certificate"
        assert not speaks_grpc(listeners["s3.port.grpc"])
    finally:
        process.kill()
        process.wait()


def test_the_one_of_the_compose_file_is_started_in_the_same_way() -> None:
    pod = rendered("trial").named("StatefulSet", "object-store")["spec"]["template"]["spec"]
    service = yaml.safe_load(COMPOSE.read_text())["services"]["s3"]
    assert service["entrypoint"] + service["command"] == pod["containers"][0]["command"]


def topology(port: int) -> dict[str, Any]:
    """How many volumes the master that listens here would have its server make at most, and make still."""
    told: dict[str, Any] = httpx.get(f"http://127.0.0.1:{port}/dir/status").json()["Topology"]
    return told


def placed(words: list[str], folder: Path) -> list[str]:
    """The words with the container's volumes in a folder of this machine."""
    return [word.replace("/data", f"{folder}/data").replace("/seal/", f"{folder}/seal/") for word in words]


def speaks_grpc(port: int) -> bool:
    """Whether it talks to somebody without a certificate."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=5)
        except grpc.FutureTimeoutError:
            return False
    return True
