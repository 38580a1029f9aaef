"""Stable Diffusion 3 and 3.5: a transformer that reads two CLIP text encoders and T5, and the pooled prompts of the former."""

from .flow import PATCH, RectifiedFlow
from .sd import own_tokens


class StableDiffusion3(RectifiedFlow):
    KINDS = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline")
    CLIPS = {"": "CLIPTextModelWithProjection", "_2": "CLIPTextModelWithProjection"}
    PARTS = {"transformer": "SD3Transformer2DModel", "vae": "AutoencoderKL"}
    PARTS |= {f"text_encoder{number}": kind for number, kind in CLIPS.items()} | {"text_encoder_3": "T5EncoderModel"}
    OPTIONAL = ("text_encoder_3",)
    WHOLE = "a whole model of Stable Diffusion 3 or 3.5"
    GUIDANCE = 7.0
    T5, MAX_TOKENS, SHIFT = "_3", 256, 3.0

    @property
    def channels(self):
        return self.model.config.in_channels

    @staticmethod
    def build_transformer(shape, latent_size, channels, width):
        from diffusers import SD3Transformer2DModel

        inner = shape["num_attention_heads"] * shape["attention_head_dim"]
        reads = {"joint_attention_dim": 2 * width, "pooled_projection_dim": 2 * width, "caption_projection_dim": inner}
        sizes = {"sample_size": latent_size, "pos_embed_max_size": latent_size // PATCH, "patch_size": PATCH}
        return SD3Transformer2DModel(**shape, **reads, **sizes, in_channels=channels, out_channels=channels, qk_norm="rms_norm")

    def last_positions(self, prompt):
        """Its tokens are CLIP's, and behind them T5's, which have no start token, or zeros."""
        clip = self.pipeline.tokenizer
        if self.pipeline.text_encoder_3 is None:
            return [len(own_tokens(clip, prompt))]
        behind = clip.model_max_length + max(0, min(len(self.own_tokens(prompt)), self.max_tokens() - 1) - 1)
        return [len(own_tokens(clip, prompt)), behind]

    def _encode(self, prompts, options):
        encoded, _, pooled, _ = self.pipeline.encode_prompt(prompts, None, None, do_classifier_free_guidance=False, **options)
        return encoded, pooled

    def predict(self, model, noisy, t, embeddings):
        return model(noisy.to(self.model.dtype), timestep=1000 * self.sigma(t), **embeddings.tensors, return_dict=False)[0]
