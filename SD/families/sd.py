"""Stable Diffusion 1.x and 2.x: a U-Net that reads one CLIP text encoder."""

import warnings

import torch

import data
from cli import RunError
from data import NULL, TIMESTEPS
from models import ARCHS, NOISE, build_text_encoder, build_tokenizer, build_vae, quiet, reschedule

from .base import Embeddings, Family

KEYS_AND_VALUES = ("attn2.to_k.weight", "attn2.to_v.weight")  # what reads the prompt
MORE_INPUTS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")


class StableDiffusion(Family):
    KINDS = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
    PARTS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
    WITHOUT = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    SINGLE_FILE = True
    WHOLE = "a whole model of Stable Diffusion 1.x or 2.x"
    SAMPLERS = ("ddim", "pndm", "lms", "dpm", "own")
    READERS = {"encoder_hidden_states": KEYS_AND_VALUES}
    INPUTS = {}  # those of MORE_INPUTS that the family gives
    TRAIN_METHODS = {  # the first four are ESD's, as in its authors' train-esd.py (full, x, u, self)
        "full": lambda name: True,
        "xattn": lambda name: ".attn2." in name,
        "noxattn": lambda name: ".attn2." not in name and not name.startswith(("time_embedding.", "conv_norm_out.", "conv_out.")),
        "selfattn": lambda name: ".attn1." in name,
        "xattn_kv": lambda name: name.endswith(KEYS_AND_VALUES),
    }

    @classmethod
    def check_config(cls, config, source):
        for name in MORE_INPUTS:
            if (found := config.get(name)) != (known := cls.INPUTS.get(name)):
                needs = f"{name} {str(found)[:60]}, which needs more inputs than a prompt" if known is None else f"no {name} {known}"
                raise RunError(f"{source} has a U-Net with {needs}: take {cls.WHOLE}")

    def check(self, source):
        pipeline = self.pipeline
        self.check_config(pipeline.unet.config, source)
        if pipeline.unet.config.in_channels != pipeline.vae.config.latent_channels:
            raise RunError(f"{source} is no text-to-image model, inpainting has other U-Nets: take {self.WHOLE}")
        if pipeline.scheduler.config.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction"):
            raise RunError(f"{source} predicts {pipeline.scheduler.config.prediction_type}: epsilon and v_prediction are known")
        size, scale, text = pipeline.unet.config.sample_size, pipeline.vae.config.scaling_factor, pipeline.text_encoder.config
        rules = {
            f"noise schedule of {TIMESTEPS} steps": pipeline.scheduler.config.get("num_train_timesteps") == TIMESTEPS,
            "noise schedule of betas": hasattr(pipeline.scheduler, "alphas_cumprod"),  # EDM has one of sigmas
            "autoencoder without shifted latents": pipeline.vae.config.get("latents_mean") is None,
            "whole number as the U-Net's sample_size": isinstance(size, int) and size > 0,
            "positive number as the autoencoder's scaling_factor": isinstance(scale, (int, float)) and 0 < scale < float("inf"),
            "tokenizer that fits its text encoder": (  # without its files transformers makes an empty one, for texts of any length
                len(pipeline.tokenizer) <= text.vocab_size and pipeline.tokenizer.model_max_length <= text.max_position_embeddings
            ),
        }
        for rule, kept in rules.items():
            if not kept:
                raise RunError(f"{source} has no {rule}: take {self.WHOLE}")

    @classmethod
    def build(cls, arch, captions, image_size, seed, prediction_type="epsilon"):
        from diffusers import DDIMScheduler, UNet2DConditionModel

        spec = ARCHS[arch]
        levels, latent_size = len(spec["widths"]), image_size // 2 ** (len(spec["vae"]) - 1)
        halvings = len(spec["vae"]) - 1 + levels - 1
        if image_size % 2**halvings:
            raise RunError(f"--arch {arch} halves images {halvings} times, which {image_size} px do not allow: take another --image_size")
        blocks = {"down_block_types": ("CrossAttnDownBlock2D",) * levels, "up_block_types": ("CrossAttnUpBlock2D",) * levels}
        shape = {"block_out_channels": spec["widths"], "layers_per_block": spec["layers"], "attention_head_dim": 4, "norm_num_groups": 8}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tokenizer = build_tokenizer([*captions, NULL])
            parts = cls.text_parts(tokenizer, spec["text"])
            parts["vae"] = build_vae(spec["vae"], sample_size=image_size, norm_num_groups=8)
            parts["unet"] = UNet2DConditionModel(sample_size=latent_size, **blocks, **shape, **cls.reads(spec["text"]))
        return cls.of_parts(**parts, scheduler=DDIMScheduler(**NOISE, prediction_type=prediction_type))

    @staticmethod
    def text_parts(tokenizer, width):
        """Tokenizers and text encoders of that width, for build()."""
        return {"tokenizer": tokenizer, "text_encoder": build_text_encoder(tokenizer, width)}

    @staticmethod
    def reads(width):
        """The arguments of a U-Net that reads text encoders of that width, for build()."""
        return {"cross_attention_dim": width}

    def noise_scheduler(self):
        from diffusers import DDPMScheduler

        return reschedule(DDPMScheduler, self.pipeline.scheduler)

    def own_tokens(self, prompt):
        return own_tokens(self.pipeline.tokenizer, prompt)

    @torch.no_grad()
    def encode_prompts(self, prompts):
        encoder = self.pipeline.text_encoder
        return Embeddings(encoder_hidden_states=encoder(tokens(self.pipeline.tokenizer, prompts).to(encoder.device))[0].float())

    @torch.no_grad()
    def encode_images(self, images):
        vae = self.pipeline.vae
        latents = vae.encode(data.to_float(images.to(vae.device))).latent_dist
        return (torch.cat([latents.mean, latents.std], dim=1) * vae.config.scaling_factor).float().cpu()

    def add_noise(self, latents, noise, t):
        return self.scheduler.add_noise(latents, noise, t)

    def target(self, latents, noise, t):
        """The noise, or with v prediction the velocity (Salimans & Ho 2022)."""
        return self.scheduler.get_velocity(latents, noise, t) if self.scheduler.config.prediction_type == "v_prediction" else noise

    def predict(self, model, noisy, t, embeddings):
        return model(noisy.to(self.model.dtype), t, **embeddings.tensors, return_dict=False)[0]

    def inputs(self, embeddings, empty, guidance_scale):
        """At a guidance scale s > 1 the pipeline predicts f(empty) + s (f(c) - f(empty))."""
        negative = empty.tokens if guidance_scale > 1 else None
        return {"prompt_embeds": embeddings.tokens, "negative_prompt_embeds": negative, "guidance_scale": guidance_scale}

    def denoiser(self, steps, device):
        """DDIM's."""
        from diffusers import DDIMScheduler

        ddim = reschedule(DDIMScheduler, self.scheduler)
        ddim.set_timesteps(steps, device=device)
        return ddim.timesteps, lambda prediction, number, latents: ddim.step(prediction, ddim.timesteps[number], latents).prev_sample


def own_tokens(tokenizer, prompt):
    """Numbers of a prompt's own tokens, without those of start and end."""
    ids = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    return [token for token in ids if token not in (tokenizer.bos_token_id, tokenizer.eos_token_id)]


def tokens(tokenizer, prompts):
    """int64 (P, L): token numbers, padded. Warns of prompts that are too long, and cuts them."""
    odd = next((prompt for prompt in prompts if not data.is_utf8(prompt)), None)
    if odd is not None:
        raise RunError(f"the prompt {odd[:60]!a} holds what is no text in UTF-8: write it, or the name of the class, anew")
    with quiet():
        long = [prompt for prompt in prompts if len(tokenizer(prompt).input_ids) > tokenizer.model_max_length]
    if long:
        some = f"{long[0][:60]!r}" + (f" and {len(long) - 1} more" if len(long) > 1 else "")
        length = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
        warnings.warn(f"too long for the text encoder, cut after {length} tokens: {some}", stacklevel=2)
    options = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length, "return_tensors": "pt"}
    return tokenizer(list(prompts), **options).input_ids
