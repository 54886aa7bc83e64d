"""Optimizers as per-block maps on stacked parameters, without the learning rate.

    p' = p - lr * u,    u = m_group * (direction(g) + weight_decay * d_group * p)

`lr = peak_lr * unit_schedule(step)` comes from the train state and is applied last, in `apply`;
m and d are the group's multipliers (config.ParamGroups). Clipping comes first, in `clip`. Both are
outside optax's state, so one executable serves every learning rate and trials can be vmapped.

Every leaf under `block` holds N blocks, [N, ...]. Each optimizer here equals, on each of the N
slices, the same optimizer run on that block alone; only clipping depends on the whole tree. Adam
and Lion are elementwise and have this property anyway. Muon and Adafactor do not (optax's own, on
stacked leaves, orthogonalize [N, D] gains across blocks and factor and clip over N): `per_block`
vmaps them.
"""

import typing

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import optax.tree_utils

from keel_jax import config, errors
from keel_jax.config import topologies

# Muon's momentum (Jordan, https://github.com/KellerJordan/Muon; Liu et al., arXiv:2502.16982).
_MUON_MOMENTUM = 0.95
# Newton-Schulz iterations (same sources).
_MUON_STEPS = 5
# RMS that Muon's update is scaled to, AdamW's usual one (arXiv:2502.16982, §2.2, eq. 4), so that
# one learning rate suits the matrices and the parameters that Adam updates beside them.
_MUON_RMS = 0.2
# Exponent c of Adafactor's second-moment decay 1 - t^-c (Shazeer & Stern, arXiv:1804.04235, §7.2).
_ADAFACTOR_DECAY = 0.8
# RMS above which Adafactor scales a parameter's update down (same source, §6).
_ADAFACTOR_CLIP_RMS = 1.0

_ATTENTION_MATRICES = ("query", "key", "value", "out")
_FFN_MATRICES = ("gate", "up", "down")


def make(optim: config.OptimConfig) -> optax.GradientTransformation:
    """The optimizer `optim.name` with decoupled weight decay and group multipliers, without LR.

      u = m_group * (direction(g) + weight_decay * d_group * p)

    A multiplier m = 0 freezes its group, decay included.

      adamw: optax.scale_by_adam. arXiv:1711.05101.
      lion: optax.scale_by_lion. arXiv:2302.06675.
      adafactor: optax.scale_by_factored_rms, each parameter's update then clipped to RMS 1; no
        first moment, not scaled by the parameter's RMS (the learning rate is ours), every matrix
        factored as in the paper, epsilon^2 added to g^2 (1e-15 gives the paper's 1e-30).
        arXiv:1804.04235.
      muon: optax.contrib.scale_by_muon (Nesterov, 5 Newton-Schulz steps) times
        0.2 * sqrt(max(fan_in, fan_out)) for the matrices inside `block`, one per block and
        parameter; Adam for embedding, output, gains and residual scales. arXiv:2502.16982.

    Args:
      optim: the options; `peak_lr`, `clip_norm` and the schedule are not read here.

    Returns:
      `init(params)`, with the state's moments in fp32 and step counts as scalars, and
      `update(grads, state, params) -> (u, state)`, with `grads` and `params` alike in shape and in
      fp32. Both work under jit, eval_shape and an outer vmap over trials.

    Raises:
      UserError: an epsilon that fp32 cannot represent; on use, a parameter of no known group.
    """
    direction = _direction(optim)

    def update(grads, state, params):
        directions, state = direction.update(grads, state, params)
        rates = multipliers(params, optim.lr_multiplier)
        decays = multipliers(params, optim.decay_multiplier)

        def scale(direction, param, rate, decay):
            return rate * (direction + optim.weight_decay * decay * param)

        return jax.tree.map(scale, directions, params, rates, decays), state

    return optax.GradientTransformation(direction.init, update)  # pyright: ignore[reportArgumentType]: optax allows params=None, which we never pass


