"""The array type that shapes are annotated with: `Float[Array, "B T D"]`.

Functions return `jax.Array`, and so pyright reads it. Where annotations are executed, which is
under pytest, NumPy's arrays pass as well: `jnp` takes them wherever it takes its own, and
parameters read from a file or tokens of a loader are NumPy's.
"""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    Array = jax.Array
    # A field of a pytree's node. Transformations put placeholders and axes into nodes as they take
    # them apart and put them together, so its type is never executed.
    Leaf = jax.Array
else:
    Array = jax.Array | np.ndarray
    Leaf = Any
