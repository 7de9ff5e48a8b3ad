"""A real Slurm on this machine: munged, slurmctld and one slurmd, on ports and in a folder of their own. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.support.ports import free_ports

LIMIT_SECONDS = 60
CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
MessageTimeout=5
NodeName=localhost NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


class SlurmCluster:
    """Daemons in the foreground of processes that this object ends again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = folder / "slurm.conf"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Starts all daemons and waits until the node can take jobs."""
        self.folder.chmod(0o755)
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        controller_port, node_port = free_ports(2)
        self.configuration.write_text(
            CONFIGURATION.format(folder=self.folder, controller_port=controller_port, node_port=node_port)
        )
        files = {"key-file": key, "socket": self.folder / "munge.socket", "pid-file": self.folder / "munged.pid"}
        files |= {"log-file": self.folder / "munged.log", "seed-file": self.folder / "munged.seed"}
        # --force: the folder above may be writable by others, as temporary folders are.
        self._start("munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in files.items()))
        _wait_for("munged", (self.folder / "munge.socket").exists)
        self.start_controller()
        self._start("slurmd", "-D", "-N", "localhost", "-f", str(self.configuration))
        _wait_for("the node", lambda: self.ask("sinfo", "--noheader", "--format=%t") == "idle")

    def start_controller(self) -> None:
        """Starts slurmctld, with the state that it left, and waits until it answers."""
        self._start("slurmctld", "-D", "-f", str(self.configuration))
        _wait_for("slurmctld", lambda: self.ask("scontrol", "ping").endswith("is UP"))

    def stop_controller(self) -> None:
        """Ends slurmctld; jobs run on."""
        self._end("slurmctld")

    def stop(self) -> None:
        """Ends all jobs and daemons."""
        self.ask("scancel", "--full", "--signal=KILL", "--user=root")
        with suppress(AssertionError):
            _wait_for("an empty queue", lambda: self.ask("squeue", "--noheader") == "")
        for name in tuple(self._processes):
            self._end(name)

    def ask(self, *command: str) -> str:
        """What a command of Slurm's prints."""
        environment = os.environ | {"SLURM_CONF": str(self.configuration)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.strip()

    def _start(self, name: str, *arguments: str) -> None:
        program = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
        assert program is not None, f"{name} is missing; `make clusters` installs it"
        with (self.folder / f"{name}.out").open("ab") as output:
            self._processes[name] = subprocess.Popen([program, *arguments], stdout=output, stderr=output)

    def _end(self, name: str) -> None:
        # Not by SIGKILL: slurmctld writes its state every few seconds only, and would forget what came after.
        process = self._processes.pop(name)
        process.terminate()
        process.wait(LIMIT_SECONDS)


def _wait_for(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come up"
        time.sleep(0.1)
