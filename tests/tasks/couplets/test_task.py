import dataclasses

import jax
import numpy as np
import pytest
import sacrebleu

from transformer_jax.config import Config, DataConfig, DecodingConfig, TokenizerConfig
from transformer_jax.data import EOS, UNK
from transformer_jax.nn import ModelConfig
from transformer_jax.system import UserError
from transformer_jax.tasks.base import Task
from transformer_jax.tasks.couplets import CoupletConfig
from transformer_jax.tasks.couplets.antitheses import antitheses
from transformer_jax.tasks.couplets.rules import NAMES, Rules, rule_shares
from transformer_jax.tasks.couplets.task import CoupletTask
from transformer_jax.tasks.model_folder import load, save
from transformer_jax.tasks.registry import make_task
from transformer_jax.training import make_evaluator

RARE = "龘"
VALIDATION = 9
COUPLETS = {
    "train": [*antitheses("train")[:60], (f"天{RARE}", "地人"), ("", ""), ("天", "地人")],
    # Up to 13 characters: one padded length.
    "validation": [couplet for couplet in antitheses("validation") if len(couplet[0]) < 14][:VALIDATION],
}
HARD = [name for name in NAMES if Rules().is_hard(name)]


@pytest.fixture(scope="module")
def make_config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("couplets")
    files = {}
    for split, couplets in COUPLETS.items():
        for number, side in enumerate(("source", "target")):
            path = folder / f"{split}.{side}"
            path.write_text("".join(f"{couplet[number]}\n" for couplet in couplets), encoding="utf-8")
            files[f"{split}_{side}"] = str(path)

    def make(tokenizer=None, rules=CoupletConfig.rules, **decoding):
        options = {"beam_size": 3, "alpha": 3.0, "max_extra_tokens": 2, "batch_size": 16}
        return Config(
            task="couplet",
            data=DataConfig(name="text", max_length=24, row_length=24, tokens_per_batch=192, **files),
            tokenizer=TokenizerConfig(**({"kind": "char"} | (tokenizer or {}))),
            model=ModelConfig(d_model=8, num_heads=2, d_ff=8, num_encoder_layers=1, num_decoder_layers=1),
            decoding=DecodingConfig(**(options | decoding)),
            groups={"couplet": CoupletConfig(rules=rules)},
        )

    return make


@pytest.fixture(scope="module")
def task(make_config):
    return make_task(make_config())


@pytest.fixture(scope="module")
def params(task):
    """Weights large enough to be decided about nonsense."""
    return jax.tree.map(lambda leaf: 4.0 * leaf, task.init_params(jax.random.key(0)))


@pytest.fixture(scope="module")
def free(make_config, task):
    """The same task without rules."""
    return make_task(make_config(rules="none"), task.tokenizer_files)


def evaluate(task, params, *, final):
    return make_evaluator(task, task.config)(params, final=final)


@pytest.fixture(scope="module")
def evaluation(task, params):
    return evaluate(task, params, final=False)


def test_it_is_a_task(task):
    assert isinstance(task, Task)
    assert task.data_name == "text"
    assert task.notes[0] == f"61 training pairs, {VALIDATION} validation pairs"
    assert "1 blank, 1 of unequal length" in " ".join(task.notes)


@pytest.mark.parametrize("tokenizer", [{"kind": "bpe"}, {"kind": "word"}, {"joint": False}])
def test_tokens_are_characters_in_one_vocabulary(make_config, tokenizer):
    with pytest.raises(UserError, match=r"config\.tokenizer must be kind='char', joint=True for couplets"):
        make_task(make_config(tokenizer))


def test_unknown_rules_are_told(make_config):
    with pytest.raises(UserError, match="'rhyme' is not a rule; known: length"):
        make_task(make_config(rules="rhyme"))


def test_every_character_of_the_training_data_has_a_token(task):
    """A character that stands in one couplet only counts as well."""
    assert CoupletTask.TOKENIZER_PAIRS > 770_491, "the largest public set"
    assert task.tokenizer.source is task.tokenizer.target
    characters = {character for couplet in COUPLETS["train"][:61] for line in couplet for character in line}
    assert RARE in characters
    ids = task.tokenizer.source.encode("".join(sorted(characters)))
    assert UNK not in ids
    assert len(set(ids)) == len(characters) == task.model_config.source_vocab_size - 4


def test_examples_are_characters(task):
    for (upper, lower), (source, target) in zip(task.validation, task.validation_examples, strict=True):
        assert (len(source), len(target)) == (len(upper) + 1, len(lower) + 1)
        assert source[-1] == target[-1] == EOS


def test_answers_keep_the_hard_rules(task, evaluation):
    uppers, outputs, references = zip(*evaluation.samples, strict=True)
    assert list(zip(uppers, references, strict=True)) == task.validation == COUPLETS["validation"]
    for name in HARD:
        assert evaluation.scores[f"keeps_{name}"] == 1.0
    shares = rule_shares(uppers, outputs)
    assert {name: evaluation.scores[f"keeps_{name}"] for name in NAMES} == shares
    assert len(set(outputs)) > VALIDATION // 2


def test_scores_are_those_of_the_answers(task, evaluation):
    _, outputs, references = zip(*evaluation.samples, strict=True)
    scores = evaluation.scores
    assert scores["bleu"] == sacrebleu.corpus_bleu(list(outputs), [list(references)], tokenize="char").score
    assert scores["exact_match"] == np.mean([o == r for o, r in zip(outputs, references, strict=True)])
    characters = "".join(outputs)
    assert scores["distinct_1"] == len(set(characters)) / len(characters)
    assert scores["perplexity"] == pytest.approx(np.exp(scores["loss"]))
    numbers = {name for name, value in scores.items() if isinstance(value, float)}
    assert numbers == {*task.metrics, *(f"keeps_{name}" for name in NAMES)}


def test_perplexity_does_not_depend_on_the_rules(free, params, evaluation):
    without = evaluate(free, params, final=False)
    assert min(without.scores[f"keeps_{name}"] for name in HARD) < 1, "rules are off"
    for name in ("loss", "perplexity"):
        assert without.scores[name] == evaluation.scores[name]


def test_a_stored_model_answers_as_the_final_evaluation(free, params, tmp_path):
    """The length penalty included, which counts where lines may be of any length."""
    save(
        tmp_path / "model",
        task="couplet",
        model_config=free.model_config,
        params=params,
        tokenizer_files=free.tokenizer_files,
        settings=free.settings,
        scores={},
    )
    model = load(tmp_path / "model")
    uppers, outputs, _ = zip(*evaluate(free, params, final=True).samples, strict=True)
    assert model.reply(list(uppers)) == list(outputs)
    options = free.search_options(final=True)
    assert (options.beam_size, options.alpha, options.max_extra_tokens) == (3, 3.0, 2)
    ids = [source.tolist() for source, _ in free.validation_examples]
    greedy = [best.tokens for [best] in free.generator.generate(params, ids, free.search_options(final=False))]
    assert [free.tokenizer.target.decode(tokens) for tokens in greedy] != list(outputs)
    assert dataclasses.replace(options, beam_size=1) == free.search_options(final=False)
