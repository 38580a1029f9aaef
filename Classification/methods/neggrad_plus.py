from engine import cross_entropy


def neggrad_plus(model, forget, retain, fit, *, epochs=10, lr=0.01, beta=0.95):
    """NegGrad+ (Kurmanji et al. 2023, arXiv 2302.09880): beta * CE(retain) - (1 - beta) * CE(forget), both in each step."""
    fit(
        lambda epoch: [{"forget": forget, "retain": retain}],
        lambda forget, retain: {"forget": -(1 - beta) * cross_entropy(model, forget), "retain": beta * cross_entropy(model, retain)},
        epochs=epochs,
        lr=lr,
    )
