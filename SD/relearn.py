"""Relearning: how fast does a forgotten concept come back when the model sees a few of its images again?

    python relearn.py --model_path runs/digits/salun --num_images 10 --steps 50 --save_dir runs/digits/relearned/salun

Trains the U-Net of an unlearned model on --num_images of the images that it forgot, drawn by --seed, each under its own prompt, as train.py
does. The run keeps its method's name: draw from it with generate_images.py, measure it with evaluate.py, and compare it in a table of its
own with Retrain, relearned in the same way. A UA clearly below Retrain's, beyond the spread over seeds, suggests
that the concept was hidden and not forgotten.
"""

from pathlib import Path

import torch

import cli
import concepts
import data
import masking
import models
import pipelines
import saving
import task
import trainer
from cli import RunError
from run_folder import RunFolder, moved
from table import describe
from trainer import Trainer


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_shared(required=["save_dir"])
    model = "run of unlearn.py, or of train.py --retain_only"
    parser.add(cli.DATA, "--model_path", type=Path, required=True, metavar="RUN", help=model)
    number = "images of what was forgotten to train on"
    parser.add(cli.FORGET, "--num_images", type=cli.positive_int, default=10, metavar="K", help=number)
    dropout = "share of the prompts replaced by the empty one, for guidance"
    parser.add(cli.METHOD, "--prompt_dropout", type=cli.share, default=0.1, help=dropout)
    dtype = "precision of the saved model (default: --weights_dtype)"
    parser.add(cli.RUN, "--save_dtype", choices=models.DTYPES, help=dtype)
    trainer.add_memory_flags(parser)
    pipelines.add_weights_flag(parser)
    parser.add_shared("resume", "overwrite", "device", steps=50, lr=1e-5, batch_size=8, precision="auto", seed=1)
    return parser.parse_args(argv)


def load_forgotten(args, accelerator):
    """(Task of what the model at --model_path forgot, with that model's weights; its args.json). Raises RunError."""
    family, recorded = pipelines.open_pipeline(args.model_path, dtype=args.weights_dtype)
    if not recorded.get("forgotten"):
        raise RunError(f"{args.model_path} has forgotten nothing: name a run of unlearn.py, or of train.py --retain_only")
    if "relearned_images" in recorded.get("options", {}):
        raise RunError(f"{args.model_path} was relearned already: name the run of unlearn.py that it came from")
    flags, source = dict.fromkeys(concepts.CONCEPT_FLAGS) | {"forget_class": recorded["forgotten"]}, args.model_path
    if recorded["kind"] == "unlearn":  # the original knows its data, and draws the images that were drawn for unlearning
        flags, source = {name: recorded[name] for name in concepts.CONCEPT_FLAGS}, recorded["parent"]
        flags |= {name: Path(flags[name]) for name in ("forget_dir", "retain_dir") if flags[name] is not None}
        there = moved(source, recorded, args.model_path)
        source = there if there.exists() else source
    options = {"variant": recorded.get("variant"), "dtype": args.weights_dtype, "originals_only": recorded["kind"] == "unlearn"}
    loaded = task.load_task(source, flags, accelerator, ("forget",), **options)
    if recorded["kind"] == "unlearn" and loaded.facts["parent_sha"] != recorded["parent_sha"]:  # VAE and prompts would not be its own
        dtype = recorded.get("weights_dtype") or "fp32"
        cure = "put that one there" if dtype == args.weights_dtype else f"pass --weights_dtype {dtype}"
        raise RunError(f"{source}, opened in {args.weights_dtype}, is not the original that {args.model_path} was made from: {cure}")
    if loaded.facts["forget_sha"] != recorded.get("forget_sha", loaded.facts["forget_sha"]):  # a retrained model has none
        raise RunError(f"the images are no longer those that {args.model_path} forgot: put those back")
    loaded.family.model.load_state_dict(family.model.state_dict())
    return loaded, recorded


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision, args.weights_dtype)
    run_folder = RunFolder(args, accelerator)

    # The model, and some of what it has forgotten
    loaded, recorded = load_forgotten(args, accelerator)
    model, forget = loaded.family.model, loaded.forget
    if args.num_images > len(forget):
        raise RunError(f"--num_images {args.num_images} is more than the {len(forget)} images that were forgotten: pass fewer")
    order = torch.randperm(len(forget), generator=data.make_generator("relearned images", args.seed))
    chosen = order[: args.num_images].sort().values
    few = data.Split(forget.images[chosen], forget.labels[chosen], "relearn")
    facts = loaded.facts | {"method": recorded["method"], "mask_path": None, "mask_info": {}, "relearned_sha": models.sha(model)}
    facts |= {name: recorded[name] for name in ("mask_path", "mask_info") if name in recorded}  # a row of its own
    facts["parent_sha"] = recorded.get("parent_sha")  # of the original, which a retrained model does not have
    facts["options"] = {"relearned_images": args.num_images, "steps": args.steps, "lr": args.lr}
    if recorded["kind"] == "unlearn":  # what was relearned after other settings is no repetition
        settings = describe(recorded, 0, {})["options"] | concepts.words_given(recorded)
        facts["options"] |= {f"unlearned_{name}": value for name, value in settings.items()}
    run_folder.begin(kind="unlearn", **facts)
    if accelerator.is_main_process:
        saving.clean(run_folder.folder / "model", put_back=args.resume)
    if args.gradient_checkpointing:
        model.enable_gradient_checkpointing()

    # Train
    before = {name: parameter.detach().to("cpu", copy=True) for name, parameter in model.named_parameters()}
    loop = Trainer(model, run_folder, accelerator, seed=args.seed, batch_size=args.batch_size, micro_batch=args.micro_batch)
    run_folder.start_clock()
    for batch in loop.steps(args.steps, args.lr, few):
        labels = torch.where(batch.uniform < args.prompt_dropout, len(loaded.prompts) - 1, batch.labels)
        loop.step(train=loaded.family.loss(model, batch, loaded.embeddings[labels]))
    seconds = run_folder.seconds()

    # Save
    changed = masking.check_change(before, {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}, None)
    if accelerator.is_main_process:
        saving.save(loaded.family, run_folder.folder / "model", args.save_dtype)
    message = f"{recorded['method']}, {args.steps:,} steps on {len(few)} images of what was forgotten, {seconds:.1f} s"
    run_folder.finish(message, seconds=seconds, images_seen=run_folder.images_seen, fraction_changed=changed)


if __name__ == "__main__":
    cli.run(main)
