"""The layout: imports go downward, every option is read, every config file is valid."""

import ast
import dataclasses
import importlib
import pathlib
import re
import statistics
import sys

import jax
import pytest

from keel_jax import config, evaluate, train
from keel_jax.config import effects, topologies
from keel_jax.model import lm, residual
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.planning import resolve
from keel_jax.training import init_from, inputs, optim, schedule
from keel_jax.training import state as state_lib
from keel_jax.training import step as step_lib
from tests import conftest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "keel_jax"
# From the floor up: a package imports itself and those before it.
PACKAGES = (
    "config", "depth_suite", "runtime", "parallel", "data", "model", "training", "planning",
    "inference", "tasks", "interchange", "entry points"
)  # fmt: skip


def _package(module: str) -> str:
    parts = module.split(".")
    if parts[1:] in ([], ["errors"]):
        return "config"  # what even the config reads: the version, and UserError
    return parts[1] if parts[1] in PACKAGES else "entry points"


def _imports(path: pathlib.Path) -> set[str]:
    """Modules of ours that a file imports, at its top or anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("keel_jax", "experiments", "launch")}


def _module(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.name))
def test_imports_go_downward(path):
    package = _package(_module(path))
    for name in _imports(path):
        assert name.startswith("keel_jax"), f"{path} imports {name}: experiments import us"
        other = _package(name)
        assert PACKAGES.index(other) <= PACKAGES.index(package), (
            f"{path} ({package}) imports {name} ({other})"
        )


def test_a_package_above_would_be_noticed():
    assert PACKAGES.index(_package("keel_jax.training.loop")) > PACKAGES.index(
        _package("keel_jax.model.lm")
    )
    assert _package("keel_jax.train") == "entry points"
    assert _package("keel_jax.config.effects") == "config"


# --- Options -------------------------------------------------------------------------------------

# Not read by name: what stands for it is.
_STAND_INS = {"train.num_tokens": "the config turns it into num_steps"}


def _sections(cls=config.Config, prefix="") -> dict[type, str]:
    """Every class of options, with the prefix of its options' names."""
    found = {cls: prefix}
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            found |= _sections(field.type, f"{prefix}{field.name}.")
    return found


_OPTIONS = {
    prefix + field.name
    for cls, prefix in _sections().items()
    for field in dataclasses.fields(cls)
    if not dataclasses.is_dataclass(field.type)
}


@pytest.fixture
def reads(monkeypatch):
    """The names of the options that the package reads from now on, a set that grows."""
    found = set()

    def install(cls, prefix):
        names = {field.name for field in dataclasses.fields(cls)}

        def read(self, name):
            if name in names and _is_a_use(sys._getframe(1)):
                found.add(prefix + name)
            return object.__getattribute__(self, name)

        monkeypatch.setattr(cls, "__getattribute__", read, raising=False)

    for cls, prefix in _sections().items():
        install(cls, prefix)
    return found


def _is_a_use(frame) -> bool:
    """Whether this frame, or who asked it for a derived number, is the package at work.

    A check, a comparison, a hash or a copy of the config by itself is none.
    """
    # Properties are called by the recorder.
    while frame.f_globals["__name__"].startswith(("keel_jax.config", __name__)):
        if frame.f_code.co_name.startswith("__"):
            return False
        frame = frame.f_back
    return frame.f_globals["__name__"].startswith("keel_jax.")


def test_reads_are_told_from_checks_and_copies(reads):
    cfg = conftest.tiny_config()
    config.differences(cfg, config.from_dict(config.to_dict(cfg)))
    hash(cfg.model)
    assert not reads
    schedule.unit_schedule(cfg.optim, 10)
    assert reads == {"optim.schedule", "optim.warmup_steps", "optim.final_lr_fraction"}


