"""Fine-tuning: only responses are learned, and packed examples as if each were alone."""

import dataclasses
import random
import shutil

import jax
import numpy as np
import pytest

import keel_jax
from keel_jax import config, errors, evaluate, train
from keel_jax.data import loader, shards
from keel_jax.data.preparing import options as preparation_options
from keel_jax.data.preparing import preparation
from keel_jax.model import lm
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.runtime import exit_codes, files
from keel_jax.training import inputs, progress, trained
from keel_jax.training import step as step_lib
from tests import conftest
from tests.data.preparing import corpora

SEQ_LEN = 112
WORDS = "alpha beta gamma delta".split()


def _records(seed, count=120):
    generator = random.Random(seed)
    for number in range(count):
        word = generator.choice(WORDS)
        first = {"role": "user", "content": f"{number}: say {word}"}
        turns = [first, {"role": "assistant", "content": word}]
        if number % 5 == 0:
            turns += [{"role": "user", "content": "again"}, turns[1]]
        yield {"messages": turns}


@pytest.fixture(scope="module")
def pretrained(token_dir, tmp_path_factory):
    cfg = conftest.tiny_config(
        model=dict(vocab_size=0), data=dict(path=str(token_dir)), train=dict(num_steps=3)
    )
    workdir = tmp_path_factory.mktemp("pretrained") / "run"
    assert train.train(cfg, workdir) == exit_codes.DONE
    return workdir


@pytest.fixture(scope="module")
def conversations(pretrained, tmp_path_factory):
    """A packed set, made with the tokenizer of `pretrained`."""
    directory = tmp_path_factory.mktemp("conversations")
    return _prepare(directory, "tokens", pretrained / "tokenizer.model")


def _prepare(directory, name, model, **changes):
    source = corpora.write_jsonl(directory / f"{name}.jsonl", list(_records(0)))
    given = dict(chat_template="turns", pack_tokens=SEQ_LEN, validation_fraction=0.2) | changes
    options = preparation_options.PreparationOptions(tokenizer_model=model, **given)
    preparation.prepare_token_set(source, directory / name, options)
    return directory / name


def _config(pretrained, conversations, cache_dir, **sections):
    given = dict(
        init_from=str(pretrained), seq_len=SEQ_LEN, num_steps=5, checkpoint_every_steps=1,
        keep_checkpoints=5,
    )  # fmt: skip
    sections["train"] = given | sections.get("train", {})
    sections["model"] = dict(vocab_size=0) | sections.get("model", {})
    return conftest.tiny_config(
        data=dict(path=str(conversations)),
        runtime=dict(compilation_cache_dir=cache_dir),
        **sections,
    )


@pytest.fixture(scope="module")
def tuned(pretrained, conversations, cache_dir, tmp_path_factory):
    cfg = _config(pretrained, conversations, cache_dir)
    workdir = tmp_path_factory.mktemp("tuned") / "run"
    assert train.train(cfg, workdir) == exit_codes.DONE
    return cfg, workdir


def _one_batch(conversations, batch_size=4):
    return next(
        loader.train_batches(
            [shards.open_set(conversations)],
            seq_len=SEQ_LEN,
            batch_size=batch_size,
            seed=0,
            num_threads=0,
        )
    )


def _resolved(workdir):
    return trained.load(workdir, trained.one_device())


def test_what_a_prompt_should_have_predicted_changes_nothing(pretrained, conversations):
    """Exactly: the loss and every gradient are the same bits whatever the masked targets are."""
    model = _resolved(pretrained)
    batch = _one_batch(conversations)
    masked = batch["loss_weights"] == 0
    assert 0.3 < masked.mean() < 0.97
    other = batch | {"targets": np.where(masked, (batch["targets"] + 7) % 300, batch["targets"])}

    @jax.jit
    def loss_and_gradients(params, batch):
        def nats(params):
            return step_lib.batch_sums(params, batch, model.cfg)["nats"]

        return jax.value_and_grad(nats)(params)

    with jax.set_mesh(model.mesh):
        found = [loss_and_gradients(model.params, each) for each in (batch, other)]
        jax.tree.map(np.testing.assert_array_equal, *found)
        learned = batch | {"targets": np.where(masked, batch["targets"], 5)}
        assert loss_and_gradients(model.params, learned)[0] != found[0][0]


def test_examples_in_a_window_are_read_as_each_alone(pretrained, conversations):
    """Logits of every example, and the window's loss; sums are rounded by the length."""
    model = _resolved(pretrained)
    network = lm.LanguageModel(model.cfg.model)
    batch = {key: value[:1] for key, value in _one_batch(conversations).items()}
    segments = batch["segment_ids"][0]
    together = np.asarray(
        network.apply({"params": model.params}, batch["inputs"], batch["segment_ids"])
    )[0]
    nats, num_examples = 0.0, 0
    for segment in np.unique(segments):
        its = segments == segment
        alone = network.apply({"params": model.params}, batch["inputs"][:, its])[0]
        np.testing.assert_allclose(together[its], alone, rtol=2e-5, atol=2e-6)
        log_p = jax.nn.log_softmax(alone)[np.arange(its.sum()), batch["targets"][0, its]]
        nats -= float((log_p * batch["loss_weights"][0, its]).sum())
        num_examples += its.sum() > 1
    assert num_examples > 1
    sums = step_lib.batch_sums(model.params, batch, model.cfg)
    assert float(sums["nats"]) == pytest.approx(nats, rel=1e-5)
    assert float(sums["weight"]) == batch["loss_weights"].sum()


