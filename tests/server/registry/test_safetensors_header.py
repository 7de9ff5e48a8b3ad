"""A header is read within bounds, and whatever a hostile file says gets a sentence and not a crash."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.artifacts import safetensors_bytes
from tunesmith_server.registry.safetensors_header import (
    MAX_HEADER_BYTES,
    HeaderCollector,
    HeaderError,
    Tensor,
    parse_header,
)

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I64"]) | JSON_VALUES,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON_VALUES,
        "data_offsets": st.lists(st.integers(-4, 64), max_size=3) | JSON_VALUES,
    }
)


def collect(content: bytes, step: int) -> HeaderCollector:
    collector = HeaderCollector()
    for start in range(0, len(content), step):
        collector.feed(content[start : start + step])
    return collector


@given(step=st.integers(1, 400))
def test_a_header_is_read_from_chunks_of_any_size(step: int) -> None:
    content = safetensors_bytes({"a": (2, 3), "b": ()}, dtype="BF16")

    collector = collect(content, step)

    assert collector.complete
    assert collector.tensors(len(content)) == {"a": Tensor("BF16", (2, 3)), "b": Tensor("BF16", ())}


@pytest.mark.parametrize("length", [0, 1, MAX_HEADER_BYTES + 1, 2**64 - 1])
def test_an_impossible_header_length_is_refused_at_once(length: int) -> None:
    with pytest.raises(HeaderError, match="claims"):
        HeaderCollector().feed(length.to_bytes(8, "little"))


@pytest.mark.parametrize(("size", "why"), [(0, "too few"), (3, "3 bytes"), (8, "ends before"), (20, "ends before")])
def test_a_file_that_ends_in_its_header_is_refused(size: int, why: str) -> None:
    content = safetensors_bytes({"a": (2,)})[:size]

    with pytest.raises(HeaderError, match=why):
        collect(content, 100).tensors(size)


@pytest.mark.parametrize(
    "header",
    [
        {"a": ENTRY | {"dtype": "F31"}},
        {"a": ENTRY | {"shape": [3]}},
        {"a": ENTRY | {"shape": [-2]}},
        {"a": ENTRY | {"shape": [True, 2]}},
        {"a": ENTRY | {"shape": [2.0]}},
        {"a": ENTRY | {"shape": [1] * 8 + [2]}},
        {"a": ENTRY | {"data_offsets": [8, 0]}},
        {"a": ENTRY | {"data_offsets": [0]}},
        {"a": ENTRY | {"extra": 1}},
        {"a": {"dtype": "F32"}},
        {"a": None},
        {"a": ENTRY, "b": ENTRY},
        {"a": ENTRY | {"data_offsets": [4, 12]}},
        {"__metadata__": {"format": "pt", "note": 1}, "a": ENTRY},
        {"__metadata__": {"format": "pt", "note": {"a": "b"}}, "a": ENTRY},
        {"__metadata__": {"format": "tf"}, "a": ENTRY},
        {"__metadata__": "pt", "a": ENTRY},
        {},
        [],
        None,
    ],
)
def test_an_inconsistent_header_is_refused(header: Any) -> None:
    with pytest.raises(HeaderError):
        parse_header(json.dumps(header).encode(), 8)


@pytest.mark.parametrize(
    "metadata", [{}, {"format": "pt", "mergekit_version": "0.1"}, {"format": "mlx"}, {"note": "x" * 100}]
)
def test_what_tools_write_of_themselves_is_taken(metadata: dict[str, str]) -> None:
    header = json.dumps({"__metadata__": metadata, "a": ENTRY}).encode()

    assert parse_header(header, 8) == {"a": Tensor("F32", (2,))}


def test_a_repeated_name_is_refused() -> None:
    entry = json.dumps(ENTRY)

    with pytest.raises(HeaderError, match="twice"):
        parse_header(f'{{"a":{entry},"a":{entry}}}'.encode(), 8)


@pytest.mark.parametrize("header", [b"\xff\xfe", b"{", b"[" * 200_000, b'{"a":' + b"9" * 5000 + b"}"])
def test_what_is_not_json_is_refused(header: bytes) -> None:
    with pytest.raises(HeaderError):
        parse_header(header, 8)


HEADERS = (JSON_VALUES | st.dictionaries(st.text(max_size=8), ENTRIES, max_size=3)).map(json.dumps).map(str.encode)


@given(header=st.binary(max_size=64) | HEADERS, data_bytes=st.integers(0, 64))
def test_no_header_crashes_the_reader(header: bytes, data_bytes: int) -> None:
    try:
        tensors = parse_header(header, data_bytes)
    except HeaderError:
        return
    assert all(tensor.dtype and min(tensor.shape, default=0) >= 0 for tensor in tensors.values())
