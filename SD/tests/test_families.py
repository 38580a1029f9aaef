"""Every family is to its pipeline what diffusers' own code is. Each test names the mutation that would break it."""

import copy
import inspect
import shutil

import pytest
import torch
from diffusers import PNDMScheduler

import benchmark
import data
import families
import models
import pipelines
import sampling
import saving
import single_file
from cli import RunError
from files import read_json, read_tensors, write_json, write_tensors
from helpers import FORGOTTEN, cpu, ok, script
from methods import METHODS

PROMPTS = ["an image of a three", "an image of a four", data.NULL]
FLOWS = ("sd3", "flux")
OWN = {  # arguments of a pipeline that draws of a prompt, of its family and guidance scale
    "sdxl": lambda scale: {"guidance_scale": scale},
    "sd3": lambda scale: {"guidance_scale": scale, "max_sequence_length": 12},
    "flux": lambda scale: {"true_cfg_scale": scale, "negative_prompt": "", "max_sequence_length": 12},
}
XL_NAMES = [
    "model.diffusion_model.label_emb.0.0.weight",
    "model.diffusion_model.label_emb.0.2.bias",
    "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight",
    "first_stage_model.decoder.conv_in.weight",
    "conditioner.embedders.0.transformer.text_model.encoder.layers.1.self_attn.k_proj.weight",
    "conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight",
    "conditioner.embedders.1.model.positional_embedding",
    "conditioner.embedders.1.model.text_projection",
]
STEPS = {"esd": "--steps 1 --sample_steps 2", "ca": "--steps 1 --num_images 2 --generation_steps 2", "uce": ""}


@pytest.fixture(scope="module", params=sorted(set(families.FAMILIES) - {"sd"}))
def kind(request):
    """The name of a family. Of sd all other tests speak."""
    return request.param


@pytest.fixture(scope="module")
def family(kind):
    """A tiny random pipeline with weights that no layer of zeros hides."""
    built = families.FAMILIES[kind].build("test", PROMPTS[:-1], 16, seed=3)
    draw = data.make_generator("weights")
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    built.model.eval()
    return built


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    path = tmp_path_factory.mktemp("family") / "model"
    saving.save(family, path)
    return path


def drawn(pipeline, generator_seed=5, **inputs):
    options = {"num_inference_steps": 3, "width": 16, "height": 16, "output_type": "pt"}
    return pipeline(**inputs, **options, generator=torch.Generator().manual_seed(generator_seed)).images


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_prompts_are_encoded_and_guided_as_the_pipeline_does(kind, family, guidance_scale):
    """Mutation: another hidden state, pooled embedding or empty prompt; swap prompt and empty prompt."""
    embeddings = family.encode_prompts(PROMPTS)
    own = drawn(family.pipeline, prompt=PROMPTS[0], **OWN[kind](guidance_scale))
    cached = drawn(family.pipeline, **family.inputs(embeddings[:1], embeddings.empty(1), guidance_scale))
    torch.testing.assert_close(cached, own, rtol=0, atol=1e-5)
    other = drawn(family.pipeline, **family.inputs(embeddings[1:2], embeddings.empty(1), guidance_scale))
    assert (other - own).abs().max() > 1e-3


@pytest.fixture
def watched(monkeypatch):
    """watched(family, **options) -> [(inputs of the model by name, its output)] while the pipeline draws."""

    def call(family, **options):
        whole, seen = type(family.model).forward, []
        names = inspect.signature(whole).parameters

        def look(model, *args, **inputs):
            out = whole(model, *args, **inputs)
            seen.append((dict(zip(list(names)[1:], args, strict=False)) | inputs, out[0]))
            return out

        with monkeypatch.context() as patch:
            patch.setattr(type(family.model), "forward", look)
            drawn(family.pipeline, **options)
        return seen

    return call


