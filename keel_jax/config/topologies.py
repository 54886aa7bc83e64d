"""The one table of residual topologies, from which every list of them is derived.

A row contains what the rest of the package needs to know about a topology apart from its equation,
which is in `model/residual/` under the same name, in docs/topologies.md, and in float64 in
`tests/reference.py`.
"""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One residual topology."""

    name: str
    # Where it was published; None: it is this project's own.
    arxiv: str | None
    # Whether it carries one array from sub-layer to sub-layer by the equation of
    # `model/residual/equation.py`; otherwise it has a rule of its own.
    is_single_stream: bool = True
    # Options of ModelConfig that this topology reads and others do not.
    options: tuple[str, ...] = ()
    # Names of the parameters that its residual connections learn: optim's group `residual`.
    residual_params: tuple[str, ...] = ()
    # Names of scales that it learns instead of norms' gains: optim's group `norm`.
    scale_params: tuple[str, ...] = ()
    # Queries and keys are always normed, regardless of `qk_norm`.
    has_own_qk_norm: bool = False
    # A block whose branches output 0 leaves the stream unchanged, apart from outer norms.
    is_kept_by_zero: bool = True
    # The rows of its matrices have unit length, so that no scale of an initializer remains.
    has_unit_rows: bool = False
    # With a large alpha, fixed-point iteration inverts each sub-layer (recompute.plan=reversible).
    is_reversible: bool = False


def _keel(
    name: str,
    residual_params: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
    arxiv: str | None = "2601.19895",
) -> Row:
    return Row(
        name=name,
        arxiv=arxiv,
        options=("alpha", "keel_first_block", *options),
        residual_params=residual_params,
        is_reversible=True,
    )


def _hyper_connections(name: str, arxiv: str, residual_params: tuple[str, ...]) -> Row:
    return Row(
        name=name,
        arxiv=arxiv,
        is_single_stream=False,
        options=("hyper_streams",),
        residual_params=residual_params,
        is_kept_by_zero=False,
    )


ROWS = (
    _keel("keel", options=("learned_branch",)),
    _keel("keel_no_inner_norm"),
    _keel("keel_scaled_input", residual_params=("beta",)),
    _keel("keel_scaled_inner_norm", residual_params=("beta",)),
    _keel("keel_capped", options=("branch_cap",), arxiv=None),
    Row(name="pre_ln", arxiv="2002.04745"),
    Row(name="post_ln", arxiv="1706.03762"),
    Row(name="deepnorm", arxiv="2203.00555", options=("alpha",)),
    Row(name="hybridnorm", arxiv="2503.04598", has_own_qk_norm=True),
    Row(name="hybridnorm_star", arxiv="2503.04598", has_own_qk_norm=True),
    Row(name="mix_ln", arxiv="2412.13795", options=("mix_ln_post_fraction",)),
    Row(name="sandwich", arxiv="2105.13290"),
    Row(name="peri_ln", arxiv="2502.02732"),
    Row(name="layernorm_scaling", arxiv="2502.05795"),
    Row(name="olmo2", arxiv="2501.00656"),
    Row(name="complete_p", arxiv="2505.01618", options=("branch_scale", "learned_branch")),
    Row(name="rezero", arxiv="2003.04887", residual_params=("residual_scale",)),
    Row(name="resi_dual", arxiv="2304.14802", is_single_stream=False),
    Row(name="siamese_norm", arxiv="2602.08064", is_single_stream=False, is_kept_by_zero=False),
    _hyper_connections("static_hyper_connections", "2409.19606", ("hyper_static",)),
    _hyper_connections(
        "hyper_connections", "2409.19606", ("hyper_static", "hyper_dynamic", "hyper_scale")
    ),
    _hyper_connections("mhc", "2512.24880", ("mhc_bias", "mhc_dynamic", "mhc_scale")),
    Row(
        name="attention_residuals",
        arxiv="2603.15031",
        is_single_stream=False,
        options=("attn_res_groups",),
        residual_params=("depth_query",),
        is_kept_by_zero=False,
    ),
    Row(
        name="ngpt",
        arxiv="2410.01131",
        is_single_stream=False,
        options=("ngpt_rate",),
        residual_params=("step_size",),
        scale_params=("qk_scale", "gate_scale", "up_scale", "logit_scale"),
        has_own_qk_norm=True,
        is_kept_by_zero=False,
        has_unit_rows=True,
    ),
)
TOPOLOGIES = tuple(row.name for row in ROWS)
_BY_NAME = {row.name: row for row in ROWS}


def row(name: str) -> Row:
    """The row of a topology, one of TOPOLOGIES."""
    return _BY_NAME[name]


def names(is_wanted: Callable[[Row], bool]) -> tuple[str, ...]:
    """The topologies whose row satisfies `is_wanted`, in the table's order."""
    return tuple(row.name for row in ROWS if is_wanted(row))


def readers(option: str) -> tuple[str, ...]:
    """The topologies that read this option of ModelConfig."""
    return names(lambda row: option in row.options)


# Options of ModelConfig that some topologies read and others do not.
OPTIONS = tuple(dict.fromkeys(option for row in ROWS for option in row.options))
# The parameters of all topologies, for optim's groups.
RESIDUAL_PARAMS = frozenset(param for row in ROWS for param in row.residual_params)
SCALE_PARAMS = frozenset(param for row in ROWS for param in row.scale_params)
