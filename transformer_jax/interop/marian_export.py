"""Translation models out: a model folder of this package becomes a folder of Hugging Face transformers."""

from pathlib import Path

import numpy as np
import safetensors.numpy

from transformer_jax.interop.marian_config import config_json_of, generation_json_of, longest_output
from transformer_jax.interop.marian_layout import BIAS, DECODER, ENCODER, POSITIONS, SHARED, sinusoids, to_marian
from transformer_jax.interop.marian_vocabulary import sides_of, write_json, write_tokenizers
from transformer_jax.interop.reading import WEIGHTS_FILE
from transformer_jax.interop.snippets import FOLDER, ONE_LIMIT
from transformer_jax.nn import ModelConfig
from transformer_jax.system.errors import UserError
from transformer_jax.system.files import new_folder
from transformer_jax.tasks.model_folder import load
from transformer_jax.tasks.translation.translator import Translator

ARCHITECTURES = {"marian": "MarianMTModel", "pegasus": "PegasusForConditionalGeneration"}
"""What can be written, and the class of transformers that loads it."""


def export_marian(model: str | Path | Translator, out: str | Path, *, architecture: str = "marian") -> None:
    """Write a translation model so that `from_pretrained` of transformers loads it.

    Args:
        model: a model folder, or what `load` made of one.
        out: the folder to write; it must not exist.
        architecture: "marian" for post-norm models, the paper's; "pegasus" for pre-norm ones.

    Raises:
        UserError: if the folder cannot be read, the model is none of that architecture, or `out` cannot be written.
    """
    if architecture not in ARCHITECTURES:
        raise UserError(f"The architecture is {architecture!r}, but must be one of {', '.join(ARCHITECTURES)}.")
    with new_folder(out) as folder:
        translator = model if isinstance(model, Translator) else load(model)
        if not isinstance(translator, Translator):
            raise UserError(
                f"{model} holds no translation model, which {ARCHITECTURES[architecture]} is; name one that does."
            )
        _write(translator, folder, architecture)


def _write(translator: Translator, folder: Path, architecture: str) -> None:
    config, settings = translator.model_config, translator.settings
    _check(config, architecture)
    source, target = sides_of(translator.tokenizer)
    tensors = to_marian(translator.params, config, source.numbering, target.numbering)
    tensors.setdefault(BIAS, np.zeros((1, config.target_vocab_size), np.float32))
    if config.tie_embeddings == "inputs":
        # One table a side, as transformers 5 reads them where the output has its own; 4 reads Pegasus' shared one.
        tensors[ENCODER] = tensors[DECODER]
        if architecture == "pegasus":
            tensors[SHARED] = tensors[DECODER]
    # The last token of an output is never read.
    max_positions = max(settings.max_source_length, longest_output(settings) - 1)
    if architecture == "pegasus":
        # Its class would compute them, but warn that they are missing.
        tensors |= dict.fromkeys(POSITIONS, sinusoids(max_positions, config.d_model).astype(np.float32))
    generation = generation_json_of(settings, target.special_tokens, target.numbering)
    special_tokens = {name: value for name, value in generation.items() if name.endswith("token_id")}
    write_json(
        folder / "config.json", config_json_of(config, architecture, max_positions=max_positions) | special_tokens
    )
    write_json(folder / "generation_config.json", generation)
    (folder / WEIGHTS_FILE).write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    write_tokenizers(
        folder,
        source,
        target,
        max_length=settings.max_source_length,
        languages=(settings.source_language, settings.target_language),
    )
    (folder / "README.md").write_text(_readme(translator, architecture), encoding="utf-8")


def _check(config: ModelConfig, architecture: str) -> None:
    name = ARCHITECTURES[architecture]
    if config.norm_first and architecture == "marian":
        raise UserError(f"The model is pre-norm, but {name} is post-norm; export with --to pegasus.")
    if not config.norm_first and architecture == "pegasus":
        raise UserError(f"The model is post-norm, but {name} is pre-norm; export with --to marian.")
    if config.final_norm and not config.norm_first:
        raise UserError(f"The model's stacks end with a norm (final_norm), which {name} has not; export it otherwise.")
    if config.positions != "sinusoidal":
        raise UserError(f"The model's positions are {config.positions}, but {name} has sinusoids; export it otherwise.")
    if architecture == "pegasus" and not config.one_vocabulary:
        raise UserError(
            f"The model's languages have embeddings of their own, but those of {name} share one table; train with "
            "config.model.tie_embeddings=all or inputs, or export it otherwise."
        )


def _readme(translator: Translator, architecture: str) -> str:
    settings = translator.settings
    decoding = settings.decoding
    chosen = f"texts[start : start + {decoding.batch_size}]"
    lowered = f"[text.lower() for text in {chosen}]" if settings.lowercase else chosen
    # generation_config.json knows no limit that depends on the source.
    length = f'batch["input_ids"].shape[1] + {decoding.max_extra_tokens}'
    limit = "" if decoding.max_length else f", max_length=None, max_new_tokens={length}"
    if decoding.conventions == "transformers":
        search = "`generate` finds what `translate` of transformer-jax does."
    else:
        search = (
            "`generate` ranks outputs by log-probability over length**length_penalty and stops by an estimate.\n"
            'transformer-jax does the same with `translate(texts, conventions="transformers")`.'
        )
    if not decoding.max_length:
        search += f"\n{ONE_LIMIT}"
    return f"""# {settings.title}

Written by transformer-jax for Hugging Face transformers.

## Use

Needs `pip install transformers torch sentencepiece`.

```python
from transformers import MarianTokenizer, {ARCHITECTURES[architecture]}

folder = "{FOLDER}"
tokenizer = MarianTokenizer.from_pretrained(folder)
model = {ARCHITECTURES[architecture]}.from_pretrained(folder).eval()


def translate(texts):
    outputs = []
    for start in range(0, len(texts), {decoding.batch_size}):
        batch = tokenizer({lowered}, return_tensors="pt", padding=True)
        found = model.generate(**batch{limit})
        outputs += tokenizer.batch_decode(found, skip_special_tokens=True)
    return outputs
```

{search}

## Limits

{settings.limits}
"""
