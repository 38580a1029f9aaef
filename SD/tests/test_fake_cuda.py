"""The fake GPU refuses what CUDA refuses and allows what CUDA allows. Each test names the mutation that would break it.

This file carries the same text in Classification, DDPM and SD (`make check` fails when one drifts), as does fake_cuda.py.
"""

import numpy as np
import pytest
import torch

import fake_cuda

CPU, CUDA = torch.arange(6.0).view(2, 3), "cuda"
REFUSED = {  # what fails on a GPU; each must fail on the fake
    "another device": lambda there: there + CPU,
    "in place": lambda there: CPU.clone().mul_(there),
    "a number of the CPU changed in place": lambda there: torch.tensor(1.0).add_(there.sum()),
    "a matrix product": lambda there: there @ CPU.T,
    "a concatenation": lambda there: torch.cat([there, CPU]),
    "cuda indices of the CPU's": lambda there: CPU[there[0].long() % 2],
    "a mask of the CPU": lambda there: torch.where(CPU > 2, there, there),
    "index_select by the CPU": lambda there: there.index_select(0, torch.tensor([1])),
    "to NumPy": lambda there: there.numpy(),
    "to NumPy by NumPy": lambda there: np.asarray(there),
    "the CPU's generator": lambda there: torch.randn(2, generator=torch.Generator(), device=CUDA),
    "the CPU's generator in place": lambda there: there.normal_(generator=torch.Generator()),
    "the CPU's generator for like": lambda there: torch.multinomial(there, 2, generator=torch.Generator()),
    "a module on the CPU": lambda there: torch.nn.Linear(3, 2)(there),
    "a target on the CPU": lambda there: torch.nn.functional.cross_entropy(there, torch.tensor([0, 1])),
    "the gradient": lambda there: there.clone().requires_grad_().square().sum(1).backward(torch.ones(2)),
}
ALLOWED = {  # what a GPU does; the fake must give the CPU's values, on cuda
    "a number of the CPU": lambda there: there * torch.tensor(2.0),
    "indices of the CPU": lambda there: there[torch.tensor([1, 0])],
    "a copy": lambda there: torch.empty_like(there).copy_(CPU),
    "there and back": lambda there: there.cpu().add_(CPU).to(there.device) - CPU.cuda(),
    "a view written to": lambda there: there.clone()[0].fill_(5),
    "a new tensor": lambda there: torch.ones(3, device=there.device) + there.new_zeros(3) + torch.zeros_like(there),
    "another dtype": lambda there: there.to(torch.float64) + there.double(),
    "like another tensor": lambda there: CPU.to(there) + there,
    "a module": lambda there: torch.nn.BatchNorm1d(3, affine=False).to(CUDA)(there),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_fake_refuses_what_cuda_refuses(name):
    """Mutation: leave out check_mixed, the generator's check or that of TO_NUMPY."""
    with fake_cuda.installed(), pytest.raises((RuntimeError, TypeError), match="device"):
        REFUSED[name](CPU.to(CUDA))


@pytest.mark.parametrize("name", ALLOWED)
def test_the_fake_allows_what_cuda_allows(name):
    """Mutation: leave a result, a view or a moved module without its mark."""
    with fake_cuda.installed():
        result = ALLOWED[name](CPU.to(CUDA))
        assert result.device == torch.device("cuda:0") and result.is_cuda and result.cpu().device.type == "cpu" == CPU.device.type
    if name != "there and back":
        assert len(result) and result.device.type == "cpu"  # nothing is left of the fake


@pytest.mark.parametrize(
    "work, waits",
    [
        (lambda there: CPU.to(CUDA), 1),
        (lambda there: CPU.pin_memory().to(CUDA, non_blocking=True), 0),
        (lambda there: there.to(CUDA), 0),
        (lambda there: torch.tensor([1.0], device=CUDA), 1),
        (lambda there: there.cpu(), 1),
        (lambda there: float(there.sum()), 1),
        (lambda there: (there > 2).nonzero(), 1),
        (lambda there: there.square().sum(), 0),
    ],
)
def test_the_fake_counts_what_the_cpu_waits_for(work, waits):
    """Mutation: leave out READING, or the copies that do not block."""
    with fake_cuda.installed() as gpu:
        there = CPU.to(CUDA)
        before = gpu.waits
        work(there)
        assert gpu.waits - before == waits
