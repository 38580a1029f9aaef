"""Images, prompts, latents and their cache. Each test names the mutation that would break it."""

import json
import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import concepts
import data
import imagesets
import latents
import models
import pipelines
import sampling
import task
from cli import RunError
from families import StableDiffusion
from files import read_json, read_tensors, write_json
from helpers import FORGOTTEN, TINY, cpu, ok

GENERATED = dict(num_images=3, generation_steps=3, generation_guidance_scale=2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of four coloured pictures each, of odd sizes, in train/ and one each in val/."""
    root = tmp_path_factory.mktemp("pictures")
    for part, count in (("train", 4), ("val", 1)):
        for name, colour in (("red fox", (200, 30, 30)), ("sky", (40, 60, 220))):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (20 + i, 31), colour).save(root / part / name / f"{i}.png")
    return root


# ------------------------------------------------------------------------------------------------------------- pictures
def test_pictures_are_cut_to_a_square(folder):
    """Mutation: resize without cropping."""
    found = imagesets.load("folder", folder, 16)
    assert found.classes == ["red fox", "sky"] and found.y_train == [0] * 4 + [1] * 4 and len(found.test) == 2
    assert found.train[:].shape == (8, 16, 16, 3) and (found.train[5] == torch.tensor([40, 60, 220])).all()
    wide = Image.new("RGB", (64, 32))
    wide.paste((255, 255, 255), (16, 0, 48, 32))
    assert np.asarray(imagesets.Pictures([np.asarray(wide)], 16)[0]).min() > 200  # the middle, not a squeezed whole


def test_files_that_are_no_images_are_counted(folder, capsys):
    """Breaks if photographs in a format that is not read go missing without a word, or hidden files with one."""
    for name in ("p.heic", "no ending", ".DS_Store"):
        (folder / "train" / "sky" / name).write_bytes(b"")
    assert len(imagesets.load("folder", folder, 16).train) == 8
    assert "train/sky: 2 not read" in (said := capsys.readouterr().err) and "no ending" in said and "DS_Store" not in said


def test_imagenette_gets_names_of_its_classes(tmp_path):
    """Mutation: keep the folders' names."""
    for name in ("n03028079", "n01440764"):
        for part in ("train", "val"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("L", (9, 9)).save(tmp_path / part / name / "a.jpg")
    assert imagesets.load("imagenette", tmp_path, 8).classes == ["tench", "church"]


def test_captions_are_read_from_metadata_csv(tmp_path):
    """Mutation: sort the files, and so mix up the captions."""
    for name in ("b", "a"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "metadata.csv").write_text('\ufefffile_name,text\nb.png,"a bird, flying"\na.png,\n', encoding="utf-8")
    found = imagesets.load("captions", tmp_path, 8)
    assert found.captions == ["a bird, flying", ""] and [path.name for path in found.train.items] == ["b.png", "a.png"]
    (tmp_path / "metadata.csv").write_text("file_name,caption\nb.png,x\n")
    with pytest.raises(RunError, match="lacks the column text; it has file_name, caption"):
        imagesets.load("captions", tmp_path, 8)
    (tmp_path / "metadata.csv").write_text("file_name,text\nc.png,x\n")
    with pytest.raises(RunError, match="names c.png, which is not in"):
        imagesets.load("captions", tmp_path, 8)


def test_class_names_win_over_numbers(capsys):
    """Breaks if a word of digits is read as a number before the names are looked at, or if the choice is not said."""
    folders = ["1", "10", "2"]  # in the order of their names, as folders are read
    assert data.class_numbers(["1", "10", "2", "0"], folders) == [0, 1, 2, 0]
    said = capsys.readouterr().err.splitlines()
    assert said == ["class 1: taken as the class named 1, not as number 1, which is named 10"]
    assert data.class_numbers(["02", "1"], ["zero", "two", "three"]) == [2, 1] and data.class_numbers(["3"], list("0123456789")) == [3]
    assert capsys.readouterr().err == ""


def test_one_spelling_of_a_class_has_one_answer(capsys):
    """Breaks if case, zeros before a number, signs or foreign digits are read otherwise than in the other two folders."""
    named = ["cat", "Dog", "dog", "owl"]
    assert data.class_numbers(["CAT", "Dog", "dog", "03", "0"], named) == [0, 1, 2, 3, 0]
    assert data.class_numbers(["001", "1"], ["a", "b", "01"]) == [2, 2]  # a number of zeros before it is that class's name
    refused = {"DOG": "could be Dog or dog", "4": "known are 0 to 3", "bird": "there is no class bird"}
    for word in ("-0", "-1", "--5", "+1", "\u00b2", "\u2460", "\u0663", "1.0", "", " 1", "9" * 5000):
        refused[word] = "there is no class"
    for word, message in refused.items():
        with pytest.raises(RunError, match=message):
            data.class_numbers([word], named)


# ------------------------------------------------------------------------------------------------------ prompts and latents
def test_words_are_single_tokens_and_others_are_spelled():
    """Mutation: train too few merges."""
    tokenizer = models.build_tokenizer(["a handwritten seven", "an eve of nine"])
    family = StableDiffusion(SimpleNamespace(tokenizer=tokenizer))
    for text in ("a", "handwritten", "SEVEN", "eve", "nine"):
        assert len(family.own_tokens(text)) == 1
    assert len(family.own_tokens("evening")) > 1 and family.own_tokens("") == []
    assert len({tuple(family.own_tokens(text)) for text in ("é", "😀", "seven", "neves")}) == 4


def test_the_tokenizer_follows_from_the_captions():
    """Mutation: no special_tokens, so that the order of a hash table numbers the letters."""
    captions = ["an image of a " + name for name in ("zero", "three", "seven", "church", "dog", "truck", "parachute", "tench", "sketch")]
    captions = [*captions, "six", "eight nine", "one two four five"]
    found = {json.dumps(models.build_tokenizer(captions).get_vocab(), sort_keys=True) for _ in range(12)}
    assert len(found) == 1


def test_long_prompts_are_warned_of_and_cut(home):
    """Mutation: truncation=False, or warn of short ones too."""
    family, _ = pipelines.open_pipeline(home / "original")
    with pytest.warns(UserWarning, match="too long for the text encoder, cut after 10 tokens: 'three three"):
        long = family.encode_prompts(["three " * 30]).tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(family.encode_prompts(["three " * 10]).tokens, long)


def test_embeddings_are_those_of_the_pipeline(home):
    """Mutation: another hidden layer, or no padding."""
    family, _ = pipelines.open_pipeline(home / "original")
    expected = torch.cat(family.pipeline.encode_prompt("an image of a six", "cpu", 1, True, "")[:2])
    assert torch.equal(family.encode_prompts(["an image of a six", ""]).tokens, expected)


def test_embeddings_of_a_long_list_are_kept_where_it_is_asked(home):
    """Mutation: keep all on the model's device; encode the list at once; leave out the last part."""
    family, _ = pipelines.open_pipeline(home / "original")
    asked, encode, words = [], family.encode_prompts, ["three", "a six", "nine", "four", ""]
    family.encode_prompts = lambda prompts: asked.append(len(prompts)) or encode(prompts)
    found = latents.embed(family, words, SimpleNamespace(device="cpu"), "meta", batch_size=2)
    assert asked == [2, 2, 1] and found.device.type == "meta" and len(found) == 5
    assert torch.equal(latents.embed(family, words, cpu(), batch_size=2).tokens, encode(words).tokens)


def test_latents_are_the_vaes(home):
    """Mutation: leave out the scaling factor, or the variance in place of the deviation."""
    family, _ = pipelines.open_pipeline(home / "original")
    images = imagesets.load("digits", home / "data", 16).train[:3]
    with torch.no_grad():
        expected = family.pipeline.vae.encode(data.to_float(images)).latent_dist
    normal = torch.randn(3, 4, 8, 8)
    split = data.Split(family.encode_images(images), torch.arange(3), "train")
    latents = (expected.mean + expected.std * normal) * family.pipeline.vae.config.scaling_factor
    torch.testing.assert_close(split.load(torch.arange(3), normal), latents)
    assert 0.5 < split.images[:, :4].std() < 1.5  # train.py chose the factor for unit scale


def test_streams_follow_from_seed_and_step():
    """Mutation: draw per process, or forget the step or the name of the split."""
    split = data.Split(torch.randn(10, 8, 4, 4), torch.arange(10), "forget")
    other = data.Split(split.images, split.labels, "retain")
    same = dict(batch_size=6, seed=1, timesteps=1000, device="cpu")
    whole, again = data.Stream(split, **same).batch(3), data.Stream(split, **same).batch(3)
    processes = [data.Stream(split, **same, rank=rank, world=4).batch(3) for rank in range(4)]
    slices = [data.Stream(split, **same, rank=rank, world=2, parts=2).batch(3, part) for rank in range(2) for part in range(2)]
    values = [torch.arange(6.0)[start:stop] for start, stop in ((0, 1), (1, 3), (3, 4), (4, 6))]
    for parts in (processes, slices):
        for name in ("images", "labels", "t", "noise", "uniform"):
            value = getattr(whole, name)
            assert torch.equal(value, getattr(again, name)) and torch.equal(value, torch.cat([getattr(part, name) for part in parts]))
        shares = [part.mean(value) for part, value in zip(parts, values, strict=True)]
        assert sum(shares) / 4 == pytest.approx(2.5)
    assert (whole.t + whole.t.roll(3) == 999).all()  # antithetic
    seen = torch.cat([data.Stream(split, **same).positions(step) for step in range(5)])
    assert (seen.bincount() == 3).all()  # whole passes
    assert not torch.equal(whole.noise, data.Stream(other, **same).batch(3).noise)


def test_a_pass_weighs_every_image_once():
    """Mutation: drop the last batch, or draw timesteps anew; a batch of nothing for a process that has no image."""
    split = data.Split(torch.randn(11, 8, 4, 4), torch.arange(11), "forget")
    one, two = ([part for rank in range(world) for part in data.whole_pass(split, 4, 1, 1000, "cpu", 0, rank, world)] for world in (1, 2))
    for a, b in zip(zip(*one, strict=True), zip(*two, strict=True), strict=True):
        assert torch.equal(torch.cat(a), torch.cat(b))
    assert torch.cat([part[1] for part in one]).tolist() == list(range(11))
    assert not list(data.whole_pass(split, 4, 1, 1000, "cpu", 0, 12, 13))
    t = torch.cat([part[2] for part in one]).sort().values
    assert all(int(value) // (1000 / 11) >= place - 1e-6 for place, value in enumerate(t.tolist()))


# ---------------------------------------------------------------------------------------------------------------- the cache
def test_the_cache_equals_no_cache_and_knows_what_it_is_of(home, tmp_path, folder, monkeypatch):
    """Mutation: name it by the folder."""
    family, _ = pipelines.open_pipeline(home / "original")
    pictures = imagesets.load("folder", folder, 16).train
    fresh = family.encode_images(pictures[:])
    calls = []
    whole = family.encode_images
    monkeypatch.setattr(family, "encode_images", lambda *args: calls.append(1) or whole(*args))

    def encode(pictures=pictures, vae_sha="v"):
        return latents.encode_pictures(family, pictures, vae_sha, tmp_path, cpu())

    assert torch.equal(encode(), fresh) and calls == [1]
    assert torch.equal(encode(), fresh) and calls == [1]  # from the cache, to the bit
    encode(vae_sha="another model")
    encode(pictures.subset(range(7)))
    encode(imagesets.Pictures(pictures.items, 24))
    assert calls == [1] * 4
    Image.new("RGB", (20, 31), (1, 2, 3)).save(folder / "train" / "sky" / "0.png")  # same name, other contents
    assert not torch.equal(encode(), fresh) and calls == [1] * 5
    cache = sorted((tmp_path / "cache").iterdir())
    assert len(cache) == 5
    mine = next(path for path in cache if torch.equal(read_tensors(path)[0]["values"], encode()))
    mine.write_bytes(next(path for path in cache if path != mine).read_bytes())
    with pytest.raises(RunError, match="is not the cache it should be"):
        encode()
    mine.write_bytes(mine.read_bytes()[:100])
    with pytest.raises(RunError, match="an incomplete or damaged safetensors file"):
        encode()


@pytest.mark.slow
def test_training_on_the_cache_equals_encoding_anew(unlearn, tmp_path):
    """Mutation: keep the cache in half precision."""
    folders = [unlearn("rl", "--steps 3 --data_dir", tmp_path / "one") for _ in range(2)]
    first, second = ((folder / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() for folder in folders)
    assert first == second and len(list((tmp_path / "one" / "cache").iterdir())) == 1


def test_generated_images_depend_on_prompt_and_number_alone(home):
    """Mutation: seeds that count over all prompts."""
    accelerator = cpu()
    family, _ = pipelines.open_pipeline(home / "original")
    prompts = ["an image of a two", "an image of a six"]
    embeddings = family.encode_prompts([*prompts, ""])
    options = dict(steps=3, guidance_scale=2.0, size=(16, 16))
    both = sampling.generate_moments(family, prompts, embeddings, 3, accelerator, **options)
    alone = sampling.generate_moments(family, prompts[1:], embeddings[1:], 2, accelerator, batch_size=1, **options)
    torch.testing.assert_close(both[3:5], alone, rtol=1e-3, atol=1e-4)
    assert both.shape == (6, 8, 8, 8) and (both[:, 4:] == 0).all() and not torch.allclose(both[0, :4], both[1, :4])


# -------------------------------------------------------------------------------------------------------------- the concept
@pytest.mark.slow
def test_a_class_gives_prompts_targets_and_splits(home, load):
    """Mutation: the target of nine is ten; hand out the target prompts in the order of the labels."""
    found = load(forget_class=["nine", "0"])
    assert found.prompts[9] == "an image of a nine" and found.prompts[-1] == "" and found.forgotten == [0, 9]
    assert found.targets.tolist() == [1, 1, 2, 3, 4, 5, 6, 7, 8, 1, 10]
    labels = imagesets.load("digits", home / "data", 16).y_train
    assert found.forget.labels.tolist() == [label for label in labels if label in (0, 9)]
    assert found.retain.labels.tolist() == [label for label in labels if label not in (0, 9)]
    assert found.facts["num_forgotten"] == len(found.forget)
    named = load(forget_class=[FORGOTTEN], target_prompt=["a sky"])
    assert named.prompts[int(named.targets[3])] == "a sky" and named.facts["concept"]["targets"] == ["a sky"]
    two = load(forget_class=["nine", "2"], target_prompt=["a sky", "an image of a one"])
    assert [two.prompts[int(two.targets[label])] for label in (9, 2)] == ["a sky", "an image of a one"]
    assert two.facts["forgotten"] == ["two", "nine"] and two.facts["concept"]["targets"] == ["an image of a one", "a sky"]
    shas = {load(forget_class=[name]).facts["forget_sha"] for name in ("three", "3", "four")}
    assert len(shas) == 2


def test_a_split_holds_its_own_latents_only(load):
    """Mutation: keep a reference to the latents of the whole data set in a Split."""
    loaded = load()
    for split in (loaded.forget, loaded.retain):
        assert len(split.images) == len(split.labels) == len(split)
        assert split.images.untyped_storage().nbytes() == 4 * split.images.numel()


@pytest.mark.slow
def test_prompts_take_images_from_folders_or_generate_them(home, folder, load):
    """Mutation: hand the retain images the forget prompt."""
    texts = dict(forget_prompt=["a fox"], target_prompt=["a dog"], data_dir=home / "data", **GENERATED)
    found = load(**texts, forget_dir=folder / "train" / "red fox", retain_prompts=["a sky", "a tree"])
    assert found.prompts == ["a fox", "a dog", "a sky", "a tree", ""]
    assert found.forget.labels.tolist() == [0, 0, 0, 0] and found.retain.labels.tolist() == [2, 2, 2, 3, 3, 3]
    assert found.targets.tolist() == [1, 1, 2, 3, 4] and found.forgotten == [0]
    assert len(found.forget.images) == 4 and len(found.retain.images) == 6 and (found.retain.images[:, 4:] == 0).all()
    texts["forget_prompt"] += ["foxes"]
    generated = load(**texts)
    assert generated.forget.labels.tolist() == [0, 0, 0, 1, 1, 1] and generated.retain.labels.tolist() == [2, 2, 2]
    assert generated.targets.tolist() == [2, 2, 2, 3] and generated.forgotten == [0, 1]
    again = load(**texts)
    assert torch.equal(generated.forget.images, again.forget.images) and generated.facts["forget_sha"] == again.facts["forget_sha"]
    assert generated.facts["forget_sha"] != found.facts["forget_sha"]


@pytest.mark.slow
def test_a_mask_fits_generated_images_in_any_precision(home, unlearn, tmp_path):
    """Mutation: autocast in the identity of the generated images."""
    concept = ("--forget_prompt three --target_prompt four --num_images 2 --generation_steps 2 --data_dir", tmp_path)
    ok("generate_mask", "--model_path", home / "original", *concept, "--save_dir", tmp_path / "mask")
    unlearn("salun", "--steps 1 --precision bf16", "--mask_path", tmp_path / "mask", forget=concept)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_generated_images_depend_on_what_an_empty_prompt_means(home, tmp_path):
    """Mutation: leave force_zeros_for_empty_prompt out of what generated images depend on."""
    family, _ = pipelines.open_pipeline(home / "original")
    shas = set()
    for zeros in (True, False):
        family.pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
        shas.add(latents.generated_moments(family, ["three"], GENERATED, "", tmp_path, cpu())[1])
    assert len(shas) == 2


@pytest.mark.slow
def test_images_of_another_scheduler_are_drawn_anew(home, tmp_path):
    """Mutation: leave the scheduler out of what generated images depend on."""
    shas, texts = set(), {"forget_prompt": ["three"], "target_prompt": ["four"]}
    flags = dict.fromkeys(concepts.CONCEPT_FLAGS) | texts | GENERATED | {"data_dir": tmp_path}
    shutil.copytree(home / "original" / "model", tmp_path / "model")
    config = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    for kind in ("epsilon", "v_prediction", "epsilon"):
        write_json(config, read_json(config) | {"prediction_type": kind})
        shas.add(task.load_task(tmp_path / "model", flags, cpu()).facts["forget_sha"])
    assert len(shas) == 2 and len(list((tmp_path / "cache").iterdir())) == 4


@pytest.mark.slow
def test_v_prediction(tmp_path, home):
    """Mutation: noise as the target whatever the scheduler says."""
    flags = "--prediction_type v_prediction --vae_steps 5 --steps 80 --batch_size 16"
    ok("train", TINY, flags, "--data_dir", home / "data", "--save_dir", tmp_path / "v")
    family, _ = pipelines.open_pipeline(tmp_path / "v")
    scheduler = family.scheduler
    assert scheduler.config.prediction_type == "v_prediction"
    x, noise, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([100, 900])
    level = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(family.target(x, noise, t), level.sqrt() * noise - (1 - level).sqrt() * x)
    losses = [float(row.split(",")[-1]) for row in (tmp_path / "v" / "log.csv").read_text().splitlines()[-5:]]
    assert losses[-1] < 0.9 * losses[0]
    start = ("--model_path", tmp_path / "v", "--forget_class", FORGOTTEN)
    ok("generate_mask", *start, "--save_dir", tmp_path / "mask")
    more = {"salun": ("--steps 3 --mask_path", tmp_path / "mask"), "esd": ("--steps 3 --sample_steps 3",), "ga": ("--steps 3",), "uce": ()}
    for method, flags in more.items():
        ok("unlearn", "--method", method, *start, *flags, "--save_dir", tmp_path / method)
        scheduler = read_json(tmp_path / method / "model" / "scheduler" / "scheduler_config.json")
        assert scheduler["prediction_type"] == "v_prediction"


def test_images_depend_on_their_seeds_alone(home):
    """Mutation: one generator for the batch."""
    family, _ = pipelines.open_pipeline(home / "original")
    embeddings, accelerator = family.encode_prompts(["an image of a two", "an image of a six", ""]), cpu()
    options = dict(steps=4, guidance_scale=3.0, size=(16, 16))
    both = sampling.draw(family, embeddings[:2], embeddings.empty(2), [5, 6], accelerator, **options)
    alone = sampling.draw(family, embeddings[1:2], embeddings.empty(1), [6], accelerator, **options)
    assert (both[1].int() - alone[0].int()).abs().max() <= 1
    unguided = sampling.draw(family, embeddings[1:2], embeddings.empty(1), [6], accelerator, **options | {"guidance_scale": 1.0})
    assert (alone.int() - unguided.int()).abs().max() > 5
    for sampler in sampling.SAMPLERS:
        before = family.pipeline.scheduler
        drawn = sampling.draw(family, embeddings[:1], embeddings.empty(1), [5], accelerator, **options, sampler=sampler)
        assert drawn.shape == (1, 16, 16, 3)
        assert family.pipeline.scheduler is before


def test_grid_and_gif(tmp_path):
    """Mutation: swap rows and columns."""
    images = torch.stack([torch.full((16, 16, 3), 40 * i, dtype=torch.uint8) for i in range(6)])
    canvas = sampling.grid(images, columns=3)
    assert canvas.shape == (2 * 49 - 1, 3 * 49 - 1, 3) and canvas[10, 60, 0] == 40 and canvas[60, 10, 0] == 120
    for i in range(2):
        sampling.write_png(tmp_path / f"{i}.png", images[5 * i])
    sampling.write_gif(tmp_path / "a.gif", [tmp_path / "0.png", tmp_path / "1.png"])
    assert Image.open(tmp_path / "a.gif").n_frames == 2


@pytest.mark.slow
def test_images_that_a_method_does_not_read_are_not_made(home, unlearn, monkeypatch):
    """Mutation: ignore `needs`."""

    def never(*args, **options):
        raise AssertionError("images were made")

    monkeypatch.setattr(StableDiffusion, "encode_images", never)
    monkeypatch.setattr(sampling, "generate_moments", never)
    prompts = ("--forget_prompt", "an image of a three", "--target_prompt", "an image of a four", "--num_images 77")
    for flags in (("--forget_class", FORGOTTEN, "--data_dir", home / "elsewhere"), prompts):
        unlearn("uce", forget=flags)
        unlearn("esd", "--steps 1 --sample_steps 2", forget=flags)
