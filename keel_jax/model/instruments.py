"""What a program measures or changes in the blocks, in one tree.

A field that is None adds nothing to the program. Some fields are zeros whose cotangents are
measurements: `jax.grad` with respect to an `Instruments` returns one whose fields hold them.

Dimension letters: N blocks, A stretches of the plan "reversible".
"""

import flax.struct

from keel_jax.model import intervention as intervention_lib
from keel_jax.model.arrays import Leaf


@flax.struct.dataclass
class Instruments:
    """The instruments of one program."""

    # float32 [N, 2] of zeros (`telemetry.probes`): turns on the blocks' telemetry; its cotangent is
    # the mean square of the stream's cotangent, per sub-layer.
    probes: Leaf | None = None
    # float32 [A, 2] of zeros (`reversible.probe`): its cotangent has the errors of the stretches of
    # the plan "reversible".
    reversal: Leaf | None = None
    # What an experiment changes in the sub-layers.
    intervention: intervention_lib.Intervention | None = None


NONE = Instruments()
