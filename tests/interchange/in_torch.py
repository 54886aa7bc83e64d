"""PyTorch and transformers, for the tests that have them; imported by those alone."""

import contextlib
import warnings

import torch
import transformers


def load(folder, **options):
    """The model of a folder, float32 unless told otherwise."""
    with _quiet():
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=True, **options
        )


def tokenizer(folder):
    with _quiet():
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def logits(model, ids, **options):
    """float32 [B, T, V]."""
    with torch.no_grad():
        return model(torch.as_tensor(ids).long(), **options).logits.float().numpy()


def gradients(model, ids) -> dict:
    """Of the loss on the ids, by parameter; None where the loss does not depend on it."""
    ids = torch.as_tensor(ids).long()
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def greedy(model, ids, num_tokens: int, **options):
    """The ids that follow, greedily; int64 [B, num_tokens]."""
    ids = torch.as_tensor(ids).long()
    with _quiet():
        out = model.generate(ids, max_new_tokens=num_tokens, do_sample=False, **options)
    return out[:, ids.shape[1] :].numpy()


def random_llama(path, **options):
    """A folder of a LlamaForCausalLM with random weights."""
    torch.manual_seed(0)
    llama_config = transformers.LlamaConfig(initializer_range=0.2, **options)
    model = transformers.LlamaForCausalLM(llama_config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
    with _quiet():
        model.save_pretrained(path, max_shard_size="30KB")
    return model.eval()


@contextlib.contextmanager
def _quiet():
    """Deprecations within these packages are theirs to mend."""
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
