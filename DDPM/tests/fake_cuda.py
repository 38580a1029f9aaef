"""A GPU that needs no GPU: tensors that compute on the CPU, report `cuda:0`, and refuse whatever CUDA would refuse.

    with fake_cuda.installed() as gpu:
        main(["--device", "cuda", ...])
    gpu.waits  # how often the CPU had to wait for the GPU: copies from memory that is not pinned, and values read back

Where a tensor lives is written on its storage, so views, Parameters and in-place operations share it. A function mode serves what
Python asks for (`device=`, `.to`, `.cuda`, `.cpu`, `.numpy`), a dispatch mode checks every operation that PyTorch then runs, the backward
pass included. As on a GPU, an operation fails that mixes devices, or draws on cuda with a generator of the CPU. Allowed are copies, CPU
tensors without dimensions among numbers, and CPU indices of a cuda tensor. Autocast and optimizers are the CPU's, so
results are equal to the CPU's.

It cannot show: speed and memory, CUDA's own rounding (TF32, cuDNN), SyncBatchNorm, NCCL, generators on cuda, streams, that fused
optimizers on CUDA refuse tensors of different strides (the CPU's mix up their entries), a gradient assigned on the wrong device.
Operations that PyTorch puts together in C++ are trusted: what they make on their own counts as cuda where an argument does. Gradients
do not travel back through a copy between devices.
"""

import contextlib
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
COPIES = ("aten::copy_", "aten::_foreach_copy_")
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")
READING = ("aten::_local_scalar_dense", "aten::nonzero")  # what the CPU learns of a tensor, for which the GPU must have made it
TO_NUMPY = (torch.Tensor.numpy, torch.Tensor.__array__)
SHARING = (torch.as_tensor, torch.asarray)  # may share memory with an array, which a GPU cannot


def storage(tensor):
    """The storage of a tensor, of the innermost one where functorch (vmap, grad) has wrapped it."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.untyped_storage()


def on_cuda(tensor):
    """Whether a tensor lives on the fake GPU."""
    return not tensor.is_sparse and getattr(storage(tensor), "on_cuda", False)


def tensors_in(values):
    """The tensors among values and in the lists among them."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


class Dispatch(TorchDispatchMode):
    """Checks each operation on the devices of its tensors, and marks what it returns."""

    makes_cuda = False  # whether a tensor that is made from no other tensor belongs on the GPU
    waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        values = (*args, *kwargs.values())
        tensors = list(tensors_in(values))
        cuda = [tensor for tensor in tensors if on_cuda(tensor)]
        if 0 < len(cuda) < len(tensors) and func._schema.name not in COPIES:
            check_mixed(func, args, kwargs)
        self.waits += bool(cuda) and func._schema.name in READING
        drawn_there = bool(cuda) or (self.makes_cuda and not tensors)
        if drawn_there and any(isinstance(value, torch.Generator) and value.device.type == "cpu" for value in values):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        result = func(*args, **kwargs)
        if drawn_there:
            given = {storage(tensor)._cdata for tensor in tensors}
            for tensor in tensors_in([result]):
                if storage(tensor)._cdata not in given:
                    storage(tensor).on_cuda = True
        return result


def check_mixed(func, args, kwargs):
    """Raise CUDA's error for an operation on tensors of both devices, unless it is one of those that CUDA allows."""
    name, schema = func._schema.name, func._schema.arguments
    options = {argument.name: argument for argument in schema}
    for argument, value in [*zip(schema, args, strict=False), *((options[key], value) for key, value in kwargs.items())]:
        written = argument.alias_info is not None and argument.alias_info.is_write
        for tensor in tensors_in([value]):
            is_index = name in INDEXING and argument.name == "indices"
            is_number = tensor.dim() == 0 and not written and not isinstance(value, (list, tuple))
            if not on_cuda(tensor) and not is_index and not is_number:
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({func})"
                )


