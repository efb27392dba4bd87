"""YAML as people mean it: the plain values of YAML 1.2, where `010` is ten and `no` is a word."""

import re
from typing import Any

import yaml

_PLAIN = (  # what a plain scalar is besides text; of YAML 1.2's core schema
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("bool", r"true|True|TRUE|false|False|FALSE", tuple("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", tuple("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        tuple("-+.0123456789"),
    ),
    ("merge", r"<<", ("<",)),  # of YAML 1.1, which anchors are used with
)


class _Loader(yaml.SafeLoader):
    """A key that is there twice is an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                earlier = first.setdefault((key.tag, key.value), key)
                if earlier is not key:
                    there = f"{key.value} is there twice; first in line {earlier.start_mark.line + 1}"
                    raise yaml.composer.ComposerError(None, None, there, key.start_mark)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would read as something else than text."""


for _either in (_Loader, _Dumper):
    _either.yaml_implicit_resolvers = {}  # none of YAML 1.1's
    for _kind, _pattern, _beginnings in _PLAIN:
        _either.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _beginnings)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def read_yaml(text: str | bytes) -> Any:
    """Plain values; raises yaml.YAMLError, and ValueError or RecursionError on what can't be a value."""
    return yaml.load(text, _Loader)


def write_yaml(value: Any) -> str:
    """Text that `read_yaml` reads as the same."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
