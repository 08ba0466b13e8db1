"""What exists to be installed and downloaded: packages with their install lines, weights with sizes and licences.

Plain data and the standard library alone: `spatia doctor` reads it where torch is missing. Sizes are those of the files that are
used, in GB (1e9 bytes), as published or counted from parameters; licences as the model cards state them. A licence can change:
read the card before you rely on it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """An optional package: how it is imported, what for, and how it is installed."""

    module: str
    distribution: str
    use: str
    install: str


@dataclass(frozen=True)
class Weights:
    """Weights on the hub."""

    hub_id: str
    use: str
    size: float  # GB
    licence: str
    files: tuple[str, ...]  # without one of these the copy is not whole; a pattern may stand for several
    note: str = ""


PACKAGES: dict[str, Package] = {
    "transformers": Package(
        "transformers", "transformers", "text encoder of the 5B, Qwen3-VL, SAM 3", 'pip install "transformers>=5.0" accelerate'
    ),
    "accelerate": Package("accelerate", "accelerate", "loading and offloading large models", "pip install accelerate"),
    "ftfy": Package("ftfy", "ftfy", "cleaning prompts as Wan does, for the 5B", "pip install ftfy"),
    "torchao": Package("torchao", "torchao", "the 5B in 8 or 4 bits", "pip install torchao"),
    "kernels": Package("kernels", "kernels", "cleaner masks of SAM 3 on a GPU", "pip install kernels"),
    "mapanything": Package(
        "mapanything",
        "mapanything",
        "MapAnything: depth, poses, intrinsics",
        'pip install "mapanything @ git+https://github.com/facebookresearch/map-anything.git"',
    ),
    "keye-vl-utils": Package(
        "keye_vl_utils",
        "keye-vl-utils",
        "Keye-VL-1.5: names of moving things",
        "pip install keye-vl-utils==1.5.2 torchvision opencv-python-headless einops",
    ),
    "referdino": Package(
        "models.GroundingDINO",
        "",  # never published as a distribution: it is a checkout
        "ReferDINO: masks of named things",
        "git clone https://github.com/iSEE-Laboratory/ReferDINO, build models/GroundingDINO/ops as its README says, and give the "
        "checkout with referdino_repo=",
    ),
    "open3d": Package("open3d", "open3d", "RGB-D odometry", "pip install open3d"),
    "scikit-image": Package("skimage", "scikit-image", "SSIM in evaluation", "pip install scikit-image"),
    "lpips": Package("lpips", "lpips", "LPIPS in evaluation", "pip install lpips torchvision"),
    "romatch": Package("romatch", "romatch", "Match Accuracy in evaluation (RoMa)", "pip install romatch torchvision"),
    "stable-baselines3": Package("stable_baselines3", "stable-baselines3", "training policies", "pip install stable-baselines3"),
    "lerobot": Package("lerobot", "lerobot", "LeRobot's own classes on recorded rollouts", "pip install lerobot"),
}

WEIGHTS: dict[str, Weights] = {
    "wan22-ti2v-5b": Weights(
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        "video backbone, autoencoder and text encoder of the 5B",
        34.2,
        "Apache-2.0",
        (
            "transformer/diffusion_pytorch_model*.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
            "text_encoder/model*.safetensors",
            "tokenizer/tokenizer.json",
        ),
    ),
    "wan22-ti2v-5b-original": Weights(
        "Wan-AI/Wan2.2-TI2V-5B",
        "the same in Wan's own files",
        34.2,
        "Apache-2.0",
        ("diffusion_pytorch_model-00003-of-00003.safetensors", "Wan2.2_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"),
        "either this or the Diffusers copy",
    ),
    "spatia": Weights(
        "Jinjing713/Spatia",
        "Spatia's control blocks and LoRA",
        2.9,
        "CC-BY-SA-4.0",
        ("step-8500.safetensors", "lora_weights_10000.safetensors"),
    ),
    "mapanything": Weights(
        "facebook/map-anything",
        "geometry",
        4.9,
        "CC-BY-NC-4.0",
        ("model.safetensors", "config.json"),
        "facebook/map-anything-apache is Apache-2.0; both load DINOv2's code through torch.hub once",
    ),
    "qwen3-vl": Weights("Qwen/Qwen3-VL-4B-Instruct", "names of moving things", 8.9, "Apache-2.0", ("model*.safetensors", "tokenizer.json")),
    "keye-vl": Weights(
        "Kwai-Keye/Keye-VL-1_5-8B",
        "names of moving things (the paper's)",
        17.4,
        "Apache-2.0",
        ("model*.safetensors", "modeling_keye*.py"),
        "runs code from its repository (trust_remote_code)",
    ),
    "sam3": Weights(
        "facebook/sam3",
        "masks of named things",
        3.4,
        "SAM License",
        ("model.safetensors",),
        "gated: accept its licence, then `hf auth login`",
    ),
    "referdino": Weights("liangtm/referdino", "masks of named things (the paper's)", 1.0, "not stated", ("ryb_mevis_swinb.pth",)),
}
