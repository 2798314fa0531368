"""Datasets: read while the caller waits, refused with every reason at once, never unpickled."""

from __future__ import annotations

import hashlib
import struct
import zipfile
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from safetensors.numpy import save

from fewbit.contract.resources import Dataset
from service.datasets.reading import read
from tests.service.gateway import Gateway
from tests.service.uploads import archive, codes, digits, message, npy, npz, post, safetensors_file


def test_an_npz_becomes_a_dataset(http: httpx2.Client) -> None:
    content = npz(x=np.ones((5, 3), np.float32), mask=np.ones((5, 2), bool), labels=np.arange(5))
    answer = post(http, "/datasets?name=test.npz", content)
    dataset = Dataset.model_validate(answer.json())
    assert (answer.status_code, dataset.format, dataset.samples, dataset.name) == (201, "npz", 5, "test.npz")
    assert dataset.sha256 == hashlib.sha256(content).hexdigest()
    assert [(array.name, array.dtype, array.shape) for array in dataset.arrays] == [
        ("labels", "int64", (5,)),
        ("mask", "bool", (5, 2)),
        ("x", "float32", (5, 3)),
    ]
    assert http.get(answer.headers["Location"]).json() == answer.json()


def test_safetensors_are_read_too(http: httpx2.Client) -> None:
    content = save({"x": np.ones((5, 3), np.float32), "labels": np.arange(5)}, {"made_by": "a test"})
    dataset = Dataset.model_validate(post(http, "/datasets", content).json())
    assert (dataset.format, dataset.samples) == ("safetensors", 5)
    assert {array.name: array.dtype for array in dataset.arrays} == {"x": "float32", "labels": "int64"}


def test_a_compressed_npz_and_columns_first_are_fine(http: httpx2.Client) -> None:
    content = npz(compressed=True, x=np.asfortranarray(np.arange(12, dtype=np.float64).reshape(4, 3)))
    assert post(http, "/datasets", content).status_code == 201


def test_the_same_bytes_are_the_same_dataset(http: httpx2.Client) -> None:
    content = digits()
    first, second = post(http, "/datasets", content), http.post("/datasets", files={"file": ("d.npz", content)})
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()


def test_a_deleted_dataset_is_gone_with_its_bytes(gateway: Gateway) -> None:
    before = gateway.blob_files()
    dataset = post(gateway.http, "/datasets", digits()).json()["id"]
    assert dataset in gateway.http.get("/datasets").text
    assert gateway.http.delete(f"/datasets/{dataset}").status_code == 204
    assert gateway.http.get(f"/datasets/{dataset}").status_code == 404
    assert gateway.http.delete(f"/datasets/{dataset}").status_code == 404
    assert gateway.blob_files() == before


def objects(count: int) -> np.ndarray[Any, Any]:
    return np.array([{"run": "me"}] * count, dtype=object)


def with_value(value: float) -> np.ndarray[Any, Any]:
    array = np.zeros((100, 3), np.float32)
    array[17, 2] = value
    return array


def test_every_reason_is_told_at_once(http: httpx2.Client) -> None:
    content = npz(x=np.ones((4, 2)), y=np.ones((3, 2)), z=np.ones((4, 1)), o=objects(4), c=np.ones(4, complex))
    answer = post(http, "/datasets", content)
    assert answer.json()["type"] == "/problems/invalid-dataset"
    assert codes(answer) == {("/y", "unequal-length"), ("/o", "object-array"), ("/c", "unsupported-dtype")}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_named_with_its_sample(http: httpx2.Client, value: float) -> None:
    for array in (with_value(value), np.asfortranarray(with_value(value))):
        answer = post(http, "/datasets", npz(x=array, labels=np.arange(100)))
        assert codes(answer) == {("/x", "not-finite")}
        assert "sample 17, at [17, 2]" in message(answer, "not-finite")


def test_a_nan_far_behind_in_a_safetensors_file_is_found(http: httpx2.Client) -> None:
    far = np.zeros((2_000_000, 1), np.float32)
    far[1_999_999] = np.nan
    answer = post(http, "/datasets", save({"x": far}))
    assert "sample 1999999" in message(answer, "not-finite")


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({}, ("", "empty")),
        ({"x": np.ones((0, 3))}, ("/x", "empty")),
        ({"x": np.float32(1)}, ("/x", "no-sample-axis")),
        ({"labels": np.arange(3)}, ("", "no-inputs")),
        ({"x": np.array(["a", "b"])}, ("/x", "unsupported-dtype")),
        ({"x": np.ones(2, ">f4")}, ("/x", "unsupported-dtype")),
        ({"x": np.ones(2, [("a", "i4")])}, ("/x", "unsupported-dtype")),
        ({"x": objects(2)}, ("/x", "object-array")),
    ],
)
def test_what_is_no_dataset_is_refused(gateway: Gateway, arrays: dict[str, Any], expected: tuple[str, str]) -> None:
    before = gateway.blob_files()
    answer = post(gateway.http, "/datasets", npz(**arrays))
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-dataset")
    assert expected in codes(answer)
    assert gateway.blob_files() == before


