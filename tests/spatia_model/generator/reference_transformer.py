"""A second, plain statement of the denoiser, written from the description alone: what `SpatiaTransformer` must equal.

One sample, one token at a time where it matters, double precision, weights under their official names, nothing shared with
the code under test. Slow on purpose.
"""

import math

import torch
import torch.nn.functional as F

TINY = {
    "dim": 36,
    "num_heads": 3,
    "ffn_dim": 40,
    "num_layers": 3,
    "vace_layers": [0, 2],
    "in_dim": 3,
    "out_dim": 4,
    "vace_in_dim": 5,
    "text_dim": 8,
    "freq_dim": 16,
    "patch_size": [1, 2, 2],
    "eps": 1e-6,
}


def random_weights(config, seed, control=True):
    """Random float32 weights under official names; everything non-zero, so that nothing can hide."""
    generator = torch.Generator().manual_seed(seed)
    dim, ffn, volume = config["dim"], config["ffn_dim"], math.prod(config["patch_size"])
    shapes = {
        "patch_embedding.weight": (dim, config["in_dim"], *config["patch_size"]),
        "text_embedding.0.weight": (dim, config["text_dim"]),
        "text_embedding.2.weight": (dim, dim),
        "time_embedding.0.weight": (dim, config["freq_dim"]),
        "time_embedding.2.weight": (dim, dim),
        "time_projection.1.weight": (6 * dim, dim),
        "head.head.weight": (config["out_dim"] * volume, dim),
    }
    scalars: dict[str, tuple[int, ...]] = {"head.modulation": (1, 2, dim)}
    prefixes = [f"blocks.{i}" for i in range(config["num_layers"])]
    if control:
        prefixes += [f"vace_blocks.{i}" for i in range(len(config["vace_layers"]))]
        shapes["vace_patch_embedding.weight"] = (dim, config["vace_in_dim"], *config["patch_size"])
        shapes["vace_blocks.0.before_proj.weight"] = (dim, dim)
    for prefix in prefixes:
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                shapes[f"{prefix}.{attention}.{part}.weight"] = (dim, dim)
            scalars[f"{prefix}.{attention}.norm_q.weight"] = scalars[f"{prefix}.{attention}.norm_k.weight"] = (dim,)
        shapes[f"{prefix}.ffn.0.weight"], shapes[f"{prefix}.ffn.2.weight"] = (ffn, dim), (dim, ffn)
        scalars[f"{prefix}.norm3.weight"], scalars[f"{prefix}.norm3.bias"] = (dim,), (dim,)
        scalars[f"{prefix}.modulation"] = (1, 6, dim)
        if prefix.startswith("vace"):
            shapes[f"{prefix}.after_proj.weight"] = (dim, dim)
    weights = {}
    for name, shape in shapes.items():
        weights[name] = torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5
        weights[name.replace("weight", "bias")] = 0.1 * torch.randn(shape[0], generator=generator)
    for name, shape in scalars.items():
        weights[name] = torch.randn(shape, generator=generator) * 0.3 + (1.0 if name.endswith("weight") else 0.0)
    return weights


def positions(frames, references, height, width):
    rows = []
    for frame in range(frames):
        for row in range(height):
            for column in range(width):
                shifted = row + height if frame < references else row
                rows.append((frame - references, shifted, column))
    return rows


