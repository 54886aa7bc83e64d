"""Where each of our parameters is in the files of transformers: names and shapes.

Our blocks are stacked, [N, D, F]; there every block has its own tensors, and a matrix is that of
`torch.nn.Linear`, [F, D].
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from keel_jax import config, errors
from keel_jax.model import layers, lm

# Their names in LlamaForCausalLM; {} is the number of the block.
_LLAMA: dict[tuple[str, ...], str] = {
    ("embedding", "table"): "model.embed_tokens.weight",
    ("output", "norm"): "model.norm.weight",
    ("output", "matrix"): "lm_head.weight",
    ("block", "attention", "inner_norm"): "model.layers.{}.input_layernorm.weight",
    ("block", "attention", "query"): "model.layers.{}.self_attn.q_proj.weight",
    ("block", "attention", "key"): "model.layers.{}.self_attn.k_proj.weight",
    ("block", "attention", "value"): "model.layers.{}.self_attn.v_proj.weight",
    ("block", "attention", "out"): "model.layers.{}.self_attn.o_proj.weight",
    ("block", "ffn", "inner_norm"): "model.layers.{}.post_attention_layernorm.weight",
    ("block", "ffn", "gate"): "model.layers.{}.mlp.gate_proj.weight",
    ("block", "ffn", "up"): "model.layers.{}.mlp.up_proj.weight",
    ("block", "ffn", "down"): "model.layers.{}.mlp.down_proj.weight",
}
_OUTSIDE: dict[tuple[str, ...], str] = {
    ("embedding", "table"): "model.embed_tokens.weight",
    ("embedding", "norm"): "model.embed_norm",
    ("output", "norm"): "model.norm",
    ("output", "matrix"): "lm_head.weight",
}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of our parameters, and its tensors there."""

    # In the tree of parameters, as ("block", "ffn", "up").
    path: tuple[str, ...]
    # Of ours.
    shape: tuple[int, ...]
    # Of the tensors there; of a parameter of the blocks one for each block.
    names: tuple[str, ...]
    is_stacked: bool
    # Whether a tensor there is the transpose of our matrix.
    is_transposed: bool

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Of each tensor there."""
        shape = self.shape[1:] if self.is_stacked else self.shape
        return shape[::-1] if self.is_transposed else shape

    def tensor(self, leaf: np.ndarray, block: int) -> np.ndarray:
        """The tensor `names[block]` of our parameter; a view."""
        ours = leaf[block] if self.is_stacked else leaf
        return ours.T if self.is_transposed else ours


def of_keel(model: config.ModelConfig) -> list[Leaf]:
    """Every parameter of the model, with its tensors in an exported folder."""
    return _leaves(model, _name_of_keel)


def of_llama(model: config.ModelConfig) -> list[Leaf]:
    """Every parameter of the model, a `pre_ln`, with its tensors in LlamaForCausalLM."""
    return _leaves(model, lambda path: _LLAMA[path])


def tree(leaves: dict[tuple[str, ...], jax.Array]) -> lm.Params:
    """The tree of parameters of its arrays by path."""
    params: lm.Params = {}
    for path, leaf in leaves.items():
        level = params
        for name in path[:-1]:
            level = level.setdefault(name, {})
        level[path[-1]] = leaf
    return params


def check_names(
    found: set[str], leaves: list[Leaf], ignored: Callable[[str], bool], folder: str
) -> None:
    """Checks that a folder has every tensor of the model, and no other.

    Args:
      ignored: whether a tensor of that name may be left out.

    Raises:
      UserError: some are missing, or belong to another model; the first are named.
    """
    wanted = {name for leaf in leaves for name in leaf.names}
    for what, names in (
        ("lacks", wanted - found),
        ("has", {name for name in found - wanted if not ignored(name)}),
    ):
        if names:
            first, more = sorted(names)[:3], len(names) - 3
            raise errors.UserError(
                f"{folder} {what} {', '.join(first)}{f' and {more} more' if more > 0 else ''}, "
                f"which its config.json {'asks for' if what == 'lacks' else 'knows nothing of'}: "
                "the files are not those of one model."
            )


def _leaves(model: config.ModelConfig, name_of: Callable) -> list[Leaf]:
    found = []
    for key_path, shape in jax.tree_util.tree_leaves_with_path(lm.shapes(model)):
        path = tuple(key.key for key in key_path)
        is_stacked = path[0] == "block"
        name = name_of(path)
        names = [name.format(block) for block in range(model.num_blocks)] if is_stacked else [name]
        is_matrix = path[-1] in layers.MATRICES or path == ("output", "matrix")
        found.append(Leaf(path, shape.shape, tuple(names), is_stacked, is_matrix))
    return found


def _name_of_keel(path: tuple[str, ...]) -> str:
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    _, module, name = path
    return f"model.layers.{{}}.{module}.{name}" + (".weight" if name in layers.MATRICES else "")
