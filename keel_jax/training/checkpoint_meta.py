"""What a checkpoint says of itself: the item `meta` of `training.checkpoint`."""

import dataclasses

from etils import epath

from keel_jax import errors


@dataclasses.dataclass(frozen=True)
class Meta:
    """The metadata of a checkpoint."""

    # Optimizer steps taken.
    step: int
    # Identity of the token shards.
    data_fingerprint: str
    # Identity of the tokenizer.
    tokenizer_fingerprint: str
    # Every trial has diverged; the state is the one before the non-finite step.
    diverged: bool = False
    # `config.model_options` of the run; None in checkpoints of versions that did not record it.
    model: dict[str, object] | None = None
    # Validation loss of this state, nats per token, of several trials the lowest; None if it was
    # not validated before.
    eval_loss: float | None = None
    # Drawn when the run began, by which its log is told from another's; "" in checkpoints of
    # versions that did not record it.
    run_id: str = ""
    # `Validations.to_json` of the run up to here; None if it was not validated before.
    validations: dict[str, object] | None = None
    # Optimizer steps of each trial, of which some have ended before the run; None: all `step`.
    trial_steps: list[int] | None = None
    # `ChatTemplate.to_json` of the conversations that were learned; None if there were none.
    chat_template: dict[str, object] | None = None

    @classmethod
    def from_json(cls, values: dict) -> "Meta":
        """The inverse of `dataclasses.asdict`; fields that no longer exist are ignored.

        Raises:
          KeyError: one is missing that has always been there.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        later = {"model", "eval_loss", "run_id", "validations", "trial_steps", "chat_template"}
        wanted = names - (later - values.keys())
        return cls(**{name: values[name] for name in wanted})

    def check_model(self, model: dict[str, object], workdir: epath.PathLike) -> None:
        """Refuses weights of another function of the same arrays, as another topology is.

        Args:
          model: `config.model_options` of the config in `workdir`.

        Raises:
          UserError: they differ; both values are named.
        """
        if self.model is None or self.model == model:
            return
        names = sorted({*self.model, *model})
        lines = "; ".join(
            f"{name}: {self.model.get(name, 'its default')!r} there, "
            f"{model.get(name, 'its default')!r} in config.json"
            for name in names
            if self.model.get(name) != model.get(name)
        )
        raise errors.UserError(
            f"The checkpoint of step {self.step} in {workdir} is one of another model ({lines}): "
            "put the run's own config.json back."
        )
