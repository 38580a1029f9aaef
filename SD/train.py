"""Train Stable Diffusion on captioned images: fine-tune a pipeline, or build a tiny one that trains on a CPU.

    python train.py --model_path CompVis/stable-diffusion-v1-4 --dataset captions --data_dir my_images --save_dir runs/mine/original
    python train.py --from_scratch --dataset digits --save_dir runs/digits/original
    python train.py --from_scratch --dataset digits --retain_only --forget_class three --save_dir runs/digits/retrain

Writes a run folder whose model/ is a diffusers pipeline; --single_file adds model.safetensors for web UIs. With --from_scratch tokenizer,
text encoder (random, never trained), autoencoder and U-Net are built for the captions, and autoencoder and U-Net are trained; otherwise
the U-Net alone is. With --retain_only the forgotten classes are left out of all of it: this is Retrain, the reference for all methods.
--steps 0 only converts a model: of one .ckpt or .safetensors file it makes a diffusers folder.
"""

import functools

import torch

import cli
import concepts
import data
import imagesets
import latents
import models
import pipelines
import sampling
import saving
import single_file
import trainer
from cli import RunError
from families import FAMILIES
from files import cache_folder, read_json, read_tensors
from run_folder import RunFolder
from trainer import Trainer, squared_error

SCALES = ("scaling_factor", "shift_factor")  # of latents, in the config of an autoencoder


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_shared(required=["save_dir"])
    model = "run, diffusers folder, hub id, or .safetensors/.ckpt file to start from"
    parser.add(cli.DATA, "--model_path", metavar="MODEL", help=model)
    config = "diffusers folder with the configuration of a single file, in place of the hub's"
    parser.add(cli.DATA, "--model_config", metavar="FOLDER", help=config)
    pipelines.add_variant_flag(parser, cli.DATA)
    parser.add(cli.DATA, "--from_scratch", action="store_true", help="build a small pipeline and train all of it")
    parser.add(cli.DATA, "--family", choices=FAMILIES, help="--from_scratch: kind of pipeline (default: sd)")
    parser.add(cli.DATA, "--arch", choices=models.ARCHS, help="--from_scratch: size of the pipeline (default: tiny)")
    parser.add(cli.DATA, "--image_size", type=models.image_edge, metavar="PX", help="edge of the images (default: the model's)")
    prediction = "--from_scratch: what the U-Net predicts"
    parser.add(cli.DATA, "--prediction_type", choices=("epsilon", "v_prediction"), help=f"{prediction} (default: epsilon)")
    parser.add(cli.METHOD, "--vae_steps", type=cli.non_negative_int, help="--from_scratch: steps of the autoencoder (default: 400)")
    concepts.add_dataset_flags(parser, "captions")
    parser.add_shared("forget_class")
    parser.add(cli.FORGET, "--retain_only", action="store_true", help="leave out the classes of --forget_class: Retrain")
    choices = {"optimizer": dict(choices=trainer.OPTIMIZERS), "schedule": dict(choices=trainer.SCHEDULES)}
    parser.add_shared(options=choices, steps=1000, lr=1e-5, batch_size=8, schedule="constant", optimizer="adamw", weight_decay=0.0)
    dropout = "share of the prompts replaced by the empty one, for guidance"
    parser.add(cli.METHOD, "--prompt_dropout", type=cli.share, default=0.1, help=dropout)
    parser.add_shared(ema=0.0)
    parser.add(cli.RUN, "--save_every", type=cli.positive_int, metavar="N", help="draw a grid of samples every N steps")
    trainer.add_memory_flags(parser)
    pipelines.add_weights_flag(parser)
    saving.add_save_flags(parser, cli.RUN)
    parser.add_shared("limit", "resume", "overwrite", "device", "compile", precision="auto", seed=1)
    args = parser.parse_args(argv)
    if args.from_scratch == (args.model_path is not None):
        parser.error("pass --model_path to fine-tune a model, or --from_scratch to build one")
    if args.from_scratch and (args.variant or args.model_config):
        parser.error("--variant and --model_config go with --model_path: --from_scratch builds a model of its own")
    if args.weights_dtype != "fp32" and (args.from_scratch or args.ema):
        parser.error("--from_scratch and --ema need --weights_dtype fp32")
    if args.from_scratch and args.save_dtype not in (None, "fp32"):  # --resume reads the saved autoencoder, which must not be rounded
        parser.error("--from_scratch saves fp32: convert the run afterwards by train.py --model_path RUN --steps 0 --save_dtype fp16")
    if args.retain_only != bool(args.forget_class):
        parser.error("--retain_only and --forget_class belong together: name the classes to leave out")
    if args.retain_only and args.dataset == "captions":
        parser.error("--retain_only needs a --dataset with classes")
    args.data_dir = args.data_dir or "data"
    args.caption = args.caption or concepts.CAPTION
    own = {"family": "sd", "arch": "tiny", "prediction_type": "epsilon", "vae_steps": 400}
    for name, default in own.items():
        if not args.from_scratch and getattr(args, name) is not None:
            parser.error(f"--{name} goes with --from_scratch: the model at --model_path has its own")
        if args.from_scratch and getattr(args, name) is None:
            setattr(args, name, default)
    if args.from_scratch:
        args.image_size = args.image_size or models.ARCHS[args.arch]["image_size"]
    return args


