"""Train Stable Diffusion on captioned images: fine-tune a pipeline, or build a tiny one that trains on a CPU.

    python train.py --model_path CompVis/stable-diffusion-v1-4 --dataset captions --data_dir my_images --save_dir runs/mine/original
    python train.py --from_scratch --dataset digits --save_dir runs/digits/original
    python train.py --from_scratch --dataset digits --retain_only --forget_class three --save_dir runs/digits/retrain

Writes a run folder whose model/ is a diffusers pipeline; --single_file adds model.safetensors for web UIs. With --from_scratch tokenizer,
text encoder (random, never trained), autoencoder and U-Net are built for the captions, and autoencoder and U-Net are trained; otherwise
the U-Net alone is. With --retain_only the forgotten classes are left out of all of it: Retrain, the standard the others are held to.
--steps 0 only converts a model: of one .ckpt or .safetensors file it makes a diffusers folder.
"""

import functools

import torch

import data
import datasets
import engine
import job
import models
import run
import sampling
import single_file


def parse(argv=None):
    parser = run.parser(__doc__)
    run.add_flags(parser, required=["save_dir"])
    parser.add_argument("--model_path", metavar="MODEL", help="run, diffusers folder, hub id, or .safetensors/.ckpt file to start from")
    parser.add_argument("--model_config", metavar="FOLDER", help="diffusers folder that tells the shapes of a single file, without the hub")
    parser.add_argument("--from_scratch", action="store_true", help="build a small pipeline and train all of it")
    parser.add_argument("--arch", choices=models.UNETS, default="tiny", help="--from_scratch: size of the pipeline")
    parser.add_argument("--image_size", type=run.positive_int, metavar="PX", help="edge of the images (default: the model's)")
    parser.add_argument(
        "--prediction_type", choices=("epsilon", "v_prediction"), default="epsilon", help="--from_scratch: what the U-Net predicts"
    )
    parser.add_argument("--vae_steps", type=run.non_negative_int, default=400, help="--from_scratch: steps of the autoencoder")
    job.add_dataset_flags(parser, "captions")
    run.add_flags(parser, "forget_class")
    parser.add_argument("--retain_only", action="store_true", help="leave the classes of --forget_class out: Retrain")
    run.add_flags(parser, steps=1000, lr=1e-5, batch_size=8)
    parser.add_argument("--schedule", choices=engine.SCHEDULES, default="constant", help="learning rate over the run")
    parser.add_argument("--optimizer", choices=engine.OPTIMIZERS, default="adamw", help="optimizer")
    parser.add_argument("--weight_decay", type=run.non_negative_float, default=0.0, help="weight decay")
    parser.add_argument(
        "--prompt_dropout", type=run.share, default=0.1, help="share of the prompts replaced by the empty one, for guidance"
    )
    parser.add_argument("--ema", type=run.share, default=0.0, help="decay of the averaged weights, which are saved (0: the last ones)")
    parser.add_argument("--save_every", type=run.positive_int, metavar="N", help="draw a grid of samples every N steps")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument("--single_file", action="store_true", help="write model.safetensors for web UIs too")
    run.add_flags(parser, "limit", "resume", "overwrite", "device", seed=1)
    job.add_precision(parser)
    args = parser.parse_args(argv)
    if args.from_scratch == (args.model_path is not None):
        parser.error("pass --model_path to fine-tune a model, or --from_scratch to build one")
    if args.retain_only != bool(args.forget_class):
        parser.error("--retain_only and --forget_class belong together: name the classes to leave out")
    if args.caption is not None and "{}" not in args.caption:
        parser.error("--caption must hold {}, where the name of the class goes")
    if args.retain_only and args.dataset == "captions":
        parser.error("--retain_only needs a --dataset with classes")
    args.data_dir = args.data_dir or "data"
    args.caption = args.caption or job.CAPTION
    if args.from_scratch:
        args.image_size = args.image_size or models.UNETS[args.arch]["image_size"]
    return args


def open_data(args, size):
    """(Dataset, texts, prompt number of each training picture, numbers of the forgotten prompts), of retained pictures only."""
    found = datasets.load(args.dataset, args.data_dir, size)
    labels = sorted(set(data.class_numbers(args.forget_class or [], found.classes)))
    if labels and len(labels) == len(found.classes):
        raise run.RunError("all classes would be left out: at least one must be retained")
    texts = found.captions or [args.caption.format(name) for name in found.classes]
    rows = [row for row, label in enumerate(found.y_train) if label not in labels]
    if args.limit is not None and args.limit < len(rows):
        chosen = torch.randperm(len(rows), generator=data.generator("limit", args.seed))[: args.limit].sort().values
        rows = [rows[i] for i in chosen.tolist()]
    table = [*dict.fromkeys(texts), models.NULL]
    numbers = torch.tensor([table.index(texts[found.y_train[row]]) for row in rows])
    return found, found.train.subset(rows), table, numbers, labels