def clip(grads: optax.Updates, clip_norm: float) -> tuple[optax.Updates, jax.Array]:
    """Scales the whole tree down to global norm `clip_norm`, and also returns the original norm.

      g' = g * min(1, clip_norm / |g|),    |g| = sqrt(sum over all leaves of g^2)

    As optax.clip_by_global_norm, but the norm, which is also logged, is computed once.

    Args:
      grads: any tree of arrays.
      clip_norm: the largest norm allowed; 0 clips nothing.

    Returns:
      The clipped tree (dtypes kept) and |g|, a scalar, non-finite if a gradient is.

    Source: Pascanu et al., arXiv:1211.5063.
    """
    grad_norm = optax.tree.norm(grads)
    if clip_norm == 0:
        return grads, grad_norm
    factor = clip_factor(grad_norm, clip_norm)
    return jax.tree.map(lambda g: (g * factor).astype(g.dtype), grads), grad_norm


def clip_factor(grad_norm: jax.Array, clip_norm: float) -> jax.Array:
    """The factor of `clip`: min(1, clip_norm / |g|); 1 if it clips nothing."""
    # At norm 0 the quotient is inf, and the factor 1.
    return jnp.minimum(1.0, clip_norm / grad_norm) if clip_norm else jnp.ones_like(grad_norm)


def apply(params: typing.Any, updates: typing.Any, lr: jax.typing.ArrayLike) -> typing.Any:
    """The new parameters p - lr * u, in the parameters' dtypes; `lr` is a scalar."""
    return jax.tree.map(lambda p, u: (p - lr * u).astype(p.dtype), params, updates)


