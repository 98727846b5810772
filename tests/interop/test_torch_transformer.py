"""What is read from a state dict of PyTorch's `nn.Transformer`, on tensors made by hand; parity is tested beside."""

import numpy as np
import pytest
import safetensors.numpy

from transformer_jax.interop.torch_transformer import import_torch
from transformer_jax.nn import ModelConfig
from transformer_jax.system import UserError
from transformer_jax.tasks.model_folder import load
from transformer_jax.tasks.seq2seq_model import TransformerStacks

D, F = 4, 6


def tensors(*, bias=True, norm=True):
    """The names and shapes of PyTorch's documentation: one encoder layer, two decoder layers; every number distinct."""
    shapes = {}

    def affine(name, *shape):
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    for layer, attentions in {
        "encoder.layers.0": ["self_attn"],
        "decoder.layers.0": ["self_attn", "multihead_attn"],
        "decoder.layers.1": ["self_attn", "multihead_attn"],
    }.items():
        for attention in attentions:
            shapes[f"{layer}.{attention}.in_proj_weight"] = (3 * D, D)
            if bias:
                shapes[f"{layer}.{attention}.in_proj_bias"] = (3 * D,)
            affine(f"{layer}.{attention}.out_proj", D, D)
        affine(f"{layer}.linear1", F, D)
        affine(f"{layer}.linear2", D, F)
        for number in range(1, len(attentions) + 2):
            affine(f"{layer}.norm{number}", D)
    if norm:
        for side in ("encoder", "decoder"):
            affine(f"{side}.norm", D)
    counter = iter(range(10**6))
    return {
        name: np.array([next(counter) for _ in range(np.prod(shape))], np.float32).reshape(shape)
        for name, shape in shapes.items()
    }


def imported(folder, content, **options):
    path = folder / "weights.safetensors"
    safetensors.numpy.save_file(content, path)
    import_torch(path, folder / "model", **({"num_heads": 2} | options))
    return load(folder / "model")


def test_every_number_finds_its_place(tmp_path):
    theirs = tensors()
    model = imported(tmp_path, theirs)
    assert type(model) is TransformerStacks
    assert model.tokenizer is None
    assert model.model_config == ModelConfig(
        d_model=D, num_heads=2, d_ff=F, num_encoder_layers=1, num_decoder_layers=2, final_norm=True
    )
    layer, name = model.params["decoder"]["layers"][1], "decoder.layers.1"
    fused = theirs[f"{name}.multihead_attn.in_proj_weight"]
    for number, projection in enumerate(("query", "key", "value")):
        rows = slice(number * D, (number + 1) * D)
        ours = layer["cross_attention"][projection]
        np.testing.assert_array_equal(ours["kernel"], fused[rows].T)
        np.testing.assert_array_equal(ours["bias"], theirs[f"{name}.multihead_attn.in_proj_bias"][rows])
    np.testing.assert_array_equal(layer["feed_forward"]["wide"]["kernel"], theirs[f"{name}.linear1.weight"].T)
    np.testing.assert_array_equal(layer["feed_forward"]["narrow"]["bias"], theirs[f"{name}.linear2.bias"])
    for number, residual in enumerate(("self_attention", "cross_attention", "feed_forward"), start=1):
        np.testing.assert_array_equal(
            layer[f"{residual}_residual"]["norm"]["scale"], theirs[f"{name}.norm{number}.weight"]
        )
    np.testing.assert_array_equal(model.params["encoder"]["norm"]["bias"], theirs["encoder.norm.bias"])
    numbers = safetensors.numpy.load_file(tmp_path / "model" / "model.safetensors").values()
    assert sorted(np.concatenate([part.ravel() for part in numbers])) == list(
        range(sum(t.size for t in theirs.values()))
    )
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "| imported from | weights.safetensors, weights of PyTorch's nn.Transformer |" in card
    assert "vocabulary |" not in card


def test_separate_projections_are_those_of_a_packed_one(tmp_path):
    packed, separate = tensors(), tensors()
    for name in [name for name in packed if name.endswith("in_proj_weight")]:
        for letter, part in zip("qkv", np.split(separate.pop(name), 3), strict=True):
            separate[name.replace("in_proj", f"{letter}_proj")] = part
    folders = tmp_path / "packed", tmp_path / "separate"
    for folder, content in zip(folders, (packed, separate), strict=True):
        folder.mkdir()
        imported(folder, content)
    assert len({(folder / "model" / "model.safetensors").read_bytes() for folder in folders}) == 1


def test_a_model_without_biases_has_zeros(tmp_path):
    params = imported(tmp_path, tensors(bias=False)).params
    np.testing.assert_array_equal(params["decoder"]["layers"][0]["self_attention"]["value"]["bias"], np.zeros(D))
    np.testing.assert_array_equal(params["decoder"]["norm"]["bias"], np.zeros(D))


