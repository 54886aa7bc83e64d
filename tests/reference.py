"""The decoder in float64 NumPy, written from the papers' equations and from nothing else.

Every topology is spelled out as its own equation, block by block; nothing is shared with
`keel_jax.model`, which has one rule with constants. The weights come as the model's parameter
tree: leaves of `block` are stacked [N, ...] over blocks, heads lie head-major in the flat axis.

Letters: B batch, T query time, S key time, D model, N heads, K kv heads, H head dim, F ffn,
V vocabulary, k block (from 0).
"""

import math

import numpy as np

from keel_jax import config

# Topologies whose stream is not normalised when it leaves the last block, by their own papers.
_NO_FINAL_NORM = ("keel", "keel_no_inner_norm", "keel_scaled_input", "keel_scaled_inner_norm",
                  "post_ln", "deepnorm")


def rms_norm(x, gain, epsilon: float):
    """x / sqrt(mean(x^2) + epsilon) * gain over the last axis (arXiv:1910.07467)."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * gain


def positions(segment_ids_T):
    """Position of each token in its run of equal segment ids, counted from 0."""
    out, start = [], 0
    for t, segment in enumerate(segment_ids_T):
        if t and segment != segment_ids_T[t - 1]:
            start = t
        out.append(t - start)
    return np.array(out)


def rope(x_TH, positions_T, theta: float):
    """Rotates the pair (x[i], x[i + H/2]) by position * theta^(-2i/H) (arXiv:2104.09864).

    The halves are paired as in GPT-NeoX and Llama, not neighbours as in the RoPE paper.
    """
    half = x_TH.shape[-1] // 2
    angle = positions_T[:, None] * theta ** (-2.0 * np.arange(half) / x_TH.shape[-1])
    first, second = x_TH[:, :half], x_TH[:, half:]
    return np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle),
         second * np.cos(angle) + first * np.sin(angle)], axis=-1)


def attention(model: config.ModelConfig, w: dict, x_BTD, segment_ids_BT):
    """Causal grouped-query attention; `w` holds one block's matrices and per-head norms.

    query head n: softmax(q_n k_g^T / sqrt(H)) v_g with g = n // (heads / kv heads), over keys
    that are not later and lie in the same segment. The norms of q and k (qk_norm) and of q, k and
    v (HybridNorm, arXiv:2503.04598) come before the rotation.
    """
    H = model.head_dim
    out = np.zeros(x_BTD.shape[:2] + (model.num_heads * H,))
    hybrid = model.topology in ("hybridnorm", "hybridnorm_star")
    for b, x_TD in enumerate(x_BTD):
        place_T = positions(segment_ids_BT[b])
        same = segment_ids_BT[b][:, None] == segment_ids_BT[b][None, :]
        visible_TS = np.tril(np.ones(same.shape, bool)) & same
        for n in range(model.num_heads):
            g = n // (model.num_heads // model.num_kv_heads)
            q_TH = x_TD @ w["query"][:, n * H:(n + 1) * H]
            k_SH = x_TD @ w["key"][:, g * H:(g + 1) * H]
            v_SH = x_TD @ w["value"][:, g * H:(g + 1) * H]
            if model.qk_norm or hybrid:
                q_TH = rms_norm(q_TH, w["query_norm"], model.norm_epsilon)
                k_SH = rms_norm(k_SH, w["key_norm"], model.norm_epsilon)
            if hybrid:
                v_SH = rms_norm(v_SH, w["value_norm"], model.norm_epsilon)
            q_TH = rope(q_TH, place_T, model.rope_theta)
            k_SH = rope(k_SH, place_T, model.rope_theta)
            score_TS = np.where(visible_TS, q_TH @ k_SH.T / math.sqrt(H), -np.inf)
            weight_TS = np.exp(score_TS - score_TS.max(-1, keepdims=True))
            weight_TS /= weight_TS.sum(-1, keepdims=True)
            out[b, :, n * H:(n + 1) * H] = weight_TS @ v_SH
    return out @ w["out"]


def swiglu(w: dict, x):
    """(silu(x gate) * (x up)) down (arXiv:2002.05202)."""
    gate = x @ w["gate"]
    return (gate / (1 + np.exp(-gate)) * (x @ w["up"])) @ w["down"]


def alpha(model: config.ModelConfig) -> float:
    """The stream's weight: L = 2N for Keel and its attempts, (2N)^(1/4) for DeepNorm."""
    if model.alpha is not None:
        return model.alpha
    return (2 * model.num_blocks) ** (0.25 if model.topology == "deepnorm" else 1)


