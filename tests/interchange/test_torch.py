"""PyTorch computes what JAX computes: an exported folder in transformers, and a Llama here.

Slow, and marked `torch`: `make test-torch` installs PyTorch and transformers, and these tests fail
without them.

Both compute in float32 and add up in other orders. TOLERANCE is on the largest difference of a
logit over the logits' standard deviation; each sub-layer adds some 1e-7 to it, and the gains of
random size amplify it. Measured at 8 sub-layers, over all topologies: at most 1.2e-5; at 512 of
Keel: 3.5e-5 and, at another width, 5.8e-5 (docs/handing_over.md).
"""

import importlib
import json
import sys

import jax
import numpy as np
import pytest

import keel_jax
from keel_jax.data import tokenizer as tokenizer_lib
from keel_jax.interchange import exporting, importing
from keel_jax.training import checkpoint, trained
from tests.data import strings
from tests.interchange import models

pytestmark = [
    pytest.mark.slow,
    pytest.mark.torch,
    # Of torch and transformers, which raise them while they are imported and at work.
    pytest.mark.filterwarnings("ignore"),
]
TOLERANCE, DEEP_TOLERANCE = 5e-5, 3e-4
# What else makes a topology's constants visible.
_OPTIONS = {
    "keel_capped": dict(branch_cap=0.05),
    "mix_ln": dict(mix_ln_post_fraction=0.5),
    "complete_p": dict(learned_branch=True, branch_scale=0.4),
    "post_ln": dict(tie_embeddings=True, qk_norm=True),
    "pre_ln": dict(head_dim=6, rope_theta=500.0, norm_epsilon=1e-3),
    "deepnorm": dict(final_norm="on", num_kv_heads=4),
    "keel_scaled_input": dict(keel_first_block="v1", alpha=3.0),
}


@pytest.fixture(scope="module")
def in_torch():
    return importlib.import_module("tests.interchange.in_torch")


def _params(workdir):
    return trained.load_params(workdir, trained.one_device())[0]


def _relative(ours, theirs) -> float:
    return float(np.abs(ours - theirs).max() / ours.std())


def _exported(tmp_path, model_path, **model):
    run = tmp_path / "run"
    run.mkdir()
    cfg = models.write_workdir(run, model_path, **model)
    exporting.export(run, tmp_path / "folder")
    return run, cfg, tmp_path / "folder"


@pytest.fixture(scope="module")
def deep(tokenizer_paths, tmp_path_factory):
    """A Keel of 512 sub-layers, exported."""
    return _exported(
        tmp_path_factory.mktemp("deep"), tokenizer_paths["bpe"], num_blocks=256, d_model=8, d_ffn=16
    )


@pytest.fixture(scope="module")
def shallow(tokenizer_paths, tmp_path_factory):
    """A Keel of 8 sub-layers, exported."""
    return _exported(tmp_path_factory.mktemp("shallow"), tokenizer_paths["bpe"], num_blocks=4)


@pytest.mark.parametrize("topology", models.SINGLE_STREAM)
def test_logits_are_those_of_jax(topology, in_torch, tokenizer_paths, tmp_path):
    options = _OPTIONS.get(topology, {})
    run, cfg, folder = _exported(tmp_path, tokenizer_paths["bpe"], topology=topology, **options)
    ids = models.tokens(cfg, (2, 40))
    theirs = in_torch.logits(in_torch.load(folder), ids)
    assert _relative(models.logits(cfg, _params(run), ids), theirs) < TOLERANCE


def test_logits_at_512_sublayers(in_torch, deep):
    run, cfg, folder = deep
    ids = models.tokens(cfg, (2, 24))
    theirs = in_torch.logits(in_torch.load(folder), ids)
    assert _relative(models.logits(cfg, _params(run), ids), theirs) < DEEP_TOLERANCE


