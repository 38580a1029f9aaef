"""Models that people bring, and what is written of them: copied byte for byte, in the precision asked for, or refused in one sentence."""

import copy
import json
import os
import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import transformers

import models
import pipelines
import sampling
import saving
import single_file
from cli import RunError
from families import StableDiffusion
from families.sd import MORE_INPUTS, tokens
from files import read_json, read_tensors, write_tensors
from helpers import ok, script
from table import describe

UNET = "unet/diffusion_pytorch_model.safetensors"
CONCEPT = ["--method", "uce", "--precision", "fp32", "--forget_prompt", "three", "--target_prompt", "four"]


@pytest.fixture(scope="module")
def family():
    return StableDiffusion.build("test", ["an image of a three, or not"], 16, 1)


@pytest.fixture
def original(family, tmp_path):
    """A diffusers folder as people have it: with a safety checker, and with files that are no part of a pipeline."""
    folder = tmp_path / "original"
    saving.save(family, folder)
    for part, kind in {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "X"],
    }.items():
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(f'{{ "of": "{part}" }}\n')
        edit(folder / "model_index.json", **{part: kind})
    write_tensors(folder / "safety_checker" / "model.safetensors", {"weight": torch.ones(2)})
    edit(folder / "scheduler" / "scheduler_config.json", of="the original")
    edit(folder / "unet" / "config.json", _diffusers_version="0.35.2")
    edit(folder / "text_encoder" / "config.json", torch_dtype="float32")
    for name in ("README.md", "unet/diffusion_pytorch_model.bin", "vae/evil.py", "text_encoder/flax_model.msgpack"):
        (folder / name).write_text("no part of a pipeline")
    return folder


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def as_variant(folder, name="fp16"):
    """Give the weight files of a folder a variant."""
    for part in (*StableDiffusion.PARTS, "safety_checker"):
        for path in (folder / part).glob("*.safetensors"):
            path.rename(path.with_name(path.name.replace(".safetensors", f".{name}.safetensors")))
    return folder


def refused(source, match, **options):
    with pytest.raises(RunError, match=match) as caught:
        pipelines.open_pipeline(source, **options)
    assert "\n" not in str(caught.value)


def shas(family):
    return [models.sha(part) for part in (family.model, *family.frozen)]


# ----------------------------------------------------------------------------------------------------------------- saved
@pytest.mark.slow
def test_what_a_run_did_not_change_is_kept_byte_for_byte(original, tmp_path):
    """Mutation: save any part anew, take the config of the U-Net from diffusers, copy every file, or forget original on the way."""
    ok("unlearn", *CONCEPT, "--model_path", original, "--save_dir", tmp_path / "run")
    shutil.copytree(tmp_path / "run" / "model", tmp_path / "copied")
    ok("unlearn", *CONCEPT, "--model_path", tmp_path / "copied", "--save_dir", tmp_path / "again")
    shutil.copytree(tmp_path / "again" / "model", tmp_path / "copied_again")
    ok("train", "--steps 0 --model_path", tmp_path / "copied_again", "--save_dir", tmp_path / "tuned")
    before, *after = (files(folder) for folder in (original, *(tmp_path / name / "model" for name in ("run", "again", "tuned"))))
    kept = {name: content for name, content in before.items() if b"no part" not in content and name != UNET}
    for found in after:
        changed = found.pop(UNET)
        assert found == kept and changed != before[UNET]
    assert {"safety_checker/model.safetensors", "tokenizer/vocab.json", "unet/config.json", "model_index.json"} < kept.keys()


def test_a_part_that_is_missing_or_pickled_is_left_out(original, tmp_path):
    """Mutation: copy the index as it is, so that no program opens the folder, or refuse a model for its safety checker."""
    for missing in (False, True):
        if missing:
            shutil.rmtree(original / "safety_checker")
        else:
            (original / "safety_checker" / "model.safetensors").rename(original / "safety_checker" / "pytorch_model.bin")
        opened, _ = pipelines.open_pipeline(original)
        saving.save(opened, tmp_path / "saved")
        assert read_json(tmp_path / "saved" / "model_index.json")["safety_checker"] == [None, None]
        assert not (tmp_path / "saved" / "safety_checker").exists()


def test_parts_made_from_a_single_file_open_with_transformers_4_and_5(family, original, tmp_path):
    """Mutation: leave tokenizer or text encoder to save_pretrained: transformers 4 finds neither vocab.json nor the names of weights."""
    from transformers import CLIPTokenizer

    single_file.export(family.pipeline, tmp_path / "one.safetensors")
    flags = ("--steps 0 --model_path", tmp_path / "one.safetensors", "--model_config", original)
    ok("train", *flags, "--save_dir", tmp_path / "run")
    folder = tmp_path / "run" / "model"
    assert shas(pipelines.open_pipeline(tmp_path / "run")[0]) == shas(family)
    assert all(name.startswith("text_model.") for name in read_tensors(folder / "text_encoder" / "model.safetensors")[0])
    texts = ["an image of a three, or not", "Ünïcode 😀 THREE", "", "a" * 30]
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)  # transformers 4 does not read it
    old = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    assert tokens(old, texts).equal(tokens(family.pipeline.tokenizer, texts)) and old.model_max_length == 12


