"""Outputs and gradients equal those of PyTorch's `nn.Transformer` after its weights are imported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.interop.torch_transformer import import_torch
from transformer_jax.nn.attention import causal_mask, padding_mask
from transformer_jax.tasks.model_folder import load

torch = pytest.importorskip("torch", reason="parity is measured against PyTorch: pip install -e '.[peers]'")
save_file = pytest.importorskip("safetensors.torch", reason="its file format comes with PyTorch").save_file

SIZES = {"d_model": 12, "nhead": 3, "dim_feedforward": 20, "num_encoder_layers": 1, "num_decoder_layers": 2}
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
SOURCE_LENGTHS, TARGET_LENGTHS = [[5], [3], [1]], [[4], [4], [2]]
# PyTorch says which of its own kernels it does not take.
pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": torch.nn.functional.silu}


def torch_transformer(**options):
    """A model away from its initial zeros and ones, which would hide mistakes."""
    torch.manual_seed(0)
    model = torch.nn.Transformer(**SIZES, dropout=0.0, batch_first=True, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def imported(tensors, folder, *, prefix="", around=None, **options):
    folder.mkdir(exist_ok=True)
    tensors = {f"{prefix}{name}": tensor for name, tensor in tensors.items()} | (around or {})
    save_file(tensors, folder / "weights.safetensors")
    import_torch(folder / "weights.safetensors", folder / "model", num_heads=SIZES["nhead"], prefix=prefix, **options)
    return load(folder / "model")


def assert_same_outputs_and_gradients(ours, theirs, folder, *, has_bias=True, **options):
    rng = np.random.default_rng(1)
    source, target = (rng.normal(size=(3, length, SIZES["d_model"])).astype(np.float32) for length in (5, 4))
    has_source, has_target = np.arange(5) < SOURCE_LENGTHS, np.arange(4) < TARGET_LENGTHS
    weights = rng.normal(size=target.shape).astype(np.float32) * has_target[..., None]

    @jax.jit
    def loss_and_output(params, source, target):
        of_source = padding_mask(jnp.asarray(has_source, int))
        output = nnx.merge(ours.graphdef, params)(
            source, target, of_source, padding_mask(jnp.asarray(has_target, int)) & causal_mask(4), of_source
        )
        return jnp.sum(output * weights), output

    gradient = jax.value_and_grad(loss_and_output, argnums=(0, 1, 2), has_aux=True)
    (_, output), (of_params, of_source, of_target) = gradient(ours.params, jnp.asarray(source), jnp.asarray(target))

    their_source, their_target = (torch.from_numpy(x).requires_grad_() for x in (source, target))
    their_output = theirs(
        their_source,
        their_target,
        tgt_mask=torch.ones(4, 4, dtype=torch.bool).triu(1),
        src_key_padding_mask=torch.from_numpy(~has_source),
        tgt_key_padding_mask=torch.from_numpy(~has_target),
        memory_key_padding_mask=torch.from_numpy(~has_source),
    )
    (their_output * torch.from_numpy(weights)).sum().backward()
    np.testing.assert_allclose(output[has_target], their_output.detach().numpy()[has_target], **TOLERANCE)
    np.testing.assert_allclose(of_source, their_source.grad.numpy(), **TOLERANCE)
    np.testing.assert_allclose(of_target, their_target.grad.numpy(), **TOLERANCE)
    # A state dict of their gradients, imported, has the shape of ours.
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    expected = imported(gradients, folder / "gradients", **options).params
    compared = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(of_params):
        if has_bias or path[-1].key != "bias":
            [their_leaf] = [other for key, other in jax.tree_util.tree_leaves_with_path(expected) if key == path]
            np.testing.assert_allclose(leaf, their_leaf, **TOLERANCE)
            compared += leaf.size
    assert compared == sum(parameter.numel() for parameter in theirs.parameters())


@pytest.mark.parametrize(
    ("norm_first", "activation", "bias"),
    [(False, "relu", True), (True, "gelu", True), (False, "gelu", False), (True, "swish", False)],
)
def test_imported_weights_compute_the_same(tmp_path, norm_first, activation, bias):
    theirs = torch_transformer(norm_first=norm_first, activation=ACTIVATIONS[activation], bias=bias)
    ours = imported(theirs.state_dict(), tmp_path, norm_first=norm_first, activation=activation)
    assert (ours.model_config.norm_first, ours.model_config.final_norm) == (norm_first, not norm_first)
    assert_same_outputs_and_gradients(ours, theirs, tmp_path, has_bias=bias, norm_first=norm_first)


def test_within_a_larger_model(tmp_path):
    tensors = torch_transformer().state_dict()
    around = {"embedding.weight": torch.ones(7, SIZES["d_model"]), "transformer_head.bias": torch.ones(7)}
    within = imported(tensors, tmp_path / "within", prefix="net.transformer.", around=around)
    alone = imported(tensors, tmp_path / "alone")
    assert within.model_config == alone.model_config
    jax.tree.map(np.testing.assert_array_equal, within.params, alone.params)


def test_custom_stacks_may_end_without_a_norm(tmp_path):
    norms = {"batch_first": True, "dropout": 0.0}
    sizes = SIZES["d_model"], SIZES["nhead"], SIZES["dim_feedforward"]
    theirs = torch_transformer(
        custom_encoder=torch.nn.TransformerEncoder(
            torch.nn.TransformerEncoderLayer(*sizes, **norms), 1, enable_nested_tensor=False
        ),
        custom_decoder=torch.nn.TransformerDecoder(torch.nn.TransformerDecoderLayer(*sizes, **norms), 2),
    )
    ours = imported(theirs.state_dict(), tmp_path)
    assert not ours.model_config.final_norm
    assert_same_outputs_and_gradients(ours, theirs, tmp_path)
