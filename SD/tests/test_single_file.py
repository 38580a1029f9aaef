"""One file in the original layout, out and in. Each test names the mutation that would break it."""

import json
import os
import random
import string
from types import SimpleNamespace

import pytest
import torch

import single_file
from cli import RunError
from files import read_tensors, write_tensors

CROSS, PLAIN = "CrossAttn", ""
SHAPES = {
    "one layer, two levels": dict(),
    "two layers, four levels": dict(levels=(CROSS, CROSS, CROSS, PLAIN), widths=(8, 16, 32, 32), layers=2),
    "no attention above, linear": dict(levels=(PLAIN, CROSS), layers=2, linear=True),
    "attention everywhere": dict(levels=(CROSS, CROSS, CROSS), widths=(8, 8, 16), linear=True),
    "SD 2": dict(activation="gelu", linear=True),
    "SD 2, two layers, v": dict(activation="gelu", layers=2, levels=(CROSS, PLAIN, PLAIN), widths=(8, 16, 16), prediction="v_prediction"),
}
V1_NAMES = [
    "model.diffusion_model.time_embed.0.weight",
    "model.diffusion_model.input_blocks.0.0.weight",
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    "model.diffusion_model.input_blocks.3.0.op.weight",
    "model.diffusion_model.input_blocks.4.0.skip_connection.weight",
    "model.diffusion_model.input_blocks.11.0.in_layers.2.weight",
    "model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.0.proj.bias",
    "model.diffusion_model.middle_block.2.out_layers.3.weight",
    "model.diffusion_model.output_blocks.2.1.conv.weight",
    "model.diffusion_model.output_blocks.5.2.conv.weight",
    "model.diffusion_model.output_blocks.11.0.emb_layers.1.weight",
    "model.diffusion_model.output_blocks.11.1.proj_out.bias",
    "model.diffusion_model.out.0.weight",
    "model.diffusion_model.out.2.bias",
    "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight",
    "first_stage_model.encoder.down.2.downsample.conv.bias",
    "first_stage_model.encoder.mid.attn_1.q.weight",
    "first_stage_model.encoder.norm_out.weight",
    "first_stage_model.decoder.mid.block_2.conv2.weight",
    "first_stage_model.decoder.mid.attn_1.proj_out.bias",
    "first_stage_model.decoder.up.3.upsample.conv.weight",
    "first_stage_model.decoder.up.0.block.2.norm1.bias",
    "first_stage_model.post_quant_conv.weight",
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
    "cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight",
    "cond_stage_model.transformer.text_model.final_layer_norm.bias",
]
V2_NAMES = [
    "cond_stage_model.model.positional_embedding",
    "cond_stage_model.model.token_embedding.weight",
    "cond_stage_model.model.ln_final.weight",
    "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight",
    "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias",
    "cond_stage_model.model.transformer.resblocks.0.attn.out_proj.weight",
    "cond_stage_model.model.transformer.resblocks.0.ln_1.bias",
    "cond_stage_model.model.transformer.resblocks.1.ln_2.weight",
    "cond_stage_model.model.transformer.resblocks.1.mlp.c_fc.weight",
    "cond_stage_model.model.transformer.resblocks.1.mlp.c_proj.bias",
]


def spell(folder):
    """A CLIPTokenizer that knows letters only."""
    from transformers import CLIPTokenizer

    letters = [*string.ascii_lowercase, *(letter + "</w>" for letter in string.ascii_lowercase), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(letters)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16, pad_token="<|endoftext|>")


