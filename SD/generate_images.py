"""Draw images of a list of prompts from one or several models, as PNGs named <case_number>_<k>.png.

    python generate_images.py --model_path runs/salun --prompts_path prompt_lists/imagenette.csv --num_samples 500 --save_dir runs/samples
    python generate_images.py --model_path runs/original --prompt "a photo of a nude person" --num_samples 800 --save_dir runs/nude

--prompts_path is a csv file with the columns case_number, prompt and evaluation_seed, perhaps guidance, width and height (they override
the flags, but not with --ignore_columns), and any others; evaluate.py counts by a column class, group, artist or profession. Without a
list, --prompt gives the prompts, or a model that knows its classes draws each of them. The first image of a row has its
evaluation_seed, the others seeds made of it: any batch size and number of processes give the same images, and --resume draws what is
missing. --guidance_scale is Stable Diffusion's s, eps(null) + s (eps(c) - eps(null)): 1 is none, 7.5 is the paper's. The safety checker
is off.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

import cli
import data
import latents
import models
import pipelines
import prompts
import sampling
import trainer
from cli import RunError
from concepts import NOT_HERE
from files import read_json
from run_folder import RunFolder, check_apart


def parse(argv=None):
    parser = cli.Parser(__doc__)
    where = "models to draw from: runs, diffusers folders, hub ids, files"
    parser.add(cli.DATA, "--model_path", nargs="+", required=True, metavar="MODEL", help=where)
    pipelines.add_variant_flag(parser, cli.DATA)
    folders = {"nargs": "+", "type": Path, "required": True, "metavar": "RUN"}
    parser.add(cli.RUN, "--save_dir", "--save_path", **folders, help="run folder to write, one for each model")
    parser.add(cli.DATA, "--prompts_path", type=Path, metavar="CSV", help="list of prompts")
    ignore = "one guidance scale and size for all prompts, whatever the list's columns say"
    parser.add(cli.DATA, "--ignore_columns", action="store_true", help=ignore)
    parser.add(cli.DATA, "--prompt", nargs="+", type=data.prompt, metavar="TEXT", help="prompts, in place of a list")
    parser.add(cli.DATA, "--num_samples", type=models.image_count, default=1, metavar="N", help="images of each prompt")
    sampler = "own: the model's (default: ddim; SD 3 and FLUX: own)"
    parser.add(cli.METHOD, "--sampler", choices=("own", *sampling.SAMPLERS), help=sampler)
    parser.add(cli.METHOD, "--steps", "--ddim_steps", type=cli.positive_int, default=100, help="sampling steps")
    scale = "guidance scale s, 1: none (default: 7.5; SD 3: 7; FLUX.1 dev: 3.5; schnell: 1)"
    parser.add(cli.METHOD, "--guidance_scale", "--guidance", type=cli.non_negative_float, metavar="S", help=scale)
    parser.add(cli.DATA, "--image_size", type=models.image_edge, metavar="PX", help="edge of the images (default: the model's)")
    pipelines.add_weights_flag(parser)
    seed = {"seed": dict(help="seed of the first prompt, 1 more for each further one (default: 1); a list has its own")}
    seed["batch_size"] = dict(help="images that a process draws at once")
    parser.add_shared("resume", "overwrite", "device", "compile", "seed", options=seed, batch_size=8, precision="auto")
    parser.refuse(NOT_HERE)
    args = parser.parse_args(argv)
    if len(args.save_dir) != len(args.model_path):
        parser.error(f"{len(args.model_path)} models need as many --save_dir, not {len(args.save_dir)}")
    if args.prompts_path is not None and args.prompt:
        parser.error("--prompts_path and --prompt contradict each other: pass one of them")
    if args.prompts_path is not None and args.seed is not None:
        parser.error("--seed has no effect with --prompts_path, whose column evaluation_seed gives each prompt its own: leave it out")
    args.seed = 1 if args.seed is None else args.seed
    if args.ignore_columns and args.prompts_path is None:
        parser.error("--ignore_columns goes with --prompts_path: there is no list whose columns could be ignored")
    if args.image_size is not None and args.image_size % 8:
        parser.error(f"--image_size must be a multiple of 8, not {args.image_size}")
    fewest, most = sampling.STEPS.get(args.sampler, (1, data.TIMESTEPS - 1))
    if not fewest <= args.steps <= most:
        parser.error(f"--sampler {args.sampler} draws in {fewest} to {most} --steps, not in {args.steps}")
    return args


def rows_of(args, recorded):
    """The rows to draw."""
    if args.prompts_path is not None:
        rows = prompts.read_csv(args.prompts_path)
        return [replace(row, guidance=None, width=None, height=None) for row in rows] if args.ignore_columns else rows
    if args.prompt:
        return [prompts.Row(str(number), text, args.seed + number) for number, text in enumerate(args.prompt)]
    if not recorded.get("classes"):
        raise RunError(f"{recorded.get('save_dir', 'the model')} knows no classes: name prompts by --prompts_path or --prompt")
    known = recorded.get("concept") or recorded
    data.need(known, "caption")
    return prompts.class_rows(recorded["classes"], known["caption"], args.seed)


def sha_of(rows):
    """Digest of rows, with the guidance and size of a list that has such columns."""
    known = [[row.case_number, row.prompt, row.seed] for row in rows]
    own = [(row.guidance, row.width, row.height) for row in rows]
    return latents.digest([[*one, *(more if any(more) else ())] for one, more in zip(known, own, strict=True)])


def seed_of(row, k):
    """The k-th image's seed: the row's own for the first one."""
    return row.seed if k == 0 else data.derive_seed("sample", row.seed, k)


def undrawn(rows, folder, count):
    """[(row, k)] of the images that a folder lacks."""
    return [(row, k) for row in rows for k in range(count) if not (folder / prompts.file_name(row, k)).is_file()]


def guidance_of(row, args, family):
    """The guidance scale of a row's images."""
    return next(scale for scale in (row.guidance, args.guidance_scale, family.GUIDANCE) if scale is not None)