def test_a_bomb_is_refused_by_what_it_declares(http: httpx2.Client) -> None:
    bomb = archive(("x.npy", npy(np.zeros(40 * 2**20, np.uint8))))  # 40 kB that unpack to 40 MiB; 32 are allowed
    assert len(bomb) < 100_000
    assert codes(post(http, "/datasets", bomb)) == {("", "too-large")}


def test_a_header_that_lies_about_its_size_is_refused(http: httpx2.Client) -> None:
    honest = npy(np.zeros(8, np.float32))
    lying = honest.replace(b"(8,)", b"(9,)")
    assert codes(post(http, "/datasets", archive(("x.npy", lying)))) == {("/x", "truncated")}


def test_a_directory_that_lies_about_a_size_is_refused(http: httpx2.Client) -> None:
    content = bytearray(archive(("x.npy", npy(np.zeros(1000, np.float32)))))
    entry = content.index(b"PK\x01\x02")
    struct.pack_into("<I", content, entry + 24, 30 * 2**20)  # the directory's uncompressed size
    assert {code for _, code in codes(post(http, "/datasets", bytes(content)))} <= {"truncated", "too-large"}


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_truncated_npz_is_refused(http: httpx2.Client, kept: float) -> None:
    content = npz(x=np.ones((1000, 4), np.float32))
    answer = post(http, "/datasets", content[: int(len(content) * kept)])
    assert codes(answer) == {("", "truncated")}


def test_a_damaged_member_is_named(http: httpx2.Client) -> None:
    content = bytearray(npz(x=np.arange(4000, dtype=np.float32), y=np.arange(4000, dtype=np.float32)))
    content[2000] ^= 0xFF
    assert codes(post(http, "/datasets", bytes(content))) == {("/x", "truncated")}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (archive(("readme.txt", b"hello")), "unreadable"),
        (archive(("../x.npy", npy(np.ones(2)))), "unreadable"),
        (archive(("x.npy", b"not an array")), "unreadable"),
        (archive(("x.npy", npy(np.ones(6)).replace(b"(6,), }   ", b"(-2,-3), }"))), "unreadable"),
        (archive(("x.npy", npy(np.ones(6)).replace(b"'<f8'", b"'-' * 3"))), "unreadable"),
        (archive(("x.npy", b"\x93NUMPY\x01\x00\xff\x25" + b"-" * 9726 + b"1")), "unreadable"),
        (archive(("x.npy", npy(np.ones(2))), method=zipfile.ZIP_BZIP2), "unreadable"),
        (archive(*((f"a{number}.npy", npy(np.ones(1))) for number in range(1001))), "too-many-arrays"),
        (b"hello, world", "unknown-format"),
        (b"\x80\x04pickle", "unknown-format"),
        (b"\xff" * 100, "unknown-format"),
    ],
)
def test_other_files_are_refused(http: httpx2.Client, content: bytes, code: str) -> None:
    assert code in {code for _, code in codes(post(http, "/datasets", content))}


def test_the_same_name_twice_is_refused(http: httpx2.Client) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        content = archive(("x.npy", npy(np.ones(2))), ("x.npy", npy(np.ones(2))))
    assert codes(post(http, "/datasets", content)) == {("/x", "duplicate")}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (safetensors_file({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 4), "truncated"),
        (safetensors_file({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 4), "truncated"),
        (safetensors_file({"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 4]}}, b"\0" * 4), "unreadable"),
        (
            safetensors_file({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 4),
            "unsupported-dtype",
        ),
        (safetensors_file({"x": 1}), "unreadable"),
        (safetensors_file([1, 2]), "unreadable"),
        (safetensors_file(b"[" * 100_000), "unreadable"),
        (safetensors_file(b'{"x": 1, "x": 2}'), "unreadable"),
        (
            safetensors_file(
                {name: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for name in ("x", "y")}, b"\0" * 4
            ),
            "unreadable",
        ),
    ],
)
def test_a_bad_safetensors_header_is_refused(http: httpx2.Client, content: bytes, code: str) -> None:
    answer = post(http, "/datasets", content)
    assert (answer.status_code, {code for _, code in codes(answer)}) == (422, {code})


def test_a_directory_too_large_for_memory_is_refused_unread(http: httpx2.Client) -> None:
    content = bytearray(npz(x=np.ones(2)))
    struct.pack_into("<I", content, len(content) - 22 + 12, 2**31)
    assert codes(post(http, "/datasets", bytes(content))) == {("", "truncated")}


def test_the_long_form_of_zip_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an .npz of 4 GiB and more looks like at its end (zip64)."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    path = tmp_path / "long.npz"
    path.write_bytes(archive(("x.npy", npy(np.ones((3, 2))))))
    assert b"PK\x06\x06" in path.read_bytes()
    assert read(path, 2**20).samples == 3
