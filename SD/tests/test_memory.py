"""What saves memory changes nothing else. Each test names the mutation that would break it."""

import math
import shutil

import numpy as np
import pytest
import torch

import benchmark
import families
import masking
import models
import passes
import pipelines
import trainer
import unlearn as unlearn_script
from files import read_json, read_tensors
from helpers import FORGOTTEN, ok, script

UNET = "model/unet/diffusion_pytorch_model.safetensors"


def flags(home, method="salun", *more):
    mask = ("--mask_path", home / "mask") if method == "salun" else ()
    start = ("--method", method, "--model_path", home / "original", "--forget_class", FORGOTTEN, *mask)
    return *start, "--alpha 1 --batch_size 16", *more


@pytest.fixture(scope="module")
def half(home, tmp_path_factory):
    """A run of bf16 weights whose steps are smaller than what bf16 tells apart, under a mask made of bf16 weights."""
    folder = tmp_path_factory.mktemp("half")
    forget = ("--model_path", home / "original", "--forget_class", FORGOTTEN, "--weights_dtype bf16")
    ok("generate_mask", *forget, "--batch_size 16 --save_dir", folder / "mask")
    ok("unlearn", *forget, "--mask_path", folder / "mask", "--alpha 1 --steps 30 --lr 3e-5 --batch_size 16 --save_dir", folder / "run")
    return folder


@pytest.mark.slow
def test_weights_of_bf16_train_in_float32(half, home):
    """Mutation: hold the leaves in the weights' precision, where such steps are lost; save float32; train the autoencoder's bf16."""
    before, after = read_tensors(home / "original" / UNET)[0], read_tensors(half / "run" / UNET)[0]
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    family, _ = pipelines.open_pipeline(half / "run", dtype="bf16")
    mask, _ = masking.load(half / "mask", dict(family.model.named_parameters()), read_json(half / "run" / "args.json"))
    salient = torch.cat([mask[name].flatten() for name in after])
    moved = torch.cat([(before[name].bfloat16() != after[name]).flatten() for name in after])
    assert not moved[~salient].any() and moved[salient].float().mean() > 0.2
    assert family.model.dtype == torch.bfloat16 and family.pipeline.vae.dtype == torch.float32


@pytest.mark.slow
def test_a_mask_of_bf16_weights_is_nearly_that_of_float32(half, home):
    """Mutation: sum the gradients in bf16, which drops most of what is small."""
    one, other = (read_tensors(folder / "mask" / "mask.safetensors")[0] for folder in (half, home))
    same = torch.cat([~(one[name] ^ other[name]) for name in one])
    share = sum(int((same >> bit & 1).sum()) for bit in range(8)) / (8 * len(same))
    assert share > 0.95


@pytest.mark.slow
def test_a_run_of_bf16_weights_resumes_to_the_same_bytes(half, home, tmp_path, monkeypatch):
    """Mutation: read the leaves from the rounded weights again."""
    command = ("unlearn", *flags(half, "salun", "--steps 30 --lr 3e-5 --weights_dtype bf16"), "--save_dir", tmp_path / "run")
    command = [home / "original" if word == half / "original" else word for word in command]

    def save_and_stop(self, save=trainer.Trainer._save_checkpoint):
        save(self)
        if self.number == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "CHECKPOINT_SECONDS", -1)
        patch.setattr(trainer.Trainer, "_save_checkpoint", save_and_stop)
        assert script(*command) == 1
    ok(*command, "--resume")
    assert (tmp_path / "run" / UNET).read_bytes() == (half / "run" / UNET).read_bytes()


@pytest.mark.slow
def test_saliency_elsewhere_is_the_same(home, tmp_path):
    """Mutation: add no gradient of the second batch, or in another precision."""
    forget = ("--model_path", home / "original", "--forget_class", FORGOTTEN, "--batch_size 100 --save_dir")
    ok("generate_mask", *forget, tmp_path / "plain")
    plain = read_tensors(tmp_path / "plain" / "mask.safetensors")[0]
    for run, where in (("on the host", "host"), ("on disk", tmp_path / "sums")):
        ok("generate_mask", *forget, tmp_path / run, "--offload_saliency", where)
        offloaded = read_tensors(tmp_path / run / "mask.safetensors")[0]
        assert all(torch.equal(plain[key], offloaded[key]) for key in plain), run
    assert list((tmp_path / "sums").iterdir()) == []


def test_no_room_for_the_saliency_ends_in_one_sentence(home, tmp_path, capsys):
    """Mutation: let the OSError speak."""
    (tmp_path / "file").write_text("")
    forget = ("--model_path", home / "original", "--forget_class", FORGOTTEN, "--offload_saliency", tmp_path / "file")
    assert script("generate_mask", *forget, "--save_dir", tmp_path / "run") == 1
    assert "GiB can be made there" in capsys.readouterr().err