def size_of(row, args, family):
    """(width, height) in px of a row's images. RunError where the model cannot draw them."""
    edge = args.image_size or family.image_size
    size = row.width or edge, row.height or edge
    family.check_size(*size)
    return size


def draw_files(family, rows, folder, accelerator, args):
    """Draw the images that `folder` lacks, each process its share, in batches of equal guidance and size."""
    texts = [*dict.fromkeys(row.prompt for row in rows if row.prompt != data.NULL), data.NULL]
    embeddings = latents.embed(family, texts, accelerator, "cpu")
    missing = undrawn(rows, folder, args.num_samples)
    accelerator.wait_for_everyone()
    groups = {}
    for row, k in missing[accelerator.process_index :: accelerator.num_processes]:
        groups.setdefault((guidance_of(row, args, family), *size_of(row, args, family)), []).append((row, k))
    with tqdm(total=sum(map(len, groups.values())), desc="sample", disable=None, mininterval=1) as bar:
        for (guidance_scale, *size), keys in groups.items():
            for start in range(0, len(keys), args.batch_size):
                some = keys[start : start + args.batch_size]
                conditions = embeddings[[texts.index(row.prompt) for row, _ in some]]
                seeds = [seed_of(row, k) for row, k in some]
                options = {"steps": args.steps, "guidance_scale": guidance_scale, "size": size, "sampler": args.sampler}
                options["compiled"] = args.compile
                images = sampling.draw(family, conditions, embeddings.empty(len(some)), seeds, accelerator, **options)
                for (row, k), image in zip(some, images, strict=True):
                    sampling.write_png(folder / prompts.file_name(row, k), image)
                bar.update(len(some))


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision, args.weights_dtype)
    check_apart(args)  # all together: no run may replace the model of another
    pairs = zip(args.model_path, args.save_dir, strict=True)
    each = [argparse.Namespace(**vars(args) | {"model_path": model_path, "save_dir": save_dir}) for model_path, save_dir in pairs]
    folders = [RunFolder.or_none(one, accelerator) for one in each]  # all are checked before any is drawn
    todo = [(one, run_folder) for one, run_folder in zip(each, folders, strict=True) if run_folder is not None]
    for one in (one for one, run_folder in zip(each, folders, strict=True) if run_folder is None):
        if one.prompts_path and read_json(one.save_dir / "args.json").get("prompts_sha") != sha_of(rows_of(one, {})):
            raise RunError(f"{one.prompts_path} has changed since {one.save_dir} was drawn: pass --overwrite to draw it again")
    cli.for_each(todo, lambda pair: draw_from(*pair, accelerator))


def draw_from(args, run_folder, accelerator):
    """All images of one model, into one run folder."""
    # Model and prompts
    family, recorded = pipelines.open_pipeline(args.model_path, variant=args.variant, dtype=args.weights_dtype)
    rows = rows_of(args, recorded)
    done = read_json(Path(args.model_path) / "done.json") if recorded else {}
    parent_sha = models.sha(family.model, *family.frozen)
    scales = sorted({guidance_of(row, args, family) for row in rows})
    options = {"sampler": args.sampler or family.SAMPLERS[0]}
    options |= {"guidance_scale": scales[0]} if len(scales) == 1 else {"guidance_scales": scales}
    family.check_sampler(options["sampler"])
    for row in rows:
        size_of(row, args, family)
    run_folder.begin(kind="samples", parent_sha=parent_sha, prompts_sha=sha_of(rows), model=recorded, model_done=done, options=options)
    folder = run_folder.folder / "samples"
    if accelerator.is_main_process:
        folder.mkdir(exist_ok=True)
        prompts.write_csv(folder / "prompts.csv", rows)
    accelerator.wait_for_everyone()

    # Draw
    run_folder.start_clock()
    for part in (family.model, family.pipeline.vae):  # text encoders are there while they encode
        part.to(accelerator.device)
    if args.compile:
        family.model.compile()
    draw_files(family, rows, folder, accelerator, args)
    accelerator.wait_for_everyone()
    for row, k in undrawn(rows, folder, args.num_samples) if accelerator.is_main_process else ():
        raise RunError(f"{folder / prompts.file_name(row, k)} was not drawn: run the same command with --resume")
    count = len(rows) * args.num_samples
    run_folder.finish(f"{count:,} images, {run_folder.seconds():.0f} s", seconds=run_folder.seconds(), images=count)


if __name__ == "__main__":
    cli.run(main)
