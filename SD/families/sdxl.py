"""Stable Diffusion XL: a U-Net that reads two CLIP text encoders, the pooled prompt and the size of the image."""

import torch

from models import build_text_encoder

from .base import Embeddings
from .sd import StableDiffusion, tokens


class StableDiffusionXL(StableDiffusion):
    KINDS = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
    PARTS = StableDiffusion.PARTS | {"text_encoder_2": "CLIPTextModelWithProjection"}
    WITHOUT = {"image_encoder": None, "feature_extractor": None, "add_watermarker": False}
    WHOLE = "a whole base model of Stable Diffusion XL"
    INPUTS = {"addition_embed_type": "text_time"}

    @staticmethod
    def text_parts(tokenizer, width):
        wider = build_text_encoder(tokenizer, second(width), "CLIPTextModelWithProjection", "gelu")
        return StableDiffusion.text_parts(tokenizer, width) | {"tokenizer_2": tokenizer, "text_encoder_2": wider}

    @staticmethod
    def reads(width):
        sizes = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": second(width) + 6 * 4}
        return {"cross_attention_dim": width + second(width), "addition_embed_type": "text_time"} | sizes

    @torch.no_grad()
    def encode_prompts(self, prompts):
        """As diffusers' pipeline encodes them. The empty prompt is zeros where the pipeline draws without a condition from zeros."""
        tokens(self.pipeline.tokenizer, prompts)  # says what is too long, or no text
        options = {"device": self.pipeline.text_encoder.device, "do_classifier_free_guidance": False}
        encoded, _, pooled, _ = self.pipeline.encode_prompt(list(prompts), **options)
        found = Embeddings(encoder_hidden_states=encoded.float(), text_embeds=pooled.float())
        if self.pipeline.config.force_zeros_for_empty_prompt:
            empty = [number for number, prompt in enumerate(prompts) if not prompt]
            for tensor in found.tensors.values():
                tensor[empty] = 0
        return found

    def predict(self, model, noisy, t, embeddings):
        edges = [edge * self.pipeline.vae_scale_factor for edge in noisy.shape[2:]]
        sizes = [*edges, 0, 0, *edges]  # of the original image, its crop's corner, of the target
        sizes = torch.tensor(sizes, device=noisy.device, dtype=torch.float32).expand(len(noisy), -1)
        more = {"text_embeds": embeddings.tensors["text_embeds"], "time_ids": sizes}
        noisy = noisy.to(self.model.dtype)
        return model(noisy, t, encoder_hidden_states=embeddings.tokens, added_cond_kwargs=more, return_dict=False)[0]

    def inputs(self, embeddings, empty, guidance_scale):
        found = super().inputs(embeddings, empty, guidance_scale) | {"pooled_prompt_embeds": embeddings.tensors["text_embeds"]}
        return found | {"negative_pooled_prompt_embeds": empty.tensors["text_embeds"] if guidance_scale > 1 else None}


def second(width):
    """The width of the second text encoder: by their widths diffusers tells the two of a single file apart."""
    return 3 * width // 2
