"""Training of Marian, the encoder-decoder of Hugging Face transformers."""

import time
from collections.abc import Callable

import torch
from transformers import MarianConfig, MarianMTModel

from benchmarks.torch_training import limit_threads
from benchmarks.workload import Tally, Workload, measured, random_batches, read_examples
from transformer_jax.data import BOS, EOS, PAD

NO_LOSS = -100
"""Label ignored by the model's loss."""


def trainer(workload: Workload, threads: int, num_steps: int) -> Callable[[], Tally]:
    """Factory for a worker: `num_steps` steps per measurement, on random batches padded to the longest."""
    limit_threads(threads)
    torch.manual_seed(0)
    shape = workload.shape
    config = MarianConfig(
        vocab_size=shape.vocab_size,
        d_model=shape.d_model,
        encoder_layers=shape.num_encoder_layers,
        decoder_layers=shape.num_decoder_layers,
        encoder_attention_heads=shape.num_heads,
        decoder_attention_heads=shape.num_heads,
        encoder_ffn_dim=shape.d_ff,
        decoder_ffn_dim=shape.d_ff,
        dropout=shape.dropout_rate,
        activation_function="relu",
        scale_embedding=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        forced_eos_token_id=EOS,
        decoder_start_token_id=BOS,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = MarianMTModel(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.98), eps=1e-9, fused=True)
    batches = random_batches(workload, read_examples(workload.examples_file).train)

    def train(steps: int) -> Tally:
        tally = Tally()
        started = time.perf_counter()
        for _ in range(steps):
            batch = next(batches)
            source, labels, segments = (
                torch.from_numpy(array).long().to(device)
                for array in (batch.source, batch.labels, batch.target_segments)
            )
            labels = labels.masked_fill(segments == 0, NO_LOSS)
            optimizer.zero_grad(set_to_none=True)
            loss = model(input_ids=source, attention_mask=(source != PAD).long(), labels=labels).loss
            loss.backward()
            optimizer.step()
            tally.add(batch)
        loss.item()
        tally.seconds = time.perf_counter() - started
        return tally

    return measured(train, num_steps)
