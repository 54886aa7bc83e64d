"""From nothing to samples: tokenizer, shards, a Keel of 64 sub-layers, its loss curve, its text.

`make quickstart` runs `python -m experiments.quickstart --output=runs/quickstart`. Each stage is
one of the project's own commands on the embedded corpus. If it is
killed, the same command goes on; if it has finished, the same command says so.
"""

import gzip
import io
import lzma
import pathlib
import sys
import tokenize

import matplotlib
import numpy as np
from absl import flags

import keel_jax
from experiments.configs import quickstart as quickstart_config
from keel_jax import config, evaluate, prepare, train
from keel_jax.data import shards
from keel_jax.data.preparing import corpus, preparation
from keel_jax.data.preparing import options as preparation_options
from keel_jax.model import sampling
from keel_jax.runtime import best_effort, cli, exit_codes, files
from keel_jax.training import logs

# Below this fraction of the tokenizer's unigram entropy, text is predicted from its context and not
# from token frequencies alone.
LEARNED_FRACTION = 0.7
VOCAB_SIZE = 1024
# Of some 800 files: enough for a stable estimate.
VALIDATION_FRACTION = 0.05
PROMPTS = ("def ", "class ", "import ", "    def __init__(self", "# ", "if __name__")


def quickstart(output: pathlib.Path, num_steps: int | None) -> int:
    """Runs every stage under `output`; returns the exit code."""
    output.mkdir(parents=True, exist_ok=True)
    print(f"1/4  tokenizer and token shards -> {output / 'data'}")
    with prepare.progress() as on_progress:
        options = preparation_options.PreparationOptions(
            vocab_size=VOCAB_SIZE, validation_fraction=VALIDATION_FRACTION, num_workers=2
        )
        summary = preparation.prepare_token_set(
            [corpus.EMBEDDED], str(output / "data"), options, on_progress=on_progress
        )
    print(prepare.describe(summary))

    cfg = run_config(output, num_steps)
    print(
        f"2/4  a {cfg.model.topology} model of {cfg.model.num_sublayers} sub-layers for "
        f"{cfg.train.num_steps} steps -> {output / 'run'}"
    )
    code = train.train(cfg, output / "run")
    if code != exit_codes.DONE:
        return code

    print("3/4  evaluation and loss curve")
    result = measure(output)
    plot(output, result)
    print("4/4  samples")
    result |= draw_samples(output)
    files.write_checked_json(output / "result.json", result)
    return report(output, result, is_full=cfg.train.num_steps >= default_num_steps())


def default_num_steps() -> int:
    """The steps after which the default run has learned what it should."""
    return quickstart_config.get_config().train.num_steps


