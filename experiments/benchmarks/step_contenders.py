"""What `benchmarks.step` compares: training steps of one shape, by this project and by others.

Each contender trains a decoder of N blocks (grouped-query attention with RoPE, SwiGLU, RMSNorm)
with AdamW, clipping to norm 1 and every block recomputed, on random tokens.
`experiments.benchmarks.step_worker` keeps each in a process of its own.
"""

import contextlib
import dataclasses
import time
import typing
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import random_batches
from keel_jax import config
from keel_jax.model import depth, lm
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.planning import resolve
from keel_jax.training import state as state_lib
from keel_jax.training import step as step_lib

_LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """One shape for all contenders; letters and meanings as in config.ModelConfig."""

    num_blocks: int
    d_model: int
    d_ffn: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    batch_size: int
    seq_len: int
    compute_dtype: str

    def config(self, topology: str) -> config.Config:
        """The config of the step of this shape."""
        values = dataclasses.asdict(self)
        train = {name: values.pop(name) for name in ("batch_size", "seq_len")}
        return config.Config(
            model=config.ModelConfig(topology=topology, **values),
            optim=config.OptimConfig(
                peak_lr=_LEARNING_RATE, schedule="constant", warmup_steps=0, epsilon=1e-8
            ),
            train=config.TrainConfig(num_steps=1000, **train),
        )

    def tokens(self) -> np.ndarray:
        """Random tokens, int32 [B, T + 1]."""
        rng = np.random.default_rng(0)
        shape = (self.batch_size, self.seq_len + 1)
        return rng.integers(0, self.vocab_size, shape, np.int32)


class Contender(typing.Protocol):
    """A model with its optimizer, built and compiled by its constructor."""

    @property
    def compile_seconds(self) -> float | None:
        """None: nothing is compiled ahead of the first step."""

    def step(self) -> float:
        """Takes one step, waits for it, and returns the loss in nats a token."""
        ...

    def device_peak_bytes(self) -> int | None:
        """Peak memory of an accelerator so far; None on a CPU, where the process's counts."""


class _Jax:
    """A compiled step: `_compiled`(`_state`, `_batch`) -> (state, loss) consumes the state."""

    compile_seconds: float
    _compiled: Callable[[Any, Any], tuple[Any, Any]]
    _state: Any
    _batch: Any

    def step(self) -> float:
        """Takes one step."""
        self._state, loss = self._compiled(self._state, self._batch)
        jax.block_until_ready(self._state)
        return float(loss)

    def device_peak_bytes(self) -> int | None:
        """Peak memory of the device; None on a CPU."""
        device = jax.devices()[0]
        return None if device.platform == "cpu" else device.memory_stats()["peak_bytes_in_use"]


class KeelJax(_Jax):
    """The project's own step, as `keel_jax.train` runs it on one device."""

    def __init__(self, shape: Shape, topology: str = "keel"):
        cfg = shape.config(topology)
        mesh = mesh_lib.make(cfg.mesh, jax.devices()[:1])
        batch = random_batches.on_mesh(shape.tokens(), cfg, mesh)
        begin = time.monotonic()
        self._compiled = step_lib.compile_train_step(resolve.resolve(cfg, mesh), mesh)
        self.compile_seconds = time.monotonic() - begin
        self._state, self._batch = state_lib.create(cfg, mesh), batch

    def step(self) -> float:
        """Takes one step."""
        self._state, sums = self._compiled(self._state, self._batch)
        jax.block_until_ready(self._state)
        return float(sums["nats"] / sums["weight"])


class PlainStack(nn.Module):
    """The project's blocks, without what it puts around them: one scan, or a Python loop."""

    model: config.ModelConfig
    is_unrolled: bool

    @nn.compact
    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        """Logits of every next token, [B, T, V]."""
        m, inputs = self.model, depth.block_inputs(self.model)
        context = lm.ordered_context(jnp.zeros_like(tokens_BT))
        carry = lm.Embedding(m, name="embedding")(tokens_BT), None
        block = nn.remat(depth.Block, prevent_cse=self.is_unrolled)
        if self.is_unrolled:
            for number in range(m.num_blocks):
                row = jax.tree.map(lambda x, n=number: x[n], inputs)
                carry, _ = block(m, name=f"block_{number}")(carry, row, context)
        else:
            scan = nn.scan(
                lambda module, carry, row, context: module(carry, row, context),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType] - one an argument
                length=m.num_blocks,
                metadata_params={nn.PARTITION_NAME: "blocks"},
            )
            carry, _ = scan(block(m, name="block"), carry, inputs, context)
        output = lm.Output(m, name="output")
        return lm.logits(output(carry[0]), output.matrix)


class Plain(_Jax):
    """The usual training step around such a stack: optax, whole logits, one jit."""

    def __init__(self, shape: Shape, *, is_unrolled: bool):
        model = PlainStack(shape.config("keel").model, is_unrolled)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(_LEARNING_RATE))
        tokens = jnp.asarray(shape.tokens())

        def init(key):
            params = nn.unbox(model.init(key, tokens[:1, :1])["params"])
            return params, optimizer.init(params)

        def loss_of(params, tokens):
            logits: Any = model.apply({"params": params}, tokens[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        def step(state, tokens):
            params, opt_state = state
            loss, grads = jax.value_and_grad(loss_of)(params, tokens)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        begin = time.monotonic()
        shapes = jax.eval_shape(init, jax.random.key(0))
        self._compiled = jax.jit(step, donate_argnums=0).lower(shapes, tokens).compile()
        self.compile_seconds = time.monotonic() - begin
        # Initialized in NumPy, as compiling `init` of a Python loop would take as long again.
        rng = np.random.default_rng(0)

        def initial(path, leaf):
            is_gain = "norm" in jax.tree_util.keystr(path)
            values = np.ones(leaf.shape) if is_gain else rng.normal(0, 0.02, leaf.shape)
            return values.astype(leaf.dtype)

        params = jax.tree_util.tree_map_with_path(initial, shapes[0])
        self._state = params, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes[1])
        self._batch = tokens


class Llama:
    """transformers' LlamaForCausalLM (Pre-LN) on PyTorch, eager, as its documentation trains it."""

    compile_seconds = None

    def __init__(self, shape: Shape):
        # Of the extra "bench", and needed by this contender's process alone.
        import torch  # pyright: ignore[reportMissingImports] - an extra
        import transformers  # pyright: ignore[reportMissingImports] - an extra

        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        llama = transformers.LlamaConfig(
            hidden_size=shape.d_model,
            intermediate_size=shape.d_ffn,
            num_hidden_layers=shape.num_blocks,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads,
            vocab_size=shape.vocab_size,
            max_position_embeddings=shape.seq_len,
            use_cache=False,
        )
        torch.manual_seed(0)
        self._model = transformers.LlamaForCausalLM(llama).to(self._device).train()
        self._model.gradient_checkpointing_enable()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=_LEARNING_RATE)
        self._tokens = torch.as_tensor(shape.tokens(), dtype=torch.long, device=self._device)
        self._precision = contextlib.nullcontext()
        if shape.compute_dtype == "bfloat16":
            self._precision = torch.autocast(self._device, torch.bfloat16)

    def step(self) -> float:
        """Takes one step."""
        torch = self._torch
        self._optimizer.zero_grad(set_to_none=True)
        with self._precision:
            logits = self._model(self._tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), self._tokens[:, 1:].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        if self._device == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    def device_peak_bytes(self) -> int | None:
        """Peak memory of the device; None on a CPU."""
        return self._torch.cuda.max_memory_allocated() if self._device == "cuda" else None
