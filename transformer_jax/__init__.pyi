# The public names and the modules that define them; `__init__.py` imports each when it is first used.

from .config import (
    Config as Config,
    OptimConfig as OptimConfig,
    default_config as default_config,
)
from .decoding import (
    LogitsProcessor as LogitsProcessor,
    SearchResult as SearchResult,
    StepFn as StepFn,
    beam_search as beam_search,
    forbid_tokens as forbid_tokens,
    greedy_search as greedy_search,
    min_length as min_length,
    no_repeat_ngram as no_repeat_ngram,
    sample as sample,
    stream as stream,
)
from .decoding.generator import Generator as Generator
from .decoding.options import SearchOptions as SearchOptions
from .interop.ctranslate2_export import export_ctranslate2 as export_ctranslate2
from .interop.marian import (
    export_marian as export_marian,
    import_marian as import_marian,
)
from .interop.stablehlo_export import export_stablehlo as export_stablehlo
from .interop.torch_transformer import import_torch as import_torch
from .nn import (
    Classifier as Classifier,
    Decoder as Decoder,
    Encoder as Encoder,
    ModelConfig as ModelConfig,
    Seq2Seq as Seq2Seq,
    Transformer as Transformer,
    split as split,
)
from .nn.attention import (
    causal_mask as causal_mask,
    dot_product_attention as dot_product_attention,
    merge_heads as merge_heads,
    padding_mask as padding_mask,
    scaled_dot_product_attention as scaled_dot_product_attention,
    segment_mask as segment_mask,
    sinusoidal_positions as sinusoidal_positions,
    split_heads as split_heads,
)
from .nn.layers import (
    DecoderLayer as DecoderLayer,
    Embedding as Embedding,
    EncoderLayer as EncoderLayer,
    FeedForward as FeedForward,
    LayerNorm as LayerNorm,
    Linear as Linear,
    MultiHeadAttention as MultiHeadAttention,
    Residual as Residual,
)
from .nn.losses import (
    chunked_cross_entropy as chunked_cross_entropy,
    smoothed_cross_entropy as smoothed_cross_entropy,
)
from .system import UserError as UserError
from .tasks.base import (
    Evaluation as Evaluation,
    Task as Task,
)
from .tasks.classification.ag_news import AgNews as AgNews
from .tasks.classification.metrics import classification_scores as classification_scores
from .tasks.classification.text_classifier import (
    Classification as Classification,
    Predictor as Predictor,
    TextClassifier as TextClassifier,
)
from .tasks.couplets.couplet_dataset import Couplet as Couplet
from .tasks.couplets.generate import (
    CoupletWriter as CoupletWriter,
    Reply as Reply,
)
from .tasks.couplets.rules import (
    Rules as Rules,
    Verdict as Verdict,
    couplet_scores as couplet_scores,
    explain as explain,
    judge as judge,
)
from .tasks.metrics import (
    exact_match as exact_match,
    perplexity as perplexity,
    translation_scores as translation_scores,
)
from .tasks.model_folder import (
    load as load,
    save as save,
)
from .tasks.registry import (
    ModelClass as ModelClass,
    TaskClass as TaskClass,
    register_task as register_task,
)
from .tasks.seq2seq_model import Score as Score
from .tasks.seq2seq_model import TransformerStacks as TransformerStacks
from .tasks.seq2seq_task import Seq2SeqTask as Seq2SeqTask
from .tasks.translation.multi30k import Multi30k as Multi30k
from .tasks.translation.translator import (
    Alignment as Alignment,
    Translation as Translation,
    Translator as Translator,
)
from .training import run as run
from .training.step import (
    TrainState as TrainState,
    init_state as init_state,
    make_optimizer as make_optimizer,
    make_schedule as make_schedule,
    noam_schedule as noam_schedule,
    train_step as train_step,
)

__version__: str
__all__: list[str]