@pytest.mark.slow
def test_precision_of_what_is_saved(original, tmp_path):
    """Mutation: cast the copied parts too, the U-Net alone, or nothing."""
    for dtype in saving.DTYPES:
        run = tmp_path / dtype
        ok("unlearn", *CONCEPT, f"--single_file --save_dtype {dtype} --model_path", original, "--save_dir", run)
        for name in (f"model/{UNET}", "model.safetensors"):
            found, full = (read_tensors(folder / name)[0] for folder in (run, tmp_path / "fp32"))
            assert found.keys() == full.keys() and {tensor.dtype for tensor in found.values()} == {saving.DTYPES[dtype]}
            assert all(torch.equal(found[name], full[name].to(saving.DTYPES[dtype])) for name in found)
        copied = "text_encoder/model.safetensors"
        assert (run / "model" / copied).read_bytes() == (original / copied).read_bytes()
        assert pipelines.open_pipeline(run)[0].model.dtype == torch.float32


def test_weights_too_large_for_half_precision_are_not_saved(tmp_path):
    """Mutation: look at the values before they are cast."""
    large = StableDiffusion.build("test", ["a"], 16, 1)
    next(large.model.parameters()).data[0] = 1e5
    with pytest.raises(RunError, match="do not fit into --save_dtype fp16, take fp32 or bf16"):
        saving.save(large, tmp_path / "saved", "fp16")
    with pytest.raises(RunError, match="do not fit into --save_dtype fp16"):
        single_file.export(large.pipeline, tmp_path / "one.safetensors", "fp16")
    assert not os.listdir(tmp_path)


def test_what_is_written_is_read_by_whom_the_umask_lets(original, tmp_path):
    """Mutation: leave the mode to safetensors, which keeps files to their owner."""
    (original / "vae" / "diffusion_pytorch_model.safetensors").chmod(0o600)
    before = os.umask(0o027)
    try:
        ok("unlearn", *CONCEPT, "--single_file --model_path", original, "--save_dir", tmp_path / "run")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("*") if path.is_file()} == {0o640}