@pytest.mark.parametrize("which", ["shallow", "deep"])
def test_greedy_texts_are_those_of_jax_with_and_without_a_cache(which, in_torch, request):
    run, cfg, folder = request.getfixturevalue(which)
    model, tokenizer = in_torch.load(folder).eval(), in_torch.tokenizer(folder)
    prompts, num_tokens = ["def function(", "", "    return x  # \u2581\n\t"], 20
    if which == "deep":
        prompts, num_tokens = prompts[:1], 6
    decode = tokenizer_lib.Tokenizer.load(folder / "tokenizer.model").decode
    ours = keel_jax.load(run).generate(prompts, num_tokens=num_tokens)
    for prompt, text in zip(prompts, ours, strict=True):
        ids = np.array([tokenizer(prompt)["input_ids"]])
        assert ids[0, 0] == 1
        cached, plain = (
            in_torch.greedy(model, ids, num_tokens, use_cache=use_cache)
            for use_cache in (True, False)
        )
        np.testing.assert_array_equal(cached, plain)
        assert decode(cached[0]) == text


def test_a_padded_batch_is_as_each_alone(in_torch, shallow):
    _, _, folder = shallow
    model, tokenizer = in_torch.load(folder).eval(), in_torch.tokenizer(folder)
    prompts = ["def function(x, y):", "x"]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    together = in_torch.greedy(
        model, batch["input_ids"], 12, attention_mask=batch["attention_mask"]
    )
    for row, prompt in zip(together, prompts, strict=True):
        alone = in_torch.greedy(model, [tokenizer(prompt)["input_ids"]], 12)
        np.testing.assert_array_equal(row, alone[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_logits(side, in_torch, shallow):
    import torch

    _, cfg, folder = shallow
    model, ids = in_torch.load(folder).eval(), models.tokens(cfg, (1, 12))
    padding, ones = np.ones((1, 5), np.int64), np.ones((1, 12), np.int64)
    parts = [padding, ids] if side == "left" else [ids, padding]
    masks = [0 * padding, ones] if side == "left" else [ones, 0 * padding]
    mask = torch.as_tensor(np.concatenate(masks, 1))
    # A softmax over no key would not be a number, which some kernels of PyTorch hide.
    visible = sys.modules[type(model).__module__]._visible(mask, 0, torch.zeros(1, 17, 1), None)
    assert visible.any(-1).all()
    padded = in_torch.logits(model, np.concatenate(parts, 1), attention_mask=mask)
    kept = padded[:, 5:] if side == "left" else padded[:, :12]
    assert _relative(in_torch.logits(model, ids), kept) < TOLERANCE


def test_a_static_cache_and_a_cache_in_parts_give_the_same(in_torch, shallow):
    import torch
    import transformers

    _, cfg, folder = shallow
    model, ids = in_torch.load(folder).eval(), models.tokens(cfg, (1, 12))
    whole = in_torch.logits(model, ids)
    for cache in (
        transformers.DynamicCache(),
        transformers.StaticCache(config=model.config, max_cache_len=20),
    ):
        parts, start = [], 0
        for stop in (5, 6, 12):
            with torch.no_grad():
                part = torch.as_tensor(ids[:, start:stop]).long()
                parts.append(model(part, cache=cache, use_cache=True).logits.numpy())
            start = stop
        assert _relative(whole, np.concatenate(parts, 1)) < TOLERANCE


def test_gradients_with_checkpointing_are_the_same(in_torch, shallow):
    """And those of JAX, parameter by parameter, relative to its largest."""
    run, cfg, folder = shallow
    model, ids = in_torch.load(folder).train(), models.tokens(cfg, (2, 16))
    plain = in_torch.gradients(model, ids)
    model.gradient_checkpointing_enable()
    checkpointed = in_torch.gradients(model, ids)

    def loss(params):
        from keel_jax.model import lm

        logits = lm.LanguageModel(cfg.model).apply({"params": params}, ids)
        log_p = jax.nn.log_softmax(logits[:, :-1])
        return -jax.numpy.take_along_axis(log_p, ids[:, 1:, None], axis=-1).mean()

    ours = jax.grad(loss)(_params(run))
    from keel_jax.interchange import layout

    for leaf in layout.of_keel(cfg.model):
        expected = ours
        for name in leaf.path:
            expected = expected[name]
        for block, name in enumerate(leaf.names):
            tensor = leaf.tensor(np.asarray(expected), block)
            if plain[name] is None:
                assert not tensor.any(), name  # a gain that is not read
                continue
            np.testing.assert_array_equal(checkpointed[name], plain[name])
            np.testing.assert_allclose(
                plain[name], tensor, rtol=1e-3, atol=1e-4 * np.abs(tensor).max()
            )


def test_what_transformers_saves_is_the_same_model_again(in_torch, shallow, tmp_path):
    run, cfg, folder = shallow
    model, ids = in_torch.load(folder), models.tokens(cfg, (2, 16))
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    in_torch.tokenizer(folder).save_pretrained(tmp_path / "saved")
    again = in_torch.load(tmp_path / "saved")
    np.testing.assert_array_equal(in_torch.logits(model, ids), in_torch.logits(again, ids))
    importing.import_folder(
        tmp_path / "saved", tmp_path / "back", tokenizer=folder / "tokenizer.model"
    )
    jax.tree.map(np.testing.assert_array_equal, _params(run), _params(tmp_path / "back"))


def test_a_model_begins_anew_from_its_config(in_torch, shallow):
    """With gains of 1 and weights of the config's standard deviation."""
    import transformers

    _, cfg, folder = shallow
    options = dict(trust_remote_code=True)
    config = transformers.AutoConfig.from_pretrained(folder, **options)
    model = transformers.AutoModelForCausalLM.from_config(config, **options)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == 1).all(), name
        else:
            assert float(parameter.std()) == pytest.approx(cfg.model.init_std, rel=0.2), name
    shapes = {name: p.shape for name, p in in_torch.load(folder).named_parameters()}
    assert shapes == {name: p.shape for name, p in model.named_parameters()}


def test_a_bfloat16_model_keeps_a_float32_stream(in_torch, deep):
    """Of 512 sub-layers with gains of 1: bfloat16 would round away the update, F / alpha."""
    import torch

    _, cfg, folder = deep
    model = in_torch.load(folder, dtype=torch.bfloat16).eval()
    assert model.model.layers[0].ffn.up.weight.dtype == torch.bfloat16
    ids = torch.as_tensor(models.tokens(cfg, (1, 16))).long()
    with torch.no_grad():
        for block in model.model.layers:
            block.attention.outer_norm.fill_(1)
            block.ffn.outer_norm.fill_(1)
        states = model(ids, output_hidden_states=True).hidden_states
    assert len(states) == 257 and all(state.dtype == torch.float32 for state in states)
    moved = [(b - a).norm() / a.norm() for a, b in zip(states[100:], states[101:], strict=False)]
    # Half the spacing of bfloat16 numbers is 2**-9 to 2**-8 of them.
    assert all(0 < ratio < 2**-9 for ratio in moved)


def test_the_tokenizer_of_transformers_gives_our_ids(in_torch, shallow):
    _, _, folder = shallow
    ours = tokenizer_lib.Tokenizer.load(folder / "tokenizer.model")
    theirs = in_torch.tokenizer(folder)
    for text in [*strings.ADVERSARIAL, "a <keel_eos_1> b <unk>"]:
        ids = theirs(text)["input_ids"]
        assert ids == [ours.eos_id, *ours.encode(text).tolist()]
        assert theirs.decode(ids, skip_special_tokens=True) == text
    assert theirs.eos_token_id == theirs.bos_token_id == theirs.pad_token_id == ours.eos_id


@pytest.mark.parametrize(
    "options",
    [
        dict(num_key_value_heads=2, rope_theta=5e5),
        dict(num_key_value_heads=4, tie_word_embeddings=True, head_dim=6, rms_norm_eps=1e-3),
    ],
)
def test_a_random_llama_has_the_logits_of_transformers(
    options, in_torch, tokenizer_paths, tmp_path
):
    model = in_torch.random_llama(
        tmp_path / "llama",
        vocab_size=704,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=48,
        **options,
    )
    importing.import_folder(
        tmp_path / "llama", tmp_path / "workdir", tokenizer=tokenizer_paths["bpe"]
    )
    cfg = checkpoint.load_config(tmp_path / "workdir")
    assert cfg.model.compute_dtype == "float32"
    ids = models.tokens(cfg, (2, 40))
    ours = models.logits(cfg, _params(tmp_path / "workdir"), ids)
    assert _relative(ours, in_torch.logits(model, ids)) < TOLERANCE
    # And on to our own format, which computes the same in PyTorch.
    exporting.export(tmp_path / "workdir", tmp_path / "folder")
    assert json.loads((tmp_path / "folder/config.json").read_text())["model_type"] == "keel"
    assert _relative(ours, in_torch.logits(in_torch.load(tmp_path / "folder"), ids)) < TOLERANCE
