"""Learning-rate schedules with peak 1, to be multiplied by the state's `peak_lr`.

The step is 0-based: it counts the updates already made, as in optax. So a linear rise over W
steps gives s/W: the first update (s = 0) has factor 0 and only fills the optimizer's moments, and
the update at s = W is the first with factor 1. Values that belong to the end of the run (a fraction
f for cosine and wsd, 1 for linear_ramp) are those at s = num_steps, one past the last update.
"""

import typing

import jax
import jax.numpy as jnp
import optax

from keel_jax import config


def unit_schedule(
    optim: config.OptimConfig, num_steps: int
) -> typing.Callable[[jax.typing.ArrayLike], jax.Array]:
    """The factor of the peak learning rate at each step of a run of S = `num_steps` steps.

    `config.Config` has checked that warm-up and decay fit into the run.

    With W = warmup_steps, f = final_lr_fraction, C = round(wsd_decay_fraction * S) and the 0-based
    step s:

      all but linear_ramp:  s / W                                                  for s < W
      cosine:       f + (1 - f) (1 + cos(pi (s - W) / (S - W))) / 2                for s >= W
      wsd:          1, then f + (1 - f) (1 - sqrt((s - (S - C)) / C))              for s >= S - C
      constant:     1                                                              for s >= W
      linear_ramp:  s / S  (no warm-up: the whole run is one. The rate of the update made at s,
                    including the last, is peak_lr * s / S.)

    After the end (s > S) the factor is that at S.

    Returns:
      A traceable function from the step (integer scalar) to the factor (fp32 scalar in [0, 1]).

    Sources: cosine, Loshchilov & Hutter (arXiv:1608.03983); wsd, Hu et al. (arXiv:2404.06395)
    with the (1 - sqrt) cooldown of Hägele et al. (arXiv:2405.18392), over the run's last fifth as
    they advise; linear_ramp, the maximum-learning-rate protocol of Keel (arXiv:2601.19895,
    Table 1).
    """
    warmup_steps, decay_steps = optim.warmup_steps, optim.decay_steps(num_steps)
    if optim.schedule == "linear_ramp":
        pieces, boundaries = [optax.linear_schedule(0.0, 1.0, num_steps)], []
    else:
        pieces, boundaries = [optax.linear_schedule(0.0, 1.0, warmup_steps)], [warmup_steps]
        if optim.schedule == "cosine":
            fall = optax.cosine_decay_schedule(1.0, decay_steps, alpha=optim.final_lr_fraction)
            pieces += [fall]
        elif optim.schedule == "wsd":
            fall = _one_minus_sqrt(decay_steps, optim.final_lr_fraction)
            pieces += [optax.constant_schedule(1.0), fall]
            boundaries += [num_steps - decay_steps]
        else:
            assert optim.schedule == "constant", optim.schedule
            pieces += [optax.constant_schedule(1.0)]
    joined = optax.join_schedules(pieces, boundaries)

    return lambda step: jnp.asarray(joined(step), jnp.float32)


def of_lengths(
    optim: config.OptimConfig, lengths: typing.Sequence[int], num_steps: jax.typing.ArrayLike
) -> typing.Callable[[jax.typing.ArrayLike], jax.Array]:
    """`unit_schedule` of `num_steps`, which may be traced and is one of `lengths`."""
    distinct = sorted(set(lengths))
    if len(distinct) == 1:
        return unit_schedule(optim, distinct[0])

    def factor(step):
        factors = [unit_schedule(optim, length)(step) for length in distinct]
        return jnp.select([num_steps == length for length in distinct], factors)

    return factor


def _one_minus_sqrt(decay_steps: int, final: float):
    def factor(step):
        # The pieces of a joined schedule are evaluated outside their range as well.
        progress = jnp.clip(step / decay_steps, 0.0, 1.0)
        return final + (1.0 - final) * (1.0 - jnp.sqrt(progress))

    return factor
