"""GPUs by name: the hosts they form, and what is refused."""

import importlib.metadata
import types

import pytest

from keel_jax.parallel import gpus, topology


@pytest.mark.parametrize(
    ("name", "count", "slices"),
    [
        ("h100:1", 1, 1),
        ("h100:8", 8, 1),
        ("a100-40gb:4x2", 8, 2),
        ("h100:8x16", 128, 16),
        # NVLink joins the 18 hosts of a rack.
        ("gb200:4x2", 8, 1),
        ("gb200:4x18", 72, 1),
        ("gb200:4x36", 144, 2),
    ],
)
def test_hosts_are_slices_unless_nvlink_joins_them(name, count, slices):
    target = topology.parse(name)
    assert target.is_gpu and not target.is_simulated
    assert (target.num_slices, target.simulated_slices) == (slices, slices)
    assert target.sizes[0] * (*target.sizes, 1)[1] == count


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100", "takes the GPUs of a host.*h100:4x2"),
        ("h100:0", "takes the GPUs of a host"),
        ("h100:8x2x2", "takes the GPUs of a host"),
        ("h100:16", "at most 8 h100, so that these 16 do not form one.*: h100:8x2."),
        ("gb200:8", "at most 4 gb200.*: gb200:4x2."),
        ("gb200:4x20", "18 hosts of gb200, and 20.*gb200:4x18 or gb200:4x36"),
        ("t4:1", "t4 is not among them: it computes no bfloat16"),
        ("h10:8", r"kinds are .*a100, a100-40gb, h100.*The nearest name is h100"),
    ],
)
def test_what_forms_no_hosts_or_is_unknown_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        topology.parse(name)


def test_hosts_are_no_option():
    with pytest.raises(ValueError, match="num_slices=2 is for TPUs.*h100:8x2"):
        topology.parse("h100:8", num_slices=2)


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not a GPU: pip install 'keel_jax\[plan-cuda\]'"):
        _ = topology.parse("h100:8").devices


def test_a_compiler_of_another_version_is_refused(monkeypatch):
    jaxlib = importlib.metadata.version("jaxlib")
    found = types.SimpleNamespace()
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: found)
    versions = {"jaxlib": jaxlib, "jax-cuda12-plugin": "0.9.9"}
    monkeypatch.setattr(topology.importlib.metadata, "version", versions.__getitem__)
    with pytest.raises(
        ValueError, match=rf"version, {jaxlib}, and 0.9.9 .*jax\[cuda12\]=={jaxlib}"
    ):
        _ = topology.parse("h100:8").devices


@pytest.mark.parametrize("kind", gpus.GPUS)
def test_a_description_says_what_the_gpu_has(kind):
    text = gpus.GPUS[kind].target_config
    assert text.count("{") == text.count("}")
    assert f"device_memory_size: {gpus.GPUS[kind].memory_bytes}" in text
    # A block can have all of a core's shared memory but 1 KiB (CUDA programming guide).
    assert f"optin: {gpus.GPUS[kind].shared_memory_bytes - 1024}" in text
