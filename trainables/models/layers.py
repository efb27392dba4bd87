"""Which models several of can train as one: those whose every layer has a form for lanes."""

from collections.abc import Iterator

from torch import nn

from takd.trainables.models.dropout import Dropout

# Of each number alone: they take features however these lie.
ELEMENTWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Tanh,
    nn.Sigmoid,
    nn.Softplus,
    nn.Identity,
)


def stack_together(module: nn.Module) -> bool:
    """Whether a model is `nn.Sequential`: one `Flatten`, then fully connected layers and what has no weights.

    `takd.trainables.training.lanes` has a form for each of these.
    """
    if any(_is_special(each) for each in module.modules()):
        return False
    layers = [*_layers(module)]
    kinds = [type(each) for each in layers]
    if nn.Linear not in kinds or kinds[0] is not nn.Flatten or len(set(map(id, layers))) < len(layers):
        return False
    flat = layers[0]
    assert isinstance(flat, nn.Flatten)
    if (flat.start_dim, flat.end_dim) != (1, -1):
        return False
    first = kinds.index(nn.Linear)  # what lanes have of their own begins there
    return all(kind in ELEMENTWISE for kind in kinds[1:first]) and all(
        kind in (nn.Linear, Dropout, *ELEMENTWISE) for kind in kinds[first:]
    )


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """In the order in which they run, as often as they do; what is no `nn.Sequential` is one layer."""
    if type(module) is not nn.Sequential:
        yield module
        return
    for child in module._modules.values():
        if child is not None:
            yield from _layers(child)


def _is_special(module: nn.Module) -> bool:
    """Whether it computes something beside what its class does, or has weights that stand still."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    own = module._parameters if type(module) is not nn.Sequential else {}
    still = any(weight is not None and not weight.requires_grad for weight in own.values())
    beside = type(module) is nn.Sequential and bool(module._parameters or module._buffers)
    return any(hooks) or still or beside
