"""A real Docker daemon on this machine, with a socket of its own, and a small image with Python. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

IMAGE = "tunesmith-test"
LIMIT_SECONDS = 60


class DockerDaemon:
    """A dockerd in a process that this object ends again.

    With `networks`, containers may have networks of their own; the host's packet filter then knows of them.
    """

    def __init__(self, folder: Path, *, networks: bool = False) -> None:
        self.folder = folder
        self._networks = networks
        self.socket = folder / "docker.socket"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the daemon, which finds the containers again that an earlier one left running."""
        program = shutil.which("dockerd", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program is not None, "dockerd is missing; `make clusters` installs it"
        arguments = [
            f"--data-root={self.folder / 'data'}",
            f"--exec-root={self.folder / 'exec'}",
            f"--pidfile={self.folder / 'pid'}",
            f"--host=unix://{self.socket}",
            "--live-restore",
            "--bridge=none",
            # The host's network is left as it is where containers need none.
            *(() if self._networks else ("--iptables=false", "--ip6tables=false")),
        ]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
        deadline = time.monotonic() + LIMIT_SECONDS
        while self.docker("version").returncode != 0:
            assert time.monotonic() < deadline, f"dockerd did not start; see {self.folder}/log"
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends the daemon; containers run on."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(LIMIT_SECONDS)

    def remove(self) -> None:
        """Ends the daemon and removes all that it stored."""
        self.stop()
        # With --live-restore it leaves its folder mounted onto itself, and nobody could remove it.
        subprocess.run(["umount", str(self.folder / "data")], check=False)
        shutil.rmtree(self.folder)

    def make_image(self, name: str = IMAGE, packages: str = "python3-minimal,libpython3-stdlib") -> None:
        """Makes an image of Debian's packages."""
        archive = self.folder / "image.tar"
        debian = ["--variant=essential", f"--include={packages}", "bookworm", str(archive)]
        subprocess.run(["mmdebstrap", "--quiet", *debian], check=True)
        imported = self.docker("import", str(archive), name)
        assert imported.returncode == 0, imported.stderr
        archive.unlink()

    def docker(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of Docker's own client."""
        client = ["docker", "--host", f"unix://{self.socket}", *command]
        return subprocess.run(client, capture_output=True, text=True, check=False)
