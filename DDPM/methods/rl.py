import torch

from engine import dropped, predict, predict_together, squared_error


def rl(model, forget, retain, fit, scheduler, classes, training, targets, *, steps=1000, lr=1e-4, alpha=3.072):
    """Relabelling, SalUn's loss without its mask, Eq. 7: |eps(x_t | c') - eps(x_t | c)|^2 on the forgotten classes, c' != c and its
    branch detached, + alpha * noise-prediction loss on the retain set.

    Both terms are means over pixels. The official release sums the second, so that its alpha of 1e-3 on CIFAR-10 (3 * 32 * 32 values)
    is 3.072 here. The two predictions that need gradients share one forward pass; c' goes through without storing activations.
    """
    targets = targets.to(forget.x.device)

    def loss(forget, retain):
        forget_t, retain_t = (scheduler.add_noise(batch.x, batch.noise, batch.t) for batch in (forget, retain))
        model.eval()
        with torch.no_grad():
            target = predict(model, forget_t, forget.t, targets[forget.y])
        model.train()
        labels = dropped(retain, classes.null, training["class_dropout"])
        prediction, kept = predict_together(model, (forget_t, forget.t, forget.y), (retain_t, retain.t, labels))
        return {"forget": forget.mean(squared_error(prediction, target)), "retain": alpha * retain.mean(squared_error(kept, retain.noise))}

    fit({"forget": forget, "retain": retain}, loss, steps=steps, lr=lr)
