"""Cached decoding equals the forward pass, and sampling follows its options."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keel_jax.config import topologies
from keel_jax.model import lm, sampling
from tests import conftest, reference


def _model(**options):
    cfg = conftest.tiny_config(model=options).model
    model = lm.LanguageModel(cfg)
    params = lm.init(model, jax.random.key(0))
    return model, jax.tree.map(lambda p: p * 5 if p.ndim > 2 else p, params)


@pytest.mark.parametrize("topology", conftest.topologies("attention_residuals", "ngpt"))
def test_cached_decoding_equals_the_forward_pass(topology):
    """One token at a time, after a prompt of three, against all at once."""
    streams = dict(hyper_streams=2) if topology in reference.HYPER else {}
    qk_norm = not topologies.row(topology).has_own_qk_norm
    model, params = _model(topology=topology, qk_norm=qk_norm, **streams)
    tokens_BT = jax.random.randint(jax.random.key(1), (2, 9), 0, 64)
    forward = jax.jit(model.apply)({"params": params}, tokens_BT)
    cache = lm.empty_cache(model.model, 2, 9)
    decode = jax.jit(
        lambda tokens, start, cache: model.apply(
            {"params": params}, tokens, start, cache, method="decode"
        )
    )
    logits, cache = decode(tokens_BT[:, :3], jnp.zeros(2, int), cache)
    parts = [logits]
    for t in range(3, 9):
        logits, cache = decode(tokens_BT[:, t : t + 1], jnp.full(2, t), cache)
        parts.append(logits)
    # Sums run over 9 cache slots instead of t + 1 keys: float32 rounding.
    np.testing.assert_allclose(jnp.concatenate(parts, 1), forward, rtol=2e-4, atol=2e-5)


def _generate(model, params, prompts, *, num_tokens, how, end_id=-1, num_ids=64):
    """The tokens after prompts that are lists of ids, in chunks of 3, and how many were drawn."""
    sampler = sampling.Sampler(model, how, end_id, num_ids)
    longest = max(map(len, prompts))
    prompt_BP = jnp.asarray([prompt + [0] * (longest - len(prompt)) for prompt in prompts])
    length_B = jnp.asarray([len(prompt) for prompt in prompts])
    key_B = jax.random.split(jax.random.key(0), len(prompts))
    go_on = jax.jit(functools.partial(sampler.go_on, num_tokens=3))
    state = jax.jit(functools.partial(sampler.begin, cache_size=longest + num_tokens))(
        params, prompt_BP, length_B, key_B
    )
    drawn = [state.token_B[:, None]]
    while state.num_drawn < num_tokens and not state.ended_B.all():
        state, drawn_BT = go_on(params, state, length_B, key_B, num_tokens)
        drawn.append(drawn_BT)
    return np.concatenate(drawn, axis=1)[:, :num_tokens], state.num_drawn


def _greedy_without_cache(model, params, prompt, num_tokens):
    # Padded to one length, so that it compiles once; causality keeps the padding out of sight.
    forward = jax.jit(model.apply)
    tokens = np.zeros((1, 16), np.int32)
    tokens[0, : len(prompt)] = prompt
    for t in range(len(prompt), len(prompt) + num_tokens):
        tokens[0, t] = forward({"params": params}, tokens)[0, t - 1].argmax()
    return tokens[0, len(prompt) : len(prompt) + num_tokens].tolist()


GREEDY = sampling.Sampling(temperature=0.0)


def test_greedy_generation_equals_repeated_forward_passes_for_ragged_prompts():
    model, params = _model()
    prompts = [[1, 5, 9, 2, 7], [3, 4]]
    tokens, num_drawn = _generate(model, params, prompts, num_tokens=8, how=GREEDY)
    assert num_drawn == 8
    for row, prompt in zip(tokens, prompts, strict=True):
        assert row.tolist() == _greedy_without_cache(model, params, prompt, 8)


def test_nothing_follows_the_end_and_the_loop_ends_with_the_last_row():
    model, params = _model()
    prompts = [[1, 5, 9], [2, 2]]
    free = [_greedy_without_cache(model, params, prompt, 6) for prompt in prompts]
    end = free[0][2]
    first = free[0].index(end)
    [tokens], num_drawn = _generate(
        model, params, prompts[:1], num_tokens=6, how=GREEDY, end_id=end
    )
    assert tokens.tolist() == (free[0][: first + 1] + [end] * 6)[:4]
    assert num_drawn == first + 1 < 4
    both, _ = _generate(model, params, prompts, num_tokens=6, how=GREEDY, end_id=end)
    assert both[0].tolist() == free[0][: first + 1] + [end] * (5 - first)
    assert both[1].tolist() == free[1] and end not in free[1]


def _counts(num=4000, **options):
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.15, 0.05]))
    keys = jax.random.split(jax.random.key(0), num)
    logits_BV = jnp.broadcast_to(logits, (num, 4))
    drawn = sampling.sample(logits_BV, keys, sampling.Sampling(**options))
    return np.bincount(drawn, minlength=4) / num


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(), [0.5, 0.3, 0.15, 0.05]),
        (dict(temperature=0.0), [1, 0, 0, 0]),
        (dict(top_k=2), [0.625, 0.375, 0, 0]),
        (dict(top_p=0.75), [0.625, 0.375, 0, 0]),
        (dict(top_p=1e-6), [1, 0, 0, 0]),
        (dict(temperature=0.5), [0.685, 0.247, 0.062, 0.007]),
    ],
)
def test_sampling_follows_its_options(options, expected):
    # 4000 draws: three standard deviations are 0.024.
    np.testing.assert_allclose(_counts(**options), expected, atol=0.025)


def test_padding_of_the_vocabulary_is_never_drawn():
    model, params = _model()
    how = sampling.Sampling(temperature=3.0)
    tokens, _ = _generate(model, params, [[1, 1]] * 8, num_tokens=16, how=how, num_ids=3)
    assert set(np.unique(tokens)) <= {0, 1, 2}


@pytest.mark.parametrize(
    "options",
    [
        *(dict(temperature=value) for value in (-1.0, 1e-9, math.nan, math.inf)),
        dict(top_k=-1),
        *(dict(top_p=value) for value in (0.0, math.nan, math.inf)),
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        sampling.Sampling(**options)
