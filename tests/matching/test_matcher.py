"""Verify, enroll, identify, forget: decisions, refusals, thresholds for a gallery's size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from fake_matching import POINTS, SIZE, make_model, matcher, person

from margrave.gallery import MemoryGallery
from margrave.matching import Matcher, Refused
from margrave.matching.decisions import threshold_for_fpir
from margrave.matching.gallery_card import new_gallery_card


def test_a_decision_comes_with_its_evidence() -> None:
    answer = matcher().verify(person(1), person(1, 1))
    assert answer.same and answer.similarity > 0.8 and answer.point.far == 0.001
    assert answer.log_likelihood_ratio == pytest.approx(10 * answer.similarity - 5)
    assert answer.probability == pytest.approx(1 / (1 + np.exp(5 - 10 * answer.similarity)))
    other = matcher().verify(person(1), person(2), far=0.01)
    assert not other.same and other.point.threshold == 0.5


def test_nothing_is_invented_where_nothing_was_measured() -> None:
    bare = matcher(model=make_model(reference=None))
    answer = bare.verify(person(1), person(1, 1))
    assert answer.log_likelihood_ratio is None and answer.probability is None
    assert answer.first.quality is None
    with pytest.raises(ValueError, match="no threshold yet"):
        matcher(model=make_model(operating_points=())).verify(person(1), person(2))
    with pytest.raises(ValueError, match=r"no threshold for FAR 0\.5"):
        matcher(far=0.5)


def test_poor_faces_are_refused() -> None:
    poor = (person(1) // 8 + 112).astype(np.uint8)
    with pytest.raises(Refused, match="quality of the face is too low") as caught:
        matcher(quality_floor=5.0).verify(poor, person(1))
    assert caught.value.reason == "low_quality"
    assert not matcher(quality_floor=0.0).verify(poor, person(2)).same


def test_several_faces_must_be_meant() -> None:
    both = np.concatenate([person(1), person(2)], axis=1)
    with pytest.raises(Refused, match="2 faces of similar size") as caught:
        matcher().verify(both, person(2))
    assert caught.value.reason == "several_faces"
    assert not matcher().verify(both, person(2, 1), which="largest").same
    assert matcher().verify(both, person(2, 1), which="all").same
    with pytest.raises(Refused, match=r"--largest \(margrave enroll\)"):
        matcher().enroll("someone", [both])
    assert len(matcher(gallery=True).enroll("someone", [both], largest=True).faces) == 1
    with pytest.raises(ValueError, match="choices: auto, largest, all"):
        matcher().verify(both, both, which="most")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((SIZE, SIZE, 3), np.uint8), "no_face"),
        (np.zeros((SIZE, SIZE), np.uint8), "unreadable"),
        (np.zeros((SIZE, SIZE, 3)), "unreadable"),
        (b"no image", "unreadable"),
        (b"", "unreadable"),
        ("there/is/none.png", "unreadable"),
        ("a\0.png", "unreadable"),
        ("a\ud800.png", "unreadable"),
    ],
)
def test_what_cannot_be_judged_is_refused(image: Any, reason: str) -> None:
    with pytest.raises(Refused) as caught:
        matcher().verify(image, person(1))
    assert caught.value.reason == reason


def test_people_are_enrolled_identified_and_forgotten() -> None:
    made = matcher(gallery=True)
    assert made.identify(person(1))[0].person is None
    first = made.enroll("Ann", [person(1), person(1, 1)])
    assert first.person.images == 2 and first.most_similar is None
    assert made.enroll("Bo", [person(2)]).most_similar.name == "Ann"  # pyright: ignore[reportOptionalMemberAccess]
    (answer,) = made.identify(person(1, 2))
    assert answer.person == "Ann" and answer.people == 2
    assert answer.fpir == pytest.approx(1 - 0.999**2)
    assert [each.name for each in answer.candidates] == ["Ann", "Bo"]
    assert made.identify(person(3))[0].person is None
    assert made.forget("Ann").erased
    assert made.identify(person(1, 2))[0].person is None
    with pytest.raises(ValueError, match=r"nobody is enrolled as 'Boo'.*did you mean 'Bo'"):
        made.forget("Boo")


def test_a_name_is_not_taken_over_in_silence() -> None:
    made = matcher(gallery=True)
    made.enroll("Ann", [person(1)])
    for options in ({}, {"allow_similar": True}):
        with pytest.raises(Refused, match="enrolled already, with 1 image") as caught:
            made.enroll("Ann", [person(1, 1)], **options)
        assert caught.value.reason == "already_enrolled"
    assert made.enroll("Ann", [person(1, 1)], add=True).person.images == 2
    assert made.enroll("Ann", [person(1, 2)], replace=True).person.images == 1
    with pytest.raises(Refused, match="a different person than the images enrolled as 'Ann'"):
        made.enroll("Ann", [person(2)], add=True)
    with pytest.raises(Refused, match="enrolled already, as 'Ann'"):
        made.enroll("Anna", [person(1, 3)])
    assert made.enroll("Twin", [person(1, 3)], allow_similar=True).person.images == 1
    with pytest.raises(Refused, match="a different person than the image"):
        made.enroll("Two", [person(4), person(5)])


def test_crops_are_kept_only_as_asked() -> None:
    kept, none = matcher(gallery=True, keep_images=True), matcher(gallery=True)
    for made in (kept, none):
        made.enroll("Ann", [person(1)])
    assert kept.gallery is not None and none.gallery is not None
    (crop,) = kept.gallery.crops("Ann")
    image = cv2.imdecode(np.frombuffer(crop, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(image, person(1))
    assert none.gallery.crops("Ann") == []


def test_a_gallery_of_another_model_is_refused() -> None:
    store = MemoryGallery(new_gallery_card(make_model()))
    other = make_model()
    other.__dict__["digest"] = "e" * 64
    with pytest.raises(ValueError, match=r"vectors of another model.*with different weights"):
        Matcher(other, store)
    with pytest.raises(ValueError, match="different preparation"):
        Matcher(make_model(mean=0.4), store)


def test_thresholds_with_and_without_flips_do_not_mix() -> None:
    points = (POINTS[0], replace(POINTS[1], flips=not POINTS[1].flips))
    with pytest.raises(ValueError, match="others without; measure all of them again"):
        _ = Matcher(make_model(operating_points=points), quality_floor=0).flips


def test_answers_are_shown_without_their_pixels() -> None:
    answer = matcher().verify(person(1), person(1, 1))
    assert len(repr(answer)) < 2000 and "crop=" not in repr(answer)
    assert "state=" not in repr(make_model())


def test_an_answer_needs_a_gallery() -> None:
    with pytest.raises(ValueError, match="no gallery is open"):
        matcher().identify(person(1))


def test_larger_galleries_need_stricter_thresholds() -> None:
    card = make_model().card
    assert threshold_for_fpir(card, 0.1, 1) == (0.3, 0.1)
    assert threshold_for_fpir(card, 0.1, 10) == (0.5, 0.01)
    assert threshold_for_fpir(card, 0.1, 100) == (0.8, 0.001)
    with pytest.raises(ValueError, match=r"needs FAR 0\.00011.*supports only 0\.001"):
        threshold_for_fpir(card, 0.1, 1000)
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        threshold_for_fpir(card, 1.0, 10)
    with pytest.raises(ValueError, match="needs reference scores"):
        threshold_for_fpir(make_model(reference=None).card, 0.1, 10)
    made = matcher(gallery=True)
    made.enroll("Ann", [person(1)])
    assert made.identify(person(1, 1), fpir=0.1)[0].threshold == 0.3