def train_autoencoder(pipeline, pictures, fit, record, accelerator, args):
    """Train the VAE on pictures and set its scaling factor to one over the latents' standard deviation (Rombach et al. 2022).

    Kept in model/vae, where --resume finds it.
    """
    vae, folder = pipeline.vae.to(accelerator.device).requires_grad_(True), record.folder / "model" / "vae"
    if args.resume and (folder / "config.json").is_file():
        vae.load_state_dict(run.read_tensors(folder / "diffusion_pytorch_model.safetensors")[0])
        vae.register_to_config(scaling_factor=run.read_json(folder / "config.json")["scaling_factor"])
        vae.requires_grad_(False).eval()
        return
    images = data.Split(pictures[:], torch.zeros(len(pictures), dtype=torch.int64), torch.arange(len(pictures)))

    @accelerator.autocast()  # encode() and decode() are not the forward() that engine.place() knows
    def loss(train):
        posterior = vae.encode(train.x).latent_dist
        normal = train.noise.flatten(1)[:, : posterior.mean[0].numel()].view_as(posterior.mean)
        drawn = vae.decode(posterior.mean + posterior.std * normal).sample.float()
        kl = train.mean(posterior.kl() / normal[0].numel())
        return {"autoencoder": train.mean(engine.squared_error(drawn, train.x)), "kl": 1e-4 * kl}

    fit(vae, {"train": images}, loss, steps=args.vae_steps, lr=2e-3, schedule="linear")
    vae.requires_grad_(False)
    with torch.no_grad():
        means = torch.cat([vae.encode(data.to_float(part.to(accelerator.device))).latent_dist.mean for part in images.x.split(64)])
    vae.register_to_config(scaling_factor=1 / float(means.std()))
    if accelerator.is_main_process:
        models.save_pipeline(vae, folder)
    accelerator.wait_for_everyone()


def train_unet(pipeline, pictures, table, numbers, fit, record, accelerator, args):
    """Train the U-Net on pictures, each under its prompt: numbers into `table`, whose last prompt is the empty one."""
    unet, scheduler = engine.place(pipeline.unet, accelerator).requires_grad_(True), models.noise_scheduler(pipeline.scheduler)
    moments = job.encode(pipeline, pictures, models.sha(pipeline.vae), args.data_dir, accelerator)
    embeddings = job.embed(pipeline, table, accelerator)
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()

    def loss(train):
        asked = torch.where(train.uniform < args.prompt_dropout, len(table) - 1, train.y)
        x_t = scheduler.add_noise(train.x, train.noise, train.t)
        prediction = engine.predict(unet, x_t, train.t, embeddings[asked])
        return {"train": train.mean(engine.squared_error(prediction, engine.wanted(scheduler, train.x, train.noise, train.t)))}

    shown = dict(pipeline=pipeline, embeddings=embeddings, folder=record.folder, accelerator=accelerator, seed=args.seed)
    frame = functools.partial(draw_grid, **shown)
    fit(
        unet,
        {"train": data.Split(moments, numbers, torch.arange(len(numbers)))},
        loss,
        steps=args.steps,
        lr=args.lr,
        optimizer=args.optimizer,
        weight_decay=args.weight_decay,
        schedule=args.schedule,
        ema=args.ema,
        save_every=args.save_every,
        draw=frame if args.save_every else None,
        offset=args.vae_steps if args.from_scratch else 0,
    )


def draw_grid(step, *, pipeline, embeddings, folder, accelerator, seed):
    """A picture of six samples of each prompt (ten at most), as samples/step_<step>.png."""
    numbers = [number for number in range(min(10, len(embeddings) - 1)) for _ in range(6)]
    seeds = [data.mix("grid", seed, place) for place in range(len(numbers))]
    edge = models.image_size(pipeline)
    with job.on_device(accelerator, pipeline.vae, pipeline.text_encoder):
        images = sampling.draw(pipeline, embeddings[numbers], embeddings[-1], seeds, accelerator, steps=25, guidance=3.0, size=(edge, edge))
    if accelerator.is_main_process:
        (folder / "samples").mkdir(exist_ok=True)
        sampling.write_png(folder / "samples" / f"step_{step:06d}.png", sampling.grid(images, columns=6))


def main(argv=None):
    args = parse(argv)
    accelerator = engine.make_accelerator(args.device, args.precision)
    record = run.Run(args, accelerator.is_main_process)
    if record.finished:
        return print(f"{record.folder} is finished already")

    # Data and model
    pipeline, recorded = (None, {}) if args.from_scratch else models.open_pipeline(args.model_path, args.model_config)
    size = args.image_size or models.image_size(pipeline)
    facts = {"classes": None, "forgotten": []}
    if args.steps or args.from_scratch:
        found, pictures, table, numbers, labels = open_data(args, size)
        facts = {"classes": found.classes or None, "forgotten": [found.classes[label] for label in labels], "num_images": len(pictures)}
        if args.from_scratch:
            pipeline = models.build_pipeline(args.arch, table, size, args.seed, args.prediction_type)
    if not args.from_scratch:
        facts["parent"] = str(args.model_path)
    record.begin(job.PACKAGES, kind="train", method="retrain" if args.retain_only else "original", **facts, **job.where(accelerator))

    # Train
    record.start_clock()
    same = dict(batch_size=args.batch_size, seed=args.seed, accelerator=accelerator, run=record)
    if args.from_scratch:
        train_autoencoder(pipeline, pictures, functools.partial(engine.fit, **same | {"batch_size": 64}), record, accelerator, args)
    if args.steps:
        train_unet(pipeline, pictures, table, numbers, functools.partial(engine.fit, **same), record, accelerator, args)
    seconds = record.seconds()

    # Save
    if accelerator.is_main_process:
        models.save_pipeline(pipeline, record.folder / "model")
        if args.single_file:
            single_file.export(pipeline, record.folder / "model.safetensors")
    record.finish(seconds=seconds, images_seen=record.images_seen, **engine.memory(accelerator))
    if accelerator.is_main_process:
        print(f"{record.folder}: {args.steps:,} steps, {seconds:.0f} s")


if __name__ == "__main__":
    run.cli(main)
