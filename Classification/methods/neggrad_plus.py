from cli import share
from trainer import cross_entropy

FLAGS = {"beta": dict(type=share, help="weight of the retain loss; that of the forget loss is 1 - beta")}
TRAINING = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "batch_size": 32, "forget_batch_size": 32, "augment": False}


def neggrad_plus(model, forget, retain, trainer, *, epochs=10, lr=0.01, beta=0.95):
    """NegGrad+ (Kurmanji et al. 2023, arXiv 2302.09880): beta * CE(retain) - (1 - beta) * CE(forget), both in each step.

    Plain SGD, rate, batches and beta of the authors' small_scale_ictest.ipynb. Their larger experiments have beta 0.9999.
    """
    for _ in trainer.epochs(epochs, lr, total=epochs * trainer.count_steps(forget, retain)):
        for forget_batch, retain_batch in trainer.batches(forget, retain):
            trainer.step(forget=-(1 - beta) * cross_entropy(model, forget_batch), retain=beta * cross_entropy(model, retain_batch))
