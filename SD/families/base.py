"""What the families of text-to-image models share, and what the file of a family has to say."""

import functools

import torch

from cli import RunError
from trainer import squared_error


class Embeddings:
    """What prompts tell a model, a row each: tensors by the name of the model's argument, first the encoded tokens (P, L, D)."""

    def __init__(self, **tensors):
        self.tensors = tensors

    @property
    def tokens(self):
        return next(iter(self.tensors.values()))

    @property
    def device(self):
        return self.tokens.device

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, rows):
        """The rows at some positions: an int64 tensor, a list or a slice."""
        return self._map(lambda tensor: tensor[rows])

    def empty(self, count):
        """The last row, the empty prompt's, `count` times."""
        return self._map(lambda tensor: tensor[-1:].expand(count, *tensor.shape[1:]))

    def to(self, *where):
        return self._map(lambda tensor: tensor.to(*where))

    def _map(self, function):
        return Embeddings(**{name: function(tensor) for name, tensor in self.tensors.items()})

    @staticmethod
    def cat(parts):
        return Embeddings(**{name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})


class Family:
    """A kind of text-to-image model, and all in which kinds differ. An object holds one opened pipeline of diffusers.

    The file of a family derives a class from this one, which says what pipelines it opens, how prompts and images are encoded, what the
    model is given and trained towards, how the pipeline draws, and which weights --train_method means.
    """

    KINDS = ()  # class names in model_index.json
    PARTS = {}  # {part with weights: its class}, first the one that is trained
    OPTIONAL = ()  # parts that a pipeline may lack
    WITHOUT = {}  # arguments of the pipeline's class that leave parts out
    SINGLE_FILE = False  # whether single_file.py knows its layout
    WHOLE = ""  # for messages: what to take instead
    SAMPLERS = ("own",)  # those of sampling.SAMPLERS that draw with it, and own, the pipeline's; first the default
    GUIDANCE = 7.5  # default of --guidance_scale and --generation_guidance_scale
    READERS = {}  # {name of a tensor of Embeddings: ends of the names of linear weights that read it}, which --method uce edits
    UCE_CODE = "2023"  # default of --authors_code there
    REFUSED = {}  # {method without a meaning here: why}
    TRAIN_METHODS = {"full": lambda name: True}  # {value of --train_method: whether a weight of that name may change}

    def __init__(self, pipeline):
        self.pipeline, self.original = pipeline, None  # pipelines.Original, where there is one
        self.edge = None  # in px of the images that it was fine-tuned on, where these are not those that it was made for

    @classmethod
    def of_parts(cls, **parts):
        """A new pipeline of these parts."""
        import diffusers

        pipeline = getattr(diffusers, cls.KINDS[0])(**parts, **cls.WITHOUT)
        pipeline.set_progress_bar_config(disable=True)
        return cls(pipeline)

    @functools.cached_property
    def scheduler(self):
        """A scheduler of diffusers with the pipeline's noise schedule, for training."""
        return self.noise_scheduler()

    @property
    def model(self):
        """The part that is trained."""
        return getattr(self.pipeline, next(iter(self.PARTS)))

    @property
    def encoders(self):
        """The parts that encode prompts."""
        parts = [getattr(self.pipeline, name) for name in self.PARTS if name.startswith("text_encoder")]
        return [part for part in parts if part is not None]

    @property
    def frozen(self):
        """The parts with weights that are never trained: text encoders and autoencoder."""
        parts = [getattr(self.pipeline, name) for name in list(self.PARTS)[1:]]
        return [part for part in parts if part is not None]

    # What a family says
    @classmethod
    def build(cls, arch, captions, image_size, seed, prediction_type):
        """A small complete pipeline with fresh weights and a tokenizer of the captions' words. Same seed, same weights.

        Raises RunError for an image size that its levels cannot halve.
        """
        raise NotImplementedError

    @classmethod
    def check_config(cls, config, source):
        """RunError for the config of a model that needs other inputs than this family gives."""

    def check(self, source):
        """RunError for configs that do not fit each other. source: what the message calls the pipeline."""

    def noise_scheduler(self):
        raise NotImplementedError

    def own_tokens(self, prompt):
        """Numbers of the prompt's own tokens, between those of start and end."""
        raise NotImplementedError

    def last_positions(self, prompt):
        """Where the prompt's last own token is among those of its Embeddings, of each text encoder whose tokens are there."""
        return [len(self.own_tokens(prompt))]

    def encode_prompts(self, prompts):
        """The Embeddings of a list of prompts, float32 on the text encoders' device."""
        raise NotImplementedError

    def encode_images(self, images):
        """Moments (B, 2C, h, w), float32 on the CPU, of uint8 images (B, H, W, 3): mean and standard deviation of the latents that the
        model sees."""
        raise NotImplementedError

    def add_noise(self, latents, noise, t):
        """Latents (B, C, h, w) with noise, at timesteps t (B,)."""
        raise NotImplementedError

    def target(self, latents, noise, t):
        """What the model is trained to predict of such latents."""
        raise NotImplementedError

    def predict(self, model, noisy, t, embeddings):
        """What a model of this family predicts, (B, C, h, w) in float32, of noisy latents, timesteps (B,) and Embeddings of B rows."""
        raise NotImplementedError

    def inputs(self, embeddings, empty, guidance_scale):
        """The pipeline's arguments that stand for prompts: Embeddings of the images' prompts, and of as many empty ones."""
        raise NotImplementedError

    def denoiser(self, steps, device):
        """(timesteps (steps,), function (prediction, number of the step, latents) -> latents after it) of a sampling run."""
        raise NotImplementedError

    def drawn_latents(self, drawn, size):
        """Latents (B, C, h, w) of those that the pipeline draws, of images of a size (width, height) in px."""
        return drawn

    # What follows from it
    def noisy(self, batch):
        """x_t of a Batch, with its own noise and timesteps."""
        return self.add_noise(batch.images, batch.noise, batch.t)

    def predict_together(self, model, *parts):
        """predict() for several (noisy, t, embeddings) in one forward pass; returns a prediction for each."""
        noisy, t, embeddings = zip(*parts, strict=True)
        return self.predict(model, torch.cat(noisy), torch.cat(t), Embeddings.cat(embeddings)).split([len(part) for part in t])

    def loss(self, model, batch, embeddings):
        """This process's share of the training loss of a Batch under Embeddings of its rows, l_MSE in Eq. 7 of the paper."""
        target = self.target(batch.images, batch.noise, batch.t)
        return batch.mean(squared_error(self.predict(model, self.noisy(batch), batch.t, embeddings), target))

    def check_single_file(self):
        """RunError for a family that cannot be written as a single file."""
        if not self.SINGLE_FILE:
            known = "--single_file knows Stable Diffusion 1.x, 2.x and XL alone"
            raise RunError(f"{known}: leave it out, a {self.KINDS[0]} is saved as a folder")

    def check_method(self, method, options):
        """RunError for a method, or one of its options {flag: value}, that has no meaning for this family."""
        if method in self.REFUSED:
            raise RunError(f"--method {method} has no meaning for a {self.KINDS[0]}: {self.REFUSED[method]}")
        if (options.get("authors_code") or self.UCE_CODE) < self.UCE_CODE:
            raise RunError(f"--authors_code {options['authors_code']} knows U-Nets alone: take {self.UCE_CODE}")

    def check_sampler(self, sampler):
        """RunError for a sampler that does not draw with models of this family."""
        if sampler not in self.SAMPLERS:
            raise RunError(f"--sampler {sampler} does not draw with a {self.KINDS[0]}: take {' or '.join(self.SAMPLERS)}")

    def check_size(self, width, height):
        """RunError for a size in px that the model cannot draw."""
        for edge in (width, height):
            if edge % self.multiple:
                raise RunError(f"images of {width} x {height} px do not fit the model: edges must be multiples of {self.multiple} px")

    @property
    def multiple(self):
        """Edges of images are multiples of it, in px."""
        return self.pipeline.vae_scale_factor

    @property
    def image_size(self):
        """Edge in px of the images that the model was trained on last."""
        return self.edge or self.made_for

    @property
    def made_for(self):
        """The same, of what its config says."""
        return self.model.config.sample_size * self.pipeline.vae_scale_factor

    def latent_shape(self, edge):
        """(C, h, w) of the latents of images of that edge in px."""
        side = edge // self.pipeline.vae_scale_factor
        return self.pipeline.vae.config.latent_channels, side, side

    def restrict(self, mask, train_method):
        """The mask of the weights that a run may change: those of `train_method` ("readers" are READERS), salient ones only with a mask.

        Returns None for all weights. Parts that stay whole or shut take no memory.
        """
        if train_method == "full":
            return mask
        restricted = {}
        readers = tuple(end for ends in self.READERS.values() for end in ends)
        change = self.TRAIN_METHODS.get(train_method, lambda name: name.endswith(readers))
        for name, parameter in self.model.named_parameters():
            chosen = change(name)
            constant = torch.full((1,), chosen, device=parameter.device).expand(parameter.shape)
            restricted[name] = mask[name] if chosen and mask is not None else constant
        return restricted
