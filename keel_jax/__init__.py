"""keel_jax: very deep language models on JAX, built around Keel (arXiv:2601.19895)."""

import typing

if typing.TYPE_CHECKING:
    import jax
    from etils import epath

    from keel_jax.inference.model import Model

__version__ = "0.1.0"


def load(
    workdir: "epath.PathLike",
    *,
    step: "int | typing.Literal['best'] | None" = None,
    mesh: "jax.sharding.Mesh | None" = None,
) -> "Model":
    """A trained model: `logits`, `score`, `loss`, `generate`, `chat`; as `inference.model.load`."""
    # Imported when it is called: JAX must not be imported before an entry point has set it up.
    from keel_jax.inference import model

    return model.load(workdir, step=step, mesh=mesh)
