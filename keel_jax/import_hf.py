"""Takes a model over from PyTorch and transformers.

    python -m keel_jax.import_hf --input=DIR --workdir=DIR [--tokenizer=FILE]

DIR is a folder of `python -m keel_jax.export`, also after training in PyTorch, or of a
LlamaForCausalLM. The work directory is not a run: `evaluate` and `generate` accept it, and a new
run starts from it with --config.train.init_from (docs/handing_over.md).
"""

from absl import flags

from keel_jax.interchange import importing
from keel_jax.runtime import cli


def main(_: list[str]) -> None:
    ancestor = importing.import_folder(_INPUT.value, _WORKDIR.value, tokenizer=_TOKENIZER.value)
    print(
        f"{ancestor['source']} ({ancestor['model_type']}), step {ancestor['step']}, "
        f"{ancestor['num_blocks']} blocks -> {_WORKDIR.value}\n"
        f"train it with the same model and --config.train.init_from={_WORKDIR.value}"
    )


if __name__ == "__main__":
    _INPUT = flags.DEFINE_string("input", None, "The folder.", required=True)
    _WORKDIR = flags.DEFINE_string("workdir", None, "New or empty directory.", required=True)
    _TOKENIZER = flags.DEFINE_string(
        "tokenizer", None, "A SentencePiece model; default: the folder's tokenizer.model."
    )
    cli.run(main)
