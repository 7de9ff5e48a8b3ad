"""Owns an interpreter that stands for the trainer's: it imports a toy base model in milliseconds.

Only the import is replaced; everything else that the control plane does with the result is real.
"""

from __future__ import annotations

import sys
from pathlib import Path

_SCRIPT = """#!{python}
import hashlib, json, os, pathlib, sys, time
arguments = dict(zip(sys.argv[4::2], sys.argv[5::2]))
assert sys.argv[1:4] == ["-m", "tunesmith_trainer", "import-base"], sys.argv
assert not any(name.startswith(("TUNESMITH_", "AWS_")) for name in os.environ), sorted(os.environ)
source, cache = arguments["--source"], pathlib.Path(arguments["--cache-dir"])
with open(cache / "imports.log", "a") as log:
    log.write(source + "\\n")
print("bar \\r" * 50_000, end="", file=sys.stderr)
print("reading " + source, file=sys.stderr, flush=True)
if source == "toy:broken":
    sys.exit("2026-01-01 00:00:00,000 ERROR tunesmith_trainer.__main__ The source is broken.")
if source == "toy:mixture":
    print(json.dumps({{"refused": "unsupported_architecture", "reason": "It is a mixture of experts."}}))
    sys.exit("2026-01-01 00:00:00,000 ERROR tunesmith_trainer.__main__ It is a mixture of experts.")
if source == "toy:silent":
    sys.exit(0)
if source == "toy:slow":
    time.sleep(60)
folder = pathlib.Path(source)
contents = {{
    "config.json": json.dumps({{"max_position_embeddings": 64, "source": source}}).encode(),
    "model.safetensors": bytes.fromhex("{weights}"),
}}
if folder.is_dir():
    contents |= {{path.name: path.read_bytes() for path in folder.iterdir()}}
files = [
    {{"path": name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}}
    for name, content in sorted(contents.items())
]
manifest = {{"files": files, "id": arguments["--id"]}}
encoded = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
revision = hashlib.sha256(encoded).hexdigest()
target = cache / "base_models" / revision
target.mkdir(parents=True, exist_ok=True)
for name, content in (contents | {{"manifest.json": encoded}}).items():
    (target / name).write_bytes(content)
if source == "toy:damaged":
    (target / "model.safetensors").write_bytes(bytes(len(contents["model.safetensors"])))
print("loading")
print(json.dumps({{"revision": revision, "path": str(target)}}))
"""


def write_fake_importer(folder: Path, weights: bytes) -> Path:
    """An executable to use as `trainer_python`; its model has these bytes as model.safetensors.

    Sources `toy:broken`, `toy:mixture`, `toy:silent`, `toy:slow` and `toy:damaged` misbehave; a folder's files are
    taken over.
    """
    script = folder / "fake-python"
    script.write_text(_SCRIPT.format(python=sys.executable, weights=weights.hex()))
    script.chmod(0o755)
    return script