def per_block(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs `inner` on each slice of leaves stacked as [N, ...], as if it were alone.

      u[n] = inner(g[n], state[n], p[n])    for n = 0 … N-1, by vmap

    State of `inner` that mirrors parameters gets the leading N. Other state (step counts,
    coefficients) is the same for every block and is stored once, so that counts are scalars: that
    part of the state must depend on neither gradients nor parameters, or vmap raises.
    """

    def axes(state):
        return optax.tree_utils.tree_map_params(
            inner, lambda _: 0, state, transform_non_params=lambda _: None
        )

    def init(params):
        block = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), params)
        return jax.vmap(inner.init, out_axes=axes(jax.eval_shape(inner.init, block)))(params)

    def update(updates, state, params=None):
        state_axes = axes(state)
        mapped = jax.vmap(inner.update, in_axes=(0, state_axes, 0), out_axes=(0, state_axes))
        return mapped(updates, state, params)

    return optax.GradientTransformation(init, update)


def group_of(path: typing.Sequence) -> str:
    """The field of config.ParamGroups for the parameter at a JAX key path.

    Raises:
      UserError: no group is known for it. A new parameter gets its group here explicitly: a
        default could silently decay a gain, or pass it to Muon.
    """
    match tuple(entry.key for entry in path):
        case (*_, name) if name.endswith("norm") or name in topologies.SCALE_PARAMS:
            return "norm"
        case ("block", "attention" | "ffn", name) if name in topologies.RESIDUAL_PARAMS:
            return "residual"
        case ("output", name) if name in topologies.RESIDUAL_PARAMS:
            return "residual"
        case ("block", "attention", name) if name in _ATTENTION_MATRICES:
            return "attention"
        case ("block", "ffn", name) if name in _FFN_MATRICES:
            return "ffn"
        case ("embedding", "table"):
            return "embedding"
        case ("output", "matrix"):
            return "output"
        case names:
            raise errors.UserError(
                f"Parameter {'/'.join(names)} belongs to no known group: give it one in its "
                "topology's row (keel_jax/config/topologies.py) or in "
                "keel_jax.training.optim.group_of."
            )


def multipliers(params: typing.Any, groups: config.ParamGroups) -> typing.Any:
    """`groups` as a tree of floats with the structure of `params` (arrays or abstract shapes)."""
    return jax.tree.map_with_path(lambda path, _: getattr(groups, group_of(path)), params)


def match_params(
    opt_state: typing.Any, params: typing.Any, leaf_values: typing.Any, default: typing.Callable
) -> typing.Any:
    """Maps `leaf_values` of the parameters to the optimizer state that mirrors them.

    A leaf of the state mirrors a parameter if its key path ends in the parameter's whole path
    (`….mu['block']['attention']['query']`) and its shape is the parameter's. Moments do; counts
    and factored moments do not. For shardings, abstract states are sufficient.

    Args:
      opt_state: of `make(…).init(params)`, or its shapes.
      params: the parameters, or their shapes.
      leaf_values: a tree with `params`' structure; a leaf may be a tree itself.
      default: called with each leaf of the state that mirrors no parameter.

    Returns:
      A tree with `opt_state`'s structure, with a value at every leaf.
    """
    paths_and_params, structure = jax.tree.flatten_with_path(params)
    values = structure.flatten_up_to(leaf_values)
    known = {
        path: (param.shape, value)
        for (path, param), value in zip(paths_and_params, values, strict=True)
    }

    def value_of(path, leaf):
        # The longest suffix first: a parameter's path may end in another's.
        for start in range(len(path)):
            if path[start:] in known:
                shape, value = known[path[start:]]
                return value if shape == leaf.shape else default(leaf)
        return default(leaf)

    return jax.tree.map_with_path(value_of, opt_state)


def _direction(optim: config.OptimConfig) -> optax.GradientTransformation:
    if optim.name == "adamw":
        return _adam(optim)
    if optim.name == "lion":
        return optax.scale_by_lion(optim.beta1, optim.beta2, mu_dtype=jnp.float32)
    if optim.name == "adafactor":
        adafactor = _adafactor(optim)
        return optax.partition({"block": per_block(adafactor), "rest": adafactor}, _stacked_or_rest)
    assert optim.name == "muon", optim.name
    return optax.partition(
        {"matrix": per_block(_muon(optim)), "rest": _adam(optim)}, _matrix_or_rest
    )


def _adam(optim: config.OptimConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(optim.beta1, optim.beta2, optim.epsilon, mu_dtype=jnp.float32)


def _adafactor(optim: config.OptimConfig) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_factored_rms(
            decay_rate=_ADAFACTOR_DECAY,
            min_dim_size_to_factor=2,
            epsilon=optim.epsilon**2,
        ),
        optax.clip_by_block_rms(_ADAFACTOR_CLIP_RMS),
    )


def _muon(optim: config.OptimConfig) -> optax.GradientTransformation:
    """Muon for a tree of [fan_in, fan_out] matrices."""

    def scale(updates, params=None):
        del params
        return jax.tree.map(lambda u: _MUON_RMS * max(u.shape) ** 0.5 * u, updates)

    return optax.chain(
        optax.contrib.scale_by_muon(
            ns_steps=_MUON_STEPS,
            beta=_MUON_MOMENTUM,
            # Added to the Frobenius norm; Keel's branch gradients are small here too.
            eps=optim.epsilon,
            mu_dtype=jnp.float32,
            nesterov=True,
            weight_dimension_numbers=lambda tree: jax.tree.map(
                lambda _: optax.contrib.MuonDimensionNumbers(), tree
            ),
        ),
        optax.stateless(scale),
    )


def _stacked_or_rest(params):
    """Labels for Adafactor: stacked leaves and the rest."""
    return jax.tree.map_with_path(
        lambda path, _: "block" if path[0].key == "block" else "rest", params
    )


def _matrix_or_rest(params):
    """Labels for Muon: stacked matrices and the rest."""
    return jax.tree.map_with_path(
        lambda path, _: "matrix" if group_of(path) in ("attention", "ffn") else "rest", params
    )
