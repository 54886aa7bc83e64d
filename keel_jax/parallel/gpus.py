"""GPUs that need not exist: what the CUDA compiler has to know of each of them.

Sources: XLA's descriptions (openxla/xla, xla/backends/gpu/target_config/specs/*.txtpb), for each
GPU the file of its name; `l4`, which has none there: cores, clock, cache and bandwidth are those of
NVIDIA's L4 data sheet and Ada whitepaper, the limits of a core are those of compute capability 8.9
(CUDA programming guide, "Compute Capabilities"), the memory is what CUDA reports on one.

GPUs of a host: NVIDIA's HGX and DGX systems; GB200 NVL72 has 18 hosts of four GPUs that are all
joined by NVLink.
"""

import dataclasses
import difflib

from keel_jax import errors


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One GPU as the compiler sees it, and the hosts that it comes in."""

    # CUDA's name of the device, JAX's `device_kind`.
    device_kind: str
    compute_capability: tuple[int, int]
    # Streaming multiprocessors, and of each of them: float32 units, shared memory, threads.
    num_cores: int
    fp32_units: int
    shared_memory_bytes: int
    max_threads: int
    clock_ghz: float
    l2_bytes: int
    memory_bytes: int
    memory_bytes_per_second: int
    gpus_per_host: int = 8
    # Hosts that NVLink joins.
    linked_hosts: int = 1

    @property
    def target_config(self) -> str:
        """The GPU as the text of XLA's GpuTargetConfigProto."""
        major, minor = self.compute_capability
        # From Hopper on, instructions of this one capability are used (sm_90a).
        features = " feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024
              threads_per_warp: 32
              shared_memory_per_block: 49152
              shared_memory_per_core: {self.shared_memory_bytes}
              threads_per_core_limit: {self.max_threads}
              core_count: {self.num_cores}
              fpus_per_core: {self.fp32_units}
              block_dim_limit_x: 2147483647
              block_dim_limit_y: 65535
              block_dim_limit_z: 65535
              thread_dim_limit_x: 1024
              thread_dim_limit_y: 1024
              thread_dim_limit_z: 64
              memory_bandwidth: {self.memory_bytes_per_second}
              l2_cache_size: {self.l2_bytes}
              clock_rate_ghz: {self.clock_ghz}
              device_memory_size: {self.memory_bytes}
              shared_memory_per_block_optin: {self.shared_memory_bytes - 1024}
              cuda_compute_capability {{ major: {major} minor: {minor}{features} }}
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: {_CUDNN[0]} minor: {_CUDNN[1]} }}
            runtime_version {{ major: {_CUDA[0]} minor: {_CUDA[1]} }}
            device_description_str: "{self.device_kind}"
        """


# The libraries that are assumed to be where the program will run: cuDNN as in XLA's descriptions,
# CUDA as jax[cuda12] 0.10 installs it.
_CUDNN, _CUDA = (9, 10), (12, 9)

_A100 = Gpu(
    device_kind="NVIDIA A100-SXM4-80GB",
    compute_capability=(8, 0),
    num_cores=108,
    fp32_units=64,
    shared_memory_bytes=167936,
    max_threads=2048,
    clock_ghz=1.41,
    l2_bytes=41943040,
    memory_bytes=85100068864,
    memory_bytes_per_second=2039040000000,
)
_H100 = Gpu(
    device_kind="NVIDIA H100 80GB HBM3",
    compute_capability=(9, 0),
    num_cores=132,
    fp32_units=128,
    shared_memory_bytes=233472,
    max_threads=2048,
    clock_ghz=1.98,
    l2_bytes=52428800,
    memory_bytes=84942979072,
    memory_bytes_per_second=3352320000000,
)
_B200 = Gpu(
    device_kind="NVIDIA B200",
    compute_capability=(10, 0),
    num_cores=148,
    fp32_units=128,
    shared_memory_bytes=233472,
    max_threads=2048,
    clock_ghz=1.965,
    l2_bytes=132644864,
    memory_bytes=191514411008,
    memory_bytes_per_second=7672320000000,
)
_L4 = Gpu(
    device_kind="NVIDIA L4",
    compute_capability=(8, 9),
    num_cores=58,
    fp32_units=128,
    shared_memory_bytes=102400,
    max_threads=1536,
    clock_ghz=2.04,
    l2_bytes=50331648,
    memory_bytes=23583784960,
    memory_bytes_per_second=300000000000,
)
# By the topology's kind.
GPUS = {
    "a100": _A100,
    "a100-40gb": dataclasses.replace(
        _A100,
        device_kind="NVIDIA A100-SXM4-40GB",
        memory_bytes=42331013120,
        memory_bytes_per_second=1555200000000,
    ),
    "h100": _H100,
    "h200": dataclasses.replace(
        _H100,
        device_kind="NVIDIA H200",
        memory_bytes=151397597184,
        memory_bytes_per_second=4800000000000,
    ),
    "b200": _B200,
    "gb200": dataclasses.replace(
        _B200,
        device_kind="NVIDIA GB200",
        num_cores=152,
        clock_ghz=2.062,
        l2_bytes=135528448,
        memory_bytes=197897748480,
        memory_bytes_per_second=7928064000000,
        gpus_per_host=4,
        linked_hosts=18,
    ),
    "l4": _L4,
}
# Kinds that are known and cannot be had, and why.
REFUSED = {
    "t4": "it computes no bfloat16, in which all kernels for GPUs here compute",
    "v100": "it computes no bfloat16, in which all kernels for GPUs here compute",
}


def num_domains(kind: str, name: str, sizes: tuple[int, ...]) -> int:
    """The sets of GPUs that NVLink joins, in the topology `name`.

    JAX takes every host, and on GB200 NVL72 every rack, for a slice (xla/pjrt/distributed/
    topology_util.cc).

    Args:
      kind: one of `GPUS`.
      sizes: (GPUs of a host) or (GPUs of a host, hosts).

    Raises:
      UserError: the sizes do not form hosts, or hosts do not form racks.
    """
    gpu = GPUS[kind]
    num_gpus, num_hosts = (*sizes, 1)[:2]
    if num_gpus > gpu.gpus_per_host:
        hosts = -(-num_gpus // gpu.gpus_per_host)
        raise errors.UserError(
            f"No topology {name!r}: a host has at most {gpu.gpus_per_host} {kind}, so that these "
            f"{num_gpus} do not form one. GPUs of a host come first, then hosts: "
            f"{kind}:{gpu.gpus_per_host}x{hosts * (*sizes, 1)[1]}."
        )
    if num_hosts <= gpu.linked_hosts:
        return 1
    racks, rest = divmod(num_hosts, gpu.linked_hosts)
    if rest:
        raise errors.UserError(
            f"No topology {name!r}: NVLink joins {gpu.linked_hosts} hosts of {kind}, and "
            f"{num_hosts} are no multiple of that: {kind}:{num_gpus}x{racks * gpu.linked_hosts} "
            f"or {kind}:{num_gpus}x{(racks + 1) * gpu.linked_hosts}."
        )
    return racks


def refusal(kind: str) -> str:
    """Why there is no topology of this kind, and the kind whose name is nearest."""
    reason = REFUSED.get(kind)
    near = difflib.get_close_matches(kind, GPUS, n=1)
    return (f" {kind} is not among them: {reason}." if reason else "") + (
        f" The nearest name is {near[0]}." if near and not reason else ""
    )
