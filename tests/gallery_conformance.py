"""What every gallery does, as checks that compare a store with the gallery in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from margrave.gallery import (
    Gallery,
    GalleryCard,
    GalleryError,
    MemoryGallery,
    Person,
    PersonRecord,
    create_gallery,
    open_gallery,
)

DIMENSION = 16
TOLERANCE = 1e-5
NAMES = (
    "Ann",
    "ann",
    "Ann ",
    " Ann",
    "Zoë",
    "O'Brien",
    'Robert"); DROP TABLE people;--',
    "back\\slash",
    "100%_like_",
    "李小龙",
    "محمد",
    "👩‍🚀 🏴",
    "ﬁ ligature",
    "a" * 512,
    "é" * 256,
)


@dataclass(frozen=True)
class Harness:
    """A kind of store under test.

    Attributes:
        address: makes an address at which nothing is.
        lasting: what was written is there when the gallery is opened again.
        steps: of the random sequence; fewer where a step is slow.
    """

    address: Callable[[], str]
    lasting: bool = True
    steps: int = 300


Check = Callable[[Harness], None]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def card(**settings: object) -> GalleryCard:
    return GalleryCard(weights="ab12", dimension=DIMENSION, **settings)  # type: ignore[arg-type]


def rows(seed: int, count: int = 1, dimension: int = DIMENSION) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dimension)) * (1 + seed % 7)


def assert_equal(gallery: Gallery, truth: Gallery, queries: np.ndarray, top_k: int = 5) -> None:
    """People, vectors, crops, counts and searches of two galleries agree."""
    ours, theirs = list(gallery.people()), list(truth.people())
    assert [(one.name, one.images) for one in ours] == [(one.name, one.images) for one in theirs]
    assert len(gallery) == len(truth) == len(ours)
    for person in theirs:
        expected = truth.vector(person.name)
        np.testing.assert_allclose(
            gallery.vector(person.name), expected, atol=TOLERANCE * np.linalg.norm(expected)
        )
        assert gallery.crops(person.name) == truth.crops(person.name)
    stats, expected_stats = gallery.stats(), truth.stats()
    for name in ("people", "images", "crops"):
        assert getattr(stats, name) == getattr(expected_stats, name), name
    assert_same_answers(gallery, truth, queries, top_k)


def assert_same_answers(gallery: Gallery, truth: Gallery, queries: np.ndarray, top_k: int) -> None:
    """Similarities agree rank by rank, and names except among similarities that are as good as
    equal."""
    answers, expected = gallery.search(queries, top_k), truth.search(queries, len(truth) + 1)
    assert len(answers) == len(expected) == len(queries)
    for ours, every in zip(answers, expected, strict=True):
        theirs = every[:top_k]
        assert len(ours) == len(theirs)
        right = {candidate.name: candidate.similarity for candidate in every}
        assert len({candidate.name for candidate in ours}) == len(ours)
        for one, other in zip(ours, theirs, strict=True):
            assert abs(one.similarity - other.similarity) < TOLERANCE
            assert abs(one.similarity - right[one.name]) < TOLERANCE
            assert -1 <= one.similarity <= 1


@check
def an_empty_gallery(harness: Harness) -> None:
    with create_gallery(harness.address(), card()) as gallery:
        assert len(gallery) == 0 and list(gallery.people()) == []
        assert gallery.search(rows(1, 3)) == [[], [], []]
        assert gallery.search(np.zeros((0, DIMENSION))) == []
        assert gallery.get("Ann") is None and "Ann" not in gallery and 3 not in gallery
        stats = gallery.stats()
        assert (stats.people, stats.images, stats.crops, stats.encrypted) == (0, 0, 0, False)
        for method in (gallery.vector, gallery.crops, gallery.forget):
            with pytest.raises(GalleryError, match="nobody is enrolled as 'Ann'"):
                method("Ann")


@check
def any_name_and_no_other(harness: Harness) -> None:
    truth = MemoryGallery(card())
    with create_gallery(harness.address(), card()) as gallery:
        for number, name in enumerate(NAMES):
            for each in (gallery, truth):
                person = each.add(name, rows(number, 1 + number % 3))
                assert person.name == name and person.images == 1 + number % 3
        assert_equal(gallery, truth, rows(99, 4))
        # Typed on another system, the é is two characters.
        found = gallery.get("Zoe\u0308")
        assert found is not None and found.name == "Zoë" and "Zoe\u0308" in gallery
        assert gallery.get("nn") is None and gallery.get("Ann  ") is None and "%" not in gallery
        for wrong in ("", "  ", "a" * 513, "é" * 257, "tab\t", "nul\0", "\ud800"):
            with pytest.raises(ValueError, match="name"):
                gallery.add(wrong, rows(1))
        with pytest.raises(ValueError, match=r"did you mean .O'Brien."):
            gallery.forget("O'Briem")
        for each in (gallery, truth):
            assert each.forget(NAMES[0]).name == NAMES[0]
        assert_equal(gallery, truth, rows(98, 2), top_k=50)


@check
def what_cannot_be_is_refused_and_changes_nothing(harness: Harness) -> None:
    truth = MemoryGallery(card())
    with create_gallery(harness.address(), card()) as gallery:
        for each in (gallery, truth):
            each.add("Ann", rows(1))
        for wrong in (
            rows(1)[0],
            rows(1, dimension=DIMENSION + 1),
            rows(1, 0),
            np.zeros((1, DIMENSION)),
            np.full((1, DIMENSION), np.nan),
            np.full((1, DIMENSION), np.inf),
            np.concatenate([rows(1), -rows(1)]),
            np.concatenate([rows(1), np.zeros((1, DIMENSION))]),
            -rows(1),
        ):
            name = "Ann" if wrong.shape == (1, DIMENSION) else "Bob"
            with pytest.raises(ValueError, match=r"embeddings|cancel"):
                gallery.add(name, wrong)
        with pytest.raises(ValueError, match="keeps no images"):
            gallery.add("Bob", rows(2), crops=[b"png"])
        for wrong in (rows(1)[0], rows(1, dimension=DIMENSION - 1), np.zeros((1, DIMENSION))):
            with pytest.raises(ValueError, match="queries"):
                gallery.search(wrong)
        for wrong in (2.5, -1, "3", None):
            with pytest.raises(ValueError, match=f"top_k = {wrong!r}, must be an integer"):
                gallery.search(rows(1), wrong)  # type: ignore[arg-type]
        assert gallery.search(rows(1), 0) == [[]]
        assert len(gallery.search(rows(1), np.int64(3))[0]) == 1  # type: ignore[arg-type]
        assert_equal(gallery, truth, rows(3, 2))


@check
def images_add_up_and_may_be_replaced(harness: Harness) -> None:
    settings = card(fusion="mean")
    truth = MemoryGallery(settings)
    with create_gallery(harness.address(), settings) as gallery:
        for each in (gallery, truth):
            each.add("Ann", rows(1, 2))
            each.add("Bob", rows(2))
            assert each.add("Ann", rows(3, 3)).images == 5
            # The opposite direction cancels nothing where the old one is replaced.
            assert each.add("Bob", -rows(2), replace=True).images == 1
            assert each.add("Cleo", rows(4, 2), replace=True).images == 2
        assert_equal(gallery, truth, rows(5, 3))
        enrolled = gallery.add("Dan", rows(6)).enrolled
        person = gallery.get("Dan")
        assert person is not None and person.enrolled == enrolled and enrolled.endswith("Z")


@check
def crops_come_back_byte_by_byte(harness: Harness) -> None:
    settings = card(keep_images=True)
    truth = MemoryGallery(settings)
    generator = np.random.default_rng(0)
    crops = [generator.bytes(size) for size in (1, 30_000, 48_000, 48_001, 200_000)]
    with create_gallery(harness.address(), settings) as gallery:
        for each in (gallery, truth):
            each.add("Ann", rows(1, 2), crops=crops[:2])
            each.add("Ann", rows(2, 3), crops=crops[2:])
            each.add("Bob", rows(3, 2), crops=crops[3:])
            each.add("Bob", rows(4), crops=crops[:1], replace=True)
            each.add("Cleo", rows(5))
            with pytest.raises(ValueError, match="2 crops for 1 embeddings"):
                each.add("Cleo", rows(6), crops=crops[:2])
        assert_equal(gallery, truth, rows(7, 2))
        assert gallery.forget("Ann").crops == 5 and truth.forget("Ann").crops == 5
        assert_equal(gallery, truth, rows(8, 2))


@check
def the_forgotten_are_not_found_again(harness: Harness) -> None:
    with create_gallery(harness.address(), card()) as gallery:
        for number, name in enumerate(["Annabel", "ann", "Bob", "Cleo"]):
            gallery.add(name, rows(number))
        forgotten = gallery.forget("Annabel")
        assert forgotten.name == "Annabel" and forgotten.crops == 0 and forgotten.explanation
        assert isinstance(forgotten.erased, bool)
        assert "Annabel" not in gallery and gallery.get("ann") is not None and len(gallery) == 3
        assert all(one.name != "Annabel" for one in gallery.search(rows(0), 10)[0])
        with pytest.raises(ValueError, match="nobody is enrolled as 'Annabel'"):
            gallery.forget("Annabel")
        erasure = gallery.verify_erasure([b"Annabel", bytes(range(256))])
        assert erasure.findings and all(isinstance(each, str) for each in erasure.findings)
        # A store that says it is erased must not take that back.
        assert erasure.complete or not forgotten.erased
        # Nothing of before is added to.
        assert gallery.add("Annabel", rows(9)).images == 1
        np.testing.assert_allclose(gallery.vector("Annabel"), rows(9)[0], rtol=1e-5, atol=1e-5)


@check
def the_equally_similar_come_by_name(harness: Harness) -> None:
    truth = MemoryGallery(card())
    with create_gallery(harness.address(), card()) as gallery:
        twins = [f"twin {number:02}" for number in range(24)]
        for name in reversed(twins):
            gallery.add(name, rows(1))
            truth.add(name, rows(1))
        for each in (gallery, truth):
            each.add("zz closer", rows(2))
        for top_k in (1, 3, 25, 1000):
            found = gallery.search(rows(1) * 1000, top_k)[0]
            assert [one.name for one in found] == [*twins, "zz closer"][:top_k]
        found = gallery.search(rows(2), 4)[0]
        assert [one.name for one in found] == ["zz closer", *twins[:3]]
        assert found[0].similarity == pytest.approx(1, abs=TOLERANCE)
        assert_same_answers(gallery, truth, rows(3, 40), 6)


@check
def any_sequence_gives_what_memory_gives(harness: Harness) -> None:
    settings = card(keep_images=True)
    generator = np.random.default_rng(7)
    truth = MemoryGallery(settings)
    address = harness.address()
    gallery = create_gallery(address, settings)
    names = [f"person {number}" for number in range(12)]
    try:
        for step in range(harness.steps):
            name = names[generator.integers(len(names))]
            action = generator.choice(["add", "add", "add", "replace", "forget", "search"])
            if action == "forget":
                answers = []
                for each in (gallery, truth):
                    try:
                        answers.append(each.forget(name).crops)
                    except ValueError:
                        answers.append(None)
                assert answers[0] == answers[1]
            elif action == "search":
                assert_same_answers(gallery, truth, rows(step, 3), 4)
            else:
                count = int(generator.integers(1, 4))
                crops = [generator.bytes(50) for _ in range(count)] if step % 2 else []
                for each in (gallery, truth):
                    each.add(name, rows(step, count), crops=crops, replace=action == "replace")
            if harness.lasting and step % (harness.steps // 3) == 5:
                gallery.close()
                gallery = open_gallery(address, card=settings)
        assert_equal(gallery, truth, rows(0, 5))
    finally:
        gallery.close()


@check
def people_are_put_in_as_they_are(harness: Harness) -> None:
    settings = card(keep_images=True)
    truth = MemoryGallery(settings)
    people = [
        PersonRecord(
            person=Person(name=name, images=number + 1, enrolled="2026-01-02T03:04:05Z"),
            vector=rows(number)[0],
            crops=[bytes([number]) * 70_000] * (number % 3),
        )
        for number, name in enumerate([*NAMES, "Ann", "Bob"])
    ]
    with create_gallery(harness.address(), settings) as gallery:
        for each in (gallery, truth):
            each.add("Bob", rows(1, 2), crops=[b"old", b"older"])
            # Ann occurs twice: the last record is stored, and the person counts once.
            assert each.restore(iter(people)) == len(people) - 1
            assert each.restore([]) == 0
        assert_equal(gallery, truth, rows(2, 3))
        assert list(gallery.people()) == list(truth.people())
        wrong = PersonRecord(person=people[0].person, vector=np.zeros(DIMENSION))
        with pytest.raises(ValueError, match="must not be zero, infinite or NaN"):
            gallery.restore([wrong])
        with pytest.raises(ValueError, match="must be"):
            gallery.restore([PersonRecord(person=people[0].person, vector=np.ones(3))])
        assert_equal(gallery, truth, rows(2, 3))


@check
def a_gallery_is_one_models(harness: Harness) -> None:
    address = harness.address()
    settings = card(preparation={"image_size": 112, "mean": [0.5, 0.4, 0.3]}, model="ours")
    with create_gallery(address, settings) as gallery:
        gallery.add("Ann", rows(1))
        if harness.lasting:
            with pytest.raises(ValueError, match=r"exists|there is"):
                create_gallery(address, settings)
    if not harness.lasting:
        with pytest.raises(ValueError, match="a gallery in memory cannot be opened again"):
            open_gallery(address)
        return
    with open_gallery(address, card=settings) as gallery:
        assert gallery.card == settings or gallery.card.to_json() == settings.to_json()
        assert "Ann" in gallery
        points = [{"far": 1e-4, "threshold": 0.4}]
        gallery.set_thresholds(points)
    with open_gallery(address) as gallery:
        assert [dict(point) for point in gallery.card.thresholds] == points
    other = GalleryCard(weights="cd34", dimension=DIMENSION, preparation=settings.preparation)
    with pytest.raises(ValueError, match=r"another model.*with different weights"):
        open_gallery(address, card=other)
