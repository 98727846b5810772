"""The encoder-decoder Transformer of *Attention Is All You Need* in JAX.

The public names are the imports below. Type checkers and editors follow them; the interpreter only reads their names,
and imports each when it is first asked for: `transformer-jax --help` need not wait for JAX.
"""

import ast
import importlib
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformer_jax.attention import causal_mask as causal_mask
    from transformer_jax.attention import dot_product_attention as dot_product_attention
    from transformer_jax.attention import merge_heads as merge_heads
    from transformer_jax.attention import padding_mask as padding_mask
    from transformer_jax.attention import scaled_dot_product_attention as scaled_dot_product_attention
    from transformer_jax.attention import segment_mask as segment_mask
    from transformer_jax.attention import split_heads as split_heads
    from transformer_jax.bundle import Alignment as Alignment
    from transformer_jax.bundle import Classification as Classification
    from transformer_jax.bundle import CoupletWriter as CoupletWriter
    from transformer_jax.bundle import Score as Score
    from transformer_jax.bundle import TextClassifier as TextClassifier
    from transformer_jax.bundle import Translation as Translation
    from transformer_jax.bundle import Translator as Translator
    from transformer_jax.bundle import load as load
    from transformer_jax.bundle import save_bundle as save_bundle
    from transformer_jax.bundle.kinds import ModelClass as ModelClass
    from transformer_jax.bundle.stacks import TransformerStacks as TransformerStacks
    from transformer_jax.config import Config as Config
    from transformer_jax.config import OptimConfig as OptimConfig
    from transformer_jax.config import default_config as default_config
    from transformer_jax.couplets import Rules as Rules
    from transformer_jax.couplets import Verdict as Verdict
    from transformer_jax.couplets import explain as explain
    from transformer_jax.couplets import judge as judge
    from transformer_jax.data.ag_news import AgNews as AgNews
    from transformer_jax.data.couplet import Couplet as Couplet
    from transformer_jax.data.multi30k import Multi30k as Multi30k
    from transformer_jax.decoding import LogitsProcessor as LogitsProcessor
    from transformer_jax.decoding import SearchResult as SearchResult
    from transformer_jax.decoding import StepFn as StepFn
    from transformer_jax.decoding import beam_search as beam_search
    from transformer_jax.decoding import forbid_tokens as forbid_tokens
    from transformer_jax.decoding import greedy_search as greedy_search
    from transformer_jax.decoding import min_length as min_length
    from transformer_jax.decoding import no_repeat_ngram as no_repeat_ngram
    from transformer_jax.decoding import sample as sample
    from transformer_jax.decoding import stream as stream
    from transformer_jax.errors import UserError as UserError
    from transformer_jax.generation import Generator as Generator
    from transformer_jax.interop.ctranslate2_export import export_ctranslate2 as export_ctranslate2
    from transformer_jax.interop.marian import import_marian as import_marian
    from transformer_jax.interop.marian_export import export_marian as export_marian
    from transformer_jax.interop.stablehlo_export import export_stablehlo as export_stablehlo
    from transformer_jax.interop.torch_transformer import import_torch as import_torch
    from transformer_jax.layers import DecoderLayer as DecoderLayer
    from transformer_jax.layers import Embedding as Embedding
    from transformer_jax.layers import EncoderLayer as EncoderLayer
    from transformer_jax.layers import FeedForward as FeedForward
    from transformer_jax.layers import LayerNorm as LayerNorm
    from transformer_jax.layers import Linear as Linear
    from transformer_jax.layers import MultiHeadAttention as MultiHeadAttention
    from transformer_jax.layers import Residual as Residual
    from transformer_jax.losses import chunked_cross_entropy as chunked_cross_entropy
    from transformer_jax.losses import smoothed_cross_entropy as smoothed_cross_entropy
    from transformer_jax.metrics import classification_scores as classification_scores
    from transformer_jax.metrics import couplet_scores as couplet_scores
    from transformer_jax.metrics import exact_match as exact_match
    from transformer_jax.metrics import perplexity as perplexity
    from transformer_jax.metrics import translation_scores as translation_scores
    from transformer_jax.models import Classifier as Classifier
    from transformer_jax.models import Decoder as Decoder
    from transformer_jax.models import Encoder as Encoder
    from transformer_jax.models import ModelConfig as ModelConfig
    from transformer_jax.models import Seq2Seq as Seq2Seq
    from transformer_jax.models import Transformer as Transformer
    from transformer_jax.models import split as split
    from transformer_jax.optim import make_optimizer as make_optimizer
    from transformer_jax.optim import make_schedule as make_schedule
    from transformer_jax.optim import noam_schedule as noam_schedule
    from transformer_jax.positions import sinusoidal_positions as sinusoidal_positions
    from transformer_jax.prediction import Predictor as Predictor
    from transformer_jax.registry import register_task as register_task
    from transformer_jax.search_options import SearchOptions as SearchOptions
    from transformer_jax.steps import TrainState as TrainState
    from transformer_jax.steps import init_state as init_state
    from transformer_jax.steps import train_step as train_step
    from transformer_jax.tasks import Evaluation as Evaluation
    from transformer_jax.tasks import Task as Task
    from transformer_jax.tasks import TaskClass as TaskClass
    from transformer_jax.tasks.seq2seq import Seq2SeqTask as Seq2SeqTask
    from transformer_jax.training import run as run
    from transformer_jax.writing import Reply as Reply


def _public_names() -> dict[str, str]:
    """Name to module of the imports above."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_MODULES = _public_names()

__all__ = sorted(_MODULES)

try:
    __version__ = importlib.metadata.version("transformer-jax")
except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"


if not TYPE_CHECKING:  # to a type checker it would say that every name exists

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
