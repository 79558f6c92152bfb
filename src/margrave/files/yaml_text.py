"""Parse YAML settings into plain values, with limits on size and alias expansion."""

from __future__ import annotations

from typing import Any

import yaml

MAX_NODES = 100_000
"""Maximum number of keys, values, lists and mappings in a file after expanding aliases."""
MAX_CHARACTERS = 2**20
"""Maximum file length; settings need only thousands, and parsing a million takes a minute."""
MAX_NUMBER_LENGTH = 100
"""Maximum number of characters in a number; parsing base-60 numbers takes quadratic time."""


class _Loader(yaml.SafeLoader):
    """A safe loader that limits the number of nodes and the length of numbers."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self._name, self._nodes = name, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise ValueError(_too_many_values_message(self._name))
        return super().compose_node(parent, index)

    def construct_scalar(self, node: Any) -> Any:
        is_number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if is_number and len(node.value) > MAX_NUMBER_LENGTH:
            raise ValueError(
                f"{self._name}: a number has {len(node.value)} characters, more than "
                f"{MAX_NUMBER_LENGTH}"
            )
        return super().construct_scalar(node)


def _too_many_values_message(name: str) -> str:
    return (
        f"{name} contains more than {MAX_NODES} values after expanding its aliases; "
        "use fewer values or aliases"
    )


def read_yaml(text: str, name: str) -> Any:
    """Parse YAML; executes no code, and expands aliases only up to a limit.

    Args:
        text: the file's content.
        name: the file's name, for messages.

    Raises:
        ValueError: the text is invalid, too long, nested too deeply or recursive, contains a number
            that is too long, or contains more than 100 000 values after expanding aliases.

    >>> read_yaml("loss: {kind: adaface, margin: 0.4}", "mine.yaml")
    {'loss': {'kind': 'adaface', 'margin': 0.4}}
    """
    try:
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"{name} has {len(text)} characters, more than {MAX_CHARACTERS}")
        loader = _Loader(text, name)
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded_count(node, {}, name) > MAX_NODES:
            raise ValueError(_too_many_values_message(name))
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    # Invalid numbers and dates raise errors other than YAMLError.
    except (yaml.YAMLError, OverflowError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{name} is not YAML: {error}") from None
    except ValueError as error:
        # The messages about the limits already name the file.
        if name in str(error):
            raise
        raise ValueError(f"{name} is not YAML: {error}") from None


def _expanded_count(node: yaml.Node, counts: dict[int, int | None], name: str) -> int:
    """Number of nodes in a node, including itself, after expanding aliases.

    `counts` stores results by the node's id; None marks a node that is being counted.
    """
    if id(node) in counts:
        count = counts[id(node)]
        if count is None:
            raise ValueError(f"{name} is recursive: an alias refers to a node that contains it")
        return count
    counts[id(node)] = None
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    count = 1 + sum(_expanded_count(child, counts, name) for child in children)
    counts[id(node)] = count
    return count
