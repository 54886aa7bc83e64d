"""One contender of `benchmarks.step` in a process of its own, which that benchmark starts.

    python -m experiments.benchmarks.step_worker CONTENDER SHAPE_JSON

Prints one JSON object when it has taken its first step. Each line that it then reads is a number of
steps; it takes them, and prints another JSON object.
"""

import functools
import json
import pathlib
import re
import sys
import time
from collections.abc import Callable

from keel_jax.runtime import compilation, platforms

platforms.choose()

from experiments.benchmarks import step_contenders  # noqa: E402 - after the choice of platform

CONTENDERS: dict[str, Callable[[step_contenders.Shape], step_contenders.Contender]] = {
    "keel_jax": step_contenders.KeelJax,
    "keel_jax pre_ln": functools.partial(step_contenders.KeelJax, topology="pre_ln"),
    "unrolled Flax": functools.partial(step_contenders.Plain, is_unrolled=True),
    "plain scan": functools.partial(step_contenders.Plain, is_unrolled=False),
    "Llama (torch)": step_contenders.Llama,
}


def serve(name: str, shape: step_contenders.Shape) -> None:
    """Builds the contender, takes its first step, and then as many as each line of stdin says."""
    compilation.enable_cache("")
    memory_before = peak_bytes()
    begin, cpu_begin = time.monotonic(), time.process_time()
    contender = CONTENDERS[name](shape)
    loss = contender.step()
    _print_json(
        first_step_seconds=time.monotonic() - begin,
        first_step_cpu_seconds=time.process_time() - cpu_begin,
        compile_seconds=contender.compile_seconds,
        first_loss=loss,
    )
    for line in sys.stdin:
        begin, cpu_begin = time.monotonic(), time.process_time()
        for _ in range(int(line)):
            contender.step()
        _print_json(
            step_seconds=(time.monotonic() - begin) / int(line),
            step_cpu_seconds=(time.process_time() - cpu_begin) / int(line),
            process_bytes=peak_bytes() - memory_before,
            device_bytes=contender.device_peak_bytes(),
        )


def peak_bytes() -> int:
    """The peak of this process's resident memory, bytes.

    Not getrusage's ru_maxrss, which a process inherits from its parent: a process started by a
    large one would seem not to grow at all.
    """
    status = pathlib.Path("/proc/self/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None, "Linux reports the peak of the resident memory"
    return int(match[1]) * 1024


def _print_json(**values: float | None) -> None:
    print(json.dumps(values), flush=True)


def main(argv: list[str]) -> None:
    """Serves the contender that the command line names."""
    _, name, shape = argv
    serve(name, step_contenders.Shape(**json.loads(shape)))


if __name__ == "__main__":
    main(sys.argv)
