"""A trained model, loaded from its work directory, with its tokenizer and matching data."""

import dataclasses
import hashlib

import jax
from etils import epath

from keel_jax import config, errors
from keel_jax.config import options
from keel_jax.data import chat_template
from keel_jax.data import tokenizer as tokenizer_lib
from keel_jax.model import attention
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.runtime import compilation
from keel_jax.training import best, checkpoint, checkpoint_meta, inputs, manifest, trials
from keel_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class Trained:
    """The weights of a run, or of one of its trials, on a mesh."""

    workdir: epath.Path
    # The run's config, with the attention kernel resolved for `mesh`.
    cfg: config.Config
    params: dict
    # The checkpoint's metadata.
    meta: checkpoint_meta.Meta
    mesh: jax.sharding.Mesh

    def tokenizer(self) -> tokenizer_lib.Tokenizer:
        """The run's own tokenizer.

        Raises:
          UserError: the work directory's tokenizer is not the checkpoint's.
        """
        tokenizer = tokenizer_lib.Tokenizer.load(self.workdir / "tokenizer.model")
        if tokenizer.fingerprint != self.meta.tokenizer_fingerprint:
            raise errors.UserError(
                f"{self.workdir}/tokenizer.model is {tokenizer.fingerprint[:12]}, the checkpoint "
                f"was trained with {self.meta.tokenizer_fingerprint[:12]}: put that one back."
            )
        return tokenizer

    def identity(self) -> str:
        """Hexadecimal; tells these weights from others that the same directory has held."""
        manifest_path = (
            trials.holder(self.workdir) / checkpoint.DIRECTORY / str(self.meta.step) / manifest.FILE
        )
        pointer = trials.pointer(self.workdir)
        digest = hashlib.sha256(manifest_path.read_bytes() if manifest_path.exists() else b"")
        digest.update(f"{self.meta.run_id} {self.meta.step} {pointer and pointer.trial}".encode())
        return digest.hexdigest()[:32]

    def chat_template(self) -> chat_template.ChatTemplate:
        """The template of the conversations that the checkpoint has learned.

        Raises:
          UserError: it has learned none, or its metadata are damaged.
        """
        if self.meta.chat_template is None:
            raise errors.UserError(
                f"{self.workdir} was not trained on conversations, so it knows no chat template: "
                "fine-tune it on a set prepared with --chat_template, or give texts as prompts."
            )
        try:
            return chat_template.ChatTemplate.from_json(self.meta.chat_template)
        except ValueError as error:
            raise errors.UserError(
                f"The metadata of step {self.meta.step} in {self.workdir} are damaged: {error}."
            ) from error

    def open_data(self, path: str | None = None) -> inputs.Inputs:
        """The run's token shards, or those of another `path`.

        Raises:
          UserError: they were made with another tokenizer.
        """
        data = dataclasses.replace(self.cfg.data, path=path or self.cfg.data.path, weights=())
        tokens = inputs.open_inputs(data)
        if tokens.first.tokenizer_fingerprint != self.meta.tokenizer_fingerprint:
            raise errors.UserError(
                f"{tokens.first.path} was made with tokenizer "
                f"{tokens.first.tokenizer_fingerprint[:12]}, the checkpoint was trained with "
                f"{self.meta.tokenizer_fingerprint[:12]}: prepare the text with "
                f"--tokenizer={self.workdir}/tokenizer.model."
            )
        return tokens


def load(
    workdir: epath.PathLike, mesh: jax.sharding.Mesh | None = None, step: checkpoint.Step = None
) -> Trained:
    """The model of `workdir`, the directory of a run or of one of its trials.

    Args:
      mesh: where to load it; default: all local devices, independent of the training mesh.
      step: of the checkpoint.

    Raises:
      UserError: no run, no such checkpoint, or a directory of several trials.
    """
    workdir, step = find_best(epath.Path(workdir), step)
    cfg = checkpoint.load_config(workdir)
    # Not the config's directory: cached programs are code, and `workdir` may be someone else's.
    if cfg.runtime.compilation_cache_dir:
        compilation.enable_users_cache()
    else:
        compilation.enable_cache("")
    if mesh is None:
        mesh = mesh_lib.make(mesh_lib.widest(cfg.model))
    params, meta = load_params(workdir, mesh, step)
    meta.check_model(config.model_options(cfg), workdir)
    # The run's kernel may not be available on this machine.
    model = dataclasses.replace(cfg.model, attention="auto")
    cfg = attention.resolve(dataclasses.replace(cfg, model=model), mesh)
    return Trained(epath.Path(workdir), cfg, params, meta, mesh)


