import pytest

torch = pytest.importorskip("torch")

from benchmarks.torch_model import make_model  # noqa: E402
from benchmarks.torch_training import TorchTrainer, learning_rate  # noqa: E402
from benchmarks.workload import Examples, our_batches, padded, unpacked, write_examples  # noqa: E402
from tests.benchmarks.test_workload import pairs, texts, workload  # noqa: E402


def tensors(batch) -> dict:
    return {name: torch.from_numpy(array).long() for name, array in batch._asdict().items()}


def test_packed_and_padded_batches_give_the_same_loss():
    toy = workload()
    model = make_model(toy.shape, 0.1).eval()
    batch = next(our_batches(toy, pairs(12)))
    one_a_row = padded(toy, list(unpacked(batch)))
    packed, plain = model.loss(tensors(batch), True, 0.1), model.loss(tensors(one_a_row), False, 0.1)
    torch.testing.assert_close(packed, plain)


@pytest.mark.parametrize(("num_classes", "packed"), [(0, False), (0, True), (3, False)])
def test_training_learns_and_counts(tmp_path, num_classes, packed):
    toy = workload(tmp_path, num_classes)
    examples = texts(130) if num_classes else pairs(130)
    write_examples(toy.examples_file, Examples(examples, examples))
    trainer = TorchTrainer(toy, packed=packed, our_dropout=packed)
    before = None if num_classes else trainer.validation_loss()
    tally = trainer.train(30)
    assert 0 < tally.tokens < tally.real <= tally.slots or num_classes
    assert tally.seconds > 0
    assert before is None or trainer.validation_loss() < before


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate(2.0, done / 100) for done in range(101)]
    assert max(rates) == rates[10] == 2.0
    assert 0 < rates[0] < rates[5] < rates[10] > rates[50] > rates[100] == 0.0
