"""Files of others: what is read, and what is refused, each in one sentence."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from transformer_jax.interop.reading import check_tensors, read_bytes, read_json, read_tensors, read_weights
from transformer_jax.system import UserError

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([0.5], np.float32)}


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(TENSORS, path)
    return path


def refusal(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], expected[name])


def test_tensors_come_back_as_they_are(weights):
    same(read_tensors(weights), TENSORS)


@pytest.mark.parametrize(("kind", "dtype"), [("F16", np.float16), ("BF16", jnp.bfloat16)])
def test_half_precision_becomes_float32(tmp_path, kind, dtype):
    values = np.array([[0.1, -3.0], [1e-3, 70.0]], dtype)
    header = json.dumps({"x": {"dtype": kind, "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + values.tobytes())
    same(read_tensors(path), {"x": values.astype(np.float32)})


def test_other_types_are_refused_by_name(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"position_ids": np.arange(3)}, path)
    assert "position_ids is of type I64" in refusal(read_tensors, path)


def test_what_lies_outside_the_prefix_is_passed_over(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(
        {f"net.{name}": tensor for name, tensor in TENSORS.items()} | {"ids": np.arange(3)}, path
    )
    same(read_tensors(path, "net."), {f"net.{name}": tensor for name, tensor in TENSORS.items()})


def test_names_too_long_for_a_file_are_refused(tmp_path):
    for name in ("x" * 5000, "x" * 5000 + ".bin"):
        assert "cannot be read" in refusal(read_tensors, tmp_path / name)


def test_truncated_files_are_refused_wherever_they_end(weights):
    content = weights.read_bytes()
    for end in (0, 4, 8, 20, len(content) // 2, len(content) - 1):
        weights.write_bytes(content[:end])
        assert "truncated or damaged" in refusal(read_tensors, weights)


def test_a_header_longer_than_the_file_is_refused(weights):
    weights.write_bytes(struct.pack("<Q", 2**62) + weights.read_bytes()[8:])
    assert "header is longer" in refusal(read_tensors, weights)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_a_pickle_is_refused_by_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    message = refusal(read_tensors, tmp_path / name)
    assert "runs the code in it" in message
    assert "safetensors.torch.save_file" in message
    assert name in refusal(read_weights, tmp_path)


@pytest.mark.parametrize("begin", [b"PK\x03\x04", b"\x80\x02}q\x00"])
def test_a_pickle_is_refused_under_any_name(weights, begin):
    weights.write_bytes(begin + b"x" * 100)
    assert "runs the code in it" in refusal(read_tensors, weights)


def test_links_are_refused(weights):
    link = weights.with_name("link.safetensors")
    link.symlink_to(weights)
    assert "cp -rL" in refusal(read_tensors, link)
    dangling = weights.with_name("config.json")
    dangling.symlink_to(weights.with_name("nowhere"))
    assert "symbolic link" in refusal(read_json, weights.parent, "config.json")


@pytest.mark.parametrize("name", ["../secret", "a/b", "/etc/passwd", "..", "", ".", "a\\b", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    (tmp_path.parent / "secret").write_text("secret")
    assert "not directly in that folder" in refusal(read_bytes, tmp_path, name)


def test_missing_folders_and_large_files(tmp_path):
    assert "is missing" in refusal(read_bytes, tmp_path, "config.json")
    (tmp_path / "folder").mkdir()
    assert "is not a file" in refusal(read_bytes, tmp_path, "folder")
    (tmp_path / "large").write_bytes(bytes(11))
    assert "larger than 10 bytes" in refusal(read_bytes, tmp_path, "large", 10)
    assert read_bytes(tmp_path, "large", 11) == bytes(11)


@pytest.mark.parametrize(
    "content", [b"{", b"[1]", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff", b"[" * 100_000, rb'{"a": "\ud800"}']
)
def test_bad_json_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    assert "config.json" in refusal(read_json, tmp_path, "config.json")


def test_json_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"a": {"b": [1, null]}}')
    assert read_json(tmp_path, "config.json") == {"a": {"b": [1, None]}}


class TestShards:
    @pytest.fixture
    def folder(self, tmp_path):
        for number, (name, tensor) in enumerate(TENSORS.items()):
            safetensors.numpy.save_file({name: tensor}, tmp_path / f"model-{number}.safetensors")
        self.index(tmp_path, {"a": "model-0.safetensors", "b": "model-1.safetensors"})
        return tmp_path

    @staticmethod
    def index(folder, weight_map):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    def test_are_put_together(self, folder):
        same(read_weights(folder), TENSORS)

    @pytest.mark.parametrize("name", ["../model-1.safetensors", "pytorch_model.bin", "/model.safetensors"])
    def test_must_lie_beside_the_index(self, folder, name):
        self.index(folder, {"a": "model-0.safetensors", "b": name})
        assert repr(name) in refusal(read_weights, folder)

    def test_must_hold_what_the_index_says(self, folder):
        self.index(folder, {"a": "model-0.safetensors", "c": "model-1.safetensors"})
        assert "disagree on b, c" in refusal(read_weights, folder)

    @pytest.mark.parametrize("weight_map", [None, [], {"a": 1}])
    def test_need_an_index_of_the_right_shape(self, folder, weight_map):
        self.index(folder, weight_map)
        assert "has no weight_map" in refusal(read_weights, folder)


def test_every_tensor_that_does_not_fit_is_named(tmp_path):
    shapes = {"a": (2, 3), "b": (2,), "c": (1,)}
    message = refusal(check_tensors, tmp_path, TENSORS | {"e": TENSORS["a"]}, shapes)
    assert "unknown tensors: e;" in message
    assert "missing tensors: c;" in message
    assert "tensors of another shape: b 1 instead of 2" in message
    check_tensors(tmp_path, TENSORS, {"a": (2, 3), "b": (1,)})


def test_names_are_fit_for_a_terminal(tmp_path):
    evil = "evil\x1b[2J\n"
    for shapes in ({}, {evil: (7,)}):
        message = refusal(check_tensors, tmp_path, {evil: TENSORS["b"]}, shapes)
        assert message.isprintable()
        assert r"'evil\x1b[2J\n'" in message


def test_of_many_names_ten_are_shown(tmp_path):
    many = {f"t{number:02}": TENSORS["b"] for number in range(13)}
    message = refusal(check_tensors, tmp_path, many, {})
    assert "t09 and 3 more" in message
    assert "t10" not in message
