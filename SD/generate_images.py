"""Draw images of a list of prompts from one or several models, as PNGs named <case_number>_<k>.png.

    python generate_images.py --model_path runs/salun --prompts_path prompt_lists/imagenette.csv --num_samples 500 --save_dir runs/samples
    python generate_images.py --model_path runs/original --prompt "a photo of a nude person" --num_samples 800 --save_dir runs/nude

--prompts_path is a csv file with the columns case_number, prompt and evaluation_seed, perhaps guidance, width and height (they override
the flags), and any others; those named class and group are what evaluate.py counts by. Without a list, --prompt gives the prompts, or a
model that knows its classes draws each of them. The first image of a row has its evaluation_seed, the others seeds made of it: any
batch size and number of processes give the same images, and --resume draws what is missing. --guidance is Stable Diffusion's scale s,
eps(null) + s (eps(c) - eps(null)): 1 is none, 7.5 the paper's. The safety checker is off.
"""

from pathlib import Path

from tqdm import tqdm

import data
import engine
import job
import models
import prompts
import run
import sampling


def parse(argv=None):
    parser = run.parser(__doc__)
    parser.add_argument(
        "--model_path", nargs="+", required=True, metavar="MODEL", help="models to draw from: runs, diffusers folders, hub ids, files"
    )
    parser.add_argument("--save_dir", nargs="+", type=Path, required=True, metavar="RUN", help="run folder to write, one for each model")
    parser.add_argument("--prompts_path", type=Path, metavar="CSV", help="list of prompts")
    parser.add_argument("--prompt", nargs="+", metavar="TEXT", help="prompts, in place of a list")
    parser.add_argument("--num_samples", type=run.positive_int, default=1, metavar="N", help="images of each prompt")
    parser.add_argument("--sampler", choices=("own", *sampling.SAMPLERS), default="ddim", help="own: the model's")
    parser.add_argument("--steps", "--ddim_steps", type=run.positive_int, default=100, help="sampling steps")
    parser.add_argument("--guidance", "--guidance_scale", type=run.non_negative_float, default=7.5, help="guidance scale, 1: none")
    parser.add_argument("--image_size", type=run.positive_int, metavar="PX", help="edge of the images (default: the model's)")
    run.add_flags(parser, "resume", "overwrite", "device", batch_size=8, seed=1)
    job.add_precision(parser)
    args = parser.parse_args(argv)
    if len(args.save_dir) != len(args.model_path):
        parser.error(f"{len(args.model_path)} models need as many --save_dir, not {len(args.save_dir)}")
    if args.prompts_path is not None and args.prompt:
        parser.error("--prompts_path and --prompt contradict each other: pass one of them")
    if args.image_size is not None and args.image_size % 8:
        parser.error(f"--image_size must be a multiple of 8, not {args.image_size}")
    if args.steps > models.TIMESTEPS:
        parser.error(f"--steps {args.steps} is more than the {models.TIMESTEPS} steps of the noise schedule")
    return args


def wanted(args, recorded):
    """The rows to draw."""
    if args.prompts_path is not None:
        return prompts.read_csv(args.prompts_path)
    if args.prompt:
        return [prompts.Row(str(number), text, args.seed + number) for number, text in enumerate(args.prompt)]
    if not recorded.get("classes"):
        raise run.RunError(f"{recorded.get('save_dir', 'the model')} knows no classes: name prompts by --prompts_path or --prompt")
    caption = recorded.get("concept", recorded)["caption"]
    return prompts.class_rows(recorded["classes"], caption, args.seed)


def seed_of(row, k):
    """The k-th image's seed: the row's own for the first one."""
    return row.seed if k == 0 else data.mix("sample", row.seed, k)


def draw_files(pipeline, rows, folder, accelerator, args):
    """Draw the images that `folder` lacks, each process its share, in batches of equal guidance and size."""
    texts = list(dict.fromkeys([*(row.prompt for row in rows), models.NULL]))
    embeddings = models.encode_prompts(pipeline, texts)
    missing = [(row, k) for row in rows for k in range(args.num_samples) if not (folder / prompts.file_name(row, k)).is_file()]
    accelerator.wait_for_everyone()
    groups = {}
    for row, k in missing[accelerator.process_index :: accelerator.num_processes]:
        edge = args.image_size or models.image_size(pipeline)
        guidance = args.guidance if row.guidance is None else row.guidance
        groups.setdefault((guidance, row.width or edge, row.height or edge), []).append((row, k))
    with tqdm(total=sum(map(len, groups.values())), desc="sample", disable=None, mininterval=1) as bar:
        for (guidance, *size), keys in groups.items():
            for start in range(0, len(keys), args.batch_size):
                some = keys[start : start + args.batch_size]
                asked = embeddings[[texts.index(row.prompt) for row, _ in some]]
                seeds = [seed_of(row, k) for row, k in some]
                options = {"steps": args.steps, "guidance": guidance, "size": size, "sampler": args.sampler}
                images = sampling.draw(pipeline, asked, embeddings[texts.index(models.NULL)], seeds, accelerator, **options)
                for (row, k), image in zip(some, images, strict=True):
                    sampling.write_png(folder / prompts.file_name(row, k), image)
                bar.update(len(some))


def main(argv=None):
    args = parse(argv)
    accelerator = engine.make_accelerator(args.device, args.precision)
    run.check_apart(args)  # all together: no run may replace the model of another
    pairs = zip(args.model_path, args.save_dir, strict=True)
    each = [job.namespace(args, model_path=model_path, save_dir=save_dir) for model_path, save_dir in pairs]
    records = [run.Run(one, accelerator.is_main_process) for one in each]
    for one, record in zip(each, records, strict=True):
        draw_from(one, record, accelerator)


def draw_from(args, record, accelerator):
    """All images of one model, into one run folder."""
    if record.finished:
        return print(f"{record.folder} is finished already")

    # Model and prompts
    pipeline, recorded = models.open_pipeline(args.model_path)
    rows = wanted(args, recorded)
    done = run.read_json(Path(args.model_path) / "done.json") if recorded else {}
    parent_sha = models.sha(pipeline.unet, pipeline.vae, pipeline.text_encoder)
    prompts_sha = job.digest([[row.case_number, row.prompt, row.seed] for row in rows])
    facts = {"parent_sha": parent_sha, "prompts_sha": prompts_sha, "model": recorded, "model_done": done}
    record.begin(job.PACKAGES, kind="samples", **facts, **job.where(accelerator))
    folder = record.folder / "samples"
    if accelerator.is_main_process:
        folder.mkdir(exist_ok=True)
        prompts.write_csv(folder / "prompts.csv", rows)
    accelerator.wait_for_everyone()

    # Draw
    record.start_clock()
    pipeline.to(accelerator.device)
    draw_files(pipeline, rows, folder, accelerator, args)
    accelerator.wait_for_everyone()
    record.finish(seconds=record.seconds(), images=len(rows) * args.num_samples, **engine.memory(accelerator))
    if accelerator.is_main_process:
        print(f"{record.folder}: {len(rows) * args.num_samples:,} images, {record.seconds():.0f} s")


if __name__ == "__main__":
    run.cli(main)
