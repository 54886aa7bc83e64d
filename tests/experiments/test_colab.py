"""The notebook: committed without outputs, and executed from its first cell to its last."""

import json
import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / "experiments/colab.ipynb"
# Follows the notebook's own parameters: two topologies, two rates, few steps.
_TINY = """
SIZE, NUM_BLOCKS, TOPOLOGIES, PEAK_LR, SEEDS = "micro", 2, ("keel", "post_ln"), (1e-3, 1e-2), (0, 1)
OVERRIDES = {"train.num_steps": 8, "optim.warmup_steps": 2, "train.eval_num_batches": 2}
"""


def test_it_is_committed_without_outputs_and_says_where_its_parameters_are():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert sum("parameters" in cell["metadata"].get("tags", ()) for cell in code) == 1
    for cell in code:
        compile("".join(cell["source"]), "cell", "exec")


def test_it_installs_the_corpus_that_it_reads():
    """Where the tests run, the dev extra brings it."""
    text = NOTEBOOK.read_text()
    assert "ensure_embedded" in text and "{checkout}[corpus]" in text


@pytest.mark.slow
def test_it_runs_to_a_curve(tmp_path):
    # Not of every installation: the dev extra brings them.
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    [place] = [
        place
        for place, cell in enumerate(notebook.cells)
        if "parameters" in cell["metadata"].get("tags", ())
    ]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(_TINY))
    client = nbclient.NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    drawn = json.loads((tmp_path / "runs/notebook/figures/loss_against_rate.json").read_text())
    assert [line["x"] for line in drawn["lines"]] == [[1e-3, 1e-2]] * 2
    medians = [value for line in drawn["lines"] for value in line["median"]]
    assert all(3 < value < 6.5 for value in medians) and len(set(medians)) == 4
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "2 seeds" in outputs[-1]["text"] and "unigram" in outputs[-1]["text"]