def test_every_option_is_read(reads, token_dir, cache_dir, tmp_path):
    """By a short run and its evaluation, or by the step of an optimizer, a schedule, a topology."""
    benchmarks = tmp_path / "benchmarks"
    benchmarks.mkdir()
    (benchmarks / "lambada_test.txt").write_text("one word\n")
    cfg = conftest.tiny_config(
        model=dict(num_blocks=1, vocab_size=0),
        data=dict(path=str(token_dir)),
        train=dict(num_steps=3, eval_num_batches=1),
        tasks=dict(names=("lambada",), data=str(benchmarks)),
        runtime=dict(compilation_cache_dir=cache_dir),
    )
    train.train(cfg, run := tmp_path / "run")
    evaluate.evaluate(run)
    # Weights of another run, without the run.
    begun = dict(config.to_dict(cfg), train=dict(num_steps=3, init_from=str(run)))
    begun_cfg = inputs.complete(config.from_dict(begun), tokens := inputs.open_inputs(cfg.data))
    begun_cfg = resolve.resolve(begun_cfg, mesh := mesh_lib.make(cfg.mesh))
    meta = inputs.meta(begun_cfg, tokens)
    init_from.load(begun_cfg, mesh, meta, state_lib.create(begun_cfg, mesh).params)
    names = {topologies.readers(option)[0] for option in topologies.OPTIONS} | {"keel_scaled_input"}
    variants = [dict(model=dict(topology=name)) for name in sorted(names)]
    variants += [dict(optim=dict(schedule="wsd", wsd_decay_fraction=0.5))]
    plans = dict(plan="segments"), dict(plan="reversible", anchor_blocks=2)
    variants += [dict(model=dict(recompute=plan)) for plan in plans]
    for variant in variants:
        variant_cfg = conftest.tiny_config(**variant)
        mesh = mesh_lib.make(variant_cfg.mesh)
        step_lib.jit_train_step(resolve.resolve(variant_cfg, mesh), mesh).eval_shape(
            state_lib.abstract(variant_cfg, mesh), step_lib.abstract_batch(variant_cfg, mesh)
        )
    never = _OPTIONS - reads - set(_STAND_INS)
    assert not never, f"never read: {sorted(never)}"


def _readers(decider: str, value) -> set[str]:
    """The options that the table says are read where `decider` has this value."""
    return {r.option for r in effects.READERS if r.decider == decider and r.reads(value)}


def _table(decider: str) -> set[str]:
    return {r.option for r in effects.READERS if r.decider == decider}


@pytest.mark.parametrize("name", config.OPTIMIZERS)
def test_the_table_of_readers_is_true_of_optimizers(reads, name):
    optim.make(config.OptimConfig(name=name))
    assert reads & _table("optim.name") == _readers("optim.name", name)


@pytest.mark.parametrize("name", config.SCHEDULES)
def test_the_table_of_readers_is_true_of_schedules(reads, name):
    schedule.unit_schedule(config.OptimConfig(schedule=name, warmup_steps=2), 10)
    assert reads & _table("optim.schedule") == _readers("optim.schedule", name)


