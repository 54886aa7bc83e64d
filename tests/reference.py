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

# Topologies whose stream is not normalized when it leaves the last block, by their own papers.
_NO_FINAL_NORM = (
    "keel",
    "keel_no_inner_norm",
    "keel_scaled_input",
    "keel_scaled_inner_norm",
    "keel_capped",
    "post_ln",
    "deepnorm",
    "rezero",
    "resi_dual",
    "ngpt",
)
HYPER = ("static_hyper_connections", "hyper_connections", "mhc")


def rms_norm(x, gain, epsilon: float):
    """x / sqrt(mean(x^2) + epsilon) * gain over the last axis (arXiv:1910.07467)."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * gain


def capped(f, cap: float):
    """Each vector of f, shortened to an RMS of `cap` if it is longer."""
    rms = np.sqrt(np.mean(f * f, axis=-1, keepdims=True))
    return np.where(rms > cap, f * (cap / rms), f)


def unit(x):
    """x / |x| over the last axis."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


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
        [
            first * np.cos(angle) - second * np.sin(angle),
            second * np.cos(angle) + first * np.sin(angle),
        ],
        axis=-1,
    )


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
            q_TH = x_TD @ w["query"][:, n * H : (n + 1) * H]
            k_SH = x_TD @ w["key"][:, g * H : (g + 1) * H]
            v_SH = x_TD @ w["value"][:, g * H : (g + 1) * H]
            if model.qk_norm or hybrid:
                q_TH = rms_norm(q_TH, w["query_norm"], model.norm_epsilon)
                k_SH = rms_norm(k_SH, w["key_norm"], model.norm_epsilon)
            if hybrid:
                v_SH = rms_norm(v_SH, w["value_norm"], model.norm_epsilon)
            q_TH = rope(q_TH, place_T, model.rope_theta)
            k_SH = rope(k_SH, place_T, model.rope_theta)
            scores = q_TH @ k_SH.T / math.sqrt(H)
            if model.topology == "ngpt":  # arXiv:2410.01131, eq. 15, 16 and 18
                scale_H = math.sqrt(model.d_model) * w["qk_scale"][g * H : (g + 1) * H]
                scores = (scale_H * unit(q_TH)) @ (scale_H * unit(k_SH)).T * math.sqrt(H)
            score_TS = np.where(visible_TS, scores, -np.inf)
            weight_TS = np.exp(score_TS - score_TS.max(-1, keepdims=True))
            weight_TS /= weight_TS.sum(-1, keepdims=True)
            out[b, :, n * H : (n + 1) * H] = weight_TS @ v_SH
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


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def sinkhorn(logits):
    """Of one [M, M]: exp, then columns and rows divided by their sums, 20 times (2512.24880)."""
    matrix = np.exp(logits)
    for _ in range(20):
        matrix = matrix / matrix.sum(0, keepdims=True)
        matrix = matrix / matrix.sum(1, keepdims=True)
    return matrix


def hyper_weights(model: config.ModelConfig, w: dict, H):
    """Read [M], write [M] and mix [M (to), M (from)] of one token's streams H [M, D]."""
    M, D = H.shape
    if model.topology == "mhc":  # arXiv:2512.24880, eq. 7 and 8
        flat = rms_norm(H.reshape(-1), 1.0, model.norm_epsilon)
        of_read, of_write, of_mix = w["mhc_scale"]
        dots = flat @ w["mhc_dynamic"].reshape(M * D, -1)
        read = sigmoid(of_read * dots[:M] + w["mhc_bias"][:M])
        write = 2 * sigmoid(of_write * dots[M : 2 * M] + w["mhc_bias"][M : 2 * M])
        mix = of_mix * dots[2 * M :] + w["mhc_bias"][2 * M :]
        return read, write, sinkhorn(mix.reshape(M, M))
    # arXiv:2409.19606, eq. 1 (static) and 10 to 13 (dynamic), with A_m, A_r and B in one array.
    table = w["hyper_static"]
    if model.topology == "hyper_connections":
        scale = np.array([w["hyper_scale"][0]] * (M + 1) + [w["hyper_scale"][1]])
        normed = rms_norm(H, 1.0, model.norm_epsilon)
        table = table + scale * np.tanh(normed @ w["hyper_dynamic"])
    return table[:, 0], table[:, -1], table[:, 1:-1].T


