"""The search: candidates that are valid, the front that is kept, and flags that lead to it."""

import ast
import dataclasses
import functools
import math

from keel_jax import config
from keel_jax.parallel import topology
from keel_jax.planning import search
from tests import conftest


def test_a_search_finds_a_front_to_paste():
    """Of meshes, micro-batches, and plans of recomputation."""
    cfg = conftest.tiny_config(
        model=dict(num_blocks=8, recompute=dict(plan="auto")), train=dict(batch_size=4)
    )
    messages: list[str] = []
    front = search.search(cfg, topology.parse("cpu:2"), 2, messages.append)
    assert len(messages) == 2 and 1 <= len(front) <= 2
    costs, sizes = [r.cost for r in front], [r.total_bytes for r in front]
    assert costs == sorted(costs) and sizes == sorted(sizes, reverse=True)
    assert all("--config.model.recompute.plan=" in one for one in messages)
    for result in front:
        again = config.default()
        again.update(config.to_dict(cfg))
        for flag in search.overrides(cfg, result.cfg):
            name, _, text = flag.removeprefix("--config.").partition("=")
            *sections, option = name.split(".")
            section = functools.reduce(lambda raw, key: raw[key], sections, again)
            kind = type(section[option])
            section[option] = ast.literal_eval(text) if kind in (bool, tuple) else kind(text)
        # The kernel follows from the mesh: no flag says it.
        planned = config.from_config_dict(again)
        model = dataclasses.replace(planned.model, attention=result.cfg.model.attention)
        assert dataclasses.replace(planned, model=model) == result.cfg


def test_candidates_are_valid_and_all_different():
    cfg = conftest.tiny_config(model=dict(num_blocks=2), train=dict(batch_size=8))
    candidates = list(search.candidate_meshes(cfg, 8, 2))
    assert len(set(candidates)) == len(candidates) > 20
    for candidate in candidates:
        sizes = candidate.mesh.ici_sizes
        assert math.prod(sizes.values()) == 4
        assert candidate.mesh.dcn_data == 2


@dataclasses.dataclass(frozen=True)
class _Compiled:
    cost: float
    total_bytes: int
    fits: bool = True


def test_the_front_drops_what_another_plan_beats():
    fast, small, beaten = _Compiled(1, 10), _Compiled(3, 2), _Compiled(2, 11)
    assert search.pareto_front([small, beaten, fast, _Compiled(0, 1, False)]) == [fast, small]
    over, further = _Compiled(1, 10, False), _Compiled(1, 12, False)
    assert search.pareto_front([further, over]) == [over]