@pytest.mark.parametrize("plan", ["none", "block", "segments", "reversible"])
def test_the_table_of_readers_is_true_of_plans_of_recomputation(reads, plan):
    cfg = conftest.tiny_config(model=dict(num_blocks=8, recompute=dict(plan=plan))).model
    model = lm.LanguageModel(cfg)
    params = jax.eval_shape(lambda: lm.init(model, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((1, 4), "int32")
    jax.eval_shape(lambda p, t: model.apply({"params": p}, t), params, tokens)
    decider = "model.recompute.plan"
    assert reads & _table(decider) == _readers(decider, plan)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", config.TOPOLOGIES)
def test_the_table_of_readers_is_true_of_topologies(reads, name, tied):
    cfg = conftest.tiny_config(model=dict(topology=name, tie_embeddings=tied))
    residual.topology(cfg.model)
    model = lm.LanguageModel(cfg.model)
    shapes = jax.eval_shape(lambda: lm.init(model, jax.random.key(0)))
    optim.multipliers(shapes, cfg.optim.lr_multiplier)
    optim.multipliers(shapes, cfg.optim.decay_multiplier)
    # Read everywhere: to no effect where queries and keys are normed anyway, and where matrices are
    # projected onto the sphere after they have their initial values.
    everywhere = {"model.qk_norm", "model.output_init", "model.embedding_std"}
    options = _table("model.topology") - everywhere
    assert reads & options == _readers("model.topology", name) - everywhere
    normed = bool({"query_norm", "qk_scale"} & set(shapes["block"]["attention"]))
    assert normed != ("model.qk_norm" in _readers("model.topology", name))
    options = _table("model.tie_embeddings")
    assert reads & options == _readers("model.tie_embeddings", tied)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments/configs").glob("[a-z]*.py")), ids=lambda p: p.stem
)
def test_config_files_are_valid(path):
    module = importlib.import_module(f"experiments.configs.{path.stem}")
    assert module.__doc__
    cfg = module.get_config()
    checked = config.from_config_dict(cfg)
    assert config.from_dict(config.to_dict(checked)) == checked


def test_a_row_says_whether_a_topology_has_a_rule_of_its_own():
    for row in topologies.ROWS:
        rule = residual.rule(conftest.tiny_config(model=dict(topology=row.name)).model)
        assert row.is_single_stream == (type(rule) is residual.Rule), row.name


def test_every_topology_has_a_row_in_the_docs():
    lines = (ROOT / "docs/topologies.md").read_text().splitlines()
    documented = [match[1] for line in lines if (match := re.match(r"\| `(\w+)` \|", line))]
    assert documented == list(config.TOPOLOGIES)


# --- Modules -------------------------------------------------------------------------------------

# What runs with PyTorch alone is not ours to import.
_MODULES = sorted(
    path
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "launch").rglob("*.py")]
    if "torch_files" not in path.parts
)


def test_modules_are_short():
    lengths = {path: len(path.read_text().splitlines()) for path in _MODULES}
    assert max(lengths.values()) <= 400, max(lengths, key=lengths.get)
    assert statistics.median(lengths.values()) <= 150
    # The driver is a table of contents.
    assert lengths[PACKAGE / "train.py"] <= 120


def _unannotated(tree: ast.Module) -> set[str]:
    """Public functions and methods with a parameter or, __init__ aside, a result without a type."""
    found = set()
    scopes = [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_")]
    for scope in scopes:
        for node in scope.body:
            if not isinstance(node, ast.FunctionDef):
                continue
            arguments = node.args
            parameters = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
            parameters += [p for p in (arguments.vararg, arguments.kwarg) if p]
            is_method = isinstance(scope, ast.ClassDef) and not any(
                isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list
            )
            typed = all(p.annotation for p in parameters[is_method:])
            if node.name == "__init__":
                found |= set() if typed else {f"{scope.name}.__init__"}
            elif node.name[0] != "_" and not (typed and node.returns):
                found.add(node.name)
    return found


def test_an_unannotated_function_would_be_noticed():
    code = "def f(x: int): ...\nclass A:\n  def g(self, y) -> int: ...\n  def _h(self, z): ..."
    code += "\ndef k(*a, **b: int) -> int: ..."
    assert _unannotated(ast.parse(code)) == {"f", "g", "k"}


@pytest.mark.parametrize("path", _MODULES, ids=lambda p: p.name)
def test_public_functions_are_annotated(path):
    assert not _unannotated(ast.parse(path.read_text()))


def test_every_module_is_tested_where_contributing_says():
    """By a file of its own name, or by the one in the table of CONTRIBUTING.md.

    A folder in the table, as "tasks/catalogue/", stands for all modules in it.
    """
    table = {}
    for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines():
        if match := re.match(r"\| `(tests/\S+\.py)` \| (.*) \|$", line):
            assert (ROOT / match[1]).exists(), match[1]
            table |= dict.fromkeys(re.findall("`(.*?)`", match[2]), match[1])
    elsewhere = set()
    for path in _MODULES:
        name = path.relative_to(ROOT).with_suffix("")
        name = name.relative_to("keel_jax") if name.parts[0] == "keel_jax" else name
        own = ROOT / "tests" / name.parent / f"test_{name.name}.py"
        if name.name != "__init__" and not own.exists():
            folder = f"{name.parent}/"
            elsewhere.add(folder if folder in table else str(name))
    assert elsewhere == set(table), elsewhere ^ set(table)