def load_data(args, size):
    """(Dataset, Pictures to train on, prompts, the number of each picture's prompt, labels of the classes that are left out)."""
    found = imagesets.load(args.dataset, args.data_dir, size).limited(args.limit, args.seed)
    labels = sorted(set(data.class_numbers(args.forget_class or [], found.classes)))
    if labels and len(labels) == len(found.classes):
        raise RunError("all classes would be left out: at least one must be retained")
    texts = found.captions or [args.caption.replace("{}", name) for name in found.classes]
    rows = [row for row, label in enumerate(found.y_train) if label not in labels]
    if not rows:
        raise RunError(f"--limit {args.limit} leaves no picture of the retained classes: raise it")
    table = [*dict.fromkeys(texts), data.NULL]
    numbers = torch.tensor([table.index(texts[found.y_train[row]]) for row in rows])
    return found, found.train.subset(rows), table, numbers, labels


def train_autoencoder(family, pictures, run_folder, accelerator, args):
    """Train the VAE on pictures and set its scaling factor to one over the latents' standard deviation (Rombach et al. 2022), and where
    it has a shift factor, that to their mean.

    Kept in model/vae, where --resume finds it. The checkpoint before it tells the time and the images that it took.
    """
    vae, folder = family.pipeline.vae.to(accelerator.device).requires_grad_(True), run_folder.folder / "model" / "vae"
    groups, state = run_folder.last_checkpoint() or ({}, {"step": 0})
    if (folder / "config.json").is_file():  # of a run that goes on: begin() has removed any other one
        try:
            vae.load_state_dict(read_tensors(folder / "diffusion_pytorch_model.safetensors")[0])
            known = read_json(folder / "config.json")
            vae.register_to_config(**{name: float(known[name]) for name in SCALES if vae.config.get(name) is not None})
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            raise RunError(f"{folder} is not the autoencoder of this run: start again with --overwrite") from error
        vae.requires_grad_(False).eval()
        if groups:
            run_folder.continue_from(state)
        if state.get("scaler"):  # the U-Net goes on with it
            accelerator.scaler.load_state_dict(state["scaler"])
        return
    if state["step"] > args.vae_steps:
        raise RunError(f"{folder} is missing, for which the checkpoint of the U-Net was made: start again with --overwrite")
    images = data.Split(pictures[:], torch.zeros(len(pictures), dtype=torch.int64), "train")
    loop = Trainer(vae, run_folder, accelerator, seed=args.seed, batch_size=64, schedule="linear")
    for batch in loop.steps(args.vae_steps, 2e-3, images):
        with accelerator.autocast():  # encode() and decode() are not the forward() that prepare() knows
            posterior = vae.encode(batch.images).latent_dist
            normal = batch.noise.flatten(1)[:, : posterior.mean[0].numel()].view_as(posterior.mean)
            drawn = vae.decode(posterior.mean + posterior.std * normal).sample.float()
            kl = batch.mean(posterior.kl() / normal[0].numel())
            error = batch.mean(squared_error(drawn, batch.images))
        loop.step(autoencoder=error, kl=1e-4 * kl)
    vae.requires_grad_(False)
    with torch.no_grad():
        means = torch.cat([vae.encode(data.to_float(part.to(accelerator.device))).latent_dist.mean for part in images.images.split(64)])
    found = {"scaling_factor": 1 / float(means.std()), "shift_factor": float(means.mean())}
    vae.register_to_config(**{name: found[name] for name in SCALES if vae.config.get(name) is not None})
    run_folder.checkpoint({"model": vae.state_dict()}, step=args.vae_steps, scaler=loop.scaler.state_dict())
    if accelerator.is_main_process:
        saving.save(vae, folder)
    accelerator.wait_for_everyone()