def test_the_prediction_is_what_the_pipeline_steps_along(kind, family, watched):
    """Mutation: leave out the pooled prompt or the sizes, swap height and width, or tell a flow's transformer t and not sigma."""
    embeddings, levels = family.encode_prompts(PROMPTS), [0.9, 0.5, 0.1]
    seen = watched(family, prompt=PROMPTS[0], **OWN[kind](1.0), **({"sigmas": levels} if kind in FLOWS else {}))
    for (inputs, out), level in zip(seen, levels, strict=True):
        noisy = inputs["hidden_states" if kind in FLOWS else "sample"]
        t = round(1000 * level) - 1 if kind in FLOWS else inputs["timestep"]  # of 1000 levels 0.001, 0.002, ... before they are shifted
        if kind == "flux":
            noisy, out = family.unpack(noisy, 8, 8), family.unpack(out, 8, 8)
        with torch.no_grad():
            found = family.predict(family.model, noisy, torch.as_tensor(t).reshape(-1), embeddings[:1])
        torch.testing.assert_close(found, out, rtol=1e-4, atol=1e-5)


def test_a_distilled_flux_is_told_its_guidance(watched):
    """Mutation: tell it while it trains what generate_images.py tells it, or guide it by the empty prompt too."""
    from diffusers import FluxTransformer2DModel

    family = families.FAMILIES["flux"].build("test", PROMPTS[:-1], 16, seed=3)
    family.pipeline.register_modules(transformer=FluxTransformer2DModel(**dict(family.model.config) | {"guidance_embeds": True}))
    embeddings = family.encode_prompts(PROMPTS)
    assert family.GUIDANCE == 3.5
    cached = drawn(family.pipeline, **family.inputs(embeddings[:1], embeddings.empty(1), 2.0))
    torch.testing.assert_close(cached, drawn(family.pipeline, prompt=PROMPTS[0], guidance_scale=2.0, max_sequence_length=12))
    ((inputs, out), *_) = watched(family, prompt=PROMPTS[0], guidance_scale=3.5, max_sequence_length=12)
    with torch.no_grad():
        found = family.predict(family.model, family.unpack(inputs["hidden_states"], 8, 8), torch.tensor([999]), embeddings[:1])
    torch.testing.assert_close(found, family.unpack(out, 8, 8))


