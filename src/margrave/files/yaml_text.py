"""YAML of settings: read as plain values, whatever its anchors would make of it."""

from __future__ import annotations

from typing import Any

import yaml

LARGEST_NODES = 100_000
"""Values, keys and lists in a file once every alias is written out."""


LARGEST_TEXT = 2**20
"""Characters; settings have thousands, and reading a million takes a minute."""
LONGEST_NUMBER = 100
"""Characters of a number; of digits in groups of sixty, twice as many take four times as long."""


class _Loader(yaml.SafeLoader):
    """Settings' values, counted as they are read."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self._name, self._nodes = name, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._nodes += 1
        if self._nodes > LARGEST_NODES:
            raise ValueError(_too_many(self._name))
        return super().compose_node(parent, index)

    def construct_scalar(self, node: Any) -> Any:
        number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if number and len(node.value) > LONGEST_NUMBER:
            raise ValueError(f"{self._name}: a number of {len(node.value)} characters")
        return super().construct_scalar(node)


def _too_many(name: str) -> str:
    return (
        f"{name} stands for more than {LARGEST_NODES} values once its aliases are written "
        "out; write out what is meant"
    )


def read_yaml(text: str, name: str) -> Any:
    """What a YAML text says, with neither code nor explosions.

    Args:
        text: of the file.
        name: what messages call it.

    Raises:
        ValueError: not YAML, nested too deeply, holding itself, or of more than 100 000 values
            once aliases are written out.

    >>> read_yaml("loss: {kind: adaface, margin: 0.4}", "mine.yaml")
    {'loss': {'kind': 'adaface', 'margin': 0.4}}
    """
    try:
        if len(text) > LARGEST_TEXT:
            raise ValueError(f"{name} has {len(text)} characters, more than {LARGEST_TEXT}")
        loader = _Loader(text, name)
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}, name) > LARGEST_NODES:
            raise ValueError(_too_many(name))
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply for settings") from None
    # Numbers and dates that are none fail in other ways than YAML that is none.
    except (yaml.YAMLError, OverflowError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{name} is not YAML: {error}") from None
    except ValueError as error:
        if name in str(error):
            raise
        raise ValueError(f"{name} is not YAML: {error}") from None


def _expanded(node: yaml.Node, known: dict[int, int | None], name: str) -> int:
    """Nodes that a node stands for; one of an alias counts wherever it is."""
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise ValueError(f"{name} holds itself, by an alias within what it stands for")
        return count
    known[id(node)] = None
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    count = 1 + sum(_expanded(child, known, name) for child in children)
    known[id(node)] = count
    return count