def train_model(family, pictures, table, numbers, run_folder, accelerator, args):
    """Train the U-Net on pictures, each under its prompt: numbers into `table`, whose last prompt is the empty one."""
    model = trainer.prepare(family.model, accelerator).requires_grad_(True)
    cache = cache_folder(args.data_dir, args.dataset in imagesets.OWN, args.cache_dir)
    moments = latents.encode_pictures(family, pictures, models.sha(family.pipeline.vae), cache, accelerator)
    embeddings = latents.embed(family, table, accelerator)
    if args.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if args.compile:
        model.compile()
    shown = dict(family=family, embeddings=embeddings, folder=run_folder.folder, accelerator=accelerator, seed=args.seed)
    frames = {"save_every": args.save_every, "draw": functools.partial(draw_grid, **shown) if args.save_every else None}
    settings = {name: getattr(args, name) for name in ("batch_size", "optimizer", "weight_decay", "schedule", "ema")}
    loop = Trainer(model, run_folder, accelerator, seed=args.seed, micro_batch=args.micro_batch, **frames, **settings)
    offset = args.vae_steps if args.from_scratch else 0
    for batch in loop.steps(args.steps, args.lr, data.Split(moments, numbers, "train"), offset=offset):
        labels = torch.where(batch.uniform < args.prompt_dropout, len(table) - 1, batch.labels)
        loop.step(train=family.loss(model, batch, embeddings[labels]))


def draw_grid(step, *, family, embeddings, folder, accelerator, seed):
    """A picture of six samples of each prompt (ten at most), as samples/step_<step>.png."""
    numbers = [number for number in range(min(10, len(embeddings) - 1)) for _ in range(6)]
    seeds = [data.derive_seed("grid", seed, place) for place in range(len(numbers))]
    options = {"steps": 25, "guidance_scale": 3.0, "size": (family.image_size,) * 2}
    with latents.on_device(accelerator, family.pipeline.vae):
        images = sampling.draw(family, embeddings[numbers], embeddings.empty(len(numbers)), seeds, accelerator, **options)
    if accelerator.is_main_process:
        (folder / "samples").mkdir(exist_ok=True)
        sampling.write_png(folder / "samples" / f"step_{step:06d}.png", sampling.grid(images, columns=6))


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision, args.weights_dtype)
    run_folder = RunFolder(args, accelerator)

    # Data and model
    family, parent = None, {}
    if not args.from_scratch:
        family, parent = pipelines.open_pipeline(args.model_path, args.model_config, args.variant, args.weights_dtype)
        if parent.get("method", "original") != "original":  # what is trained from it would pass for an original
            raise RunError(f"{args.model_path} has forgotten {', '.join(parent['forgotten'])} already: start from the original")
    size = args.image_size or family.image_size
    if family:
        family.check_size(size, size)
    facts = {"classes": None, "forgotten": []}
    if args.steps or args.from_scratch:
        found, pictures, table, numbers, labels = load_data(args, size)
        facts = {"classes": found.classes or None, "forgotten": [found.classes[label] for label in labels], "num_images": len(pictures)}
        if seen := [name for name in facts["forgotten"] if name in (parent.get("classes") or ())]:
            raise RunError(f"{args.model_path} was trained on {seen[0]}, and Retrain must never see it: pass --from_scratch")
        if args.from_scratch:
            family = FAMILIES[args.family].build(args.arch, table, size, args.seed, args.prediction_type)
    if args.single_file:
        family.check_single_file()
    if not args.from_scratch:
        facts["parent"] = str(args.model_path)
    facts |= {"edge": size} if size != family.made_for else {}
    run_folder.begin(kind="train", method="retrain" if args.retain_only else "original", **facts)
    if accelerator.is_main_process:
        saving.clean(run_folder.folder / "model", put_back=args.resume)
    accelerator.wait_for_everyone()

    # Train
    run_folder.start_clock()
    if args.from_scratch:
        train_autoencoder(family, pictures, run_folder, accelerator, args)
    if args.steps:
        train_model(family, pictures, table, numbers, run_folder, accelerator, args)
    seconds = run_folder.seconds()

    # Save
    if accelerator.is_main_process:
        saving.save(family, run_folder.folder / "model", args.save_dtype)
        if args.single_file:
            single_file.export(family.pipeline, run_folder.folder / "model.safetensors", args.save_dtype)
    run_folder.finish(f"{args.steps:,} steps, {seconds:.0f} s", seconds=seconds, images_seen=run_folder.images_seen)


if __name__ == "__main__":
    cli.run(main)
