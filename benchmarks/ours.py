"""Our training, built from the parts of `transformer_jax.training`, in measurable pieces."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from benchmarks.settings import Settings, Unavailable
from benchmarks.workload import Examples, Shape, Tally, Workload, measured, unpacked, write_examples
from transformer_jax.config import Config, build
from transformer_jax.data.pipeline import Prefetched
from transformer_jax.data.readers import read_lines
from transformer_jax.sharding import make_mesh, on_mesh, shard_batch, state_shardings
from transformer_jax.system import runtime
from transformer_jax.tasks.registry import make_task
from transformer_jax.training.setup import make_evaluator, train_batches
from transformer_jax.training.step import TrainState, init_state, make_optimizer, make_schedule, train_step

COUPLETS = 65_536
"""Training pairs used: one planning window; more would not change the measured batches."""
TEXTS = 20_000
LANGUAGES = {"source": "de", "target": "en"}


def config_of(name: str, data: Path, scratch: Path) -> Config:
    """The measured experiment.

    Args:
        name: of the data set: multi30k, ag_news or couplet.
        data: its folder.
        scratch: folder for temporary files.
    """
    experiments: dict[str, dict[str, Any]] = {
        "multi30k": {
            "data": {"name": "text", "max_length": 64, "row_length": 64}
            | {f"train_{side}": str(data / f"train.{language}.gz") for side, language in LANGUAGES.items()}
            | {f"validation_{side}": str(data / f"val.{language}.gz") for side, language in LANGUAGES.items()},
            "tokenizer": {"vocab_size": 8000},
            "model": {"norm_first": True},
        },
        "ag_news": {
            "task": "classification",
            "data": {"name": "ag_news", "manual_dir": str(data), "data_dir": str(scratch / "tfds")}
            | {"train_split": f"train[:{TEXTS}]", "validation_split": "", "lowercase": True}
            | {"max_length": 128, "row_length": 128, "tokens_per_batch": 4096},
            "tokenizer": {"vocab_size": 10_000},
            "model": {"d_model": 192, "d_ff": 512, "num_encoder_layers": 2, "dropout_rate": 0.2, "norm_first": True},
        },
        "couplet": {
            "task": "couplet",
            "data": {"name": "text", "validation_split": "", "validation_percent": 0.3}
            | {"max_length": 40, "row_length": 64}
            | {f"train_{side}": str(scratch / f"couplet.{side}") for side in ("source", "target")},
            "tokenizer": {"kind": "char", "vocab_size": 10_000},
            "model": {"d_ff": 512, "num_encoder_layers": 2, "num_decoder_layers": 2}
            | {"dropout_rate": 0.05, "norm_first": True},
            "optim": {"label_smoothing": 0.0},
        },
    }
    values = experiments[name]
    optim = {"schedule": "constant", "lr": 1e-3, "warmup_steps": 100} | values.pop("optim", {})
    config: Config = build(Config, {**values, "optim": optim}, "config")
    return config


def prepare(settings: Settings, name: str, folder: Path) -> Callable[[], Workload]:
    """Factory for a worker: trains the tokenizer and writes token ids, for us and the peers."""
    data = settings.folder(name)
    if name == "couplet":
        for side, file in (("source", "in.txt"), ("target", "out.txt")):
            found = [path for path in (data / "train" / file, data / "train" / f"{file}.gz") if path.is_file()]
            if not found:
                raise Unavailable(f"{data / 'train' / file} is missing; see --data.")
            lines = read_lines(found[0])[:COUPLETS]
            (folder / f"couplet.{side}").write_text("\n".join(lines) + "\n", "utf-8")
    config = config_of(name, data, folder)
    task: Any = make_task(config)
    for file, content in task.tokenizer_files.items():
        path = folder / f"{name}.tokenizer" / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    model = task.model_config
    sizes = {field.name for field in dataclasses.fields(Shape)} & {field.name for field in dataclasses.fields(model)}
    workload = Workload(
        name,
        Shape(vocab_size=model.source_vocab_size, **{size: getattr(model, size) for size in sizes}),
        config.optim.label_smoothing,
        config.data.tokens_per_batch,
        config.data.row_length,
        config.data.max_length,
        folder,
    )
    batches = train_batches(task, config, make_mesh(config.mesh))
    train = [example for batch, _ in batches.iterate(epochs=1) for example in unpacked(batch)]
    write_examples(workload.examples_file, Examples(train, task.validation_examples))
    return lambda: workload


class Trainer:
    """A run that can be continued step by step."""

    def __init__(self, config: Config, tokenizer_files: dict[str, bytes]) -> None:
        """Read the data and draw the parameters."""
        self.task: Any = make_task(config, tokenizer_files)
        self.mesh = make_mesh(config.mesh)
        schedule = make_schedule(config.optim, d_model=config.model.d_model, num_steps=config.training.num_steps)
        optimizer = make_optimizer(config.optim, schedule)

        def first_state() -> TrainState:
            return init_state(self.task.init_params(jax.random.key(config.seed)), optimizer, ema=False)

        shardings = state_shardings(jax.eval_shape(first_state), self.mesh)
        self.state = jax.jit(first_state, out_shardings=shardings)()
        update = partial(on_mesh(train_step, self.mesh), loss_fn=self.task.loss, optimizer=optimizer, seed=config.seed)
        self._train_step = jax.jit(update, donate_argnums=0, out_shardings=(shardings, None))
        self._evaluator = make_evaluator(self.task, config, self.mesh)
        batches = train_batches(self.task, config, self.mesh)
        self._batches = Prefetched(batch for batch, _ in batches.iterate())

    def train(self, num_steps: int) -> Tally:
        """Take `num_steps` steps."""
        tally = Tally()
        started = time.perf_counter()
        before: Any = None
        for _ in range(num_steps):
            batch = next(self._batches)
            self.state, sums = self._train_step(self.state, shard_batch(batch, self.mesh))
            tally.add(batch)
            if before is not None:
                float(before)  # one step late, as in the training loop
            before = sums["loss"]
        float(before)
        tally.seconds = time.perf_counter() - started
        return tally

    def validation_loss(self) -> float:
        """Cross-entropy per token on the validation data, without smoothing."""
        sums = self._evaluator.loss_sums(self.state.params)
        assert sums is not None
        return sums["loss"] / sums["weight"]


def tokenizer_files(workload: Workload) -> dict[str, bytes]:
    """Tokenizer files, as a run stores them."""
    folder = workload.folder / f"{workload.name}.tokenizer"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def trainer(settings: Settings, workload: Workload, num_steps: int) -> Callable[[], Tally]:
    """Factory for a worker: `num_steps` steps per measurement."""
    runtime.prepare()
    ours = Trainer(config_of(workload.name, settings.folder(workload.name), workload.folder), tokenizer_files(workload))
    return measured(ours.train, num_steps)


def learner(
    settings: Settings, workload: Workload, tokens_per_batch: int, lr: float, minutes: float, points: int
) -> Callable[[], tuple[float, float, int]]:
    """Factory for a worker: each measurement continues training; returns total minutes, validation loss, total steps.

    Args:
        settings: of the benchmarks.
        workload: data and model.
        tokens_per_batch: token slots per side.
        lr: peak learning rate.
        minutes: planned length of the run.
        points: number of measurements.
    """
    runtime.prepare()
    config = config_of(workload.name, settings.folder(workload.name), workload.folder)
    config = replace(config, data=replace(config.data, tokens_per_batch=tokens_per_batch))
    files = tokenizer_files(workload)

    def planned(num_steps: int) -> Trainer:
        optim = replace(config.optim, schedule="cosine", lr=lr, warmup_steps=max(num_steps // 10, 1))
        return Trainer(replace(config, optim=optim, training=replace(config.training, num_steps=num_steps)), files)

    # A throw-away run estimates the number of steps, so that the learning rate reaches 0 at the end.
    probe = planned(100)
    compiling = probe.train(1).seconds
    seconds = probe.train(10).seconds / 10
    num_steps = max(int((60 * minutes - compiling) / seconds), points)
    ours = planned(num_steps)
    ours.validation_loss()
    spent, taken, points_so_far = 0.0, 0, 0

    def measure() -> tuple[float, float, int]:
        nonlocal spent, taken, points_so_far
        points_so_far += 1
        steps = num_steps * points_so_far // points - taken
        spent += ours.train(steps).seconds
        taken += steps
        return spent / 60, ours.validation_loss(), taken

    return measure