def hyper_sublayer(model: config.ModelConfig, w: dict, branch, H_BTMD):
    """H' = A H + write x branch(read . H), token by token."""
    B, T, M, D = H_BTMD.shape
    each = [[hyper_weights(model, w, H_BTMD[b, t]) for t in range(T)] for b in range(B)]
    h_BTD = np.array([[each[b][t][0] @ H_BTMD[b, t] for t in range(T)] for b in range(B)])
    f_BTD = branch(h_BTD)
    return np.array(
        [
            [each[b][t][2] @ H_BTMD[b, t] + np.outer(each[b][t][1], f_BTD[b, t]) for t in range(T)]
            for b in range(B)
        ]
    )


def depth_attention(model: config.ModelConfig, query_D, values):
    """sum_i softmax_i(query . RMSNorm(v_i)) v_i over a list of [B, T, D] (arXiv:2603.15031)."""
    values = np.stack(values)
    scores = rms_norm(values, 1.0, model.norm_epsilon) @ query_D
    weights = np.exp(scores - scores.max(0))
    return np.einsum("ibt,ibtd->btd", weights / weights.sum(0), values)


def group_size(model: config.ModelConfig) -> int:
    """Blocks whose branches attention residuals sum up."""
    return math.ceil(model.num_blocks / model.attn_res_groups)


def init_carry(model: config.ModelConfig, x):
    """What a topology carries, from the embedding: an array, a tuple, or a list of sums."""
    if model.topology in ("resi_dual", "siamese_norm"):
        return x, x
    if model.topology in HYPER:
        return np.stack([x] * model.hyper_streams, axis=2)
    if model.topology == "attention_residuals":
        return [x]
    return x


def readout(model: config.ModelConfig, params: dict, x):
    """What the final norm or the logits read."""
    output, epsilon = params.get("output", {}), model.norm_epsilon
    if model.topology == "resi_dual":
        return x[0] + rms_norm(x[1], output["dual_norm"], epsilon)
    if model.topology == "siamese_norm":
        return rms_norm(x[0], output["post_norm"], epsilon) + rms_norm(
            x[1], output["pre_norm"], epsilon
        )
    if model.topology in HYPER:
        return x.sum(2)
    if model.topology == "attention_residuals":
        return depth_attention(model, output["depth_query"], x)
    return x


def block(model: config.ModelConfig, weights: dict, k: int, x, segment_ids_BT):
    """Block k (from 0) of `model`, its equation copied from the topology's paper."""
    w_attn = {name: leaf[k] for name, leaf in weights["attention"].items()}
    w_ffn = {name: leaf[k] for name, leaf in weights["ffn"].items()}

    # Of each branch in the sum: 1, unless `learned_branch` gives it a scalar.
    weight_attn, weight_ffn = (
        w["residual_scale"] if model.learned_branch else 1.0 for w in (w_attn, w_ffn)
    )

    def attn(h):
        return weight_attn * attention(model, w_attn, h, segment_ids_BT)

    def ffn(h):
        return weight_ffn * swiglu(w_ffn, h)

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

    if name == "keel_capped":  # docs/topologies.md
        c = model.branch_cap
        if k == 0:
            x = x + capped(attn(ln("attention.inner", x)), c)
            x = x + capped(ffn(ln("ffn.inner", x)), c)
            return ln("ffn.outer", x) if v2 else x
        x = ln("attention.outer", a * x + capped(attn(ln("attention.inner", x)), c))
        return ln("ffn.outer", a * x + capped(ffn(ln("ffn.inner", x)), c))

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
        b = 1 / L if model.branch_scale is None else model.branch_scale
        x = x + b * attn(ln("attention.inner", x))
        return x + b * ffn(ln("ffn.inner", x))

    if name == "rezero":  # arXiv:2003.04887
        x = x + w_attn["residual_scale"] * attn(x)
        return x + w_ffn["residual_scale"] * ffn(x)

    if name == "resi_dual":  # arXiv:2304.14802
        post, dual = x
        for half, branch in (("attention", attn), ("ffn", ffn)):
            f = branch(post)
            post, dual = ln(f"{half}.outer", post + f), dual + f
        return post, dual

    if name == "siamese_norm":  # arXiv:2602.08064, the block index from 1
        post, pre = x
        for half, branch in (("attention", attn), ("ffn", ffn)):
            post = ln(f"{half}.post", post)
            z = branch(ln(f"{half}.inner", post + ln(f"{half}.pre", pre)))
            post, pre = post + z / math.sqrt(2 * (k + 1)), pre + z
        return post, pre

    if name == "ngpt":  # arXiv:2410.01131, eq. 10 and 11, and 20 and 21 for the FFN's scales

        def rate(w):
            return np.abs(w["step_size"] * (model.ngpt_rate / model.d_model**-0.5))

        x = unit(x + rate(w_attn) * (unit(attn(x)) - x))
        gate = x @ w_ffn["gate"] * w_ffn["gate_scale"] * math.sqrt(model.d_model)
        up = x @ w_ffn["up"] * w_ffn["up_scale"]
        f = (up * gate * sigmoid(gate)) @ w_ffn["down"]
        return unit(x + rate(w_ffn) * (unit(f) - x))

    if name in HYPER:
        x = hyper_sublayer(model, w_attn, lambda h: attn(ln("attention.inner", h)), x)
        return hyper_sublayer(model, w_ffn, lambda h: ffn(ln("ffn.inner", h)), x)

    if name == "attention_residuals":  # arXiv:2603.15031: the embedding, group sums, this group's
        h = depth_attention(model, w_attn["depth_query"], x)
        f = attn(ln("attention.inner", h))
        if k % group_size(model) == 0:
            x = [*x, f]
        else:
            x = [*x[:-1], x[-1] + f]
        h = depth_attention(model, w_ffn["depth_query"], x)
        return [*x[:-1], x[-1] + ffn(ln("ffn.inner", h))]

    raise ValueError(f"No equation is written here for topology {name!r}.")


