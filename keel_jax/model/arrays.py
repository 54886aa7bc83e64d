"""The array type that shapes are annotated with: `Float[Array, "B T D"]`.

For pyright, `Array` is `jax.Array`, which is what functions return. Under pytest, where annotations
are checked at run time, NumPy arrays are accepted as well: `jnp` functions take them, and
parameters read from a file or tokens from a loader are NumPy arrays.
"""

from typing import TYPE_CHECKING

import jax
import numpy as np

if TYPE_CHECKING:
    Array = jax.Array
else:
    Array = jax.Array | np.ndarray