@pytest.mark.parametrize("kind", FLOWS, indirect=True)
def test_a_flow_is_that_of_diffusers(family):
    """Mutation: take the noise as the target, the levels upside down or unshifted, or forget the shift of the latents."""
    draw = data.make_generator("flow")
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=draw)
    t, scheduler = torch.tensor([0, 400, 999]), family.noise_scheduler()
    noisy = scheduler.scale_noise(latents, scheduler.timesteps[[999, 599, 0]], noise)
    torch.testing.assert_close(family.add_noise(latents, noise, t), noisy)
    # Along the target, the sampler returns from the noise to the latents in one step
    scheduler.set_timesteps(sigmas=[1.0])
    back = scheduler.step(family.target(latents, noise, t), scheduler.timesteps[0], noise).prev_sample
    torch.testing.assert_close(back, latents, rtol=1e-5, atol=1e-5)
    vae = family.pipeline.vae
    vae.register_to_config(shift_factor=0.3, scaling_factor=1.7)
    images = torch.randint(256, (2, 16, 16, 3), generator=draw, dtype=torch.uint8)
    mean, _ = family.encode_images(images).chunk(2, dim=1)
    posterior = vae.encode(images.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
    torch.testing.assert_close(mean / vae.config.scaling_factor + vae.config.shift_factor, posterior.mean, rtol=1e-4, atol=1e-5)
    vae.register_to_config(shift_factor=0.0, scaling_factor=0.18215)


@pytest.mark.parametrize("kind", FLOWS, indirect=True)
def test_a_whole_sampling_run_of_a_flow_is_the_pipelines(family):
    """Mutation: step from or to the noise level of another step."""
    embeddings, generator = family.encode_prompts(PROMPTS), torch.Generator().manual_seed(5)
    options = {"num_inference_steps": 4, "width": 16, "height": 16, "output_type": "latent", "sigmas": [1.0, 0.75, 0.5, 0.25]}
    own = family.pipeline(**family.inputs(embeddings[:1], embeddings.empty(1), 1.0), **options, generator=generator).images
    timesteps, step = family.denoiser(4, "cpu")
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    for number in range(4):
        with torch.no_grad():
            latents = step(family.predict(family.model, latents, timesteps[number][None], embeddings[:1]), number, latents)
    torch.testing.assert_close(latents, family.drawn_latents(own, (16, 16)), rtol=1e-4, atol=1e-5)


def test_a_saved_folder_opens_in_diffusers_and_draws_the_same(kind, family, folder, tmp_path):
    """Mutation: leave out a text encoder, a tokenizer or its vocabulary; save what did not change anew."""
    from diffusers import DiffusionPipeline

    plain = DiffusionPipeline.from_pretrained(folder)
    plain.set_progress_bar_config(disable=True)
    here, there = (drawn(pipeline, prompt=PROMPTS[0], **OWN[kind](3.0)) for pipeline in (family.pipeline, plain))
    torch.testing.assert_close(there, here, rtol=0, atol=1e-5)
    opened, _ = pipelines.open_pipeline(folder)
    assert type(opened) is type(family)
    saving.save(opened, tmp_path / "again")
    trained = next(iter(family.PARTS))
    for path in (path for path in folder.rglob("*") if path.is_file() and path.parent.name != trained):
        assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize("kind", FLOWS, indirect=True)
def test_uce_edits_what_reads_the_prompt(kind, family):
    """The gradient of its objective is 0. Mutation: take the first token for the last one, or the encoded prompt for the pooled one."""
    three, four, null = range(3)
    embeddings, ends = family.encode_prompts(PROMPTS), [family.last_positions(prompt) for prompt in PROMPTS]
    # CLIP's prompt of five words begins behind a start token, T5's with the first of 12 tokens of its own
    assert ends == {"sd3": [[5, 12 + 4], [5, 12 + 4], [0, 12]], "flux": [[4], [4], [0]]}[kind]
    same = {"family": family, "embeddings": embeddings, "targets": torch.tensor([four, four, null]), "forgotten": [three], "ends": ends}
    edited = copy.deepcopy(family.model)
    METHODS["uce"](edited, **same, retained=[four, null], named=[four, null], erase_scale=2.0, ridge=0.3)
    before, after = dict(family.model.named_parameters()), dict(edited.named_parameters())
    edits = {"context_embedder.weight": lambda number: embeddings.tokens[number, ends[number]]}
    edits["time_text_embed.text_embedder.linear_1.weight"] = lambda number: embeddings.tensors["pooled_projections"][number][None]
    for name, rows in edits.items():
        old, new = before.pop(name).detach().double(), after.pop(name).detach().double().requires_grad_(True)
        error = 2 * (rows(three).double() @ new.T - rows(four).double() @ old.T).square().sum()
        error = error + (rows(four).double() @ (new - old).T).square().sum() + 0.3 * (new - old).square().sum()
        (gradient,) = torch.autograd.grad(error, new)
        assert (new - old).abs().max() > 1e-3 and gradient.abs().max() < 1e-4 * rows(three).norm() ** 2, name
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(RunError, match="take 2025"):
        family.check_method("uce", {"authors_code": "2023"})
    family.check_method("uce", {"authors_code": None})


@pytest.mark.slow
def test_every_method_runs_and_leaves_frozen_weights_alone(kind, home, tmp_path, capsys):
    """Mutation: restrict by the names of another family; hand a method Stable Diffusion's predictions."""
    small = "--arch test --vae_steps 2 --steps 2 --batch_size 8 --precision fp32"
    start = ("--from_scratch --family", kind, "--dataset digits --data_dir", home / "data", small)
    ok("train", *start, "--save_dir", tmp_path / "original")
    forget = ("--model_path", tmp_path / "original", "--batch_size 4 --forget_class", FORGOTTEN)
    ok("generate_mask", *forget, "--save_dir", tmp_path / "mask")
    for method in (method for method in METHODS if method not in families.FAMILIES[kind].REFUSED):
        mask = ("--mask_path", tmp_path / "mask") if method in ("salun", "rl") else ()
        flags = ("--method", method, *forget, *mask, STEPS.get(method, "--steps 1"), "--precision fp32 --save_dir", tmp_path / method)
        ok("unlearn", *flags)
        changed = read_json(tmp_path / method / "done.json")["fraction_changed"]
        assert 0 < changed <= (0.51 if mask else 1), method
    for method, reason in families.FAMILIES[kind].REFUSED.items():
        assert script("unlearn", "--method", method, *forget, "--steps 1 --save_dir", tmp_path / method) == 1
        assert reason in capsys.readouterr().err and not (tmp_path / method).exists()
    draw = "--num_samples 1 --steps 2 --batch_size 10 --precision fp32 --save_dir"
    ok("generate_images", "--model_path", tmp_path / "salun", draw, tmp_path / "samples")
    assert len(list((tmp_path / "samples" / "samples").glob("*.png"))) == 10


@pytest.mark.slow
def test_a_mask_of_another_family_is_refused(kind, home, tmp_path, capsys):
    """Mutation: compare neither original nor names of weights."""
    small = "--arch test --vae_steps 1 --steps 1 --batch_size 8 --precision fp32 --data_dir"
    ok("train", "--from_scratch --dataset digits --family", kind, small, home / "data", "--save_dir", tmp_path / "original")
    flags = ("--model_path", tmp_path / "original", "--forget_class", FORGOTTEN, "--mask_path", home / "mask", "--steps 1 --save_dir")
    assert script("unlearn", *flags, tmp_path / "run") == 1 and not (tmp_path / "run" / "done.json").exists()
    assert "mask" in capsys.readouterr().err


@pytest.mark.parametrize("kind", FLOWS, indirect=True)
def test_a_single_file_of_another_family_is_refused_before_anything_runs(kind, folder, tmp_path, capsys):
    """Mutation: leave it to export(), after all is trained."""
    flags = ("--steps 0 --single_file --model_path", folder, "--save_dir", tmp_path / "run")
    assert script("train", *flags) == 1 and "--single_file knows" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["sdxl"], indirect=True)
