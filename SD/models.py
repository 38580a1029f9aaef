"""Building a tiny Stable Diffusion that trains on a CPU, and what all that handles pipelines needs. pipelines.py opens them, saving.py
saves them, families/ knows what each is given.
"""

import contextlib
import hashlib
import json
import tempfile
from pathlib import Path

import torch

from cli import number
from data import TIMESTEPS

# The noise schedule of Stable Diffusion
NOISE = dict(num_train_timesteps=TIMESTEPS, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
NOISE |= dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
sampling_steps = number(int, lambda value: 0 < value < TIMESTEPS, f"from 1 to {TIMESTEPS - 1}")  # argparse types
image_count = number(int, lambda value: 0 < value <= 10**6, "from 1 to 1,000,000")
image_edge = number(int, lambda value: 4 <= value <= 8192, "from 4 to 8,192 px")
# What train.py --from_scratch builds: widths of the levels of U-Net and autoencoder; layers, heads and their width of a transformer
ARCHS = {
    "tiny": dict(widths=(32, 64), vae=(16, 32), text=64, layers=1, image_size=16, transformer=(4, 4, 32)),  # latents of 8x8
    "small": dict(widths=(32, 64, 64), vae=(16, 32, 32), text=64, layers=1, image_size=64, transformer=(6, 4, 32)),  # latents of 16x16
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


def build_text_encoder(tokenizer, width, kind="CLIPTextModel", activation="quick_gelu"):
    """A random text encoder of two layers, never trained. kind: CLIPTextModel, or CLIPTextModelWithProjection; activation: OpenCLIP's is
    gelu. Embeddings of unit scale: at CLIP's own scale of initial values a small model learns to draw and ignores the prompt."""
    import transformers

    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = dict(hidden_size=width, intermediate_size=2 * width, projection_dim=width, num_hidden_layers=2, num_attention_heads=4)
    shape["hidden_act"] = activation
    config = transformers.CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=tokenizer.model_max_length, **shape, **ends)
    encoder = getattr(transformers, kind)(config).eval()
    for name, parameter in encoder.named_parameters():
        if "embedding" in name:
            torch.nn.init.normal_(parameter, std=1.0 if "token" in name else 0.3)
    return encoder


def build_t5_tokenizer(captions, length=12):
    """A T5 tokenizer with one token for each word of the captions; other words are spelled in letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    words = dict.fromkeys(word for caption in captions for word in caption.split())
    letters = dict.fromkeys([*"".join(words), *map(chr, range(33, 127))])
    ends = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    pieces = [(token, 0.0) for token in ends.values()]
    pieces += [("▁", -10.0), *((f"▁{word}", -1.0) for word in words), *((letter, -10.0) for letter in letters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    whole = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(whole)
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(f"{folder}/tokenizer.json")
        return T5TokenizerFast.from_pretrained(folder, model_max_length=length, extra_ids=0, **ends)


def build_t5(tokenizer, width):
    """A random T5 encoder of two layers, never trained."""
    from transformers import T5Config, T5EncoderModel

    shape = dict(d_model=width, d_ff=2 * width, d_kv=width // 4, num_heads=4, num_layers=2)
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), **shape)).eval()


def build_vae(widths, **options):
    """A random AutoencoderKL with a level for each of the widths. options: its other arguments."""
    from diffusers import AutoencoderKL

    levels = len(widths)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    return AutoencoderKL(block_out_channels=widths, **blocks, **options)


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
    """sha256 of modules' weights, in hex: of their values, in whatever precision they are held."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            tensor = tensor.float() if tensor.is_floating_point() else tensor
            digest.update(name.encode())
            digest.update(
                tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy() if tensor.dim() else str(tensor.item()).encode()
            )
    return digest.hexdigest()


def reschedule(cls, scheduler):
    """A scheduler of class cls with the noise schedule of another one. It never clips latents to [-1, 1], the default of DDIM and DDPM."""
    with quiet():
        return cls.from_config(scheduler.config, clip_sample=False)