def load_params(
    workdir: epath.PathLike, mesh: jax.sharding.Mesh, step: checkpoint.Step = None
) -> tuple[dict, checkpoint_meta.Meta]:
    """The weights of the run, or the trial, in `workdir`, sharded over `mesh`.

    Of a run of several trials, "best" is the state of the trial with the lowest validation loss.

    Raises:
      UserError: `workdir` holds several trials, no run, or no such checkpoint.
    """
    workdir, step = find_best(epath.Path(workdir), step)
    cfg, pointer = check_source(workdir)
    holder = trials.holder(workdir)
    with checkpoint.Checkpoints(holder) as checkpoints:
        params, meta = checkpoints.restore_params(state_lib.abstract(cfg, mesh).params, step)
    meta.check_model(config.model_options(cfg), holder)
    if pointer:
        params = state_lib.trial_of(params, pointer.trial, cfg.num_trials)
    return params, meta


def check_source(workdir: epath.PathLike) -> tuple[config.Config, trials.Pointer | None]:
    """The config of the run whose checkpoints hold `workdir`'s weights, and which trial's they are.

    Raises:
      UserError: `workdir` holds several trials, no run, or no checkpoint.
    """
    pointer, holder = trials.pointer(workdir), trials.holder(workdir)
    cfg = checkpoint.load_config(holder)
    if cfg.num_trials > 1 and pointer is None:
        raise errors.UserError(
            f"{workdir} holds {cfg.num_trials} trials; name one of them: {workdir}/trials/000 …, "
            'or take the one with the lowest validation loss, step="best".'
        )
    if not checkpoint.exist(holder):
        raise errors.UserError(f"{workdir} holds no checkpoint yet.")
    if pointer and pointer.trial >= cfg.num_trials:
        raise errors.UserError(
            f"{workdir}/trial.json names trial {pointer.trial}, but the run in {holder} has trials "
            f"0 to {cfg.num_trials - 1}: put the trial's own file back."
        )
    return cfg, pointer


def find_best(workdir: epath.Path, step: checkpoint.Step) -> tuple[epath.Path, int | None]:
    """The directory and the step that "best" stands for; others are returned as they are.

    Raises:
      UserError: nothing there was validated.
    """
    if step != "best":
        return workdir, step
    pointer, holder = trials.pointer(workdir), trials.holder(workdir)
    cfg = checkpoint.load_config(holder)
    with checkpoint.Checkpoints(holder) as checkpoints:
        steps = checkpoints.steps()
    trial, step = best.choose(holder, cfg, steps, pointer.trial if pointer else None)
    return (workdir if pointer else trials.directories(holder, cfg)[trial]), step


def load_own_config(workdir: epath.PathLike, step: checkpoint.Step = None) -> config.Config:
    """The config of the run, or the trial, that `load` would load. Errors as there."""
    workdir, _ = find_best(epath.Path(workdir), step)
    return checkpoint.load_config(workdir)


def load_trial_config(workdir: epath.PathLike) -> config.Config:
    """The config in `workdir`; of a trial, compared with that of the run, if that is there.

    Only options that never change in a run's life are: a start that was killed may have written
    others to one of the two.

    Raises:
      UserError: no run, a damaged config, or that of another run's trial.
    """
    cfg = checkpoint.load_config(workdir)
    pointer, holder = trials.pointer(workdir), trials.holder(workdir)
    if pointer and (holder / checkpoint.CONFIG).exists():
        whole = checkpoint.load_config(holder)
        fields = options.fields(config.Config)
        fixed = (options.Change.MODEL, options.Change.RUN)
        if pointer.trial >= whole.num_trials or any(
            options.change_of(fields[name]) in fixed
            for name in config.differences(whole.for_trial(pointer.trial), cfg)
        ):
            raise errors.UserError(
                f"{epath.Path(workdir) / checkpoint.CONFIG} is not that of trial {pointer.trial} "
                f"of the run in {holder}: put the trial's own file back."
            )
    return cfg


def one_device() -> jax.sharding.Mesh:
    """A mesh of this process's first device."""
    return mesh_lib.make(config.MeshConfig(fsdp=1), jax.local_devices()[:1])
