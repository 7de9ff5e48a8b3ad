"""The images of `deploy/docker`, built on Debian's packages, and `deploy/compose.yaml` run from them. Needs root.

No registry is asked: wheels are downloaded as for a machine without a network, and PostgreSQL and S3 are built as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.architecture.source_tree import ROOT
from tests.support.docker_daemon import DockerDaemon
from tests.support.live_server import wait_until
from tests.support.ports import free_ports

IMAGES = ("server", "trainer", "inference")
_CLIENT = "/usr/bin/docker"  # that of Debian's package, which has BuildKit inside; another in PATH may lack it
_BASE = "tunesmith-test-base"
_PACKAGES = "ca-certificates,libnuma1,postgresql-15,python3,python3-venv,wget"
_PROJECT = "tunesmith-test"
_SECRETS = (
    "POSTGRES_PASSWORD",
    "S3_ACCESS_KEY",
    "S3_SECRET_KEY",
    "TUNESMITH_API_KEY",
    "TUNESMITH_SECRET_KEY",
    "TUNESMITH_SERVICE_TOKEN",
)


class ComposeStack:
    """The services of deploy/compose.yaml on one daemon; `secrets` is what its `.env` holds of them."""

    def __init__(self, daemon: DockerDaemon) -> None:
        self.daemon = daemon
        self.secrets = {name: secrets.token_hex(16) for name in _SECRETS}
        port, grpc_port = free_ports(2)
        self.url = f"http://127.0.0.1:{port}"
        settings = self.secrets | {
            "DOCKER_GROUP_ID": str(daemon.socket.stat().st_gid),
            "DOCKER_SOCKET": str(daemon.socket),
            "TUNESMITH_PORT": str(port),
            "TUNESMITH_GRPC_PORT": str(grpc_port),
            "POSTGRES_IMAGE": "tunesmith-test-postgres",
            "S3_IMAGE": "tunesmith-test-s3",
        }
        self._environment = daemon.folder / "compose.env"
        self._environment.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    def build(self) -> None:
        """Builds every image; whatever is large is fetched beside the making of the base."""
        wheels = self.daemon.folder / "wheels"
        download = [sys.executable, str(ROOT / "deploy" / "install.py"), "--wheels", "--folder", str(wheels)]
        with subprocess.Popen(download) as fetching:
            self.daemon.make_image(_BASE, _PACKAGES)
            self._build_ours()
        assert fetching.returncode == 0, "the wheels could not be downloaded"
        with _index(wheels) as url:
            pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": url}
            for name in IMAGES:
                arguments = {"BASE": _BASE, "PACKAGES": "", **pip}
                self._build(f"tunesmith-{name}", f"deploy/docker/{name}.Dockerfile", _sources(), arguments)
        shutil.rmtree(wheels)

    def up(self) -> None:
        """Starts the services, and returns when the control plane is healthy."""
        self._compose("up", "--detach")
        wait_until(lambda: self.health("server") == "healthy", 120, lambda: self.log("server"))

    def down(self) -> None:
        """Ends and removes everything that runs, and what it stored; first the server, which starts runs."""
        self._compose("stop", "server")
        runs = self.daemon.docker("ps", "--all", "--quiet", "--filter", "label=tunesmith.attempt").stdout.split()
        if runs:
            self.daemon.docker("rm", "--force", "--volumes", *runs)
        self._compose("down", "--volumes")

    def container(self, service: str) -> str:
        """The id of a service's container."""
        return self._compose("ps", "--quiet", service).strip()

    def runs(self) -> list[str]:
        """Ids of the containers of runs that run now, the newest first."""
        return self.daemon.docker("ps", "--quiet", "--filter", "label=tunesmith.attempt").stdout.split()

    def inspect(self, container: str) -> dict[str, Any]:
        """What the daemon tells of a container."""
        described: list[dict[str, Any]] = json.loads(self.daemon.docker("inspect", container).stdout)
        return described[0]

    def health(self, service: str) -> str:
        """What the health check of a service says."""
        status: str = self.inspect(self.container(service))["State"]["Health"]["Status"]
        return status

    def log(self, service: str) -> str:
        """The end of a service's output."""
        shown = self.daemon.docker("logs", "--tail", "40", self.container(service))
        return shown.stdout + shown.stderr

    def kill(self, container: str) -> None:
        """kill -9 from outside of Docker, which therefore takes it for a crash."""
        pid = self.inspect(container)["State"]["Pid"]
        assert pid > 0, f"{container} has ended already"
        os.kill(pid, signal.SIGKILL)

    def _compose(self, *command: str) -> str:
        files = ["--env-file", str(self._environment), "--file", str(ROOT / "deploy" / "compose.yaml")]
        done = subprocess.run(
            ["docker-compose", "--project-name", _PROJECT, *files, *command],
            env=os.environ | {"DOCKER_HOST": f"unix://{self.daemon.socket}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"docker-compose {command[0]}: {done.stderr[-4000:]}"
        return done.stdout

    def _build_ours(self) -> None:
        context = self.daemon.folder / "images"
        shutil.copytree(Path(__file__).parent / "images", context)
        shutil.copy2(Path(sys.executable).with_name("weed"), context)
        for name in ("postgres", "s3"):
            packed = subprocess.run(["tar", "-c", "-C", str(context), "."], check=True, capture_output=True).stdout
            self._build(f"tunesmith-test-{name}", f"{name}.Dockerfile", packed, {"BASE": _BASE})

    def _build(self, image: str, dockerfile: str, context: bytes, arguments: Mapping[str, str]) -> None:
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        done = subprocess.run(
            [_CLIENT, "build", "--network=host", f"--file={dockerfile}", f"--tag={image}", *options, "-"],
            input=context,
            env=os.environ | {"DOCKER_HOST": f"unix://{self.daemon.socket}", "DOCKER_BUILDKIT": "1"},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, f"{image}: {done.stderr.decode()[-4000:]}"


def _sources() -> bytes:
    """The files of this checkout, as they are now, in a tar."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout
    pack = ["tar", "--create", "--null", "--files-from=-"]
    return subprocess.run(pack, cwd=ROOT, input=listed, check=True, capture_output=True).stdout


@contextlib.contextmanager
def _index(wheels: Path) -> Iterator[str]:
    """Serves a folder on loopback, where builds on the host's network find it."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "http.server", str(port), "--bind=127.0.0.1", f"--directory={wheels}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()