def test_the_last_check_reads_the_originals_files(home, tmp_path):
    """Mutation: compare with the weights as they are after unlearning; open the files when they are read."""
    shutil.copytree(home / "original" / "model", tmp_path / "model")
    family, _ = pipelines.open_pipeline(tmp_path / "model")
    before, weights = unlearn_script.weights_of(family), dict(family.model.named_parameters())
    shutil.rmtree(tmp_path / "model")
    assert isinstance(before, pipelines.Stored) and masking.check_change(before, weights, None) == 0
    with torch.no_grad():
        next(iter(weights.values())).add_(1)
    assert masking.check_change(before, weights, None) > 0
    family.original = None
    assert isinstance(unlearn_script.weights_of(family), dict)


@pytest.mark.parametrize("kind", families.FAMILIES)
def test_every_family_predicts_with_bf16_weights(kind):
    """Mutation: give a model of bf16 weights float32 latents or prompts."""
    texts = ["an image of a three", ""]
    family, t = families.FAMILIES[kind].build("test", texts[:1], 16, seed=3), torch.tensor([10, 900])
    embeddings, noisy = family.encode_prompts(texts), torch.randn(2, *family.latent_shape(16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        full = family.predict(family.model, noisy, t, embeddings)
        family.model.to(torch.bfloat16)
        found = family.predict(family.model, noisy, t, embeddings.to(torch.bfloat16))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), full, rtol=0.1, atol=0.03 * full.abs().max().item())


def test_sums_of_gradients_are_float32():
    """Mutation: keep the parameters' precision."""
    layer = torch.nn.Linear(1, 1, bias=False).bfloat16()
    with passes.Sums(dict(layer.named_parameters())) as sums:
        for _ in range(1000):
            (layer.weight * 0.001).sum().backward()
    assert sums.tensors["weight"].item() == pytest.approx(1.0, rel=0.01) and layer.weight.grad is None


def test_averaging_bf16_weights_is_refused(home, tmp_path, capsys):
    """Mutation: average them in bf16, where nothing small is left."""
    assert script("unlearn", *flags(home, "rl", "--weights_dtype bf16 --ema 0.9 --save_dir"), tmp_path / "run") == 2
    assert "--ema needs --weights_dtype fp32" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_memory_table_counts_what_is_held(dtype, monkeypatch):
    """Mutation: forget the positions, count them as int32 everywhere, or one of Adam's two moments."""
    monkeypatch.setattr(masking, "SMALL", 1000)
    model = families.FAMILIES["sd"].build("test", ["three"], 16, seed=1).model.to(models.DTYPES[dtype])
    parameters, ratio = dict(model.named_parameters()), 0.3
    mask = {name: (torch.arange(p.numel()) < math.ceil(ratio * p.numel())).view(p.shape) for name, p in parameters.items()}
    salient = masking.SalientParameters(parameters, mask)
    optimizer = torch.optim.Adam(salient.parameters())
    for leaf in salient.parameters():
        leaf.grad = torch.ones_like(leaf)
    optimizer.step()
    size = lambda tensors: sum(tensor.numel() * tensor.element_size() for tensor in tensors)  # noqa: E731
    found = benchmark.held(parameters, ratio, dtype)
    own = [leaf for name, leaf in salient.tensors.items() if leaf is parameters[name]]  # of one weight: their own leaves
    assert found["weights"] == size(parameters.values()) and found["leaves"] == size(salient.parameters())
    assert found["gradients of the leaves"] == size(leaf.grad for leaf in salient.parameters())
    assert found["optimizer"] == size(value for state in optimizer.state.values() for key, value in state.items() if key != "step")
    assert found["positions"] == size(index for _, _, index in salient._compact) and not own
    assert found["mask"] == size(torch.from_numpy(np.packbits(part.numpy().reshape(-1))) for part in mask.values())


def test_the_shapes_of_full_size_models_are_theirs():
    """Mutation: another width or depth in benchmark.MORE or TRANSFORMERS."""
    import diffusers

    counts = {name: sum(p.numel() for p in benchmark.shape_of(name).parameters()) for name in benchmark.WEIGHTS}
    assert counts == benchmark.WEIGHTS
    kind, config = benchmark.TRANSFORMERS["FLUX.1"]
    with torch.device("meta"):
        assert 11.8e9 < sum(p.numel() for p in getattr(diffusers, kind)(**config).parameters()) < 12.0e9
        kind, config = benchmark.TRANSFORMERS["Stable Diffusion 3.5 medium"]
        assert 2.2e9 < sum(p.numel() for p in getattr(diffusers, kind)(**config).parameters()) < 2.6e9