def _linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _rotate(vector, position):
    """One head of one token (head_dim,) turned by its (time, row, column)."""
    size = len(vector)
    side = size // 3
    side -= side % 2
    out, start = vector.clone(), 0
    for channels, place in zip((size - 2 * side, side, side), position, strict=True):
        for pair in range(channels // 2):
            angle = place / 10000 ** (2 * pair / channels)
            a, b = vector[start + 2 * pair], vector[start + 2 * pair + 1]
            out[start + 2 * pair] = a * math.cos(angle) - b * math.sin(angle)
            out[start + 2 * pair + 1] = a * math.sin(angle) + b * math.cos(angle)
        start += channels
    return out


def _rms(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def _attention(w, name, config, x, memory, places=None):
    heads, size = config["num_heads"], config["dim"] // config["num_heads"]
    q = _rms(_linear(w, f"{name}.q", x), w[f"{name}.norm_q.weight"], config["eps"])
    k = _rms(_linear(w, f"{name}.k", memory), w[f"{name}.norm_k.weight"], config["eps"])
    v = _linear(w, f"{name}.v", memory)
    out = torch.zeros_like(x)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        qh, kh = q[:, part], k[:, part]
        if places is not None:
            qh = torch.stack([_rotate(vector, place) for vector, place in zip(qh, places, strict=True)])
            kh = torch.stack([_rotate(vector, place) for vector, place in zip(kh, places, strict=True)])
        out[:, part] = torch.softmax(qh @ kh.T / math.sqrt(size), dim=-1) @ v[:, part]
    return _linear(w, f"{name}.o", out)


def _norm(x, eps):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()


def _block(w, name, config, x, text, time, places):
    """x (N, D); time (N, 6, D) per token."""
    eps = config["eps"]
    shift1, scale1, gate1, shift2, scale2, gate2 = (w[f"{name}.modulation"] + time).unbind(1)
    hidden = _norm(x, eps) * (1 + scale1) + shift1
    x = x + gate1 * _attention(w, f"{name}.self_attn", config, hidden, hidden, places)
    hidden = _norm(x, eps) * w[f"{name}.norm3.weight"] + w[f"{name}.norm3.bias"]
    x = x + _attention(w, f"{name}.cross_attn", config, hidden, text)
    hidden = _norm(x, eps) * (1 + scale2) + shift2
    hidden = F.gelu(_linear(w, f"{name}.ffn.0", hidden), approximate="tanh")
    return x + gate2 * _linear(w, f"{name}.ffn.2", hidden)


def _patches(w, name, volume, config):
    """(C, F, H, W) -> (tokens, D), frame, row, column order."""
    _, ph, pw = config["patch_size"]
    _, frames, height, width = volume.shape
    kernel, bias = w[f"{name}.weight"][:, :, 0], w[f"{name}.bias"]
    tokens = []
    for frame in range(frames):
        for row in range(0, height, ph):
            for column in range(0, width, pw):
                patch = volume[:, frame, row : row + ph, column : column + pw]
                tokens.append((kernel * patch).sum((1, 2, 3)) + bias)
    return torch.stack(tokens)


def forward(weights, config, latents, times, context, control=None, references=0, scale=1.0):
    """One sample: latents (C, F, H, W), times (F,), context (L, text_dim), control (Cc, F - R, H, W) -> (C_out, F, H, W)."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    latents, times, context = latents.double(), times.double(), context.double()
    _, frames, height, width = latents.shape
    _, ph, pw = config["patch_size"]
    h, wide = height // ph, width // pw
    places = positions(frames, references, h, wide)
    skip = references * h * wide

    half = config["freq_dim"] // 2
    sinusoids = []
    for time in times.repeat_interleave(h * wide).tolist():
        angles = [time * 10000 ** (-i / half) for i in range(half)]
        sinusoids.append([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    hidden = F.silu(_linear(w, "time_embedding.0", torch.tensor(sinusoids, dtype=torch.float64)))
    embedded = _linear(w, "time_embedding.2", hidden)  # (N, D)
    time = _linear(w, "time_projection.1", F.silu(embedded)).unflatten(1, (6, -1))
    text = _linear(w, "text_embedding.2", F.gelu(_linear(w, "text_embedding.0", context), approximate="tanh"))

    x = _patches(w, "patch_embedding", latents, config)
    hints = []
    if control is not None:
        state = _linear(w, "vace_blocks.0.before_proj", _patches(w, "vace_patch_embedding", control.double(), config)) + x[skip:]
        for i in range(len(config["vace_layers"])):
            state = _block(w, f"vace_blocks.{i}", config, state, text, time[skip:], places[skip:])
            hints.append(_linear(w, f"vace_blocks.{i}.after_proj", state))
    for layer in range(config["num_layers"]):
        x = _block(w, f"blocks.{layer}", config, x, text, time, places)
        if control is not None and layer in config["vace_layers"]:
            x = x.clone()
            x[skip:] += scale * hints[config["vace_layers"].index(layer)]
    shift, gain = (w["head.modulation"] + embedded[:, None]).unbind(1)
    x = _linear(w, "head.head", _norm(x, config["eps"]) * (1 + gain) + shift)
    out = torch.zeros(config["out_dim"], frames, height, width, dtype=torch.float64)
    for token, values in enumerate(x):
        frame, row, column = token // (h * wide), token // wide % h, token % wide
        patch = values.view(ph, pw, config["out_dim"]).permute(2, 0, 1)
        out[:, frame, row * ph : (row + 1) * ph, column * pw : (column + 1) * pw] = patch
    return out
