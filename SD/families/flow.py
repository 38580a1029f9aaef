"""What Stable Diffusion 3 and FLUX share: transformers that predict the velocity of a rectified flow and read T5 beside CLIP."""

import functools

import torch

from cli import RunError
from data import NULL, TIMESTEPS, to_float
from models import ARCHS, build_t5, build_t5_tokenizer, build_text_encoder, build_tokenizer, build_vae

from .base import Embeddings, Family
from .sd import own_tokens, tokens

PATCH = 2  # the transformers see patches of 2 x 2 latents
TEXT_STREAM = (".attn.add_", ".attn.to_add_out.", ".attn.norm_added_")
ENDS = ("time_text_embed.", "norm_out.", "proj_out.")


class RectifiedFlow(Family):
    """Latents at the noise level sigma are (1 - sigma) x + sigma noise, and the target is noise - x (Liu et al. 2022, arXiv 2209.03003).

    A timestep t in [0, 1000) stands for the t-th smallest of the scheduler's noise levels for training, as in diffusers' training scripts.
    """

    WITHOUT = {"image_encoder": None, "feature_extractor": None}
    READERS = {  # those that the authors' uce_flux_edit.py edits
        "encoder_hidden_states": ("context_embedder.weight",),
        "pooled_projections": ("time_text_embed.text_embedder.linear_1.weight",),
    }
    UCE_CODE = "2025"
    REFUSED = {"fmn": "it resteers the cross-attention of U-Nets, which transformers have not"}
    TRAIN_METHODS = {  # the text stream of joint attention is what cross-attention is in U-Nets
        "full": lambda name: True,
        "xattn": lambda name: any(part in name for part in TEXT_STREAM),
        "noxattn": lambda name: not any(part in name for part in TEXT_STREAM) and not name.startswith(ENDS),
        "selfattn": lambda name: (
            name.startswith("transformer_blocks.") and ".attn" in name and not any(part in name for part in TEXT_STREAM)
        ),
        "xattn_kv": lambda name: ".attn.add_k_proj." in name or ".attn.add_v_proj." in name,
    }
    T5 = ""  # the number of the T5 in the pipeline, "_2" or "_3"
    MAX_TOKENS = 0  # that the pipeline lets it read
    SCALE = "guidance_scale"  # the pipeline's name for that of guidance by the empty prompt

    def check(self, source):
        pipeline, vae = self.pipeline, self.pipeline.vae.config
        scale, shift = vae.scaling_factor, vae.shift_factor
        rules = {
            "FlowMatchEulerDiscreteScheduler": type(pipeline.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler",
            f"noise schedule of {TIMESTEPS} steps": pipeline.scheduler.config.get("num_train_timesteps") == TIMESTEPS,
            f"transformer for latents of {vae.latent_channels} channels": self.channels == vae.latent_channels,
            "positive number as the autoencoder's scaling_factor": isinstance(scale, (int, float)) and 0 < scale < float("inf"),
            "number as the autoencoder's shift_factor": isinstance(shift, (int, float)) and abs(shift) < float("inf"),
            "whole number as its image size": isinstance(self.made_for, int) and self.made_for > 0,
            "tokenizers that fit their text encoders": all(
                len(getattr(pipeline, f"tokenizer{number}")) <= getattr(pipeline, f"text_encoder{number}").config.vocab_size
                for number in self.numbers
                if getattr(pipeline, f"text_encoder{number}") is not None
            ),
        }
        for rule, kept in rules.items():
            if not kept:
                raise RunError(f"{source} has no {rule}: take {self.WHOLE}")

    @property
    def numbers(self):
        """What follows the names of the pipeline's text encoders and tokenizers: "", "_2" and perhaps "_3"."""
        return [name.removeprefix("text_encoder") for name in self.PARTS if name.startswith("text_encoder")]

    @property
    def multiple(self):
        return PATCH * self.pipeline.vae_scale_factor

    @classmethod
    def build(cls, arch, captions, image_size, seed, prediction_type="epsilon"):
        from diffusers import FlowMatchEulerDiscreteScheduler

        spec = ARCHS[arch]
        if prediction_type != "epsilon":
            raise RunError(f"--prediction_type {prediction_type} is of U-Nets: leave it out, a {cls.KINDS[0]} has another")
        factor = 2 ** (len(spec["vae"]) - 1)
        if image_size % (PATCH * factor):
            raise RunError(f"--arch {arch} needs images whose edge is a multiple of {PATCH * factor} px: take another --image_size")
        layers, heads, head_width = spec["transformer"]
        shape = {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": head_width}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            words, width = [*captions, NULL], spec["text"]
            clip, t5 = build_tokenizer(words), build_t5_tokenizer(words)
            parts = {f"tokenizer{cls.T5}": t5, f"text_encoder{cls.T5}": build_t5(t5, 2 * width)}
            for number, kind in cls.CLIPS.items():
                parts |= {f"tokenizer{number}": clip, f"text_encoder{number}": build_text_encoder(clip, width, kind)}
            vae = {"sample_size": image_size, "norm_num_groups": 8, "shift_factor": 0.0}
            parts["vae"] = build_vae(spec["vae"], **vae, use_quant_conv=False, use_post_quant_conv=False)
            parts["transformer"] = cls.build_transformer(shape, image_size // factor, parts["vae"].config.latent_channels, width)
        return cls.of_parts(**parts, scheduler=FlowMatchEulerDiscreteScheduler(shift=cls.SHIFT))

    @staticmethod
    def build_transformer(shape, latent_size, channels, width):
        """A transformer of that shape, for latents (channels, latent_size, latent_size), CLIPs of that width and a T5 twice as wide."""
        raise NotImplementedError

    def noise_scheduler(self):
        return type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)

    @functools.cached_property
    def sigmas(self):
        """The noise levels (1000,) in (0, 1], the smallest first."""
        return self.scheduler.sigmas[:TIMESTEPS].flip(0)

    def sigma(self, t):
        self.sigmas = self.sigmas.to(t.device)
        return self.sigmas[t]

    @property
    def reader(self):
        """The tokenizer of T5, or of CLIP where there is no T5."""
        return getattr(self.pipeline, f"tokenizer{self.T5}" if getattr(self.pipeline, f"text_encoder{self.T5}") else "tokenizer")

    def own_tokens(self, prompt):
        return own_tokens(self.reader, prompt)

    def max_tokens(self):
        """How many tokens T5 reads. Where there is none, the pipeline puts as many zeros there as it may read."""
        return min(self.MAX_TOKENS, self.reader.model_max_length) if getattr(self.pipeline, f"text_encoder{self.T5}") else self.MAX_TOKENS

    @torch.no_grad()
    def encode_prompts(self, prompts):
        """As diffusers' pipeline encodes them, the empty prompt too. T5 reads as many tokens as in the pipeline, its tokenizer allowing."""
        tokens(self.reader, prompts)  # says what is too long, or no text
        encoded, pooled = self._encode(list(prompts), {"device": self.encoders[0].device, "max_sequence_length": self.max_tokens()})
        return Embeddings(encoder_hidden_states=encoded.float(), pooled_projections=pooled.float())

    @torch.no_grad()
    def encode_images(self, images):
        vae = self.pipeline.vae
        latents = vae.encode(to_float(images.to(vae.device))).latent_dist
        mean = latents.mean - vae.config.shift_factor
        return (torch.cat([mean, latents.std], dim=1) * vae.config.scaling_factor).float().cpu()

    def add_noise(self, latents, noise, t):
        return torch.lerp(latents, noise, self.sigma(t)[:, None, None, None])

    def target(self, latents, noise, t):
        return noise - latents

    def inputs(self, embeddings, empty, guidance_scale):
        found = {"prompt_embeds": embeddings.tokens, "pooled_prompt_embeds": embeddings.tensors["pooled_projections"]}
        if guidance_scale > 1:
            found |= {"negative_prompt_embeds": empty.tokens, "negative_pooled_prompt_embeds": empty.tensors["pooled_projections"]}
        return found | {self.SCALE: guidance_scale}

    def denoiser(self, steps, device):
        timesteps = TIMESTEPS - 1 - torch.arange(steps, device=device) * TIMESTEPS // steps
        levels = torch.cat([self.sigma(timesteps), torch.zeros(1, device=device)])

        def step(prediction, number, latents):
            return latents + (levels[number + 1] - levels[number]) * prediction

        return timesteps, step
