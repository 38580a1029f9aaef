"""Unlearn: make a Stable Diffusion model forget prompts, a class, an object or a style.

    M="CompVis/stable-diffusion-v1-4"
    python unlearn.py --model_path $M --dataset imagenette --forget_class church --mask_path runs/mask --save_dir runs/salun
    python unlearn.py --method esd --model_path $M --forget_prompt "Van Gogh" --target_prompt "" --save_dir runs/esd

What is forgotten: --forget_class, one or several classes of a data set (a run of train.py knows its own), each with its --caption; or
--forget_prompt, with images from --forget_dir or drawn by the model itself. --target_prompt stands in for it; what is kept are the other
classes, or --retain_prompts with images from --retain_dir or own ones. Only the U-Net changes. The run's model/ is a diffusers pipeline;
--single_file adds model.safetensors for web UIs. With --save_every the forgotten prompts are drawn as the run goes, beside kept ones, and
fading.gif shows them one after the other.
"""

import copy
import functools

import torch

import data
import engine
import job
import masking
import methods
import models
import run
import sampling
import single_file


def parse(argv=None):
    parser = run.parser(__doc__)
    parser.epilog = "methods, the images they read, and the defaults of the flags they take:\n"
    parser.epilog += "\n".join(
        f"  {name:12s}{' and '.join(methods.reads(name)) or 'none, or own':18s} "
        + " ".join(f"--{flag} {value}" for flag, value in methods.flags(name).items())
        for name in methods.METHODS
    )
    run.add_flags(parser, "mask_path", required=["save_dir"])
    job.add_model_flag(parser)
    job.add_concept_flags(parser)
    parser.add_argument("--method", "--unlearn", choices=methods.METHODS, default="salun", help="unlearning method")
    parser.add_argument("--train_method", choices=models.TRAIN_METHODS, help="which weights of the U-Net may change")
    run.add_flags(parser, "lr", "steps", "alpha", "mask_ratio")
    parser.add_argument("--negative_guidance", type=run.non_negative_float, help="esd: strength of the guidance away from the prompt")
    parser.add_argument("--guidance", type=run.non_negative_float, help="esd: guidance scale of its unfinished samples")
    parser.add_argument("--sample_steps", type=run.positive_int, help="esd: steps of its sampling runs")
    parser.add_argument("--erase_scale", type=run.positive_float, help="uce: weight of the forgotten prompts")
    parser.add_argument("--preserve_scale", type=run.non_negative_float, help="uce: weight of the retained prompts")
    parser.add_argument("--ridge", type=run.positive_float, help="uce: weight of staying near the original")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument("--save_every", type=run.positive_int, metavar="N", help="draw the forgotten prompts every N steps, for fading.gif")
    parser.add_argument("--single_file", action="store_true", help="write model.safetensors for web UIs too")
    run.add_flags(parser, "resume", "overwrite", "device", batch_size=8, seed=1)
    job.add_precision(parser)
    args = parser.parse_args(argv)
    job.check_concept_flags(parser, args)
    args.options = check(parser, args)
    return args


def check(parser, args):
    """Refuse contradictions before anything loads; return {flag: value} of the method."""
    known = methods.flags(args.method)
    of_some_method = {flag for name in methods.METHODS for flag in methods.flags(name)}
    ignored = sorted(flag for flag in of_some_method - set(known) if getattr(args, flag) is not None)
    if args.save_every and "fit" not in methods.handed(args.method):
        ignored.append("save_every")
    if ignored:
        parser.error(f"--method {args.method} does not read --{', --'.join(ignored)}")
    if args.method in methods.NEEDS_MASK and args.mask_path is None:
        parser.error(
            f"--method {args.method} needs --mask_path: make a mask with generate_mask.py (the same loss without a mask is --method rl)"
        )
    if args.method in methods.TAKES_NO_MASK and args.mask_path is not None:
        parser.error(f"--method {args.method} takes no --mask_path: it has no gradients")
    if args.method in methods.NO_CHECKPOINTING and args.gradient_checkpointing:
        parser.error(f"--method {args.method} takes no --gradient_checkpointing")
    return {flag: default if getattr(args, flag) is None else getattr(args, flag) for flag, default in known.items()}


def draw_frame(step, *, opened, folder, accelerator, seed, guidance):
    """samples/step_<step>.png: six samples of each forgotten prompt, and below them of two retained ones."""
    kept = [number for number in range(opened.null) if number not in opened.forgotten][:2]
    numbers = [number for number in [*opened.forgotten[:4], *kept] for _ in range(6)]
    seeds = [data.mix("frame", seed, number, place) for place, number in enumerate(numbers)]
    pipeline, asked = opened.pipeline, opened.embeddings[numbers]
    options = {"steps": 25, "guidance": guidance, "size": (models.image_size(pipeline),) * 2}
    with job.on_device(accelerator, pipeline.vae, pipeline.text_encoder):
        parts = zip(asked.split(6), torch.tensor(seeds).split(6), strict=True)
        rows = [sampling.draw(pipeline, part, opened.embeddings[-1], some.tolist(), accelerator, **options) for part, some in parts]
    if accelerator.is_main_process:
        (folder / "samples").mkdir(exist_ok=True)
        sampling.write_png(folder / "samples" / f"step_{step:06d}.png", sampling.grid(torch.cat(rows), columns=6))


