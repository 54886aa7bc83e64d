"""A training step against the alternatives to it: `python -m experiments.benchmarks.step`.

Step seconds, peak memory and compile seconds of this project's step, of the same blocks in a Python
loop in Flax, of a plain scan with recomputation, and of transformers' Llama on PyTorch
(`pip install -e .[bench]`), at several depths and one shape. Each contender is a process of its
own, so that its memory can be measured. All contenders of one depth run at once and take their
steps in turn, so that a busy machine slows all of them alike. Only the ratios mean something
elsewhere.

Each number of seconds stands beside the CPU time of all threads, which other work on the machine
changes less. Building, compiling and the first step are not taken in turn; their ratio is that of
CPU times.

A contender whose first step takes longer than --limit_seconds is stopped, reported, and left out at
greater depths: compile time is what a Python loop over blocks costs.
"""

import importlib.util
import json
import queue
import statistics
import subprocess
import sys
import threading

from absl import flags

from keel_jax import errors
from keel_jax.runtime import cli, result_file, versions

CONTENDERS = ("keel_jax", "keel_jax pre_ln", "unrolled Flax", "plain scan", "Llama (torch)")
_REFERENCE = CONTENDERS[0]
_NEEDS = {"Llama (torch)": ("torch", "transformers")}


class Worker:
    """The process of one contender (step_worker.py)."""

    def __init__(self, name: str, shape: dict):
        words = [
            sys.executable,
            "-m",
            "experiments.benchmarks.step_worker",
            name,
            json.dumps(shape),
        ]
        self.name = name
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr, "all pipes"
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._stderr = self._process.stderr
        # Its JSON objects, and None at its end.
        self._messages: queue.Queue[dict | None] = queue.Queue()
        self._errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._read_messages, daemon=True),
            threading.Thread(target=lambda: self._errors.extend(self._stderr), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read_messages(self) -> None:
        for line in self._stdout:
            if line.startswith("{"):
                self._messages.put(json.loads(line))
        self._messages.put(None)

    def next_message(self, seconds: float | None = None) -> dict | None:
        """Its next message; None if that takes longer than `seconds`.

        Raises:
          RuntimeError: it has ended; with the last lines of its stderr.
        """
        try:
            message = self._messages.get(timeout=seconds)
        except queue.Empty:
            return None
        if message is None:
            self._threads[1].join()
            raise RuntimeError(f"{self.name} ended:\n{''.join(self._errors[-20:])}")
        return message

    def take_steps(self, num_steps: int) -> dict:
        """Has it take steps, and waits for what it measured."""
        self._stdin.write(f"{num_steps}\n")
        self._stdin.flush()
        message = self.next_message()
        assert message is not None, "without a limit it waits"
        return message

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self._stdin, self._stdout, self._stderr):
            stream.close()


def measure(shape: dict, names: list[str], rounds: int, steps: int, limit: float) -> list[dict]:
    """One row a contender: its numbers, or "stopped" after `limit` seconds without a first step."""
    rows, workers = {}, []
    try:
        for name in names:
            worker = Worker(name, shape)
            workers.append(worker)
            first = worker.next_message(limit)
            rows[name] = {"contender": name, "num_blocks": shape["num_blocks"]}
            if first is None:
                rows[name]["stopped_after_seconds"] = limit
                workers.pop().stop()
            else:
                rows[name] |= first
        turns = {worker.name: [] for worker in workers}
        for _ in range(rounds):
            for worker in workers:
                turns[worker.name].append(worker.take_steps(steps))
        for name, messages in turns.items():
            for key in ("step_seconds", "step_cpu_seconds"):
                rows[name][key] = statistics.median(message[key] for message in messages)
            rows[name]["process_bytes"] = messages[-1]["process_bytes"]
            rows[name]["device_bytes"] = messages[-1]["device_bytes"]
    finally:
        for worker in workers:
            worker.stop()
    return list(rows.values())


def with_ratios(rows: list[dict]) -> list[dict]:
    """Each row with its numbers as multiples of keel_jax's, where both are known."""
    [reference] = [row for row in rows if row["contender"] == _REFERENCE]
    return [
        row
        | {
            f"{key}_ratio": row[key] / reference[key]
            for key in (
                "step_seconds",
                "step_cpu_seconds",
                "process_bytes",
                "device_bytes",
                "first_step_cpu_seconds",
            )
            if row.get(key) and reference.get(key)
        }
        for row in rows
    ]