def test_a_single_file_of_xl_goes_out_and_in(family, folder, home, tmp_path):
    """Mutation: leave the projection as it is, number the blocks of a transformer all 0, or give both text encoders one layout."""
    from diffusers import StableDiffusionXLPipeline

    path = tmp_path / "one.safetensors"
    single_file.export(family.pipeline, path)
    tensors = read_tensors(path)[0]
    assert tensors.keys() >= set(XL_NAMES)
    projection = family.pipeline.text_encoder_2.text_projection.weight
    assert torch.equal(tensors["conditioner.embedders.1.model.text_projection"], projection.T)
    opened, _ = pipelines.open_pipeline(path, config=folder)
    assert type(opened) is type(family) and models.sha(opened.model, *opened.frozen) == models.sha(family.model, *family.frozen)
    plain = StableDiffusionXLPipeline.from_single_file(str(path), config=str(folder))
    plain.set_progress_bar_config(disable=True)
    here, there = (drawn(pipeline, prompt=PROMPTS[0], **OWN["sdxl"](3.0)) for pipeline in (family.pipeline, plain))
    torch.testing.assert_close(there, here, rtol=0, atol=1e-5)
    with pytest.raises(RunError, match="is of another family than the configs"):
        pipelines.open_pipeline(path, config=home / "original" / "model")


@pytest.mark.parametrize("kind", ["sdxl"], indirect=True)
def test_an_xl_with_v_prediction_says_so_as_comfyui_reads_it(family, folder, tmp_path, monkeypatch):
    """Mutation: leave the tensors out, or do not look for them: other programs write no metadata. Take EDM for epsilon. Let a PNDM
    scheduler drop what it does not know, so that the model trains on another noise schedule."""
    path, scheduler = tmp_path / "one.safetensors", family.pipeline.scheduler
    changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    monkeypatch.setattr(family.pipeline, "scheduler", type(scheduler).from_config(scheduler.config, **changes))
    single_file.export(family.pipeline, path)
    tensors = read_tensors(path)[0]
    assert tensors["v_pred"].numel() == tensors["ztsnr"].numel() == 0
    write_tensors(path, tensors)
    config = single_file.load(path, folder).scheduler.config
    assert {name: config[name] for name in changes} == changes
    other = shutil.copytree(folder, tmp_path / "other")
    PNDMScheduler.from_config(models.NOISE).save_pretrained(other / "scheduler")
    write_json(other / "model_index.json", read_json(other / "model_index.json") | {"scheduler": ["diffusers", "PNDMScheduler"]})
    assert single_file.load(path, other).scheduler.config["rescale_betas_zero_snr"]
    write_tensors(path, tensors | {"edm_mean": torch.zeros(4)})
    with pytest.raises(RunError, match="is an EDM model"):
        single_file.load(path, folder)


