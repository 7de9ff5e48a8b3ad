"""A tar that somebody sent is read by its headers: plain files with plain names, or refused with what to do."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tests.support.archives import tar_of
from tunesmith_server.registry.archive_members import ArchiveError, read_members

FILES = {"a.json": b"{}", "model.safetensors": bytes(range(256)) * 5, "empty": b""}


def names(content: bytes) -> list[str]:
    return [member.path for member in read_members(io.BytesIO(content), len(content))]


def code(content: bytes) -> str:
    with pytest.raises(ArchiveError) as caught:
        names(content)
    assert "tar -cf model.tar" in str(caught.value) or "Send all of it" in str(caught.value)
    return caught.value.code


def made_of(*infos: tarfile.TarInfo, format: int = tarfile.GNU_FORMAT) -> bytes:  # noqa: A002  tarfile's own word
    """A tar of members that announce what they like."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=format) as tar:
        for info in infos:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return target.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **values: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in values.items():
        setattr(info, key, value)
    return info


def test_files_are_found_where_they_lie() -> None:
    content = tar_of(FILES)
    found = read_members(io.BytesIO(content), len(content))
    assert {each.path: content[each.offset : each.offset + each.size] for each in found} == FILES


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_ways_in_which_people_make_a_tar(tmp_path: Path, format: int) -> None:  # noqa: A002
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=format) as tar:
        tar.add(tmp_path, arcname=".")  # with the folder itself and, in PAX, times as notes
    assert sorted(names(target.getvalue())) == sorted(FILES)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (made_of(member("../outside")), "path_invalid"),
        (made_of(member("/etc/passwd")), "path_invalid"),
        (made_of(member("folder/a.json")), "path_invalid"),
        (made_of(member("./folder/a.json")), "path_invalid"),
        (made_of(member("..")), "path_invalid"),
        (made_of(member("a\\b")), "path_invalid"),
        (made_of(member("a\x1bb")), "path_invalid"),
        (made_of(member("a.json"), member("a.json")), "file_repeated"),
        (made_of(member("a.json"), member("./a.json")), "file_repeated"),
        (made_of(member("link", tarfile.SYMTYPE, linkname="/etc/passwd")), "member_not_allowed"),
        (made_of(member("hard", tarfile.LNKTYPE, linkname="a.json")), "member_not_allowed"),
        (made_of(member("device", tarfile.CHRTYPE)), "member_not_allowed"),
        (made_of(member("device", tarfile.BLKTYPE)), "member_not_allowed"),
        (made_of(member("pipe", tarfile.FIFOTYPE)), "member_not_allowed"),
        (made_of(member("folder", tarfile.DIRTYPE)), "member_not_allowed"),
        (made_of(member("sparse", tarfile.GNUTYPE_SPARSE)), "member_not_allowed"),
        (made_of(member("x" * 200)), "member_not_allowed"),
        (made_of(member("x" * 200), format=tarfile.PAX_FORMAT), "member_not_allowed"),
        (
            made_of(member("a", pax_headers={"GNU.sparse.size": "9999999999"}), format=tarfile.PAX_FORMAT),
            "member_not_allowed",
        ),
        (
            made_of(member("a", pax_headers={"comment": "x" * 70_000}), format=tarfile.PAX_FORMAT),
            "archive_invalid",
        ),
        (made_of(*[member(".", tarfile.DIRTYPE)] * 8192), "too_many_files"),
        (tar_of(FILES)[:900], "archive_invalid"),
        (tar_of(FILES)[:2200], "archive_invalid"),
        (tar_of({"a": b"x" * 600}).replace(b"0001130", b"7777777"), "archive_invalid"),
        (b"", "archive_invalid"),
        (b"PK\x03\x04" * 500, "archive_invalid"),
        (b"\x1f\x8b" + bytes(2000), "archive_invalid"),
    ],
)
def test_everything_else_is_refused(content: bytes, expected: str) -> None:
    assert code(content) == expected


def test_a_size_below_zero_is_refused() -> None:
    content = bytearray(tar_of({"a": b"x"}))
    content[124:136] = b"\xff" * 12  # base 256, minus one
    header = tarfile.TarInfo.frombuf
    content[148:156] = b" " * 8
    content[148:155] = b"%06o\0" % sum(content[:512])
    assert header(bytes(content[:512]), "utf-8", "strict").size < 0
    assert code(bytes(content)) == "archive_invalid"


@pytest.mark.parametrize("note", [b"no length", b"9999999 a=b\n", b"0 a=b\n", b"99 mtime=1\n"])
def test_notes_that_cannot_be_read_are_refused(note: bytes) -> None:
    info = member("PaxHeader", tarfile.XHDTYPE, size=len(note))
    content = info.tobuf(tarfile.USTAR_FORMAT) + note + bytes(512 - len(note)) + bytes(1024)
    assert code(content) == "archive_invalid"
