"""Replica groups in every form in which XLA writes them."""

import pytest

from keel_jax.planning import hlo_text, replica_groups


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}", [(0, 1), (2, 3)]),
        ("[2,2]<=[4]", [(0, 1), (2, 3)]),
        ("[2,2]<=[2,2]T(1,0)", [(0, 2), (1, 3)]),
        ("{}", [(0, 1, 2, 3)]),
        ("mesh['a'=2,'b'=2] {'b'}", [(0, 1), (2, 3)]),
        ("mesh['a'=2,'b'=2] {'a'}", [(0, 2), (1, 3)]),
        ("mesh['a'=4] {'a':(1)2}", [(0, 2), (1, 3)]),
        ("mesh['a'=4] {'a':(2)2}", [(0, 1), (2, 3)]),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [(0, 2), (1, 3)]),
        ("mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}", [(3, 2), (1, 0)]),
    ],
)
def test_groups_of_every_form(text, groups):
    line = f"  %a = f32[8]{{0}} all-reduce(%x), replica_groups={text}, to_apply=%add"
    assert replica_groups.parse(hlo_text.parse_instruction("a", line[7:]), 4) == groups
