"""One HTML page of all results: `python -m experiments.report --out=DIR`.

It begins with what the paper claims and what the results say of that (claims.toml). It reads the
committed results, experiments/NAME/results/PRESET, and directories of one's own, given as
--results; these take the place of committed ones of the same experiment and preset. The page needs
no other file, as its figures are embedded. What has not been run is listed at its end.
"""

import pathlib

from absl import flags

from experiments import claims, registry, report_page, result_sets
from keel_jax.runtime import cli, files

FILE = "report.html"


def main(_: list[str]) -> None:
    """Writes the page that the flags ask for."""
    gathered = result_sets.gather([pathlib.Path(path) for path in _RESULTS.value])
    out = files.make_writable_directory(_OUT.value)
    presets = {name: registry.load(name).presets for name in registry.MODULES}
    page = report_page.page(gathered, presets, claims.load())
    files.write_bytes(out / FILE, page.encode())
    print(f"{out / FILE}: {len(gathered)} results")


if __name__ == "__main__":
    _OUT = flags.DEFINE_string("out", None, f"Directory for {FILE}.", required=True)
    _RESULTS = flags.DEFINE_list(
        "results", [], "Directories with results of one's own, beside the committed ones."
    )
    cli.run(main)
