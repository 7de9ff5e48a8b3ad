"""A GPU that is only imagined, for what can be told without numbers: torch follows shapes, dtypes and devices there.

Run as a program with a folder to build in, it prints what `gpu_steps` tells of steps on it, as JSON.
"""

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path


def put_in(folder: Path) -> None:
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


if __name__ == "__main__":
    put_in(Path(sys.argv[1]))
    from tests.support import gpu_steps

    print(json.dumps(gpu_steps.complaints()), flush=True)
    os._exit(0)  # torch's thread for the GPU has none to say farewell to