def has_final_norm(model: config.ModelConfig) -> bool:
    """Whether the stream is normed before the logits."""
    if model.final_norm == "auto":
        return model.topology not in _NO_FINAL_NORM
    return model.final_norm == "on"


def streams(model: config.ModelConfig, params: dict, tokens_BT, segment_ids_BT=None) -> list:
    """The N + 1 carries, [B, T, D] or `init_carry`'s: before block 0, after block 0, and so on."""
    params = _float64(params)
    if segment_ids_BT is None:
        segment_ids_BT = np.zeros(tokens_BT.shape, int)
    x = params["embedding"]["table"][tokens_BT]
    if model.topology == "peri_ln":
        x = rms_norm(x, params["embedding"]["norm"], model.norm_epsilon)
    out = [init_carry(model, x)]
    for k in range(model.num_blocks):
        out.append(block(model, params["block"], k, out[-1], segment_ids_BT))
    return out


def logits(model: config.ModelConfig, params: dict, tokens_BT, segment_ids_BT=None):
    """Logits [B, T, V]: the last stream, normed where the topology needs it, times W_out."""
    x = streams(model, params, tokens_BT, segment_ids_BT)[-1]
    params = _float64(params)
    x = readout(model, params, x)
    if has_final_norm(model):
        x = rms_norm(x, params["output"]["norm"], model.norm_epsilon)
    matrix = params["embedding"]["table"].T if model.tie_embeddings else params["output"]["matrix"]
    if model.topology == "ngpt":
        matrix = matrix * math.sqrt(model.d_model) * params["output"]["logit_scale"]
    return x @ matrix