def block(model: config.ModelConfig, weights: dict, k: int, x, segment_ids_BT):
    """Block k (from 0) of `model`, its equation copied from the topology's paper."""
    w_attn = {name: leaf[k] for name, leaf in weights["attention"].items()}
    w_ffn = {name: leaf[k] for name, leaf in weights["ffn"].items()}

    def attn(h):
        return attention(model, w_attn, h, segment_ids_BT)

    def ffn(h):
        return swiglu(w_ffn, h)

    def ln(which, h):  # which: "attention.inner" and the like
        half, kind = which.split(".")
        gain = {"attention": w_attn, "ffn": w_ffn}[half][f"{kind}_norm"]
        return rms_norm(h, gain, model.norm_epsilon)

    name, N = model.topology, model.num_blocks
    L, a, v2 = 2 * N, alpha(model), model.keel_first_block == "v2"

    if name == "keel":  # arXiv:2601.19895
        if k == 0:
            x = x + attn(ln("attention.inner", x))
            x = x + ffn(ln("ffn.inner", x))
            return ln("ffn.outer", x) if v2 else x
        x = ln("attention.outer", a * x + attn(ln("attention.inner", x)))
        return ln("ffn.outer", a * x + ffn(ln("ffn.inner", x)))

    if name == "keel_no_inner_norm":  # the same paper's first attempt
        if k == 0:
            x = x + attn(x)
            x = x + ffn(x)
            return ln("ffn.outer", x) if v2 else x
        x = ln("attention.outer", a * x + attn(x))
        return ln("ffn.outer", a * x + ffn(x))

    if name == "keel_scaled_input":  # its second
        if k == 0:
            x = x + attn(w_attn["beta"] * x)
            x = x + ffn(w_ffn["beta"] * x)
            return ln("ffn.outer", x) if v2 else x
        x = ln("attention.outer", a * x + attn(w_attn["beta"] * x))
        return ln("ffn.outer", a * x + ffn(w_ffn["beta"] * x))

    if name == "keel_scaled_inner_norm":  # its third
        if k == 0:
            x = x + attn(w_attn["beta"] * ln("attention.inner", x))
            x = x + ffn(w_ffn["beta"] * ln("ffn.inner", x))
            return ln("ffn.outer", x) if v2 else x
        x = ln("attention.outer", a * x + attn(w_attn["beta"] * ln("attention.inner", x)))
        return ln("ffn.outer", a * x + ffn(w_ffn["beta"] * ln("ffn.inner", x)))

    if name == "pre_ln":
        x = x + attn(ln("attention.inner", x))
        return x + ffn(ln("ffn.inner", x))

    if name == "post_ln":
        x = ln("attention.outer", x + attn(x))
        return ln("ffn.outer", x + ffn(x))

    if name == "deepnorm":  # arXiv:2203.00555
        x = ln("attention.outer", a * x + attn(x))
        return ln("ffn.outer", a * x + ffn(x))

    if name == "hybridnorm":  # arXiv:2503.04598; Q, K and V are normed in `attention`
        y = ln("attention.outer", x + attn(x))
        return y + ffn(y)

    if name == "hybridnorm_star":
        if k == 0:
            y = x + attn(ln("attention.inner", x))
            return y + ffn(ln("ffn.inner", y))
        y = ln("attention.outer", x + attn(x))
        return y + ffn(y)

    if name == "mix_ln":  # arXiv:2412.13795
        if k < math.floor(model.mix_ln_post_fraction * N):
            x = ln("attention.outer", x + attn(x))
            return ln("ffn.outer", x + ffn(x))
        x = x + attn(ln("attention.inner", x))
        return x + ffn(ln("ffn.inner", x))

    if name in ("sandwich", "peri_ln"):  # arXiv:2105.13290, 2502.02732
        x = x + ln("attention.branch", attn(ln("attention.inner", x)))
        return x + ln("ffn.branch", ffn(ln("ffn.inner", x)))

    if name == "layernorm_scaling":  # arXiv:2502.05795, the block index from 1
        x = x + attn(ln("attention.inner", x) / math.sqrt(k + 1))
        return x + ffn(ln("ffn.inner", x) / math.sqrt(k + 1))

    if name == "olmo2":  # arXiv:2501.00656
        x = x + ln("attention.branch", attn(x))
        return x + ln("ffn.branch", ffn(x))

    if name == "complete_p":  # arXiv:2505.01618
        x = x + attn(ln("attention.inner", x)) / L
        return x + ffn(ln("ffn.inner", x)) / L

    raise ValueError(f"No equation is written here for topology {name!r}.")


def has_final_norm(model: config.ModelConfig) -> bool:
    """Whether the stream is normed before the logits."""
    if model.final_norm == "auto":
        return model.topology not in _NO_FINAL_NORM
    return model.final_norm == "on"


