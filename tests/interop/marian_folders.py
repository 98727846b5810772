"""MarianMT folders made by hand, with random weights: what transformers writes, without transformers."""

import functools
import io
import json
from pathlib import Path

import numpy as np
import safetensors.numpy
import sentencepiece

GERMAN = [
    "Ein kleiner Hund läuft über die grüne Wiese.",
    "Zwei Männer spielen im Park Schach.",
    "Eine Frau liest ein Buch und trinkt Kaffee.",
    "Der Junge wirft einen Ball zu seinem Vater!",
    "Wo ist der Bahnhof?",
]
ENGLISH = [
    "A small dog runs across the green meadow.",
    "Two men play chess in the park.",
    "A woman reads a book and drinks coffee.",
    "The boy throws a ball to his father!",
    "Where is the station?",
]
CODES = (">>deu<<", ">>fra<<")


@functools.cache
def sentencepiece_model(texts: tuple[str, ...], size: int) -> bytes:
    """Trained as those of the OPUS-MT models are: no padding, the default ids."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=size, hard_vocab_limit=False, minloglevel=2
    )
    return model.getvalue()


def pieces(model: bytes) -> list[str]:
    """Those that stand for text."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(i) for i in range(processor.vocab_size()) if not processor.is_control(i)]


def vocabulary(*models: bytes, codes: tuple[str, ...] = (), padding: int | None = None) -> dict[str, int]:
    """Marian's: end and unknown first, padding last or at the id `padding`."""
    text = dict.fromkeys(piece for model in models for piece in pieces(model) if piece != "<unk>")
    named = ["</s>", "<unk>", *codes, *text]
    named.insert(len(named) if padding is None else padding, "<pad>")
    return {piece: i for i, piece in enumerate(named)}


def make_folder(
    folder: Path,
    *,
    separate: bool = False,
    share: bool = True,
    tie: bool = True,
    activation: str = "swish",
    scale: bool = True,
    d_model: int = 16,
    layers: tuple[int, int] = (2, 1),
    end_bias: float = 0.0,
    temper: float = 1.0,
    seed: int = 0,
    generation: dict | None = None,
    **changes,
) -> Path:
    """Write a folder; `changes` are to config.json, `temper` times the logits makes their choices clearer."""
    folder.mkdir()
    source, target = sentencepiece_model(tuple(GERMAN), 60), sentencepiece_model(tuple(ENGLISH), 55)
    source_vocabulary = target_vocabulary = vocabulary(source, target, codes=CODES)
    if separate:
        target_vocabulary = vocabulary(target)
        # transformers knows one id of padding for both.
        source_vocabulary = vocabulary(source, padding=target_vocabulary["<pad>"])
    (folder / "source.spm").write_bytes(source)
    (folder / "target.spm").write_bytes(target)
    write(folder / "vocab.json", source_vocabulary)
    if separate:
        write(folder / "target_vocab.json", target_vocabulary)
    write(folder / "tokenizer_config.json", {"separate_vocabs": separate, "source_lang": "deu", "target_lang": "eng"})
    sizes = len(source_vocabulary), len(target_vocabulary)
    config = {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        "activation_function": activation,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "d_model": d_model,
        "decoder_start_token_id": target_vocabulary["<pad>"],
        "decoder_vocab_size": sizes[1],
        "dropout": 0.1,
        "eos_token_id": 0,
        "forced_eos_token_id": 0,
        "is_encoder_decoder": True,
        "max_position_embeddings": 64,
        "pad_token_id": source_vocabulary["<pad>"],
        "scale_embedding": scale,
        "share_encoder_decoder_embeddings": share,
        "tie_word_embeddings": tie,
        "vocab_size": sizes[0],
    }
    for side, count in zip(("encoder", "decoder"), layers, strict=True):
        config |= {f"{side}_layers": count, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 24}
    config |= changes
    write(folder / "config.json", config)
    if generation is not None:
        special_tokens = {name: value for name, value in config.items() if name.endswith("token_id")}
        bad_words = {"bad_words_ids": [[target_vocabulary["<pad>"]]]}
        write(folder / "generation_config.json", special_tokens | bad_words | generation)
    tensors = random_tensors(config, np.random.default_rng(seed))
    tensors["final_logits_bias"][0, 0] += end_bias
    if temper != 1.0:
        table = next(name for name in ("lm_head.weight", DECODER, SHARED) if name in tensors)
        tensors[table] = tensors[table] * np.float32(temper)
    save(folder, tensors)
    return folder


SHARED, ENCODER, DECODER = (
    "model.shared.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
)


def random_tensors(config: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Of a MarianMT model, by the names that transformers 5 stores."""
    d_model = config["d_model"]
    source, target = config["vocab_size"], config["decoder_vocab_size"]
    shapes = {"final_logits_bias": (1, target)}
    if config["share_encoder_decoder_embeddings"]:
        shapes[SHARED] = (source, d_model)
    if not (config["share_encoder_decoder_embeddings"] and config["tie_word_embeddings"]):
        shapes |= {ENCODER: (source, d_model), DECODER: (target, d_model)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (target, d_model)
    for side in ("encoder", "decoder"):
        d_ff = config[f"{side}_ffn_dim"]
        for layer in range(config[f"{side}_layers"]):
            for attention in ("self_attn", "encoder_attn")[: 1 if side == "encoder" else 2]:
                for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    shapes[f"model.{side}.layers.{layer}.{attention}.{projection}.weight"] = (d_model, d_model)
                    shapes[f"model.{side}.layers.{layer}.{attention}.{projection}.bias"] = (d_model,)
                shapes[f"model.{side}.layers.{layer}.{attention}_layer_norm.weight"] = (d_model,)
                shapes[f"model.{side}.layers.{layer}.{attention}_layer_norm.bias"] = (d_model,)
            shapes[f"model.{side}.layers.{layer}.fc1.weight"] = (d_ff, d_model)
            shapes[f"model.{side}.layers.{layer}.fc1.bias"] = (d_ff,)
            shapes[f"model.{side}.layers.{layer}.fc2.weight"] = (d_model, d_ff)
            shapes[f"model.{side}.layers.{layer}.fc2.bias"] = (d_model,)
            shapes[f"model.{side}.layers.{layer}.final_layer_norm.weight"] = (d_model,)
            shapes[f"model.{side}.layers.{layer}.final_layer_norm.bias"] = (d_model,)
    return {name: _drawn(name, shape, rng).astype(np.float32) for name, shape in shapes.items()}


def _drawn(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    normal = rng.normal(size=shape)
    if "bias" in name:
        return normal * (1.0 if name == "final_logits_bias" else 0.2)
    if "norm" in name:
        return 1 + 0.2 * normal
    # What is read of the source must decide what is written, or all outputs are alike.
    return normal * (1.0 if "encoder_attn" in name else 0.4)


def write(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2), encoding="utf-8")


def change(folder: Path, name: str, **fields) -> None:
    """Other values of some fields of a JSON file."""
    write(folder / name, json.loads((folder / name).read_text(encoding="utf-8")) | fields)


def save(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def stored(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")