def what_methods_take(opened, args, accelerator, record, mask, draw):
    """{name: value} of everything that a method may name in its signature."""
    pipeline, scheduler, embeddings, tokenizer = opened.pipeline, opened.scheduler, opened.embeddings, opened.pipeline.tokenizer
    unet = pipeline.unet

    def denoise(batch):
        prediction = engine.predict(unet, scheduler.add_noise(batch.x, batch.noise, batch.t), batch.t, embeddings[batch.y])
        return batch.mean(engine.squared_error(prediction, engine.wanted(scheduler, batch.x, batch.noise, batch.t)))

    def own_samples(numbers):
        texts = [opened.prompts[number] for number in numbers]
        data_dir = opened.facts["concept"]["data_dir"]
        draw, _ = job.own_moments(args, pipeline, texts, opened.facts["parent_sha"], data_dir, accelerator)
        moments = draw()
        return data.Split(moments, torch.tensor(numbers).repeat_interleave(args.num_images), torch.arange(len(moments)))

    def fit(splits, loss, *, train_method, **options):
        same = dict(batch_size=args.batch_size, seed=args.seed, accelerator=accelerator, run=record, save_every=args.save_every, draw=draw)
        engine.fit(unet, splits, loss, mask=models.restrict(mask, unet, train_method), **same, **options)

    def words(number):
        return models.word_tokens(tokenizer, opened.prompts[number])

    def concept_tokens():
        """{forgotten prompt: positions of its tokens that its target lacks}; all its own where there is none."""
        found = {}
        for number in opened.forgotten:
            lacking = [place + 1 for place, token in enumerate(words(number)) if token not in words(int(opened.targets[number]))]
            found[number] = lacking or list(range(1, len(words(number)) + 1)) or [1]
        return found

    return {
        "unet": unet,
        "original": lambda: copy.deepcopy(unet).eval().requires_grad_(False),
        "forget": opened.forget,
        "retain": opened.retain,
        "fit": fit,
        "scheduler": scheduler,
        "denoise": denoise,
        "own_samples": own_samples,
        "unfinished": functools.partial(sampling.unfinished, unet, scheduler, accelerator=accelerator, seed=args.seed),
        "embeddings": embeddings,
        "null": opened.null,
        "targets": opened.targets,
        "forgotten": opened.forgotten,
        "retained": [number for number in range(len(opened.prompts)) if number not in opened.forgotten],
        "latent_shape": opened.forget.shape,
        "concept_tokens": concept_tokens,
        "last_token": lambda number: len(words(number)),
    }


def main(argv=None):
    args = parse(argv)
    accelerator = engine.make_accelerator(args.device, args.precision)
    record = run.Run(args, accelerator.is_main_process)
    if record.finished:
        return print(f"{record.folder} is finished already")

    # The original model, the images to forget and to keep, the mask
    opened = job.open_job(args, accelerator, methods.reads(args.method))
    unet = opened.pipeline.unet
    before = {name: parameter.detach().to("cpu", copy=True) for name, parameter in unet.named_parameters()}
    mask, mask_facts = None, {}
    if args.mask_path is not None:
        mask, mask_facts = masking.load(args.mask_path, dict(unet.named_parameters()), opened.facts["forget_sha"])
    record.begin(job.PACKAGES, kind="unlearn", **opened.facts, mask_info=mask_facts)
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()

    # Unlearn. A method is handed what its signature names, and nothing else
    frame = functools.partial(
        draw_frame, opened=opened, folder=record.folder, accelerator=accelerator, seed=args.seed, guidance=args.own_guidance
    )
    if args.save_every:
        frame(0)
    given = what_methods_take(opened, args, accelerator, record, mask, draw=frame if args.save_every else None)
    record.start_clock()
    methods.call(args.method, given, args.options)
    seconds = record.seconds()

    # Save, after a check that no frozen weight moved
    allowed = models.restrict(mask, unet, args.options.get("train_method", "xattn"))
    allowed = allowed and {name: part.cpu() for name, part in allowed.items()}
    changed = masking.check_change(before, {name: parameter.detach().cpu() for name, parameter in unet.named_parameters()}, allowed)
    if accelerator.is_main_process:
        models.save_pipeline(opened.pipeline, record.folder / "model")
        if args.single_file:
            single_file.export(opened.pipeline, record.folder / "model.safetensors")
        if args.save_every:
            sampling.write_gif(record.folder / "fading.gif", sorted((record.folder / "samples").glob("step_*.png")))
    record.finish(
        seconds=seconds,
        mask_seconds=mask_facts.get("mask_seconds", 0.0),
        images_seen=record.images_seen,
        fraction_changed=changed,
        **engine.memory(accelerator),
    )
    if accelerator.is_main_process:
        print(f"{record.folder}: {args.method}, {100 * changed:.1f} % of the weights changed, {seconds:.1f} s")


if __name__ == "__main__":
    run.cli(main)
