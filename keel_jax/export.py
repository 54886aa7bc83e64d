"""Hands a trained model over to PyTorch and transformers.

    python -m keel_jax.export --workdir=DIR --output=DIR [--step=…] [--dtype=float32|bfloat16]

The output is loaded with AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True), and by
`python -m keel_jax.import_hf` (docs/handing_over.md).
"""

from absl import flags

from keel_jax.interchange import exporting
from keel_jax.runtime import cli


def main(_: list[str]) -> None:
    exported = _FORMATS[_FORMAT.value](
        _WORKDIR.value,
        _OUTPUT.value,
        step=_STEP.value,
        dtype=_DTYPE.value,
        metrics=_METRICS.value,
    )
    for name, number in exported.facts:
        print(f"{name}: {number}")
    for note in exported.notes:
        print(f"note: {note}")
    print(
        f"{_WORKDIR.value}, step {exported.origin.step} -> {exported.output}: "
        f"{exported.num_bytes:,} bytes of weights in {exported.num_files} files"
    )


_FORMATS = {"hf": exporting.export}


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
    _OUTPUT = flags.DEFINE_string("output", None, "New or empty directory.", required=True)
    _FORMAT = flags.DEFINE_enum("format", "hf", list(_FORMATS), "hf: for transformers.")
    _DTYPE = flags.DEFINE_enum("dtype", "float32", list(exporting.DTYPES), "Of the weights.")
    _METRICS = flags.DEFINE_string(
        "metrics", None, "What keel_jax.evaluate --json wrote, for the model card."
    )
    _STEP = cli.define_step()
    cli.run(main)
