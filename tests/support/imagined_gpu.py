"""A GPU that is only imagined, for what can be told without numbers: torch follows shapes, dtypes and devices there.

Run as a program with a folder and a function's module and name, it prints as JSON what the function returns on it.
"""

import ctypes
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

_REPOSITORY = Path(__file__).parents[2]


def call(module: str, function: str, folder: Path) -> Any:
    """What a function of a module of ours returns on the GPU; built in the folder, in a process of its own."""
    command = [sys.executable, "-m", __name__, str(folder), module, function]
    done = subprocess.run(command, cwd=_REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _put_in(folder: Path) -> None:
    """Gives this process a GPU, where torch was built for none. It must not be imported yet: then it looks for one."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch_folder = Path(spec.origin).parent
    if (torch_folder / "lib" / "libtorch_cuda.so").exists():
        return  # it has what it asks a GPU with, which would not go with ours
    source, made = Path(__file__).with_suffix(".cpp"), folder / "imagined_gpu.so"
    libraries = torch_folder / "lib"
    torchs = [f"-I{torch_folder / 'include'}", f"-L{libraries}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{libraries}"]
    subprocess.run(["g++", "-std=c++20", "-shared", "-fPIC", source, "-o", made, *torchs], check=True)
    ctypes.CDLL(str(made))


@contextmanager
def _imagined() -> Iterator[None]:
    """Answers in place of the GPU where it would be asked itself."""
    import torch

    from tunesmith_trainer import attention

    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)))
        stack.enter_context(patch.object(torch.cuda, "Event", Mock))
        stack.enter_context(patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor))
        stack.enter_context(patch.object(attention, "kernel_is_right", return_value=True))
        attention.register()
        yield


if __name__ == "__main__":
    _put_in(Path(sys.argv[1]))
    with _imagined():
        print(json.dumps(getattr(importlib.import_module(sys.argv[2]), sys.argv[3])()), flush=True)
        os._exit(0)  # torch's thread for the GPU has none to say farewell to
