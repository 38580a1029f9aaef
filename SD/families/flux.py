"""FLUX.1 dev and schnell: a transformer that reads T5 and the pooled prompt of a CLIP text encoder, and latents packed into patches."""

import torch

from .flow import PATCH, RectifiedFlow

TRAINING_GUIDANCE = 3.5  # that a distilled model is told while it trains, as in diffusers' train_dreambooth_flux.py


class Flux(RectifiedFlow):
    """guidance_scale is what FLUX.1 dev is told. Models that are told none, schnell for one, are guided as Stable Diffusion is."""

    KINDS = ("FluxPipeline", "FluxImg2ImgPipeline")
    CLIPS = {"": "CLIPTextModel"}
    PARTS = {"transformer": "FluxTransformer2DModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
    PARTS |= {"text_encoder_2": "T5EncoderModel"}
    WHOLE = "a whole model of FLUX.1"
    T5, MAX_TOKENS, SHIFT = "_2", 512, 1.0
    SCALE = "true_cfg_scale"

    @property
    def channels(self):
        return self.model.config.in_channels / PATCH**2

    @property
    def made_for(self):
        return self.pipeline.vae.config.sample_size

    @property
    def GUIDANCE(self):
        return 3.5 if self.model.config.guidance_embeds else 1.0

    @staticmethod
    def build_transformer(shape, latent_size, channels, width):
        from diffusers import FluxTransformer2DModel

        part = shape["attention_head_dim"] // 8 * 2  # of a head, that tells rows, and columns
        rope = (shape["attention_head_dim"] - 2 * part, part, part)
        reads = {"joint_attention_dim": 2 * width, "pooled_projection_dim": width, "axes_dims_rope": rope}
        return FluxTransformer2DModel(**shape, **reads, num_single_layers=shape["num_layers"], in_channels=channels * PATCH**2)

    def last_positions(self, prompt):
        """Its tokens are T5's, which have no start token."""
        return [max(0, min(len(self.own_tokens(prompt)), self.max_tokens() - 1) - 1)]

    def _encode(self, prompts, options):
        encoded, pooled, _ = self.pipeline.encode_prompt(prompts, None, **options)
        return encoded, pooled

    def predict(self, model, noisy, t, embeddings):
        noisy = noisy.to(self.model.dtype)
        count, channels, height, width = noisy.shape
        of = type(self.pipeline)
        packed = of._pack_latents(noisy, count, channels, height, width)
        places = of._prepare_latent_image_ids(count, height // PATCH, width // PATCH, noisy.device, noisy.dtype)
        texts = torch.zeros(embeddings.tokens.shape[1], 3, device=noisy.device, dtype=noisy.dtype)
        told = torch.full((count,), TRAINING_GUIDANCE, device=noisy.device) if self.model.config.guidance_embeds else None
        inputs = {"timestep": self.sigma(t), "guidance": told, "txt_ids": texts, "img_ids": places, **embeddings.tensors}
        return self.unpack(model(packed, **inputs, return_dict=False)[0], height, width)

    def unpack(self, packed, height, width):
        """Latents (B, C, height, width) of patches (B, height * width / 4, 4 C)."""
        factor = self.pipeline.vae_scale_factor
        return type(self.pipeline)._unpack_latents(packed, height * factor, width * factor, factor)

    def drawn_latents(self, drawn, size):
        width, height = size
        factor = self.pipeline.vae_scale_factor
        return self.unpack(drawn, height // factor, width // factor)

    def inputs(self, embeddings, empty, guidance_scale):
        if not self.model.config.guidance_embeds:
            return super().inputs(embeddings, empty, guidance_scale)
        return super().inputs(embeddings, empty, 1.0) | {"guidance_scale": guidance_scale}
