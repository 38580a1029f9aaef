"""Stable Diffusion as one file: the latent-diffusion key layout (github.com/CompVis/latent-diffusion) that web UIs read and write.

The layout holds three models, named by their modules in that code:

    model.diffusion_model.*                U-Net: input_blocks and output_blocks are numbered through all levels
    first_stage_model.*                    autoencoder: decoder.up counts from the highest resolution, diffusers from the lowest
    cond_stage_model.transformer.*         text encoder of SD 1.x (transformers' CLIP)
    cond_stage_model.model.*               text encoder of SD 2.x (OpenCLIP: query, key and value in one matrix)
    conditioner.embedders.0.transformer.*  the first text encoder of SDXL
    conditioner.embedders.1.model.*        its second one, with its projection

Tensors keep their values. Their shapes change in two places: the autoencoder's attention is written as 1x1 convolutions, and
OpenCLIP's query, key and value are stacked. What is no weight (tokenizer, scheduler, sizes of heads) has no place in the layout:
a reader takes it from a config that fits. Only the prediction type is written with the weights, as the metadata entry
modelspec.prediction_type ("epsilon" or "v"), and for SDXL as the empty tensors that ComfyUI looks for: v_pred, and ztsnr where the
noise schedule ends in pure noise. load() obeys them. Web UIs know SD 1.x as epsilon and guess for SD 2.x. For a 1.x model with
v-prediction, give them a .yaml with `parameterization: "v"` next to the file.
"""

import pickle
import struct
import zipfile
from pathlib import Path

import safetensors
import torch

from cli import RunError
from families import KINDS
from files import write_tensors
from pipelines import check_index
from saving import cast

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT_1, TEXT_2 = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
XL_1, XL_2 = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
PREDICTION = "modelspec.prediction_type"
V_PRED, ZERO_SNR, EDM = "v_pred", "ztsnr", {"edm_mean", "edm_vpred.sigma_max"}  # tensors by which ComfyUI knows an SDXL
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
ESSENTIAL = {  # a file without one of these is no Stable Diffusion checkpoint
    "U-Net": {f"{UNET}input_blocks.0.0.weight"},
    "autoencoder": {f"{VAE}decoder.conv_in.weight"},
    "text encoder": {f"{prefix}embeddings.position_embedding.weight" for prefix in (TEXT_1, XL_1)} | {f"{TEXT_2}token_embedding.weight"},
}

ONLY = "export Stable Diffusion 1.x, 2.x or XL only"
# what a diffusers folder needs to tell the shapes of a single file
CONFIGS = [("model_index.json",), ("scheduler/scheduler_config.json",), ("text_encoder/config.json",)]
CONFIGS += [("tokenizer/vocab.json", "tokenizer/tokenizer.json"), ("unet/config.json",), ("vae/config.json",)]
XL_CONFIGS = [("text_encoder_2/config.json",), ("tokenizer_2/vocab.json", "tokenizer_2/tokenizer.json")]
# what torch.load raises, besides UnpicklingError, for files that were cut or overwritten at random
DAMAGE = (OSError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError, struct.error)

