"""The array type that shapes are annotated with: `Float[Array, "B T D"]`.

For pyright, `Array` is `jax.Array`, which is what functions return. Under pytest, where annotations
are checked at run time, NumPy arrays are accepted as well: `jnp` functions take them, and
parameters read from a file or tokens from a loader are NumPy arrays.
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
