import torch

from engine import predict_together, squared_error


def erasediff(model, forget, retain, fit, scheduler, *, steps=1000, lr=1e-4, erase_rate=0.5):
    """EraseDiff (Wu et al., CVPR 2025, arXiv 2401.05779), a successor of SalUn: minimise the retain loss L_r subject to L_f being at its
    least, L_f the loss of predicting uniform noise for the forgotten classes, noised with it, in place of normal noise.

    Uniform noise is the authors' code's; the multiplier below is that of the bilevel method it builds on, unverified against the paper.
    The constraint's gradient is that of L_f (the least value, a constant, drops out). Each step goes along g_r + lambda * g_f with
    lambda = max(0, erase_rate - <g_r, g_f> / |g_f|^2), so that L_f falls at a rate of at least erase_rate * |g_f|^2 while L_r is minimised.
    """

    def loss(forget, retain):
        uniform = torch.special.ndtr(forget.noise)  # a normal variable's distribution function makes it uniform in (0, 1)
        parts = [
            (scheduler.add_noise(forget.x, uniform, forget.t), forget.t, forget.y),
            (scheduler.add_noise(retain.x, retain.noise, retain.t), retain.t, retain.y),
        ]
        erased, kept = predict_together(model, *parts)
        return {"forget": forget.mean(squared_error(erased, uniform)), "retain": retain.mean(squared_error(kept, retain.noise))}

    def combine(gradients):
        inner = sum((a * b).sum() for a, b in zip(gradients["retain"], gradients["forget"], strict=True))
        square = sum(b.square().sum() for b in gradients["forget"])
        weight = (erase_rate - inner / square.clamp_min(1e-30)).clamp_min(0)
        return [a + weight * b for a, b in zip(gradients["retain"], gradients["forget"], strict=True)]

    fit({"forget": forget, "retain": retain}, loss, steps=steps, lr=lr, combine=combine)