def test_what_shapes_cannot_tell_is_taken_from_the_arguments(tmp_path):
    config = imported(tmp_path, tensors(), num_heads=4, norm_first=True, activation="gelu").model_config
    assert (config.num_heads, config.norm_first, config.final_norm, config.activation) == (4, True, False, "gelu")
    (tmp_path / "b").mkdir()
    assert not imported(tmp_path / "b", tensors(norm=False)).model_config.final_norm


def test_a_part_of_a_larger_model_has_a_prefix(tmp_path):
    larger = {f"net.{name}": tensor for name, tensor in tensors().items()} | {
        "head.weight": np.ones((3, D), np.float32)
    }
    neighbours = {"position_ids": np.arange(3)}  # of a type that is not read
    with pytest.raises(UserError, match=r"no matrix encoder\.layers\.0\.linear1\.weight, .*give the prefix 'net\.'\."):
        imported(tmp_path, larger)
    params = imported(tmp_path, larger | neighbours, prefix="net.").params
    np.testing.assert_array_equal(params["decoder"]["norm"]["scale"], larger["net.decoder.norm.weight"])


def without(*names):
    return lambda t: [t.pop(name) for name in names]


def with_shape(name, *shape):
    return lambda t: t.update({name: np.ones(shape, np.float32)})


BROKEN = {
    "missing": (
        without("decoder.layers.1.norm3.bias", "encoder.layers.0.self_attn.in_proj_weight"),
        ["missing tensors: decoder.layers.1.norm3.bias, encoder.layers.0.self_attn.in_proj_weight)"],
    ),
    "one final norm": (without("encoder.norm.weight", "encoder.norm.bias"), ["encoder.norm.bias, encoder.norm.weight"]),
    "unknown": (with_shape("decoder.layers.0.self_attn.bias_k", 1, 1, D), ["unknown tensors: ", "self_attn.bias_k"]),
    "embeddings": (with_shape("src_embedding.weight", 9, D), ["unknown tensors: src_embedding.weight"]),
    "misshapen": (
        with_shape("decoder.layers.0.linear2.weight", F, D),
        ["of another shape: decoder.layers.0.linear2.weight 6x4 instead of 4x6"],
    ),
    "a gap": (with_shape("encoder.layers.1000000000.linear1.weight", F, D), ["unknown tensors: ", "encoder.layers.1."]),
    "no matrix": (with_shape("encoder.layers.0.linear1.weight", F), ["no matrix encoder.layers.0.linear1.weight"]),
    "no width": (with_shape("encoder.layers.0.linear1.weight", F, 0), ["encoder.layers.0.linear1.weight is empty"]),
    "no inner width": (
        with_shape("encoder.layers.0.linear1.weight", 0, D),
        ["encoder.layers.0.linear1.weight is empty"],
    ),
    "no decoder": (
        lambda t: [t.pop(name) for name in list(t) if name.startswith("decoder")],
        ["no matrix decoder.layers.0.linear1.weight, which every nn.Transformer has"],
    ),
    "nothing": (lambda t: t.clear(), ["no matrix encoder.layers.0.linear1.weight"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_tensors_that_do_not_fit_are_named(tmp_path, case):
    break_it, expected = BROKEN[case]
    content = tensors()
    break_it(content)
    with pytest.raises(UserError) as caught:
        imported(tmp_path, content)
    message = str(caught.value)
    assert [text for text in expected if text not in message] == []
    assert "weights.safetensors" in message
    assert "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 8}, r"num_heads is 8, but must divide the width of .*, 4; give the model's nhead"),
        ({"num_heads": 0}, r"num_heads is 0"),
        ({"activation": "mish"}, r"activation is 'mish', but must be one of relu, gelu, swish"),
        ({"norm_first": True, "prefix": "x."}, r"no matrix x\.encoder"),
    ],
)
def test_arguments_that_do_not_fit_are_named(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        imported(tmp_path, tensors(), **options)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "pytorch_model.bin", "weights.safetensors"])
def test_a_pickle_is_refused_with_the_remedy(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(UserError, match=rf"{name} is a pickle, .*safetensors\.torch\.save_file"):
        import_torch(tmp_path / name, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["", "..", "folder"])
def test_a_folder_is_no_file(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="is not a file; name a safetensors file"):
        import_torch(tmp_path / name, tmp_path / "model")


def test_a_name_that_is_not_utf_8(tmp_path):
    path = tmp_path / "weights\udcff.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors()))
    import_torch(path, tmp_path / "model", num_heads=2)
    assert "| weights?.safetensors," in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def test_what_exists_is_not_written_over(tmp_path):
    imported(tmp_path, tensors())
    before = (tmp_path / "model" / "config.json").read_bytes()
    with pytest.raises(UserError, match="model exists"):
        imported(tmp_path, tensors(), num_heads=4)
    assert (tmp_path / "model" / "config.json").read_bytes() == before
