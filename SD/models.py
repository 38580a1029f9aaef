"""Stable Diffusion pipelines: encoding, and building a tiny one that trains on a CPU. pipelines.py opens them, saving.py saves them.

A pipeline is diffusers' StableDiffusionPipeline: text encoder, autoencoder (VAE) and U-Net. Only the U-Net ever changes.
"""

import contextlib
import hashlib
import json
import tempfile
import warnings
from pathlib import Path

import torch

import data
from cli import RunError, number

NULL = ""  # the empty prompt: no condition, for guidance
TIMESTEPS = 1000
# The noise schedule of Stable Diffusion
NOISE = dict(num_train_timesteps=TIMESTEPS, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
NOISE |= dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
sampling_steps = number(int, lambda value: 0 < value < TIMESTEPS, f"from 1 to {TIMESTEPS - 1}")  # argparse types
image_count = number(int, lambda value: 0 < value <= 10**6, "from 1 to 1,000,000")
image_edge = number(int, lambda value: 4 <= value <= 8192, "from 4 to 8,192 px")
KEYS_AND_VALUES = ("attn2.to_k.weight", "attn2.to_v.weight")  # what reads the prompt
TRAIN_METHODS = {  # which weights of the U-Net may change: the first four are ESD's, as in its authors' train-esd.py (full, x, u, self)
    "full": lambda name: True,
    "xattn": lambda name: ".attn2." in name,
    "noxattn": lambda name: ".attn2." not in name and not name.startswith(("time_embedding.", "conv_norm_out.", "conv_out.")),
    "selfattn": lambda name: ".attn1." in name,
    "xattn_kv": lambda name: name.endswith(KEYS_AND_VALUES),
}
UNETS = {  # the U-Nets that train.py --from_scratch builds: widths of the levels, widths of the autoencoder's levels
    "tiny": dict(widths=(32, 64), vae=(16, 32), text=64, layers=1, image_size=16),  # latents of 8x8
    "small": dict(widths=(32, 64, 64), vae=(16, 32, 32), text=64, layers=1, image_size=64),  # latents of 16x16
}


# ---------------------------------------------------------------------------------------------------------- from scratch
def build_tokenizer(captions, length=12):
    """A CLIPTokenizer with one token for each word of the captions; other words are spelled in letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    # The last letters of words, named beforehand: numbered as they are met they would differ from run to run, and ties with them
    last = [letter + "</w>" for letter in letters]
    options = {"vocab_size": 100_000, "min_frequency": 0, "end_of_word_suffix": "</w>", "show_progress": False}
    trainer = trainers.BpeTrainer(**options, initial_alphabet=letters, special_tokens=last)
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in json.loads(learner.to_str())["model"]["merges"]]
    pieces = [*letters, *last, *(a + b for a, b in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary))
        (Path(folder) / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]))
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": length}))
        return CLIPTokenizer.from_pretrained(folder, model_max_length=length, pad_token="<|endoftext|>")


def build_text_encoder(tokenizer, width):
    """A random CLIPTextModel of two layers, never trained. Embeddings of unit scale: at CLIP's own scale of initial values a small
    U-Net learns to draw and ignores the prompt."""
    from transformers import CLIPTextConfig, CLIPTextModel

    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = dict(hidden_size=width, intermediate_size=2 * width, projection_dim=width, num_hidden_layers=2, num_attention_heads=4)
    config = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=tokenizer.model_max_length, **shape, **ends)
    encoder = CLIPTextModel(config).eval()
    for name, parameter in encoder.named_parameters():
        if "embedding" in name:
            torch.nn.init.normal_(parameter, std=1.0 if "token" in name else 0.3)
    return encoder


def build_vae(widths, **options):
    """A random AutoencoderKL with a level for each of the widths. options: its other arguments."""
    from diffusers import AutoencoderKL

    levels = len(widths)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    return AutoencoderKL(block_out_channels=widths, **blocks, **options)


def build_pipeline(arch, captions, image_size, seed, prediction_type="epsilon"):
    """A complete StableDiffusionPipeline with fresh weights and a tokenizer of the captions' words. Same seed, same weights.

    Raises RunError for an image size that the levels cannot halve.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    spec = UNETS[arch]
    levels, latent_size = len(spec["widths"]), image_size // 2 ** (len(spec["vae"]) - 1)
    halvings = len(spec["vae"]) - 1 + levels - 1
    if image_size % 2**halvings:
        raise RunError(f"--arch {arch} halves images {halvings} times, which {image_size} px do not allow: take another --image_size")
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",) * levels, "up_block_types": ("CrossAttnUpBlock2D",) * levels}
    shape = {"block_out_channels": spec["widths"], "layers_per_block": spec["layers"], "cross_attention_dim": spec["text"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer([*captions, NULL])
        text_encoder = build_text_encoder(tokenizer, spec["text"])
        vae = build_vae(spec["vae"], sample_size=image_size, norm_num_groups=8)
        unet = UNet2DConditionModel(sample_size=latent_size, **blocks, **shape, attention_head_dim=4, norm_num_groups=8)
    parts = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet}
    scheduler = DDIMScheduler(**NOISE, prediction_type=prediction_type)
    return bare(StableDiffusionPipeline, **parts, scheduler=scheduler)


def bare(cls, **parts):
    """A pipeline without safety checker, which draws without a progress bar."""
    pipeline = cls(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# ------------------------------------------------------------------------------------------------------- about pipelines
@contextlib.contextmanager
def quiet():
    """diffusers, transformers and the hub's client say nothing on the terminal: what is wrong becomes an exception."""
    import diffusers.utils.logging as of_diffusers
    import huggingface_hub.utils.logging as of_hub
    import transformers.utils.logging as of_transformers

    levels = {module: module.get_verbosity() for module in (of_diffusers, of_hub, of_transformers)}
    for module in levels:
        module.set_verbosity_error()
    for module in (of_diffusers, of_transformers):  # a download may show its progress
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module, level in levels.items():
            module.set_verbosity(level)


def sha(*modules):
    """sha256 of modules' weights, in hex."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(
                tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy() if tensor.dim() else str(tensor.item()).encode()
            )
    return digest.hexdigest()


def reschedule(cls, scheduler):
    """A scheduler of class cls with the noise schedule of another one. It never clips latents to [-1, 1], the default of DDIM and DDPM."""
    with quiet():
        return cls.from_config(scheduler.config, clip_sample=False)


def noise_scheduler(scheduler):
    """diffusers' DDPMScheduler with the noise schedule of another scheduler, for add_noise and get_velocity."""
    from diffusers import DDPMScheduler

    return reschedule(DDPMScheduler, scheduler)


def image_size(pipeline):
    """Edge in px of the images that a pipeline was made for."""
    return pipeline.unet.config.sample_size * pipeline.vae_scale_factor


# ----------------------------------------------------------------------------------------------------------------- encode
def tokens(tokenizer, prompts):
    """int64 (P, L): token numbers, padded. Warns of prompts that are too long, and cuts them."""
    odd = next((prompt for prompt in prompts if not data.is_utf8(prompt)), None)
    if odd is not None:
        raise RunError(f"the prompt {odd[:60]!a} holds what is no text in UTF-8: write it, or the name of the class, anew")
    with quiet():
        long = [prompt for prompt in prompts if len(tokenizer(prompt).input_ids) > tokenizer.model_max_length]
    if long:
        some = f"{long[0][:60]!r}" + (f" and {len(long) - 1} more" if len(long) > 1 else "")
        warnings.warn(f"too long for the text encoder, cut after {tokenizer.model_max_length - 2} tokens: {some}", stacklevel=2)
    options = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length, "return_tensors": "pt"}
    return tokenizer(list(prompts), **options).input_ids


def word_tokens(tokenizer, prompt):
    """The prompt's own tokens, between those of start and end."""
    ids = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    return [token for token in ids if token not in (tokenizer.bos_token_id, tokenizer.eos_token_id)]


@torch.no_grad()
def encode_prompts(pipeline, prompts, batch_size=64):
    """Embeddings (P, L, D), float32 on the text encoder's device, of a list of prompts, as the pipeline makes them."""
    encoder = pipeline.text_encoder
    parts = tokens(pipeline.tokenizer, prompts).to(encoder.device).split(batch_size)
    return torch.cat([encoder(part)[0] for part in parts]).float()


@torch.no_grad()
def encode_images(pipeline, images):
    """Moments (B, 2C, h, w), float32 on the CPU, of uint8 images (B, H, W, 3): mean and standard deviation of their latents, both times
    the VAE's scaling factor."""
    vae = pipeline.vae
    latents = vae.encode(data.to_float(images.to(vae.device))).latent_dist
    return (torch.cat([latents.mean, latents.std], dim=1) * vae.config.scaling_factor).float().cpu()


# ---------------------------------------------------------------------------------------------------- which weights change
def restrict(mask, unet, train_method):
    """The mask of the weights that a run may change: those of `train_method`, salient ones only where there is a mask.

    Returns None for all weights. Parts that stay whole or shut take no memory.
    """
    if train_method == "full":
        return mask
    restricted = {}
    for name, parameter in unet.named_parameters():
        chosen = TRAIN_METHODS[train_method](name)
        constant = torch.full((1,), chosen, device=parameter.device).expand(parameter.shape)
        restricted[name] = mask[name] if chosen and mask is not None else constant
    return restricted
