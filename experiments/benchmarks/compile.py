"""What depth costs the compiler: `python -m experiments.benchmarks.compile [--topology=v5e:2x2]`.

Lowers and compiles the real train step, without a cache, at several depths, for this machine's CPU
or for TPUs or GPUs that need not be present. Prints the seconds, and the number of instructions of
the compiled program. On a shared machine only the ratios between the lines of one run mean
something.
"""

import dataclasses
import time
from typing import Any

import jax
from absl import flags

from experiments.configs import tiny
from keel_jax import config
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.parallel import topology
from keel_jax.planning import resolve
from keel_jax.runtime import cli, compilation, compiler_options, result_file, versions
from keel_jax.training import step as step_lib

# On accelerators, a width that fills a TPU's matrix unit: smaller ones are padded, and compiled
# otherwise.
_TPU_WIDTHS: dict[str, Any] = dict(
    d_model=512, d_ffn=1024, num_heads=4, num_kv_heads=2, compute_dtype="bfloat16"
)


def measure(num_blocks: int, plan: config.RecomputeConfig, slice_name: str = "") -> dict:
    """Seconds to trace and lower, to compile, and the size of the step's program.

    Args:
      num_blocks: the depth, N.
      plan: what is recomputed.
      slice_name: a topology (keel_jax/parallel/topology.py), over whose devices parameters are
        split; "" is one CPU.
    """
    raw = tiny.get_config()
    raw.model.vocab_size = 1024
    cfg = config.from_config_dict(raw)
    widths = _TPU_WIDTHS if slice_name else {}
    model = dataclasses.replace(cfg.model, num_blocks=num_blocks, recompute=plan, **widths)
    cfg = dataclasses.replace(cfg, model=model)
    devices = topology.parse(slice_name).devices if slice_name else jax.devices()[:1]
    mesh = mesh_lib.make(config.MeshConfig(), devices)
    begin = time.monotonic()
    lowered = step_lib.lower_train_step(resolve.resolve(cfg, mesh), mesh)
    middle = time.monotonic()
    compiled = lowered.compile(compiler_options={**compiler_options.options(devices[0])})
    end = time.monotonic()
    text = compiled.as_text()
    assert text is not None, "an executable of CPUs, GPUs and TPUs has a text"
    return {
        "num_blocks": num_blocks,
        "num_sublayers": 2 * num_blocks,
        "lower_seconds": middle - begin,
        "compile_seconds": end - middle,
        "instructions": sum(" = " in line for line in text.splitlines()),
    }


def main(_: list[str]) -> None:
    """Measures what the flags say."""
    result_file.check("--json", _JSON.value)
    compilation.enable_cache("")
    if _TOPOLOGY.value:
        topology.parse(_TOPOLOGY.value).configure_jax()
    plan = config.RecomputeConfig(
        plan=_PLAN.value, segment_blocks=tuple(map(int, _SEGMENT_BLOCKS.value))
    )
    measure(2, plan, _TOPOLOGY.value)  # not counted: imports, and what the first use costs
    rows = []
    print(f"{'blocks':>7} {'sub-layers':>11} {'lower s':>8} {'compile s':>10} {'instructions':>13}")
    for num_blocks in map(int, _NUM_BLOCKS.value):
        row = measure(num_blocks, plan, _TOPOLOGY.value)
        rows.append(row)
        print(
            f"{row['num_blocks']:7} {row['num_sublayers']:11} {row['lower_seconds']:8.2f} "
            f"{row['compile_seconds']:10.2f} {row['instructions']:13}",
            flush=True,
        )
    if _JSON.value:
        result = {
            "rows": rows,
            "topology": _TOPOLOGY.value,
            "recompute": dataclasses.asdict(plan),
            **versions.describe(),
        }
        result_file.write_json(_JSON.value, result)


if __name__ == "__main__":
    _NUM_BLOCKS = flags.DEFINE_list("num_blocks", "16,64,256,512,1024", "Depths to measure.")
    _PLAN = flags.DEFINE_enum(
        "plan", "segments", ["none", "block", "segments"], "As in model.recompute.plan."
    )
    _SEGMENT_BLOCKS = flags.DEFINE_list(
        "segment_blocks", "0", "As in model.recompute.segment_blocks; 0: by the depth."
    )
    _TOPOLOGY = flags.DEFINE_string("topology", "", "As in v5e:2x2 or h100:8; else one CPU.")
    _JSON = flags.DEFINE_string("json", None, "Also write the result to this file.")
    cli.run(main)
