from __future__ import annotations

import time

import pytest

from margrave.files import read_yaml


def chain(length: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, length)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (chain(9), "contains more than 100000 values"),
        (chain(60), "contains more than 100000 values"),
        ("loss: &a {kind: adaface, margin: *a}", "is recursive"),
        ("loss: &l\n  kind: adaface\n  <<: [*l]", "is recursive"),
        ("loss: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("loss: !!python/object/apply:os.system ['touch x']", "is not YAML"),
        ("loss: [", "is not YAML"),
        ("loss: \x18", "is not YAML"),
        ("a: 1\n--- \nb: 2", "is not YAML"),
    ],
)
def test_hostile_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        read_yaml(text, "mine.yaml")
    assert str(refused.value).startswith("mine.yaml")
    assert len(str(refused.value)) < 500


def test_aliases_are_fine_where_they_are_meant() -> None:
    text = "base: &base {margin: 0.4}\nloss: {<<: *base, kind: adaface}\n"
    assert read_yaml(text, "x")["loss"] == {"margin": 0.4, "kind": "adaface"}
    assert read_yaml(chain(4), "x")["a3"][0][0][0][0] == "x"
    assert read_yaml("", "x") is None


@pytest.mark.parametrize(
    "text",
    ["[" + "a," * 2_000_000 + "]", "[" + "a," * 200_000 + "]", "a: 1" + ":1" * 200_000],
    ids=["long", "many values", "a number of sixties"],
)
def test_what_takes_long_is_refused_soon(text: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match=r"^mine\.yaml"):
        read_yaml(text, "mine.yaml")
    assert time.process_time() - started < 60


@pytest.mark.parametrize("text", ["a: 2020-99-99", "a: " + "1" * 5000])
def test_dates_and_numbers_that_are_none_are_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"^mine\.yaml"):
        read_yaml(text, "mine.yaml")