def shapes(model: config.ModelConfig) -> dict:
    """The parameter tree as tuples of sizes; a stacked leaf exists if one block reads it."""
    N, D, F, V = model.num_blocks, model.d_model, model.d_ffn, model.vocab_size
    heads, kv_heads = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    attn = {
        "query": (N, D, heads),
        "key": (N, D, kv_heads),
        "value": (N, D, kv_heads),
        "out": (N, heads, D),
    }
    ffn = {"gate": (N, D, F), "up": (N, D, F), "down": (N, F, D)}

    name, v2 = model.topology, model.keel_first_block == "v2"
    num_post = math.floor(model.mix_ln_post_fraction * N)
    keel = name in (
        "keel",
        "keel_no_inner_norm",
        "keel_scaled_input",
        "keel_scaled_inner_norm",
        "keel_capped",
    )
    per_head = ()
    if name in ("hybridnorm", "hybridnorm_star"):
        per_head = ("query_norm", "key_norm", "value_norm")
    elif model.qk_norm:
        per_head = ("query_norm", "key_norm")
    attn |= dict.fromkeys(per_head, (N, model.head_dim))

    inner_both = name in (
        "keel",
        "keel_scaled_inner_norm",
        "keel_capped",
        "pre_ln",
        "sandwich",
        "peri_ln",
        "layernorm_scaling",
        "complete_p",
        "hybridnorm_star",
        "siamese_norm",
        "attention_residuals",
        *HYPER,
    ) or (name == "mix_ln" and num_post < N)
    outer_attn = (
        name in ("post_ln", "deepnorm", "hybridnorm", "resi_dual")
        or (keel and N > 1)
        or (name == "hybridnorm_star" and N > 1)
        or (name == "mix_ln" and num_post > 0)
    )
    outer_ffn = (
        name in ("post_ln", "deepnorm", "resi_dual")
        or (keel and (N > 1 or v2))
        or (name == "mix_ln" and num_post > 0)
    )
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

    M = model.hyper_streams
    own = {
        "rezero": {"residual_scale": (N,)},
        "siamese_norm": {"post_norm": (N, D), "pre_norm": (N, D)},
        "static_hyper_connections": {"hyper_static": (N, M, M + 2)},
        "hyper_connections": {
            "hyper_static": (N, M, M + 2),
            "hyper_dynamic": (N, D, M + 2),
            "hyper_scale": (N, 2),
        },
        "mhc": {
            "mhc_bias": (N, M * M + 2 * M),
            "mhc_dynamic": (N, M, D, M * M + 2 * M),
            "mhc_scale": (N, 3),
        },
        "attention_residuals": {"depth_query": (N, D)},
    }.get(name, {})
    own |= {"residual_scale": (N,)} if model.learned_branch else {}
    attn, ffn = attn | own, ffn | own
    if name == "ngpt":
        attn |= {"step_size": (N, D), "qk_scale": (N, kv_heads)}
        ffn |= {"step_size": (N, D), "gate_scale": (N, F), "up_scale": (N, F)}
    of_output = {
        "resi_dual": ("dual_norm",),
        "siamese_norm": ("post_norm", "pre_norm"),
        "attention_residuals": ("depth_query",),
    }.get(name, ())

    tree = {"embedding": {"table": (V, D)}, "block": {"attention": attn, "ffn": ffn}}
    if name == "peri_ln":
        tree["embedding"]["norm"] = (D,)
    output = dict.fromkeys(of_output, (D,))
    output |= {"norm": (D,)} if has_final_norm(model) else {}
    output |= {"logit_scale": (V,)} if name == "ngpt" else {}
    output |= {} if model.tie_embeddings else {"matrix": (D, V)}
    return tree | ({"output": output} if output else {})


def random_params(model: config.ModelConfig, seed: int) -> dict:
    """Weights that make every term count: matrices keep the size of their input, no gain is 1.

    fp32 values, so that the model and this reference start from the same numbers.
    """
    rng = np.random.default_rng(seed)

    def leaf(name, shape):
        if name in ("beta", "residual_scale") or name.endswith("norm"):
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        if name in ("step_size", "qk_scale", "logit_scale"):
            # Around 1 / sqrt(D), of either sign where only the size counts.
            sign = np.sign(rng.standard_normal(shape)) if name == "step_size" else 1.0
            size = (4 if name == "step_size" else 1) / math.sqrt(model.d_model)
            return (size * sign * rng.uniform(0.5, 1.5, shape)).astype(np.float32)
        if name in ("gate_scale", "up_scale"):
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        if name == "depth_query":
            # Scores of a few units in dot products of D numbers of size 1.
            return (2 * rng.standard_normal(shape) / math.sqrt(shape[-1])).astype(np.float32)
        if name.startswith(("hyper", "mhc")):
            # Weights of the usual size, far from the initial ones, and moved by the token.
            around, size = {
                "hyper_static": (0.4, 0.2),
                "mhc_bias": (0.0, 1.0),
                "hyper_scale": (0.5, 0.2),
                "mhc_scale": (0.5, 0.2),
            }.get(name, (0.0, 1 / math.sqrt(model.d_model)))
            return (around + size * rng.standard_normal(shape)).astype(np.float32)
        fan_in = 1 if name == "table" else shape[-2]
        return (rng.standard_normal(shape) / math.sqrt(fan_in)).astype(np.float32)

    def fill(tree):
        return {
            key: fill(value) if isinstance(value, dict) else leaf(key, value)
            for key, value in tree.items()
        }

    return fill(shapes(model))


def _float64(tree):
    if isinstance(tree, dict):
        return {key: _float64(value) for key, value in tree.items()}
    return np.asarray(tree, np.float64)
