"""The model `keel_jax` of EleutherAI's lm-evaluation-harness (the extra `eval`).

The harness finds models by their names in a registry of its own, in which the import of this module
enters ours; it has no other way for models that it does not ship (lm_eval/api/registry.py and
lm_eval/models/__init__.py of version 0.4.13). So `python -m keel_jax.lm_eval` imports this module
and hands over to the harness's command, and from Python `lm_eval.simple_evaluate(model="keel_jax")`
works after the import, or with an instance as the model.

Every answer is that of `Model.score`, `loss` or `generate`.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import lm_eval.utils as harness_utils  # pyright: ignore[reportMissingImports] - an extra
from lm_eval.api import instance, registry  # pyright: ignore[reportMissingImports]
from lm_eval.api import model as harness_model  # pyright: ignore[reportMissingImports]

from keel_jax import errors
from keel_jax.config import limits
from keel_jax.inference import model as model_lib
from keel_jax.model import sampling
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.training import checkpoint

_LOG = logging.getLogger(__name__)
# Batches after which the answers so far are handed to the harness's cache.
_BATCHES_PER_CHUNK = 16
# Other names of max_gen_toks, in the harness's order (normalize_gen_kwargs of lm_eval/models).
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@registry.register_model("keel_jax")
class KeelJax(harness_model.LM):
    """A trained model on all devices of this process."""

    def __init__(
        self,
        workdir: str | None = None,
        step: checkpoint.Step = None,
        batch_size: int | str = 1,
        max_gen_toks: int = 256,
        seed: int = 0,
        **unknown: Any,
    ):
        """Loads the model; the arguments are --model_args, and --batch_size of the command.

        Args:
          workdir: of a run, or of one of its trials.
          step: of the checkpoint, or "best"; default: the newest.
          max_gen_toks: of a task that does not say.
          seed: of sampled texts.

        Raises:
          UserError: `workdir` is missing or unusable, `batch_size` is not a number, or there are
            `unknown` arguments.
        """
        super().__init__()
        if not workdir:
            raise errors.UserError("--model_args lacks workdir=DIR, the directory of a run.")
        if unknown:
            raise errors.UserError(
                f"--model_args has {', '.join(sorted(unknown))}; this model knows workdir, step, "
                "batch_size, max_gen_toks and seed. It runs on all devices of the platform that "
                "JAX_PLATFORMS names."
            )
        if not str(batch_size).isdecimal():
            raise errors.UserError(f"batch_size={batch_size!r} must be a number.")
        limits.at_least("batch_size", int(batch_size), 1)
        self._batch_size, self._max_gen_toks = int(batch_size), max_gen_toks
        self._seed = seed
        self.model = model_lib.load(workdir, step=step, mesh=_all_devices(workdir))

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict | None = None
    ) -> "KeelJax":
        """As the harness's, but a batch_size in --model_args takes precedence over the flag.

        The command's other flags are ignored: a device is always given, "cuda:0" by default.
        """
        arguments = harness_utils.simple_parse_args_string(arg_string)
        return cls.create_from_arg_obj(arguments, additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "KeelJax":
        """As `create_from_arg_string`, of arguments that are parsed."""
        batch_size = (additional_config or {}).get("batch_size")
        given = {} if batch_size is None else {"batch_size": batch_size}
        return cls(**(given | arg_dict))

    @property
    def tokenizer_name(self) -> str:
        """By which the harness tells caches of requests apart."""
        return self.model.tokenizer.fingerprint

    def loglikelihood(
        self, requests: list[instance.Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(sum of log p in nats, whether greedy decoding writes it) of each continuation."""

        def score(pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
            scores = self.model.score(pairs, batch_size=self._batch_size)
            self._say(sum(score.num_cut for score in scores))
            return [(score.log_likelihood, score.is_greedy) for score in scores]

        return self._in_chunks("loglikelihood", [request.args for request in requests], score)

    def loglikelihood_rolling(
        self, requests: list[instance.Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Sum of log p of each whole text, in nats."""

        def losses(texts: Sequence[tuple[str]]) -> list[float]:
            found = self.model.loss([text for (text,) in texts], batch_size=self._batch_size)
            return [-loss.nats for loss in found]

        arguments = [request.args for request in requests]
        return self._in_chunks("loglikelihood_rolling", arguments, losses)

    def generate_until(
        self, requests: list[instance.Instance], disable_tqdm: bool = False
    ) -> list[str]:
        """A text after each context, up to the first of its stop strings."""
        arguments = [request.args for request in requests]
        texts: dict[int, str] = {}
        for options, members in _by_options(arguments):
            generation = _Generation(options, self._max_gen_toks)

            def write(contexts: Sequence[tuple[str, dict]], generation=generation) -> list[str]:
                written = self.model.generate_timed(
                    [context for context, _ in contexts],
                    num_tokens=generation.num_tokens,
                    how=generation.how,
                    seed=self._seed,
                    stop=generation.stop,
                    batch_size=self._batch_size,
                    cut_prompts=True,
                )
                self._say(sum(text.num_cut for text in written.texts))
                return [text.text for text in written.texts]

            # A sampled text depends on the place of its context among all of them, so that repeats
            # differ; and the harness does not read such texts from its cache.
            group = [arguments[member] for member in members]
            is_greedy = generation.how.temperature == 0
            found = self._in_chunks("generate_until", group, write, whole=not is_greedy)
            texts |= dict(zip(members, found, strict=True))
        return [texts[member] for member in range(len(requests))]

    def _in_chunks(
        self, name: str, arguments: list[tuple], answer: Callable, *, whole: bool = False
    ) -> list:
        """The answers to all requests; after each chunk, those are handed to the cache."""
        answers = []
        size = max(1, len(arguments)) if whole else self._batch_size * _BATCHES_PER_CHUNK
        # Similar lengths together, the longest first, so that most batches are of one program.
        order = range(len(arguments))
        if not whole:
            order = sorted(order, key=lambda i: -_num_characters(arguments[i]))
        for first in range(0, len(order), size):
            chunk = [arguments[i] for i in order[first : first + size]]
            found = answer(chunk)
            for request, result in zip(chunk, found, strict=True):
                self.cache_hook.add_partial(name, request, result)
            answers += found
        return [result for _, result in sorted(zip(order, answers, strict=True), key=_first)]

    def _say(self, num_cut: int) -> None:
        if num_cut:
            _LOG.warning(
                "%d tokens at the beginning of contexts did not fit into the model's %d positions "
                "and were not read.",
                num_cut,
                self.model.max_length,
            )


class _Generation:
    """How a text is written, from a request's generation options.

    Raises:
      UserError: there is an option that this model does not have.
    """

    def __init__(self, options: dict[str, Any], default_num_tokens: int):
        options = dict(options)
        until = options.pop("until", None) or []
        self.stop = [text for text in ([until] if isinstance(until, str) else until) if text]
        lengths = [options.pop(name, None) for name in _LENGTHS]
        given = [int(length) for length in lengths if length is not None]
        self.num_tokens = given[0] if given else default_num_tokens
        temperature = options.pop("temperature", None)
        do_sample = options.pop("do_sample", None)
        if do_sample is None:
            do_sample = bool(temperature)
        temperature = 1.0 if temperature is None else float(temperature)
        top_p, top_k = float(options.pop("top_p", 1.0)), int(options.pop("top_k", 0))
        self.how = sampling.Sampling(temperature=0.0)
        if do_sample:
            self.how = sampling.Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
        if options:
            raise errors.UserError(
                f"This model does not have the generation options {sorted(options)}: it has until, "
                f"{', '.join(_LENGTHS)}, do_sample, temperature, top_p and top_k."
            )


def _num_characters(arguments: tuple) -> int:
    return sum(len(argument) for argument in arguments if isinstance(argument, str))


def _first(pair: tuple) -> Any:
    return pair[0]


def _by_options(arguments: list[tuple]) -> Iterator[tuple[dict, list[int]]]:
    """(generation options, indices of the requests that have them)."""
    groups: dict[str, tuple[dict, list[int]]] = {}
    for number, (_, options) in enumerate(arguments):
        key = repr(sorted(options.items(), key=_first))
        groups.setdefault(key, (options, []))[1].append(number)
    yield from groups.values()


def _all_devices(workdir: str) -> jax.sharding.Mesh:
    """A mesh of all devices, each with as small a part of the weights as the shapes allow."""
    return mesh_lib.make(mesh_lib.widest(checkpoint.load_config(workdir).model))