# Each table maps a module of diffusers or transformers to its place in the layout.
UNET_ENDS = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
UNET_ENDS |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}  # SDXL's
UNET_ENDS |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
UNET_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
UNET_RESNET |= {"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
ATTENTION = [f"attn{number}.{part}" for number in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")]
BLOCK = (*ATTENTION, "norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2")
VAE_ENDS = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}
VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {"embeddings.token_embedding": "token_embedding", "final_layer_norm": "ln_final"}
OPEN_CLIP_LAYER = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
OPEN_CLIP_LAYER |= {"self_attn.out_proj": "attn.out_proj"}
QKV = [f"self_attn.{part}_proj" for part in "qkv"]


# --------------------------------------------------------------------------------------------------------------- writing
def export(pipeline, path, dtype="fp32"):
    """Write the U-Net, the autoencoder and the text encoders of a StableDiffusionPipeline (1.x or 2.x) or StableDiffusionXLPipeline, of
    any number of levels and layers, as one .safetensors file in the original layout, in a precision of models.DTYPES. Raises RunError for
    a weight that the layout has no place for."""
    prediction = pipeline.scheduler.config.prediction_type
    if Path(path).suffix != ".safetensors":
        raise RunError(f"a single file is written as safetensors: let the name of {path} end in .safetensors")
    if prediction not in PREDICTIONS:
        raise RunError(f"no web UI reads a model that predicts '{prediction}': export one with {' or '.join(PREDICTIONS)}")
    tensors = cast(tensors_of(pipeline), dtype)
    if prediction == "v_prediction" and hasattr(pipeline, "text_encoder_2"):
        zero_snr = pipeline.scheduler.config.get("rescale_betas_zero_snr")
        tensors |= {name: torch.empty(0) for name in (V_PRED, *[ZERO_SNR] * bool(zero_snr))}
    write_tensors(path, tensors, {"format": "pt", PREDICTION: PREDICTIONS[prediction]})


def tensors_of(pipeline):
    """{name in the layout: tensor} of a whole pipeline."""
    tensors = unet_tensors(pipeline.unet) | vae_tensors(pipeline.vae)
    if not hasattr(pipeline, "text_encoder_2"):
        return tensors | text_tensors(pipeline.text_encoder)
    return tensors | clip_tensors(pipeline.text_encoder, XL_1) | open_clip_tensors(pipeline.text_encoder_2, XL_2)


def within(old, new, parts):
    """{module: place} of a module's parts: `parts` with `old` and `new` put before."""
    return {f"{old}.{part}": f"{new}.{place}" for part, place in parts.items()}


def rename(tensors, places, prefix):
    """{name in the layout: tensor} of a state dict, by the place of each tensor's module."""
    renamed = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if module not in places:
            raise RunError(f"the original layout has no place for the weight {name}: {ONLY}, with adapters fused")
        renamed[f"{prefix}{places[module]}.{leaf}"] = tensor
    return renamed


def unet_tensors(unet):
    """{name in the layout: tensor} of a UNet2DConditionModel.

    An input block is a residual layer with the attention after it, or a downsampler; an output block is a residual layer with
    the attention after it, and the last one of a level holds the upsampler too.
    """
    depth = max((len(module.transformer_blocks) for module in unet.modules() if hasattr(module, "transformer_blocks")), default=0)
    blocks = [f"transformer_blocks.{number}.{part}" for number in range(depth) for part in BLOCK]
    transformer = {name: name for name in ("norm", "proj_in", "proj_out", *blocks)}
    places = UNET_ENDS.copy()
    for number in range(2):
        places |= within(f"mid_block.resnets.{number}", f"middle_block.{2 * number}", UNET_RESNET)
    places |= within("mid_block.attentions.0", "middle_block.1", transformer)
    for side, blocks, number in (("down", unet.down_blocks, 1), ("up", unet.up_blocks, 0)):
        new = {"down": "input_blocks", "up": "output_blocks"}[side]
        for level, block in enumerate(blocks):
            old = f"{side}_blocks.{level}"
            for layer in range(len(block.resnets)):
                places |= within(f"{old}.resnets.{layer}", f"{new}.{number}.0", UNET_RESNET)
                places |= within(f"{old}.attentions.{layer}", f"{new}.{number}.1", transformer)
                number += 1
            if side == "down":
                places[f"{old}.downsamplers.0.conv"] = f"{new}.{number}.0.op"
                number += 1
            else:
                places[f"{old}.upsamplers.0.conv"] = f"{new}.{number - 1}.{1 + hasattr(block, 'attentions')}.conv"
    return rename(unet.state_dict(), places, UNET)


def vae_tensors(vae):
    """{name in the layout: tensor} of an AutoencoderKL; the weights of its attention become (channels, channels, 1, 1)."""
    places = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for coder, side, blocks in (("encoder", "down", vae.encoder.down_blocks), ("decoder", "up", vae.decoder.up_blocks)):
        places |= within(coder, coder, VAE_ENDS) | within(f"{coder}.mid_block.attentions.0", f"{coder}.mid.attn_1", VAE_ATTENTION)
        for number in range(2):
            places |= within(f"{coder}.mid_block.resnets.{number}", f"{coder}.mid.block_{number + 1}", VAE_RESNET)
        for level, block in enumerate(blocks):
            old, new = f"{coder}.{side}_blocks.{level}", f"{coder}.{side}.{level if side == 'down' else len(blocks) - 1 - level}"
            for layer in range(len(block.resnets)):
                places |= within(f"{old}.resnets.{layer}", f"{new}.block.{layer}", VAE_RESNET)
            places[f"{old}.{side}samplers.0.conv"] = f"{new}.{side}sample.conv"
    renamed = rename(vae.state_dict(), places, VAE)
    return {name: tensor[:, :, None, None] if ".attn_1." in name and tensor.ndim == 2 else tensor for name, tensor in renamed.items()}


def text_tensors(encoder):
    """{name in the layout: tensor} of the CLIPTextModel of Stable Diffusion 1.x or 2.x.

    Its activation tells the two apart, as a web UI computes with the activation of the one whose names it finds: OpenAI's CLIP (SD 1.x)
    has quick_gelu, OpenCLIP (SD 2.x) has gelu. SD 2.x leaves out OpenCLIP's last layer and text_projection, which nothing reads: the
    text enters the U-Net from the last layer but one.
    """
    return clip_tensors(encoder, TEXT_1) if encoder.config.hidden_act == "quick_gelu" else open_clip_tensors(encoder, TEXT_2)


def names_of(encoder, activation):
    """({name: tensor}, layers' names) of a CLIP text encoder. Raises RunError for one with another activation."""
    if encoder.config.hidden_act != activation:
        found = f"a text encoder with the activation {encoder.config.hidden_act}"
        raise RunError(f"{found} is neither CLIP (quick_gelu) nor OpenCLIP (gelu): {ONLY}")
    # transformers 5 has dropped the prefix text_model. from the names
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    return tensors, [f"encoder.layers.{number}" for number in range(encoder.config.num_hidden_layers)]


def clip_tensors(encoder, prefix):
    tensors, layers = names_of(encoder, "quick_gelu")
    parts = [f"{layer}.{part}" for layer in layers for part in (*OPEN_CLIP_LAYER, *QKV)]
    return rename(tensors, {name: name for name in (*OPEN_CLIP, "embeddings.position_embedding", *parts)}, prefix)


def open_clip_tensors(encoder, prefix):
    tensors, layers = names_of(encoder, "gelu")
    places, whole = OPEN_CLIP.copy(), {f"{prefix}positional_embedding": tensors.pop("embeddings.position_embedding.weight")}
    if "text_projection.weight" in tensors:  # a matrix there, and not the weight of a linear layer
        whole[f"{prefix}text_projection"] = tensors.pop("text_projection.weight").T.contiguous()
    for number, layer in enumerate(layers):
        new = f"transformer.resblocks.{number}"
        places |= within(layer, new, OPEN_CLIP_LAYER)
        for leaf in ("weight", "bias"):
            whole[f"{prefix}{new}.attn.in_proj_{leaf}"] = torch.cat([tensors.pop(f"{layer}.{part}.{leaf}") for part in QKV])
    return whole | rename(tensors, places, prefix)


# --------------------------------------------------------------------------------------------------------------- reading
def load(path, config=None):
    """Return the StableDiffusionPipeline, or the StableDiffusionXLPipeline, of one .safetensors, .ckpt or .pt file, in float32 and with no
    safety checker.

    config: a diffusers folder, or its id on the hub, whose configs and tokenizer fit the file; its weights are not read. None lets
    diffusers choose between those of SD 1.5 and 2.1 on the hub. The prediction type is the file's own if its metadata tells it,
    otherwise the config's. If a checkpoint has averaged weights (model_ema.*) next to the trained ones, the trained ones are read.
    """
    import diffusers

    names, metadata = contents(Path(path))
    for model, either in ESSENTIAL.items():
        if not either & names:
            lacks = f"it has no {model} in the original layout ({sorted(either)[-1]})"
            raise RunError(f"{path} is not a checkpoint of Stable Diffusion 1.x, 2.x or XL: {lacks}")
    if found := EDM & names:
        raise RunError(f"{path} is an EDM model ({min(found)}), which has another noise schedule: epsilon and v-prediction are known")
    xl = any(name.startswith(XL_1) for name in names)
    kind = KINDS["StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"]
    source = "the hub" if config is None else config
    advice = "name a diffusers folder whose configs and tokenizer fit the file"
    if Path(source).is_dir():
        if Path(source, "model_index.json").is_file() and check_index(Path(source), source)[0] is not kind:
            raise RunError(f"{path} is of another family than the configs of {source}: {advice}")
        # without these files transformers makes up a tokenizer and a text encoder of its own, and says nothing
        absent = [" or ".join(files) for files in CONFIGS + XL_CONFIGS * xl if not any(Path(source, file).is_file() for file in files)]
        if absent:
            raise RunError(f"the diffusers folder {source} lacks {absent[0]}: {advice}")
    options = {"config": config and str(config), "image_encoder": None, "feature_extractor": None, **kind.WITHOUT}
    try:
        pipeline = getattr(diffusers, kind.KINDS[0]).from_single_file(str(path), **options)
    except (OSError, ValueError, KeyError, TypeError) as error:  # KeyError, TypeError: configs that lack entries
        reason = f"{type(error).__name__}: {error}".splitlines()[0].split(". ")[0]
        raise RunError(f"{path} could not be loaded with the configs of {source} ({reason}): {advice}") from error
    except NotImplementedError as error:  # a weight without a value cannot be moved
        raise RunError(f"{path} lacks weights of the model that the configs of {source} tell: {advice}") from error
    wanted = tensors_of(pipeline)
    missing = {name for name, tensor in wanted.items() if name not in names or tensor.is_meta}
    known = (UNET, f"{VAE}encoder.", f"{VAE}decoder.", f"{TEXT_1}encoder.", f"{XL_1}encoder.")
    surplus = {name for name in names if name.startswith(known)} - set(wanted)
    if missing or surplus:
        odd = f"lacks {min(missing)}" if missing else f"has {min(surplus)} too"
        raise RunError(f"{path} {odd}, so that it is another model than the configs of {source} tell: {advice}")
    for name in kind.PARTS:
        getattr(pipeline, name).float()
    told = {there: here for here, there in PREDICTIONS.items()}.get(metadata.get(PREDICTION))
    changes = {"prediction_type": told or "v_prediction"} if told or V_PRED in names else {}
    changes |= {"rescale_betas_zero_snr": True} if ZERO_SNR in names else {}
    if changes:
        # Part of the config, where keywords that its class does not know would be dropped.
        pipeline.scheduler = type(pipeline.scheduler).from_config({**pipeline.scheduler.config, **changes})
    return pipeline


def contents(path):
    """Return ({names of the tensors}, {metadata}) of a checkpoint without holding the tensors. No pickle is executed: .ckpt and .pt
    are read by torch's unpickler of plain tensors, here and by diffusers after it."""
    if not path.is_file():
        raise RunError(f"{path} does not exist or is a folder: name a .safetensors or .ckpt file")
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, "pt") as file:
                return set(file.keys()), file.metadata() or {}
        except safetensors.SafetensorError as error:
            raise RunError(f"{path} is an incomplete or damaged safetensors file ({error}): fetch it again") from error
    if path.suffix not in (".ckpt", ".pt"):
        raise RunError(f"{path} is not a single file of weights: its name must end in .safetensors, .ckpt or .pt")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        refused = "damaged or holds more than tensors, which could run code and is refused"
        raise RunError(f"{path} is {refused}: take the model as .safetensors") from error
    except DAMAGE as error:
        raise RunError(f"{path} is an incomplete or damaged file of torch.save ({type(error).__name__}): fetch it again") from error
    for _ in range(3):  # not without end: a table may hold itself
        tensors = tensors["state_dict"] if isinstance(tensors, dict) and "state_dict" in tensors else tensors
    if isinstance(tensors, dict) and "state_dict" in tensors:  # diffusers would look for its end without end
        raise RunError(f"{path} holds tables within tables: fetch it again")
    return {name for name in tensors if torch.is_tensor(tensors[name])} if isinstance(tensors, dict) else set(), {}