# ---------------------------------------------------------------------------------------------------------------- opened
def test_variants_are_opened_by_name_and_lose_it(family, original, tmp_path):
    """Mutation: open what is there, refuse parts that have no variant, or keep it in the names of what is copied."""
    plain = files(original)
    as_variant(original)
    refused(original, "weights but those of the variant fp16: add --variant fp16")
    assert script("unlearn", *CONCEPT, "--model_path", original, "--save_dir", tmp_path / "none") == 1
    ok("unlearn", *CONCEPT, "--variant fp16 --model_path", original, "--save_dir", tmp_path / "run")
    found = files(tmp_path / "run" / "model")
    assert found.keys() == {name for name in plain if b"no part" not in plain[name]}
    assert all(found[name] == plain[name] for name in found if name != UNET)
    assert describe(read_json(tmp_path / "run" / "args.json"), 1, {})["method"] == "uce"  # a row's name says nothing of files
    shutil.copyfile(original / "vae" / "diffusion_pytorch_model.fp16.safetensors", original / "vae" / "diffusion_pytorch_model.safetensors")
    (original / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    opened, _ = pipelines.open_pipeline(original, variant="fp16")
    assert shas(opened) == shas(family)
    refused(original, "has no weights", variant="ema")


def test_of_two_variants_one_is_opened_and_copied(family, original, tmp_path):
    """Mutation: take the first weight file, or copy all."""
    path = original / UNET
    half = {name: 2 * tensor for name, tensor in read_tensors(path)[0].items()}
    write_tensors(path.with_name("diffusion_pytorch_model.fp16.safetensors"), half, {"format": "pt"})
    write_tensors(original / "vae" / "diffusion_pytorch_model.fp16.safetensors", {}, {"format": "pt"})
    one, _ = pipelines.open_pipeline(original)
    saving.save(one, tmp_path / "saved")
    assert shas(one) == shas(family) and [path.name for path in (tmp_path / "saved").rglob("*.fp16.*")] == []
    (original / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    other, _ = pipelines.open_pipeline(original, variant="fp16")
    assert torch.equal(other.model.conv_in.weight, 2 * family.model.conv_in.weight)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_folders_open_and_are_copied(variant, family, tmp_path):
    """Mutation: leave the index of the shards out, or the variant in it."""
    from diffusers import StableDiffusionPipeline

    family.pipeline.save_pretrained(tmp_path / "sharded", max_shard_size="40kB", variant=variant)
    opened, _ = pipelines.open_pipeline(tmp_path / "sharded", variant=variant)
    assert shas(opened) == shas(family)
    saving.save(opened, tmp_path / "saved")
    again = StableDiffusion(StableDiffusionPipeline.from_pretrained(tmp_path / "saved"))  # what others read
    assert shas(again) == shas(family)
    assert len(list((tmp_path / "saved" / "vae").glob("*-of-*"))) > 1 and not list((tmp_path / "saved").rglob("*fp16*"))


def test_a_model_of_the_hub_is_copied_from_the_cache(family, original, tmp_path, monkeypatch):
    """Mutation: open the name, which leaves no folder to copy from."""
    import huggingface_hub

    home = tmp_path / "cache" / "models--owner--tiny"
    shutil.copytree(original, home / "snapshots" / ("0" * 40))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    opened, recorded = pipelines.open_pipeline("owner/tiny")
    assert recorded == {} and shas(opened) == shas(family)
    saving.save(opened, tmp_path / "saved")
    kept = files(original)
    assert all(content == kept[name] for name, content in files(tmp_path / "saved").items())
    assert (tmp_path / "saved" / "safety_checker" / "model.safetensors").is_file()
    refused("owner/other", "owner/other could not be fetched from the hub")
    edit(home / "snapshots" / ("0" * 40) / "model_index.json", _class_name="Flux2Pipeline")
    refused("owner/tiny", "owner/tiny is a Flux2Pipeline")

    def gated(*args):
        raise huggingface_hub.errors.GatedRepoError("403", response=Mock(headers={}))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", gated)
    refused("owner/gated", "owner/gated is gated: accept its terms on its page of the hub, log in by `hf auth login`")


def test_opening_a_folder_says_nothing(original, capfd):
    """Mutation: cast the parts outside quiet()."""
    pipelines.open_pipeline(original)
    pipelines.open_pipeline(original, dtype="bf16")
    assert capfd.readouterr() == ("", "")


# --------------------------------------------------------------------------------------------------------------- refused
def weightless(folder):
    """A folder without weights: what is refused here is refused before any is read."""
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    return folder


KINDS = {  # what model_index.json says: part of the message
    "has nothing as its text_encoder_2": dict(_class_name="StableDiffusionXLPipeline"),
    "has nothing as its transformer": dict(_class_name="StableDiffusion3Pipeline"),
    "is a Flux2Pipeline": dict(_class_name="Flux2Pipeline"),
    "LatentConsistencyModelPipeline": dict(_class_name="LatentConsistencyModelPipeline"),
    "StableDiffusionInpaintPipeline": dict(_class_name="StableDiffusionInpaintPipeline"),
    "is a None": dict(_class_name=None),
    "has AutoencoderTiny as its vae": dict(vae=["diffusers", "AutoencoderTiny"]),
    "has CLIPTextModelWithProjection as its text_encoder": dict(text_encoder=["transformers", "CLIPTextModelWithProjection"]),
    "has None as its text_encoder": dict(text_encoder=[None, None]),
    "code that could do anything": {"../../outside": ["diffusers", "X"]},
}


@pytest.mark.parametrize("words", KINDS)
def test_pipelines_of_another_kind_are_refused_before_weights_are_read(words, original):
    """Mutation: drop a rule of check_index, or call it later."""
    edit(weightless(original) / "model_index.json", **KINDS[words])
    refused(original, words)


@pytest.mark.parametrize("entry", MORE_INPUTS)
def test_a_unet_that_needs_more_than_a_prompt_is_refused(entry, original):
    """Mutation: drop an entry of MORE_INPUTS, or look at folders alone."""
    edit(original / "unet" / "config.json", **{entry: 256})
    (original / UNET).write_text("not read")
    refused(original, f"U-Net with {entry} 256, which needs more inputs than a prompt")
    with pytest.raises(RunError, match=entry):
        StableDiffusion.check_config({entry: "text_time"}, "a file")


def test_img2img_is_the_same_model(original, family):
    """Mutation: know one name alone."""
    edit(original / "model_index.json", _class_name="StableDiffusionImg2ImgPipeline")
    assert shas(pipelines.open_pipeline(original)[0]) == shas(family)


def test_what_is_no_safetensors_is_refused_with_a_way_out(original):
    """Mutation: leave the sentence to diffusers, which names neither the file nor what to do."""
    (original / UNET).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(original, "is a pointer of git-lfs and holds no weights: run git lfs pull in")
    (original / UNET).unlink()
    refused(original, r"but diffusion_pytorch_model.bin, a pickle, .*from_pretrained\('.*original'\).save_pretrained\('new'\) converts it")
    (original / "unet" / "diffusion_pytorch_model.bin").unlink()
    refused(original, "its unet has no safetensors weights: make or fetch it again")


def test_adapters_that_are_not_fused_are_refused(original, tmp_path):
    """Mutation: say which tensor is missing, and not what to do."""
    path = original / "text_encoder" / "model.safetensors"
    tensors, metadata = read_tensors(path)
    name = next(name for name in tensors if "q_proj.weight" in name)
    extra = {
        name.replace(".weight", ".lora_A.default.weight"): torch.ones(1),
        name.replace(".weight", ".base_layer.weight"): tensors.pop(name),
    }
    write_tensors(path, tensors | extra, metadata)
    refused(original, "saved with a LoRA in its text_encoder that is not fused: fuse its LoRA by")
    (original / "unet" / "adapter_config.json").write_text("{}")
    refused(original, "has an adapter beside its unet: fuse its LoRA by")
    (tmp_path / "lora").mkdir()
    write_tensors(tmp_path / "lora" / "pytorch_lora_weights.safetensors", {"unet.lora_A.weight": torch.ones(1)})
    refused(tmp_path / "lora", "LoRA weights alone are no model: fuse its LoRA by")
    refused(tmp_path / "lora" / "pytorch_lora_weights.safetensors", "is not a checkpoint of Stable Diffusion")
    refused(tmp_path / "lora" / "pytorch_lora_weights.safetensors", "leave out --variant", variant="fp16")


def test_a_tokenizer_without_its_words_is_refused(original):
    """Mutation: let transformers make one that turns every prompt into the same tokens."""
    for path in (original / "tokenizer").iterdir():
        if path.name != "tokenizer_config.json":
            path.unlink()
    refused(original, "its tokenizer lacks its vocabulary or its config")
    shutil.rmtree(original / "tokenizer")
    refused(original, "its tokenizer lacks its vocabulary or its config")


# -------------------------------------------------------------------------------------------------------------- samplers
@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_a_schedule_that_ends_in_pure_noise_is_kept_or_refused(sampler, family):
    """Mutation: let diffusers drop rescale_betas_zero_snr for a sampler that does not know it."""
    from diffusers import DDIMScheduler

    other = copy.copy(family.pipeline)
    other.scheduler = DDIMScheduler(**models.NOISE, rescale_betas_zero_snr=True)
    if sampler in ("lms", "pndm"):
        with pytest.raises(RunError, match="which ends in pure noise: take ddim"):
            sampling.set_sampler(StableDiffusion(other), sampler)
    else:
        sampling.set_sampler(StableDiffusion(other), sampler)
        assert other.scheduler.alphas_cumprod[-1] < 1e-6


@pytest.mark.parametrize("sampler", ["ddim", "own"])
def test_latents_are_never_clipped(sampler, family):
    """Mutation: leave clip_sample to the model's scheduler, which may not have the entry, or to DDIM's default, True."""
    from diffusers import DDIMScheduler, PNDMScheduler

    noise = {name: value for name, value in models.NOISE.items() if name != "clip_sample"}
    other = copy.copy(family.pipeline)
    other.scheduler = PNDMScheduler(**noise) if sampler == "ddim" else DDIMScheduler(**noise)
    assert "clip_sample" not in other.scheduler.config or other.scheduler.config.clip_sample
    before = sampling.set_sampler(StableDiffusion(other), sampler)
    assert isinstance(other.scheduler, DDIMScheduler) and other.scheduler.config.clip_sample is False
    assert StableDiffusion(SimpleNamespace(scheduler=before)).scheduler.config.clip_sample is False
    other.scheduler.set_timesteps(10)
    stepped = other.scheduler.step(torch.zeros(1, 4, 8, 8), 901, torch.full((1, 4, 8, 8), 9.0)).pred_original_sample
    assert stepped.max() > 9


def test_float16_leaves_in_float32_what_the_libraries_do():
    """T5's wo, and the VAE while it decodes. Mutation: cast all of a part; decode under autocast."""
    shape = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 10}
    for dtype, kept in ((torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)):
        encoder = pipelines.cast(transformers.T5EncoderModel(transformers.T5Config(**shape)), dtype)
        kinds = {name.split(".")[-2]: parameter.dtype for name, parameter in encoder.named_parameters()}
        assert kinds.pop("wo") == kept and set(kinds.values()) == {dtype}

    class Decoder:
        def decode(self, latents):
            return latents.dtype, torch.is_autocast_enabled("cpu")

    vae = Decoder()
    with torch.autocast("cpu", torch.bfloat16):
        with sampling.precise_decoder(vae, True):
            assert vae.decode(torch.zeros(1, dtype=torch.bfloat16)) == (torch.float32, False)
        assert vae.decode(torch.zeros(1, dtype=torch.bfloat16)) == (torch.bfloat16, True)