class Function(TorchFunctionMode):
    """Serves what Python asks of a device."""

    def __init__(self, dispatch):
        super().__init__()
        self.dispatch = dispatch

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ == "__get__":  # of a property: by far the most calls
            return func(*args)
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.backward:  # hooks and recomputed forward passes ask for devices as well
            with self, self.making(on_cuda(args[0])):
                return torch.autograd.backward(args[0], kwargs.pop("gradient"), **kwargs)
        given = list(tensors_in([*args, *kwargs.values()]))
        if func in TO_NUMPY and on_cuda(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")
        func, args, target = destination(func, args, kwargs)
        if target and not kwargs.get("non_blocking"):  # copied, or made of numbers and copied
            moved = (on_cuda(args[0]) != (target == "cuda")) if func is torch.Tensor.to else (target == "cuda" and func is torch.tensor)
            self.dispatch.waits += moved
        with self.making(target == "cuda" or (target is None and any(map(on_cuda, given)))):
            result = func(*args, **kwargs)
            if target is None or not isinstance(result, torch.Tensor) or on_cuda(result) == (target == "cuda"):
                return result
            if func in SHARING or storage(result)._cdata in {storage(tensor)._cdata for tensor in given}:
                result = result.clone()
            storage(result).on_cuda = target == "cuda"
            return result

    @contextlib.contextmanager
    def making(self, cuda):
        before, self.dispatch.makes_cuda = self.dispatch.makes_cuda, cuda
        try:
            yield
        finally:
            self.dispatch.makes_cuda = before


def destination(func, args, kwargs):
    """(function, args, "cuda", "cpu" or None) of a call: the device it names, which is the CPU in the call that PyTorch then gets."""
    if func in (torch.Tensor.cuda, torch.Tensor.cpu):
        return torch.Tensor.to, (args[0], CPU), "cuda" if func is torch.Tensor.cuda else "cpu"
    if func is torch.Tensor.__deepcopy__:  # copies the storage, but not what is written on it
        return func, args, "cuda" if on_cuda(args[0]) else None
    device = kwargs.get("device")
    if func is torch.Tensor.to and len(args) > 1 and device is None:
        device = args[1].device if isinstance(args[1], torch.Tensor) else None if isinstance(args[1], torch.dtype) else args[1]
        if isinstance(args[1], torch.Tensor):
            args = (args[0], args[1].device, args[1].dtype, *args[2:])
    if isinstance(device, int):
        device = torch.device("cuda", device)
    if device is None or torch.device(device).type not in ("cuda", "cpu"):
        return func, args, None
    if kwargs.get("device") is not None:
        kwargs["device"] = CPU
    else:
        args = (args[0], CPU, *args[2:])
    return func, args, torch.device(device).type


def device(tensor):
    """What Tensor.device reports."""
    return CUDA if on_cuda(tensor) else torch._C.TensorBase.device.__get__(tensor)


@contextlib.contextmanager
def installed(fused=False):
    """PyTorch as on a machine with one GPU. Yields that fake. fused: keep fused optimizers, which round in their own way."""
    autocast, optimizer = torch.autocast.__init__, torch.optim.Optimizer.__init__
    with contextlib.ExitStack() as stack:

        def patch(owner, **values):
            for name, value in values.items():
                stack.enter_context(mock.patch.object(owner, name, value, create=True))

        def answer(value=None):
            return lambda *args, **kwargs: value

        patch(torch.cuda, is_available=answer(True), device_count=answer(1), current_device=answer(0), is_bf16_supported=answer(True))
        patch(torch.cuda, get_device_capability=answer((8, 0)), get_device_name=answer("fake"), max_memory_allocated=answer(1 << 20))
        patch(torch.cuda, is_current_stream_capturing=answer(False))
        patch(torch.accelerator, current_accelerator=answer())  # streams, graphs and pinned memory, which nothing here needs
        patch(torch.cuda, synchronize=answer(), empty_cache=answer(), reset_peak_memory_stats=answer(), set_device=answer())
        patch(torch.cuda, manual_seed_all=answer(), get_rng_state=lambda *_: torch.get_rng_state(), set_rng_state=answer())
        plain = {} if fused else {"fused": None, "foreach": False}  # the CPU's way, to the last bit
        patch(torch.Tensor, pin_memory=lambda tensor: tensor)
        patch(torch.optim.Optimizer, __init__=lambda self, parameters, defaults: optimizer(self, parameters, defaults | plain))
        patch(torch.autocast, __init__=lambda self, device_type, *rest, **kwargs: autocast(self, "cpu", *rest, **kwargs))
        patch(torch.Tensor, device=property(device), is_cuda=property(on_cuda), is_cpu=property(lambda t: device(t).type == "cpu"))
        dispatch = stack.enter_context(Dispatch())
        stack.enter_context(Function(dispatch))
        yield dispatch