def describe(row: dict) -> str:
    """One line of the table."""
    head = f"{row['num_blocks']:7} {row['contender']:>16}"
    if "stopped_after_seconds" in row:
        return f"{head}   no first step within {row['stopped_after_seconds']:g} s: stopped"
    compiled = row["compile_seconds"]
    memory = "device_bytes" if row["device_bytes"] else "process_bytes"

    def ratio(key: str) -> str:
        return f"{row[f'{key}_ratio']:6.2f}" if f"{key}_ratio" in row else f"{'-':>6}"

    return (
        f"{head} {row['step_seconds']:9.3f} {ratio('step_seconds')} "
        f"{row['step_cpu_seconds']:9.3f} {ratio('step_cpu_seconds')} "
        f"{row[memory] / 2**20:9.0f} {ratio(memory)} "
        f"{f'{compiled:9.1f}' if compiled is not None else '        -'} "
        f"{row['first_step_seconds']:9.1f} {row['first_step_cpu_seconds']:9.1f} "
        f"{ratio('first_step_cpu_seconds')}"
    )


def main(_: list[str]) -> None:
    """Measures what the flags say."""
    result_file.check("--json", _JSON.value)
    lacking = {
        name: [m for m in modules if not importlib.util.find_spec(m)]
        for name, modules in _NEEDS.items()
    }
    names = [name for name in CONTENDERS if not lacking.get(name)]
    for name, modules in lacking.items():
        if modules:
            print(
                f"{name} is left out: {' and '.join(modules)} not installed; "
                "pip install -e .[bench]"
            )
    print(
        f"{'blocks':>7} {'contender':>16} {'step s':>9} {'ratio':>6} {'CPU s':>9} {'ratio':>6} "
        f"{'peak MiB':>9} {'ratio':>6} "
        f"{'compile s':>9} {'first s':>9} {'CPU s':>9} {'ratio':>6}"
    )
    all_rows = []
    for num_blocks in map(int, _NUM_BLOCKS.value):
        shape = {
            "num_blocks": num_blocks,
            **{flag.name: flag.value for flag in _SHAPE},
            "compute_dtype": _COMPUTE_DTYPE.value,
        }
        rows = with_ratios(measure(shape, names, _ROUNDS.value, _STEPS.value, _LIMIT.value))
        for row in rows:
            print(describe(row), flush=True)
        all_rows += rows
        names = [row["contender"] for row in rows if "stopped_after_seconds" not in row]
        if _REFERENCE not in names:
            raise errors.UserError(
                f"{_REFERENCE} itself took no step within --limit_seconds={_LIMIT.value:g}: raise "
                "the limit, or give a smaller --num_blocks."
            )
    if _JSON.value:
        result = {"rows": all_rows, "shape": shape, **versions.describe()}
        result_file.write_json(_JSON.value, result)


if __name__ == "__main__":
    _NUM_BLOCKS = flags.DEFINE_list("num_blocks", "16,64,256", "Depths to measure.")
    _SHAPE = [
        flags.DEFINE_integer("d_model", 64, "Width."),
        flags.DEFINE_integer("d_ffn", 192, "Hidden width of the FFN."),
        flags.DEFINE_integer("num_heads", 4, "Query heads."),
        flags.DEFINE_integer("num_kv_heads", 2, "Key/value heads."),
        flags.DEFINE_integer("vocab_size", 1024, "Vocabulary."),
        flags.DEFINE_integer("batch_size", 8, "Sequences a step."),
        flags.DEFINE_integer("seq_len", 128, "Tokens a sequence."),
    ]
    _COMPUTE_DTYPE = flags.DEFINE_enum(
        "compute_dtype", "float32", ["float32", "bfloat16"], "Of matrix multiplications."
    )
    _ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each contender.", lower_bound=1)
    _STEPS = flags.DEFINE_integer("steps", 1, "Steps a turn.", lower_bound=1)
    _LIMIT = flags.DEFINE_float("limit_seconds", 240.0, "Longest wait for a first step.")
    _JSON = flags.DEFINE_string("json", None, "Also write the result to this file.")
    cli.run(main)