def test_a_run_begins_with_the_weights_and_its_checkpoints_know_the_template(tuned):
    _, workdir = tuned
    model = keel_jax.load(workdir)
    token_set = shards.open_set(tuned[0].data.path)
    assert model.trained.chat_template() == token_set.chat_template
    prompt = model.chat_prompt([{"role": "user", "content": "7: say beta"}])
    assert prompt == "User:\n7: say beta\n\nAssistant:\n"
    text = model.chat([{"role": "user", "content": "7: say beta"}], num_tokens=3)
    assert text == model.generate([prompt], num_tokens=3)[0]
    assert files.read_json(workdir / "ancestry.json")


def test_a_model_that_has_read_no_conversation_has_no_template(pretrained):
    with pytest.raises(errors.UserError, match="not trained on conversations.*--chat_template"):
        keel_jax.load(pretrained).chat_prompt([{"role": "user", "content": "Hi"}])


def test_a_restart_is_bitwise_the_run_that_was_never_stopped(tuned, tmp_path):
    cfg, workdir = tuned
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    for step in (3, 4, 5):
        shutil.rmtree(copy / "checkpoints" / str(step))
    assert train.train(cfg, copy) == exit_codes.DONE
    one, other = (_resolved(directory).params for directory in (workdir, copy))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_loss_is_a_mean_over_response_tokens_on_any_devices(tuned):
    _, workdir = tuned
    split = shards.open_set(tuned[0].data.path).split("validation")
    one_mesh = mesh_lib.make(config.MeshConfig(), jax.devices()[:1])
    found = [evaluate.evaluate(workdir), evaluate.evaluate(workdir, mesh=one_mesh, batch_size=3)]
    for result in found:
        assert result["num_tokens"] == split.num_targets == split.total_target_weight
        assert result["loss_nats_per_token"] == pytest.approx(
            found[0]["loss_nats_per_token"], rel=1e-6
        )


def test_another_tokenizer_or_window_or_template_is_refused(
    pretrained, conversations, cache_dir, tmp_path
):
    other = _prepare(tmp_path, "other", "", vocab_size=300)
    with pytest.raises(errors.UserError, match="was trained with tokenizer .*tokenizer.model"):
        train.train(_config(pretrained, other, cache_dir), tmp_path / "run")
    cfg = _config(pretrained, conversations, cache_dir, train=dict(seq_len=32))
    with pytest.raises(errors.UserError, match="windows of 112 tokens, and train.seq_len is 32"):
        train.train(cfg, tmp_path / "run")
    with pytest.raises(errors.UserError, match="windows of 112 tokens, and train.seq_len is 16"):
        evaluate.evaluate(pretrained, data_path=str(conversations))
    model = pretrained / "tokenizer.model"
    alpaca = _prepare(tmp_path, "alpaca", model, chat_template="alpaca")
    both = dataclasses.replace(cfg.data, path=f"{conversations},{alpaca}")
    with pytest.raises(errors.UserError, match="chat template 'alpaca' .* in 'turns'"):
        inputs.open_inputs(both)


def test_text_may_be_mixed_in(pretrained, conversations, token_dir):
    model = _resolved(pretrained)
    data = dataclasses.replace(model.cfg.data, path=f"{token_dir},{conversations}")
    opened = inputs.open_inputs(data)
    assert opened.chat_template == shards.open_set(conversations).chat_template


def test_the_model_before_is_measured_on_the_same_tokens(tuned, pretrained):
    cfg, workdir = tuned
    before = evaluate.evaluate_before(workdir, str(pretrained))
    after = evaluate.evaluate(workdir)
    assert before["num_tokens"] == after["num_tokens"] and before["step"] == 3
    own = evaluate.evaluate(pretrained, data_path=cfg.data.path, seq_len=SEQ_LEN)
    assert before == own and before["loss_nats_per_token"] != after["loss_nats_per_token"]
    # Warm-up begins at rate 0: the first step has changed nothing.
    first = evaluate.evaluate(workdir, step=1)
    assert first["loss_nats_per_token"] == before["loss_nats_per_token"]


def test_what_is_frozen_and_what_decays_is_said():
    optim = conftest.tiny_config(
        optim=dict(lr_multiplier=dict(embedding=0.0), decay_multiplier=dict(output=0.5))
    ).optim
    assert progress.describe_groups(optim) == (
        "frozen: embedding; decay 0.01: attention, ffn; decay 0.005: output; "
        "decay 0: norm, residual"
    )
    assert progress.describe_groups(config.OptimConfig()).startswith("frozen: nothing; decay 0.01")
