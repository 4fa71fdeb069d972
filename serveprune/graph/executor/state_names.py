import torch
from torch import Tensor


class StateNames:
    """Registers tensors in a module so that the keys of its state dict are their names in the graph.

    Dots in a name become modules within modules, as torch wants. A name that torch cannot take (an empty part, a part
    that is a method of modules, or a name that is the beginning of another) is registered without dots.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._keys: dict[str, str] = {}

    def register(self, name: str, tensor: Tensor) -> None:
        """Take in a parameter or a buffer."""
        key = name
        if not self._fits(name):
            key = name.replace(".", "_") or "_"
            while hasattr(self._module, key):
                key += "_"
        *path, leaf = key.split(".")
        owner = self._module
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, torch.nn.Module())
            owner = owner.get_submodule(part)
        if isinstance(tensor, torch.nn.Parameter):
            owner.register_parameter(leaf, tensor)
        else:
            owner.register_buffer(leaf, tensor)
        self._keys[name] = key

    def tensors(self) -> dict[str, Tensor]:
        """Return what is registered, by its name in the graph, as it is now."""
        found = {**dict(self._module.named_parameters()), **dict(self._module.named_buffers())}
        return {name: found[key] for name, key in self._keys.items()}

    def _fits(self, name: str) -> bool:
        owner = self._module
        *path, leaf = name.split(".")
        for part in path:
            if part in owner._modules:
                owner = owner.get_submodule(part)
                continue
            if not part or hasattr(owner, part):
                return False
            # What follows goes into a module of its own, which has no names but those of all modules.
            owner = torch.nn.Module()
        return bool(leaf) and not hasattr(owner, leaf)