def streams(model: config.ModelConfig, params: dict, tokens_BT, segment_ids_BT=None) -> list:
    """The stream [B, T, D] before block 0, after block 0, and so on: N + 1 arrays."""
    params = _float64(params)
    if segment_ids_BT is None:
        segment_ids_BT = np.zeros(tokens_BT.shape, int)
    x = params["embedding"]["table"][tokens_BT]
    if model.topology == "peri_ln":
        x = rms_norm(x, params["embedding"]["norm"], model.norm_epsilon)
    out = [x]
    for k in range(model.num_blocks):
        out.append(block(model, params["block"], k, out[-1], segment_ids_BT))
    return out


def logits(model: config.ModelConfig, params: dict, tokens_BT, segment_ids_BT=None):
    """Logits [B, T, V]: the last stream, normed where the topology needs it, times W_out."""
    x = streams(model, params, tokens_BT, segment_ids_BT)[-1]
    params = _float64(params)
    if has_final_norm(model):
        x = rms_norm(x, params["output"]["norm"], model.norm_epsilon)
    matrix = params["embedding"]["table"].T if model.tie_embeddings else params["output"]["matrix"]
    return x @ matrix


def shapes(model: config.ModelConfig) -> dict:
    """The parameter tree as tuples of sizes; a stacked leaf exists if one block reads it."""
    N, D, F, V = model.num_blocks, model.d_model, model.d_ffn, model.vocab_size
    heads, kv_heads = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    attn = {"query": (N, D, heads), "key": (N, D, kv_heads), "value": (N, D, kv_heads),
            "out": (N, heads, D)}
    ffn = {"gate": (N, D, F), "up": (N, D, F), "down": (N, F, D)}

    name, v2 = model.topology, model.keel_first_block == "v2"
    num_post = math.floor(model.mix_ln_post_fraction * N)
    keel = name in ("keel", "keel_no_inner_norm", "keel_scaled_input", "keel_scaled_inner_norm")
    per_head = ()
    if name in ("hybridnorm", "hybridnorm_star"):
        per_head = ("query_norm", "key_norm", "value_norm")
    elif model.qk_norm:
        per_head = ("query_norm", "key_norm")
    attn |= dict.fromkeys(per_head, (N, model.head_dim))

    inner_both = (
        name in ("keel", "keel_scaled_inner_norm", "pre_ln", "sandwich", "peri_ln",
                 "layernorm_scaling", "complete_p", "hybridnorm_star")
        or (name == "mix_ln" and num_post < N))
    outer_attn = (
        name in ("post_ln", "deepnorm", "hybridnorm")
        or (keel and N > 1)
        or (name == "hybridnorm_star" and N > 1)
        or (name == "mix_ln" and num_post > 0))
    outer_ffn = (
        name in ("post_ln", "deepnorm")
        or (keel and (N > 1 or v2))
        or (name == "mix_ln" and num_post > 0))
    branch_both = name in ("sandwich", "peri_ln", "olmo2")
    beta_both = name in ("keel_scaled_input", "keel_scaled_inner_norm")
    for leaf, in_attn, in_ffn in (
        ("inner_norm", inner_both, inner_both),
        ("outer_norm", outer_attn, outer_ffn),
        ("branch_norm", branch_both, branch_both),
        ("beta", beta_both, beta_both),
    ):
        attn |= {leaf: (N, D)} if in_attn else {}
        ffn |= {leaf: (N, D)} if in_ffn else {}

    tree = {"embedding": {"table": (V, D)}, "block": {"attention": attn, "ffn": ffn}}
    if name == "peri_ln":
        tree["embedding"]["norm"] = (D,)
    output = {"norm": (D,)} if has_final_norm(model) else {}
    output |= {} if model.tie_embeddings else {"matrix": (D, V)}
    return tree | ({"output": output} if output else {})


def random_params(model: config.ModelConfig, seed: int) -> dict:
    """Weights that make every term count: matrices keep the size of their input, no gain is 1.

    fp32 values, so that the model and this reference start from the same numbers.
    """
    rng = np.random.default_rng(seed)

    def leaf(name, shape):
        if name == "beta" or name.endswith("norm"):
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        fan_in = 1 if name == "table" else shape[-2]
        return (rng.standard_normal(shape) / math.sqrt(fan_in)).astype(np.float32)

    def fill(tree):
        return {key: fill(value) if isinstance(value, dict) else leaf(key, value)
                for key, value in tree.items()}

    return fill(shapes(model))


def _float64(tree):
    if isinstance(tree, dict):
        return {key: _float64(value) for key, value in tree.items()}
    return np.asarray(tree, np.float64)