def build(folder, levels=(CROSS, PLAIN), widths=(8, 16), layers=1, linear=False, activation="quick_gelu", prediction="epsilon"):
    """A random StableDiffusionPipeline, saved in `folder` for its configs alone. No two weights of a shape are equal."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    shape = dict(block_out_channels=widths, layers_per_block=layers, norm_num_groups=4, sample_size=16)
    torch.manual_seed(0)
    tokenizer = spell(folder / "letters")
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, hidden_act=activation)
    pipeline = StableDiffusionPipeline(
        unet=UNet2DConditionModel(
            down_block_types=[f"{kind}DownBlock2D" for kind in levels],
            up_block_types=[f"{kind}UpBlock2D" for kind in reversed(levels)],
            cross_attention_dim=8,
            attention_head_dim=2,
            use_linear_projection=linear,
            **shape,
        ),
        vae=AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * len(widths), up_block_types=["UpDecoderBlock2D"] * len(widths), **shape
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=16, **text, **ends)),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for model in parts(pipeline):
        model.eval()
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.1)  # diffusers starts norms and biases as ones and zeros, which hide a swap
    pipeline.set_progress_bar_config(disable=True)
    save(pipeline, folder)
    return pipeline


def save(pipeline, folder):
    """Save a pipeline without its weights, so that a loader can take them from the single file only."""
    pipeline.save_pretrained(folder)
    for file in [*folder.glob("*/*.safetensors"), *folder.glob("*/*.bin")]:
        file.unlink()


def parts(pipeline):
    return pipeline.unet, pipeline.vae, pipeline.text_encoder


def draw(pipeline):
    generator = torch.Generator().manual_seed(3)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline("a cat", num_inference_steps=2, height=16, width=16, generator=generator, output_type="np").images


def assert_same(found, expected):
    for one, other in zip(parts(found), parts(expected), strict=True):
        one, other = one.state_dict(), other.state_dict()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) and one[name].dtype == torch.float32 for name in one)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the smallest pipeline's configs and its single file."""
    folder = tmp_path_factory.mktemp("home")
    pipeline = build(folder)
    single_file.export(pipeline, folder / "one.safetensors")
    return folder


@pytest.fixture(scope="module")
def original(home):
    return single_file.load(home / "one.safetensors", home)


# Mutations: count decoder.up upwards; skip `number += 1` after a downsampler; stack key before query; drop the places of a resnet's
# skip_connection; load as float16.
@pytest.mark.parametrize("shape", SHAPES)
def test_weights_and_image_survive(shape, tmp_path):
    pipeline = build(tmp_path, **SHAPES[shape])
    before = draw(pipeline)
    single_file.export(pipeline, tmp_path / "one.safetensors")
    loaded = single_file.load(tmp_path / "one.safetensors", tmp_path)
    assert_same(loaded, pipeline)
    # Equal weights draw equal images, but for rounding: on some processors a product's last bit follows from where its weights lie
    assert abs(draw(loaded) - before).max() < 1e-4 and before.std() > 0.01


def test_names_are_those_of_sd_1(tmp_path):
    """Mutation: misspell a place; number upsamplers 1 everywhere; two-dimensional VAE attention."""
    single_file.export(build(tmp_path, **SHAPES["two layers, four levels"]), tmp_path / "one.safetensors")
    tensors, _ = read_tensors(tmp_path / "one.safetensors")
    assert set(V1_NAMES) <= set(tensors)
    assert sum(name.startswith("model.diffusion_model.") for name in tensors) == 686  # as in v1-5-pruned-emaonly
    assert sum(name.startswith("first_stage_model.") for name in tensors) == 248
    assert sum(name.startswith("cond_stage_model.transformer.text_model.") for name in tensors) == 4 + 16 * 2  # two layers
    assert tensors["first_stage_model.decoder.mid.attn_1.v.weight"].shape == (32, 32, 1, 1)
    assert tensors["model.diffusion_model.input_blocks.1.1.proj_in.weight"].shape == (8, 8, 1, 1)


def test_names_are_those_of_open_clip(tmp_path):
    """Mutation: choose the family by something else than the activation."""
    single_file.export(build(tmp_path, **SHAPES["SD 2"]), tmp_path / "one.safetensors")
    tensors, _ = read_tensors(tmp_path / "one.safetensors")
    assert set(V2_NAMES) <= set(tensors)
    assert sum(name.startswith("cond_stage_model.") for name in tensors) == 4 + 12 * 2
    assert tensors["cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"].shape == (3 * 8, 8)
    assert tensors["model.diffusion_model.input_blocks.1.1.proj_in.weight"].shape == (8, 8)  # a linear projection


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_names_of_transformers_4_and_5(activation, tmp_path):
    """Mutation: read the state dict's names as they are."""
    encoder = build(tmp_path, activation=activation).text_encoder
    bare = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    new = SimpleNamespace(config=encoder.config, state_dict=lambda: dict(bare))
    old = SimpleNamespace(config=encoder.config, state_dict=lambda: {f"text_model.{name}": bare[name] for name in bare})
    found, expected = single_file.text_tensors(old), single_file.text_tensors(new)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(("prediction", "word"), single_file.PREDICTIONS.items())