def run_config(output: pathlib.Path, num_steps: int | None) -> config.Config:
    """The config file's, on the prepared data, and with another number of steps if given."""
    raw = quickstart_config.get_config()
    raw.data.path = config.join_paths([str(output / "data")])
    if num_steps:
        raw.train.num_steps = num_steps
        raw.optim.warmup_steps = min(raw.optim.warmup_steps, num_steps // 3)
    return config.from_config_dict(raw)


def measure(output: pathlib.Path) -> dict:
    """The model's bits per byte on the validation split, and the numbers to compare it with."""
    evaluated = evaluate.evaluate(output / "run", visible=True)
    token_set = shards.open_set(output / "data")
    split = token_set.split("validation")
    text = _text(token_set, split).encode()
    rows = [row for row in logs.read(output / "run") if "eval/bits_per_byte" in row]
    return {
        "python": sys.version.split()[0],
        "step": evaluated["step"],
        "bits_per_byte": evaluated["bits_per_byte"],
        "unigram_bits_per_byte": split.unigram_entropy_bits_per_byte,
        "gzip_bits_per_byte": 8 * len(gzip.compress(text, 9)) / len(text),
        "lzma_bits_per_byte": 8 * len(lzma.compress(text, preset=9)) / len(text),
        "validation_bytes": len(text),
        "curve": [[row["step"], row["eval/bits_per_byte"]] for row in rows],
    }


def is_falling(curve: list[list[float]]) -> bool:
    """Whether the last validation of the run is its lowest."""
    losses = [loss for _, loss in curve]
    return len(losses) > 1 and losses[-1] == min(losses) and losses[-1] < losses[0]


def plot(output: pathlib.Path, result: dict) -> None:
    """Draws the training and validation loss in bits per byte: `loss.png`."""
    matplotlib.use("Agg")
    from matplotlib import pyplot  # the backend must be chosen first

    rows = [row for row in logs.read(output / "run") if "train/bits_per_byte" in row]
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot(
        [row["step"] for row in rows],
        [row["train/bits_per_byte"] for row in rows],
        color="0.75",
        linewidth=1,
        label="training batches",
    )
    axes.plot(*zip(*result["curve"], strict=True), color="C0", marker="o", label="validation")
    for name, style in (("unigram", "--"), ("gzip", ":"), ("lzma", "-.")):
        level = result[f"{name}_bits_per_byte"]
        axes.axhline(level, color="0.4", linestyle=style, linewidth=1, label=f"{name} {level:.2f}")
    axes.set(xlabel="optimizer steps", ylabel="bits per byte", ylim=(0, None))
    axes.set_title("Keel, 64 sub-layers, on the embedded corpus")
    axes.legend(frameon=False)
    figure.savefig(output / "loss.png", dpi=120)
    pyplot.close(figure)


def draw_samples(output: pathlib.Path) -> dict:
    """Samples, and the fraction of their lines that Python's tokenizer accepts."""
    how = sampling.Sampling(temperature=0.7, top_p=0.95)
    texts = keel_jax.load(output / "run").generate(PROMPTS, num_tokens=160, how=how)
    samples = [prompt + text for prompt, text in zip(PROMPTS, texts, strict=True)]
    lines = [line for sample in samples for line in sample.splitlines() if line.strip()]
    fraction = sum(map(is_tokenizable, lines)) / max(1, len(lines))
    return {
        "samples": samples,
        "sample_lines": len(lines),
        "tokenizable_lines_fraction": fraction,
    }


def is_tokenizable(line: str) -> bool:
    """Whether Python's tokenizer accepts the line on its own."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(line.strip() + "\n").readline))
    except (tokenize.TokenError, SyntaxError):
        return False
    return all(token.type != tokenize.ERRORTOKEN for token in tokens)


def report(output: pathlib.Path, result: dict, *, is_full: bool) -> int:
    """Prints the result; ERROR if a run of full length did not learn what it should."""
    for sample in result["samples"][:3]:
        print("-" * 72 + "\n" + sample)
    fraction = result["bits_per_byte"] / result["unigram_bits_per_byte"]
    falling = is_falling(result["curve"])
    print("-" * 72)
    print(f"validation        {result['bits_per_byte']:.3f} bits/byte after {result['step']} steps")
    print(
        f"unigram entropy   {result['unigram_bits_per_byte']:.3f} bits/byte of the same text: "
        f"the model is at {fraction:.1%} of it, {'still falling' if falling else 'not falling'}"
    )
    print(
        f"gzip -9, xz -9    {result['gzip_bits_per_byte']:.3f}, "
        f"{result['lzma_bits_per_byte']:.3f} bits/byte (for orientation)"
    )
    print(
        f"samples           {result['tokenizable_lines_fraction']:.0%} of their "
        f"{result['sample_lines']} lines can be tokenized by Python"
    )
    print(
        f"files             {output}/loss.png, result.json, run/ (tensorboard --logdir "
        f"{output}/run/tensorboard)"
    )
    learned = fraction < LEARNED_FRACTION and falling
    if is_full and not learned:
        print(
            f"error: expected less than {LEARNED_FRACTION:.0%} of the unigram entropy, and a "
            "falling loss.",
            file=sys.stderr,
        )
        return exit_codes.ERROR
    return exit_codes.DONE


def _text(token_set: shards.TokenSet, split: shards.TokenSplit) -> str:
    """The split's text, its documents joined without separators."""
    ids = split.tokens(0, split.num_tokens)
    tokenizer = token_set.tokenizer()
    documents = np.split(ids, np.flatnonzero(ids == token_set.eos_id))
    return "".join(tokenizer.decode(document[1:]) for document in documents if len(document) > 1)


def main(_: list[str]) -> int:
    """Runs the stages, unless a run of as many steps is done already; the exit code."""
    output = pathlib.Path(_OUTPUT.value)
    num_steps = _NUM_STEPS.value or default_num_steps()
    result = best_effort.read_object(output / "result.json")
    if result.get("step", 0) >= num_steps:
        print(
            f"{output} is done: {result['step']} steps. Longer: make quickstart STEPS=1000. "
            f"Again: remove {output}."
        )
        return report(output, result, is_full=num_steps >= default_num_steps())
    return quickstart(output, _NUM_STEPS.value)


if __name__ == "__main__":
    _OUTPUT = flags.DEFINE_string("output", "runs/quickstart", "Directory for everything.")
    _NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Optimizer steps.", lower_bound=4)
    cli.run(main)
