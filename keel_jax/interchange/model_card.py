"""README.md of an exported folder: only numbers that a command printed."""

from typing import Any

import keel_jax
from keel_jax import config, errors
from keel_jax.config import topologies
from keel_jax.interchange import hf_config
from keel_jax.model import lm, residual

_HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [keel, keel_jax, {topology}]
---

# {title}

A language model with the residual topology `{topology}`{paper}, trained with keel_jax and handed
over to transformers by keel_jax {version}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
ids = tokenizer(["def main("], return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**ids, max_new_tokens=64, do_sample=False))[0])
```

Every text begins with the end-of-text token, as every document did in training; the tokenizer puts
it there. `modeling_keel.py` is all the code that there is. `python -m keel_jax.import_hf` makes a
checkpoint of keel_jax from this folder again.

## Numbers

| | |
|---|---|
{numbers}

Printed by `python -m keel_jax.export`.

## Evaluation

{evaluation}
"""


def write(
    model: config.ModelConfig,
    origin: hf_config.Origin,
    *,
    title: str,
    dtype: str,
    metrics: dict[str, Any] | None,
    notes: tuple[str, ...],
) -> str:
    """The model card.

    Args:
      metrics: what `keel_jax.evaluate --json` wrote; None: it was not given.
      notes: paragraphs at the end.
    """
    row = topologies.row(model.topology)
    numbers = "\n".join(f"| {name} | {value} |" for name, value in facts(model, origin, dtype))
    text = _HEAD.format(
        topology=model.topology,
        paper=f" ([arXiv:{row.arxiv}](https://arxiv.org/abs/{row.arxiv}))" if row.arxiv else "",
        title=title,
        version=keel_jax.__version__,
        numbers=numbers,
        evaluation=_evaluation(metrics),
    )
    return text + "".join(f"\n{note}\n" for note in notes)


def facts(model: config.ModelConfig, origin: hf_config.Origin, dtype: str) -> list[tuple[str, str]]:
    """What the model is, as (name, number)."""
    found = [
        ("parameters", f"{lm.count_params(model):,}"),
        ("blocks N", f"{model.num_blocks}"),
        ("sub-layers L = 2N", f"{model.num_sublayers}"),
        ("width", f"{model.d_model}"),
        ("width of the FFN", f"{model.d_ffn}"),
        ("heads (of keys)", f"{model.num_heads} ({model.num_kv_heads}) x {model.head_dim}"),
        ("vocabulary", f"{model.vocab_size:,}"),
        ("window", f"{origin.seq_len:,} tokens"),
        ("step", f"{origin.step:,}"),
        ("tokens of training", f"{origin.tokens:,}"),
        ("dtype of the weights", dtype),
    ]
    if "alpha" in topologies.row(model.topology).options:
        alpha = residual.topology(model).alpha.max()
        found.insert(3, ("alpha", f"{alpha:g}"))
    return found


def check_metrics(metrics: object, step: int, path: str) -> dict[str, Any]:
    """Checks that the content of a file of metrics belongs to the exported step.

    Raises:
      UserError: it is no object of numbers, or of another step.
    """
    if not isinstance(metrics, dict) or not (flat := _numbers(metrics)):
        raise errors.UserError(
            f"--metrics={path} holds no object of numbers, as keel_jax.evaluate --json writes it."
        )
    if flat.get("step", step) != step:
        raise errors.UserError(
            f"--metrics={path} is of step {flat['step']}, and step {step} is exported: evaluate "
            f"that step, or export --step={flat['step']}."
        )
    return metrics


def _evaluation(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return "No numbers were given: none are claimed."
    rows = "\n".join(
        f"| {name} | {value:.6g} |" if isinstance(value, float) else f"| {name} | {value:,} |"
        for name, value in _numbers(metrics).items()
    )
    return f"Printed by `python -m keel_jax.evaluate --json`.\n\n| | |\n|---|---|\n{rows}"


def _numbers(values: dict[str, Any], prefix: str = "") -> dict[str, int | float]:
    """The numbers of nested objects, by their paths."""
    found = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[prefix + name] = value
    return found
