"""Owns handing files over: URLs from the control plane, bytes to object storage.
Must not know what the files are."""

from pathlib import Path

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_trainer.reporter import Reporter
from tunesmith_trainer.transfer import list_files, safe_path, upload


def deliver(folder: Path, prefix: str, reporter: Reporter) -> list[pb.UploadFile]:
    """Uploads a folder's files below `prefix` of the attempt ("" or "step-4/"). Returns them by their paths in it."""
    files = [pb.UploadFile(path=file.path, size=file.size, sha256=file.sha256) for file in list_files(folder)]
    for file in files:
        reporter.check()
        # Each when its turn comes: URLs are good for a while only.
        (target,) = reporter.create_uploads(
            [pb.UploadFile(path=prefix + file.path, size=file.size, sha256=file.sha256)]
        )
        upload(folder / safe_path(target.path.removeprefix(prefix)), target.url, target.headers)
    return files