def test_prediction_type_is_the_files(prediction, word, home, tmp_path):
    """Mutation: leave the scheduler as config has it."""
    single_file.export(build(tmp_path, prediction=prediction), tmp_path / "one.safetensors")
    tensors, metadata = read_tensors(tmp_path / "one.safetensors")
    assert metadata["modelspec.prediction_type"] == word
    other = build(tmp_path / "other", prediction={"epsilon": "v_prediction", "v_prediction": "epsilon"}[prediction])
    assert single_file.load(tmp_path / "one.safetensors", tmp_path / "other").scheduler.config.prediction_type == prediction
    write_tensors(tmp_path / "mute.safetensors", tensors)  # a file by another program: the config decides
    loaded = single_file.load(tmp_path / "mute.safetensors", tmp_path / "other")
    assert loaded.scheduler.config.prediction_type == other.scheduler.config.prediction_type != prediction


def test_safety_checker_is_left_out(home, original, tmp_path):
    """Mutation: let the config's model_index.json decide."""
    build(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    index |= {"feature_extractor": ["transformers", "CLIPImageProcessor"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    loaded = single_file.load(home / "one.safetensors", tmp_path)
    assert loaded.safety_checker is None and loaded.feature_extractor is None and not loaded.config.requires_safety_checker
    assert_same(loaded, original)


def test_half_precision_becomes_float32(home, original, tmp_path):
    """Mutation: load in the file's own precision."""
    tensors, metadata = read_tensors(home / "one.safetensors")
    write_tensors(tmp_path / "half.safetensors", {name: tensor.half() for name, tensor in tensors.items()}, metadata)
    half = single_file.load(tmp_path / "half.safetensors", home)
    for one, other in zip(parts(half), parts(original), strict=True):
        assert all(torch.equal(a, b.half().float()) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        assert all(weight.dtype == torch.float32 for weight in one.parameters())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("suffix", ["ckpt", "pt"])
def test_pickled_tensors_load(suffix, nested, zipped, home, original, tmp_path):
    """Mutation: look for names in the outer dict only."""
    tensors, _ = read_tensors(home / "one.safetensors")
    content = {"state_dict": tensors, "global_step": 3} if nested else tensors
    torch.save(content, tmp_path / f"one.{suffix}", _use_new_zipfile_serialization=zipped)
    assert_same(single_file.load(tmp_path / f"one.{suffix}", home), original)


class Trap:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_no_pickle_is_executed(whole, zipped, home, tmp_path):
    """Mutation: weights_only=False."""
    tensors, _ = read_tensors(home / "one.safetensors")
    trap = Trap(tmp_path / "executed")
    torch.save({"state_dict": tensors, "callbacks": trap} if whole else trap, tmp_path / "bad.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(RunError, match="could run code"):
        single_file.load(tmp_path / "bad.ckpt", home)
    assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / "bad.ckpt", weights_only=False)
    assert (tmp_path / "executed").exists()  # the trap works


def cut(source, target, share):
    target.write_bytes(source.read_bytes()[: int(source.stat().st_size * share)])
    return target


def refused(path, config, match):
    """The one sentence that refuses a file."""
    with pytest.raises(RunError, match=match) as caught:
        single_file.load(path, config)
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message
    return message


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_truncated_files(share, home, tmp_path):
    """Mutation: drop SafetensorError, UnpicklingError or one class of DAMAGE."""
    refused(cut(home / "one.safetensors", tmp_path / "cut.safetensors", share), home, "an incomplete or damaged safetensors file")
    tensors, _ = read_tensors(home / "one.safetensors")
    for zipped in (True, False):
        torch.save(tensors, tmp_path / "one.ckpt", _use_new_zipfile_serialization=zipped)
        refused(cut(tmp_path / "one.ckpt", tmp_path / "cut.ckpt", share), home, "damaged")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
def test_files_spoilt_at_random(zipped, tmp_path):
    """Mutation: drop any class of DAMAGE."""
    torch.save({f"weight.{number}": torch.zeros(2) for number in range(9)}, tmp_path / "one.ckpt", _use_new_zipfile_serialization=zipped)
    whole, dice, refusals = (tmp_path / "one.ckpt").read_bytes(), random.Random(0), 0
    for _ in range(400):
        spoilt = bytearray(whole[: dice.choice((len(whole), dice.randrange(len(whole))))])
        for _ in range(dice.randrange(4) if spoilt else 0):
            spoilt[dice.randrange(len(spoilt[:900]))] = dice.randrange(256)
        (tmp_path / "spoilt.ckpt").write_bytes(spoilt)
        try:
            single_file.contents(tmp_path / "spoilt.ckpt")
        except RunError as error:
            refusals += 1
            assert "\n" not in str(error)
    assert refusals > 200


def test_foreign_files(home, tmp_path):
    """Mutation: drop the check of ESSENTIAL, so that diffusers asks the hub for SD 1.5."""
    tensors, _ = read_tensors(home / "one.safetensors")
    for prefix, model in (("model.", "U-Net"), ("first_stage", "autoencoder"), ("cond_stage", "text encoder")):
        write_tensors(tmp_path / "part.safetensors", {name: tensors[name] for name in tensors if not name.startswith(prefix)})
        refused(tmp_path / "part.safetensors", home, f"has no {model}")
    for number, content in enumerate(({"conv.weight": torch.zeros(3)}, [torch.zeros(3)], torch.zeros(3), {"state_dict": None})):
        torch.save(content, tmp_path / f"{number}.ckpt")
        refused(tmp_path / f"{number}.ckpt", home, "is not a checkpoint of Stable Diffusion")
    (tmp_path / "text.ckpt").write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(tmp_path / "text.ckpt", home, "damaged")
    (tmp_path / "text.bin").write_text("hello")
    refused(tmp_path / "text.bin", home, "must end in")
    refused(tmp_path / "none.safetensors", home, "does not exist")
    refused(tmp_path, home, "does not exist or is a folder")


@pytest.mark.slow
def test_a_config_that_does_not_fit(home, tmp_path):
    """Mutation: drop the comparison of names, or a class in load's except."""
    one = home / "one.safetensors"
    others = {
        "more layers": dict(layers=2),
        "wider": dict(widths=(16, 32)),
        "no attention": dict(levels=(PLAIN, PLAIN)),
        "more attention": dict(levels=(CROSS, CROSS)),
        "linear": dict(linear=True),
        "SD 2": dict(activation="gelu"),
    }
    for name, other in others.items():
        build(tmp_path / name, **other)
        refused(one, tmp_path / name, "name a diffusers folder")
    spoilt = tmp_path / "spoilt"
    for file, text in (("unet/config.json", "{}"), ("model_index.json", "{}"), ("vae/config.json", "{"), ("text_encoder/config.json", "[")):
        build(spoilt)
        (spoilt / file).write_text(text)
        refused(one, spoilt, "name a diffusers folder|is a None, which is not known here")
        (spoilt / file).unlink()
        refused(one, spoilt, f"lacks {file}")
        (tmp_path / "spoilt").rename(tmp_path / f"spoilt {file.replace('/', ' ')}")


def test_a_folder_without_tokenizer(tmp_path):
    """Mutation: leave the tokenizer out of CONFIGS; transformers then makes one up."""
    single_file.export(build(tmp_path), tmp_path / "one.safetensors")
    for file in (tmp_path / "tokenizer").iterdir():
        file.unlink()
    refused(tmp_path / "one.safetensors", tmp_path, "lacks tokenizer")


@pytest.mark.parametrize("config", [None, "some/model", "no/such/folder", "no id!"])
def test_no_hub(config, home, monkeypatch):
    """Mutation: catch ValueError alone."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused(home / "one.safetensors", config, "name a diffusers folder")


def test_what_cannot_be_exported(home, tmp_path):
    """Mutation: copy unknown names as they are."""
    pipeline = build(tmp_path / "one")
    with pytest.raises(RunError, match="end in .safetensors"):
        single_file.export(pipeline, tmp_path / "one.ckpt")
    pipeline.unet.add_module("add_embedding", torch.nn.Linear(2, 2))  # SDXL has one
    with pytest.raises(RunError, match="no place for the weight add_embedding"):
        single_file.export(pipeline, tmp_path / "out.safetensors")
    pipeline = build(tmp_path / "two", activation="gelu_new")
    with pytest.raises(RunError, match="gelu_new"):
        single_file.export(pipeline, tmp_path / "out.safetensors")
    pipeline = build(tmp_path / "three", prediction="sample")
    with pytest.raises(RunError, match="predicts 'sample'"):
        single_file.export(pipeline, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
