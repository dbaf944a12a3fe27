"""A stand-in for an accelerator: tensors on "fake:0" hold their numbers on the CPU and refuse what a GPU refuses.

    PYTHONPATH=tests/fake_device ADLIB_DEVICE=fake pytest tests/test_devices.py

torch loads it when it is imported, as it loads the extension of any accelerator (entry point `torch.backends`), so no
other file knows of it. Refused are: an operation on tensors of both devices (but for copies, scalars and indices on
the CPU), `.numpy()`, a CPU generator that draws on the device, pickling. Numbers are those of the CPU, bit by bit.
"""

import torch
from torch.utils import _pytree as tree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "fake"
COPIES = {"copy_", "_to_copy", "_copy_from", "_copy_from_and_resize"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
# A wrapper cannot be resized, which `out=` of these would do: they are made on the CPU and moved.
FACTORIES = ("arange", "eye", "linspace", "logspace", "randperm", "tensor")


class Runtime:
    """What torch asks of the module `torch.<device>`."""

    is_available = is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    set_device = manual_seed = manual_seed_all = synchronize = staticmethod(lambda *_given: None)
    get_rng_state = staticmethod(lambda *_device: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, *_device: torch.set_rng_state(state))
    get_amp_supported_dtype = staticmethod(lambda: [torch.float32, torch.bfloat16, torch.float16])


class OnDevice(torch.Tensor):
    """A tensor that says it is on the device; `held` has its numbers."""

    @staticmethod
    def __new__(cls, held):
        form = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        self = torch.Tensor._make_wrapper_subclass(cls, held.size(), layout=held.layout, device=f"{NAME}:0", **form)
        self.held = held
        return self

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})

    def __getitem__(self, where):
        if isinstance(where, list):
            where = torch.tensor(where)
        elif isinstance(where, tuple):
            where = tuple(torch.tensor(w) if isinstance(w, list) else w for w in where)
        return super().__getitem__(where)

    def new_tensor(self, data, **options):
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device} | options)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            memo[id(self)] = copied = self.detach().clone().requires_grad_(self.requires_grad)
            copied._is_param = getattr(self, "_is_param", False)
        return memo[id(self)]

    def __repr__(self):
        return f"{NAME}({self.held!r})"

    def __reduce_ex__(self, _protocol):
        raise RuntimeError(f"a tensor on {NAME} cannot be pickled here; move it to the CPU first")


def on_device(device) -> bool:
    return device is not None and torch.device(device).type == NAME


def wrapped(value):
    if not isinstance(value, torch.Tensor) or isinstance(value, OnDevice):
        return value
    with torch.inference_mode(False):
        return OnDevice(value)


def refuse_mixture(name: str, args, tensors) -> None:
    own = [t for t in tensors if isinstance(t, OnDevice)]
    other = [t for t in tensors if not isinstance(t, OnDevice) and t.dim() > 0]
    if not own or not other or name in COPIES:
        return
    values = args[2] if name in INDEXING and len(args) > 2 else None
    if name in INDEXING and isinstance(args[0], OnDevice) and not any(values is t for t in other):
        return  # indices may be on the CPU
    shapes = [tuple(t.shape) for t in (own[0], other[0])]
    raise RuntimeError(f"{name}: tensors {shapes[0]} on {NAME} and {shapes[1]} on cpu; expected all on one device")


def run(operation, args, kwargs):
    """Do an operation with the held numbers; its results are on the device where an argument is, or it says so."""
    name = operation._schema.name.removeprefix("aten::")
    leaves = tree.tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    refuse_mixture(name, args, tensors)
    asked = kwargs.get("device")
    here = on_device(asked) if asked is not None else any(isinstance(t, OnDevice) for t in tensors)
    if here and any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"{name}: expected a generator of {NAME}, found one of the CPU")
    if name == "_fused_sdp_choice":
        return 0  # the plain implementation of attention
    if here and asked is not None:
        kwargs = kwargs | {"device": "cpu"}
    held_args, held_kwargs = tree.tree_map_only(OnDevice, lambda t: t.held, (args, kwargs))
    out = operation(*held_args, **held_kwargs)
    written = [r.alias_info for r in operation._schema.returns if r.alias_info is not None and r.alias_info.is_write]
    if name == "copy_":
        return args[0]
    if written:  # in place, or into `out=`: the argument itself is what comes back
        given = {}
        for i, argument in enumerate(operation._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[i] if i < len(args) else kwargs.get(argument.name)
                given |= dict.fromkeys(argument.alias_info.before_set, value)
        back = [given[next(iter(alias.before_set))] for alias in written]
        back = [wrapped(b.held) if isinstance(b, OnDevice) and b.shape != b.held.shape else b for b in back]
        return back[0] if len(back) == 1 else tuple(back)
    return tree.tree_map(wrapped, out) if here and name != "_local_scalar_dense" else out


def _moved(factory):
    def make(*args, device=None, **options):
        if on_device(device):
            needs_gradient = options.pop("requires_grad", False)
            return factory(*args, **options).to(f"{NAME}:0").requires_grad_(needs_gradient)
        return factory(*args, **options, **({} if device is None else {"device": device}))

    return make


def register() -> None:
    """Make the device known to torch; called by `import torch`."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Runtime)
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda operation, *args, **kwargs: run(operation, args, kwargs), "PrivateUse1")
    Runtime.library = library  # it ends with its last reference
    for name in FACTORIES:
        setattr(torch, name, _moved(getattr(torch, name)))
