def ga_retain(model, forget, retain, trainer, family, embeddings, *, steps=1200, lr=1e-5, alpha=0.1):
    """Gradient ascent as the official release has it (gradient_ascent.py): -L_f + alpha * L_r, L the noise-prediction loss.

    Its 10 passes over Imagenette's some 950 images of a class are 1,200 steps of 8.
    """
    for forget_batch, retain_batch in trainer.steps(steps, lr, forget, retain):
        trainer.step(
            forget=-family.loss(model, forget_batch, embeddings[forget_batch.labels]),
            retain=alpha * family.loss(model, retain_batch, embeddings[retain_batch.labels]),
        )
