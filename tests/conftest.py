"""The suite runs on eight simulated CPU devices; a warning is an error (pyproject.toml)."""

import importlib.util
import os
import signal

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the suite's time is LLVM's. Its optimization level touches neither XLA's graph, its
# buffers nor its collectives, which are what tests look at.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)

import jax
import jaxtyping
import numpy as np
import pytest

from tests import shape_checks

# Before anything of the package is imported, hence below.
jaxtyping.install_import_hook(list(shape_checks.MODULES), "tests.shape_checks.check")

# ruff: noqa: E402
from keel_jax import config
from keel_jax.config import topologies as topology_table
from keel_jax.data.preparing import options as preparation_options
from keel_jax.data.preparing import preparation
from keel_jax.runtime import platforms

platforms.give_threads()

# A vector meets a matrix only where the code says along which axis.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def no_ignored_signals():
    """A child inherits what its parent ignores, and a program under test would then ignore it, too.

    A suite that was started with nohup ignores SIGHUP, one in a script's background SIGINT, and the
    TPU's compiler makes the process that loads it ignore SIGHUP, behind Python's back.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def cuda_compiler():
    """For tests marked `cuda`: skips them where the compiler is not installed."""
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        pytest.skip(
            "needs keel_jax[plan-cuda]: `make test-cuda` runs it in an environment that has it"
        )


def tiny_config(**sections) -> config.Config:
    """A Keel small enough for any test; `sections` are overrides, as in model=dict(num_blocks=2).

    Float32 throughout, so that tolerances are those of float32.
    """
    values = {
        "model": dict(
            num_blocks=3,
            d_model=16,
            d_ffn=24,
            num_heads=4,
            num_kv_heads=2,
            vocab_size=64,
            compute_dtype="float32",
            recompute=dict(plan="none"),
        ),
        "optim": dict(peak_lr=1e-2, warmup_steps=2),
        "train": dict(num_steps=6, batch_size=8, seq_len=16, log_every_steps=1, loss_chunk=0),
        "mesh": {},
        "data": {},
        "trials": {},
        # A second program to compile; tests of telemetry switch it on.
        "telemetry": dict(every_steps=0),
        "tasks": {},
        "runtime": {},
    }
    seed = sections.pop("seed", 0)
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    return config.from_config_dict({**values, "seed": seed})


# Those that carry more than one array or follow another equation, and ReZero, whose branches begin
# at 0.
OTHER_RULES = topology_table.names(
    lambda row: not row.is_single_stream or "residual_scale" in row.residual_params
)


def topologies(*quick: str) -> list:
    """All of them to parametrize by; of OTHER_RULES those not in `quick` in the slow part only."""
    return [
        _slow(name) if name in set(OTHER_RULES) - set(quick) else name for name in config.TOPOLOGIES
    ]


def other_rules(*quick: str) -> list:
    """OTHER_RULES to parametrize by; those not in `quick` in the slow part only."""
    return [name if name in quick else _slow(name) for name in OTHER_RULES]


def _slow(name: str):
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory):
    """A directory of small text files."""
    directory = tmp_path_factory.mktemp("corpus")
    for number in range(40):
        lines = [f"def function_{number}_{i}(x):\n    return x + {i * number}\n" for i in range(12)]
        (directory / f"{number:03}.txt").write_text("\n".join(lines))
    return directory


def prepare_text_files(directory, output, vocab_size: int = 300) -> None:
    """Token shards of the text files of a directory, a fifth of them for validation."""
    options = preparation_options.PreparationOptions(vocab_size=vocab_size, validation_fraction=0.2)
    preparation.prepare_token_set([str(directory / "*.txt")], str(output), options)


@pytest.fixture(scope="session")
def token_dir(corpus_dir, tmp_path_factory):
    """Token shards of `corpus_dir`, vocabulary 300."""
    output = tmp_path_factory.mktemp("tokens")
    prepare_text_files(corpus_dir, output)
    return output


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    """A compilation cache that lasts for the session."""
    return str(tmp_path_factory.mktemp("compiled"))


def random_batch(abstract, seed=0):
    """The same tokens in every layout; documents and loss weights vary."""
    rng = np.random.default_rng(seed)
    *trials, rows, seq_len = abstract["inputs"].shape
    tokens = rng.integers(0, 64, (rows, seq_len + 1))
    values = {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.cumsum(tokens[:, :-1] == 0, axis=1),
        "loss_weights": rng.integers(0, 2, (rows, seq_len)),
    }
    return {
        key: jax.device_put(
            np.broadcast_to(values[key], leaf.shape).astype(leaf.dtype), leaf.sharding
        )
        for key, leaf in abstract.items()
    }
