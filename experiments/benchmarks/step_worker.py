"""One contender of `bench_step` in a process of its own; `bench_step` starts it.

    python -m experiments.benchmarks.step_worker CONTENDER SHAPE_JSON

Tells one JSON object a line: when it has taken its first step, and then for each line that it
reads, a number of steps, when those are taken.
"""

import functools
import json
import pathlib
import re
import sys
import time

from keel_jax.runtime import compilation, platforms

platforms.choose()

from experiments.benchmarks import step_contenders  # noqa: E402 - after the choice of platform

CONTENDERS = {
    "keel_jax": step_contenders.KeelJax,
    "keel_jax pre_ln": functools.partial(step_contenders.KeelJax, topology="pre_ln"),
    "unrolled Flax": functools.partial(step_contenders.Plain, is_unrolled=True),
    "plain scan": functools.partial(step_contenders.Plain, is_unrolled=False),
    "Llama (torch)": step_contenders.Llama,
}


def serve(name: str, shape: step_contenders.Shape, tell) -> None:
    """Builds the contender, takes its first step, then as many as each line of stdin says."""
    compilation.enable_cache("")
    memory_before = peak_bytes()
    begin, cpu_begin = time.monotonic(), time.process_time()
    contender = CONTENDERS[name](shape)
    loss = contender.step()
    tell(
        first_step_seconds=time.monotonic() - begin,
        first_step_cpu_seconds=time.process_time() - cpu_begin,
        compile_seconds=contender.compile_seconds,
        first_loss=loss,
    )
    for line in sys.stdin:
        begin, cpu_begin = time.monotonic(), time.process_time()
        for _ in range(int(line)):
            contender.step()
        tell(
            step_seconds=(time.monotonic() - begin) / int(line),
            step_cpu_seconds=(time.process_time() - cpu_begin) / int(line),
            process_bytes=peak_bytes() - memory_before,
            device_bytes=contender.device_peak_bytes(),
        )


def peak_bytes() -> int:
    """Most memory that this process has had resident, bytes.

    Not getrusage's ru_maxrss: a process begins that with its parent's, so that one started by a
    large process would seem not to grow at all.
    """
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024


def main(argv):
    def tell(**values):
        print(json.dumps(values), flush=True)

    _, name, shape = argv
    serve(name, step_contenders.Shape(**json.loads(shape)), tell)


if __name__ == "__main__":
    main(sys.argv)
