"""lm-evaluation-harness with this project's models: `python -m keel_jax.lm_eval --model=keel_jax`.

    python -m keel_jax.lm_eval --model keel_jax --model_args workdir=runs/tiny --batch_size 16 \
        --tasks my_task --include_path DIR

It enters the model `keel_jax` in the harness's registry and hands over to its command `lm_eval`:
all other options are the harness's own.
"""

import importlib
import sys

from keel_jax import errors
from keel_jax.runtime import cli, exit_codes, platforms


def main() -> int:
    """Runs the harness's command; returns the exit code."""
    try:
        try:
            command = importlib.import_module("lm_eval.__main__")
        except ModuleNotFoundError as error:
            raise errors.UserError(
                f"lm-evaluation-harness is not installed ({error}): pip install 'keel_jax[eval]'."
            ) from error
        platforms.choose()
        importlib.import_module("keel_jax.inference.harness")
        command.cli_evaluate()
    except (ValueError, OSError, errors.CorruptionError) as error:
        cli.print_error(error)
        return cli.exit_code(error)
    return exit_codes.DONE


if __name__ == "__main__":
    sys.exit(main())
