"""Every family is to its pipeline what diffusers' own code is. Each test names the mutation that would break it."""

import pytest
import torch

import data
import families
import pipelines
import saving
from cli import RunError
from files import read_json, write_json
from helpers import FORGOTTEN, ok, script
from methods import METHODS

PROMPTS = ["an image of a three", "an image of a four", data.NULL]
STEPS = {"esd": "--steps 1 --sample_steps 2", "ca": "--steps 1 --num_images 2 --generation_steps 2", "uce": ""}


@pytest.fixture(scope="module", params=sorted(set(families.BUILT) - {"sd"}))
def kind(request):
    """The name of a family. Of sd all other tests speak."""
    return request.param


@pytest.fixture(scope="module")
def family(kind):
    """A tiny random pipeline with weights that no layer of zeros hides."""
    built = families.BUILT[kind].build("test", PROMPTS[:-1], 16, seed=3)
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
def test_prompts_are_encoded_and_guided_as_the_pipeline_does(family, guidance_scale):
    """Mutation: another hidden state, pooled embedding or empty prompt; swap prompt and empty prompt."""
    embeddings = family.encode_prompts(PROMPTS)
    own = drawn(family.pipeline, prompt=PROMPTS[0], guidance_scale=guidance_scale)
    cached = drawn(family.pipeline, **family.inputs(embeddings[:1], embeddings.empty(1), guidance_scale))
    torch.testing.assert_close(cached, own, rtol=0, atol=1e-5)
    other = drawn(family.pipeline, **family.inputs(embeddings[1:2], embeddings.empty(1), guidance_scale))
    assert (other - own).abs().max() > 1e-3


def test_the_prediction_is_what_the_pipeline_steps_along(family, monkeypatch):
    """Mutation: leave out the pooled prompt or the sizes, or swap height and width."""
    embeddings, seen = family.encode_prompts(PROMPTS), []
    whole = type(family.model).forward

    def watched(model, *args, **options):
        out = whole(model, *args, **options)
        seen.append((args, options, out[0]))
        return out

    with monkeypatch.context() as patch:
        patch.setattr(type(family.model), "forward", watched)
        drawn(family.pipeline, prompt=PROMPTS[0], guidance_scale=1.0)
    for args, options, out in seen:
        noisy, t = (options | dict(zip(("sample", "timestep"), args, strict=False)))["sample"], (*args, options.get("timestep"))[1]
        with torch.no_grad():
            found = family.predict(family.model, noisy, torch.as_tensor(t).reshape(-1), embeddings[:1])
        torch.testing.assert_close(found, out, rtol=1e-4, atol=1e-5)
    assert len(seen) == 3


def test_a_saved_folder_opens_in_diffusers_and_draws_the_same(family, folder, tmp_path):
    """Mutation: leave out a text encoder, a tokenizer or its vocabulary; save what did not change anew."""
    from diffusers import DiffusionPipeline

    plain = DiffusionPipeline.from_pretrained(folder)
    plain.set_progress_bar_config(disable=True)
    torch.testing.assert_close(drawn(plain, prompt=PROMPTS[0]), drawn(family.pipeline, prompt=PROMPTS[0]), rtol=0, atol=1e-5)
    opened, _ = pipelines.open_pipeline(folder)
    assert type(opened) is type(family)
    saving.save(opened, tmp_path / "again")
    trained = next(iter(family.PARTS))
    for path in (path for path in folder.rglob("*") if path.is_file() and path.parent.name != trained):
        assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes(), path


@pytest.mark.slow
def test_every_method_runs_and_leaves_frozen_weights_alone(kind, home, tmp_path):
    """Mutation: restrict by the names of another family; hand a method Stable Diffusion's predictions."""
    small = "--arch test --vae_steps 2 --steps 2 --batch_size 8 --precision fp32"
    start = ("--from_scratch --family", kind, "--dataset digits --data_dir", home / "data", small)
    ok("train", *start, "--save_dir", tmp_path / "original")
    forget = ("--model_path", tmp_path / "original", "--batch_size 4 --forget_class", FORGOTTEN)
    ok("generate_mask", *forget, "--save_dir", tmp_path / "mask")
    for method in METHODS:
        mask = ("--mask_path", tmp_path / "mask") if method in ("salun", "rl") else ()
        flags = ("--method", method, *forget, *mask, STEPS.get(method, "--steps 1"), "--precision fp32 --save_dir", tmp_path / method)
        ok("unlearn", *flags)
        changed = read_json(tmp_path / method / "done.json")["fraction_changed"]
        assert 0 < changed <= (0.51 if mask else 1), method
    draw = "--num_samples 1 --steps 2 --batch_size 10 --precision fp32 --save_dir"
    ok("generate_images", "--model_path", tmp_path / "salun", draw, tmp_path / "samples")
    assert len(list((tmp_path / "samples" / "samples").glob("*.png"))) == 10


def test_a_mask_of_another_family_is_refused(kind, home, tmp_path, capsys):
    """Mutation: compare neither original nor names of weights."""
    small = "--arch test --vae_steps 1 --steps 1 --batch_size 8 --precision fp32 --data_dir"
    ok("train", "--from_scratch --dataset digits --family", kind, small, home / "data", "--save_dir", tmp_path / "original")
    flags = ("--model_path", tmp_path / "original", "--forget_class", FORGOTTEN, "--mask_path", home / "mask", "--steps 1 --save_dir")
    assert script("unlearn", *flags, tmp_path / "run") == 1 and not (tmp_path / "run" / "done.json").exists()
    assert "mask" in capsys.readouterr().err


def test_a_single_file_of_another_family_is_refused_before_anything_runs(kind, folder, tmp_path, capsys):
    """Mutation: leave it to export(), after all is trained."""
    flags = ("--steps 0 --single_file --model_path", folder, "--save_dir", tmp_path / "run")
    assert script("train", *flags) == 1 and "--single_file knows" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_pipeline_that_lacks_a_part_is_refused(folder, tmp_path):
    """Mutation: look at the trained part alone."""
    index = read_json(folder / "model_index.json")
    for name in families.KINDS[index["_class_name"]].PARTS:
        lacking = dict(index) | {name: [None, None]}
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "model_index.json", lacking)
        with pytest.raises(RunError, match=f"has None as its {name}, not"):
            pipelines.open_pipeline(tmp_path / name)
