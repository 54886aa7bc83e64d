"""What a program measures or changes in the blocks from outside, in one piece.

A field that is None is not in the program at all. Zeros whose cotangents are measurements are
differentiated by: `jax.grad` with respect to an `Instruments` gives one whose fields hold them.

Dimension letters: N blocks, A stretches of the plan "reversible".
"""

import flax.struct

from keel_jax.model import intervention as intervention_lib
from keel_jax.model.arrays import Leaf


@flax.struct.dataclass
class Instruments:
    """The instruments of one program."""

    # float32 [N, 2] of zeros (`telemetry.probes`): the blocks' telemetry, and as its cotangent the
    # mean square of the stream's, per sub-layer.
    probes: Leaf | None = None
    # float32 [A, 2] of zeros (`reversible.probe`): its cotangent is what the stretches of the plan
    # "reversible" report.
    reversal: Leaf | None = None
    # What an experiment does to the sub-layers.
    intervention: intervention_lib.Intervention | None = None


NONE = Instruments()