def test_the_layout_of_a_full_size_xl_is_known():
    """Mutation: a depth of 1 for every transformer."""
    unet = single_file.unet_tensors(benchmark.shape_of("sdxl"))
    assert len(unet) == 1680 and "model.diffusion_model.middle_block.1.transformer_blocks.9.attn2.to_k.weight" in unet


def test_a_pipeline_that_lacks_a_part_is_refused(folder, tmp_path):
    """Mutation: look at the trained part alone."""
    index = read_json(folder / "model_index.json")
    kind = families.KINDS[index["_class_name"]]
    for name in kind.PARTS.keys() - set(kind.OPTIONAL):
        lacking = dict(index) | {name: [None, None]}
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "model_index.json", lacking)
        with pytest.raises(RunError, match=f"has None as its {name}, not"):
            pipelines.open_pipeline(tmp_path / name)


@pytest.mark.parametrize("kind", ["sd3"], indirect=True)
def test_stable_diffusion_3_works_without_its_t5(folder, tmp_path):
    """Mutation: demand every part; take CLIP's length for T5's, or a position of T5's."""
    from diffusers import DiffusionPipeline

    DiffusionPipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None).save_pretrained(tmp_path / "small")
    family, _ = pipelines.open_pipeline(tmp_path / "small")
    embeddings = family.encode_prompts(PROMPTS)
    assert embeddings.tokens.shape[1] == 12 + 256 and not embeddings.tokens[:, 12:].any() and family.last_positions(PROMPTS[0]) == [5]
    cached = drawn(family.pipeline, **family.inputs(embeddings[:1], embeddings.empty(1), 3.0))
    torch.testing.assert_close(cached, drawn(family.pipeline, prompt=PROMPTS[0], guidance_scale=3.0), rtol=0, atol=1e-5)
    assert sampling.draw(family, embeddings[:1], embeddings.empty(1), [1], cpu(), steps=1, guidance_scale=1, size=(16, 16)).any()
    saving.save(family, tmp_path / "saved")
    assert not (tmp_path / "saved" / "text_encoder_3").exists()
    assert models.sha(pipelines.open_pipeline(tmp_path / "saved")[0].model) == models.sha(family.model)


def test_drawing_leaves_the_text_encoders_where_they_are(family, folder, tmp_path):
    """Mutation: draw without them, and forget to put them back; leave them for the pipeline to ask for its device."""
    embeddings, options = family.encode_prompts(PROMPTS), {"steps": 2, "guidance_scale": 2.0, "size": (16, 16)}
    encoders = family.encoders
    for encoder in encoders:
        encoder.to("meta")  # a device where nothing can be drawn
    try:
        images = sampling.draw(family, embeddings[:1], embeddings.empty(1), [1], cpu("fp32"), **options)
    finally:
        for encoder, held in zip(encoders, pipelines.open_pipeline(folder)[0].encoders, strict=True):
            encoder.to_empty(device="cpu").load_state_dict(held.state_dict())
    assert family.encoders == encoders
    assert images.shape == (1, 16, 16, 3)
    saving.save(family, tmp_path / "again")
    assert (tmp_path / "again" / "model_index.json").read_bytes() == (folder / "model_index.json").read_bytes()


@pytest.mark.parametrize("kind", FLOWS, indirect=True)
def test_what_a_family_cannot_draw_is_refused_before_anything_is_written(family, folder, tmp_path, capsys, monkeypatch):
    """Mutation: ask while it draws, or let the pipeline round the size."""
    draw = ("--steps 1 --model_path", folder, "--save_dir", tmp_path / "run")
    assert script("generate_images", "--prompt three --sampler ddim", *draw) == 1 and not (tmp_path / "run").exists()
    assert "--sampler ddim does not draw with" in capsys.readouterr().err
    with pytest.raises(RunError, match="edges must be multiples of 4 px"):  # 2 of the tiny autoencoder, times the patches' 2
        family.check_size(16, 18)
    (tmp_path / "list.csv").write_text("case_number,prompt,evaluation_seed,width,height\n0,three,1,16,24\n")
    monkeypatch.setattr(type(family), "multiple", 16)  # as a full-size FLUX has it
    assert script("generate_images", "--prompts_path", tmp_path / "list.csv", *draw) == 1 and not (tmp_path / "run").exists()
    assert "images of 16 x 24 px do not fit the model" in capsys.readouterr().err
