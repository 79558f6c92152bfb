from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest

from margrave.data import decode_image, fit_image


def _photo(height: int = 40, width: int = 60, channels: int = 3) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3).reshape(height, width, channels)


def _encode(image: np.ndarray, extension: str, *settings: int) -> bytes:
    return cv2.imencode(extension, image, settings)[1].tobytes()


ENCODINGS = {
    "jpeg": (".jpg", ()),
    "progressive jpeg": (".jpg", (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
    "restart jpeg": (".jpg", (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)),
    "png": (".png", ()),
    "lossy webp": (".webp", (cv2.IMWRITE_WEBP_QUALITY, 80)),
    "lossless webp": (".webp", (cv2.IMWRITE_WEBP_QUALITY, 101)),
    "bmp": (".bmp", ()),
    "ppm": (".ppm", ()),
    "pgm": (".pgm", ()),
}


@pytest.mark.parametrize("kind", ENCODINGS)
def test_every_format_is_read_as_rgb_and_no_beginning_of_it_is(kind: str) -> None:
    extension, settings = ENCODINGS[kind]
    photo = _photo()
    photo[..., 0] //= 4
    data = _encode(photo if kind != "pgm" else photo[..., 1], extension, *settings)
    image = decode_image(data, "photo")
    assert image.shape == (40, 60, 3) and image.dtype == np.uint8
    if kind != "pgm":
        # OpenCV writes blue first, and blue was darkened.
        assert image[..., 2].mean() < 0.5 * image[..., 0].mean()
    for length in range(0, len(data), max(1, len(data) // 150)):
        with pytest.raises(ValueError, match="photo"):
            decode_image(data[:length], "photo")


def test_truncation_is_called_by_its_name() -> None:
    data = _encode(_photo(), ".jpg")
    for length in (len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match=r"a/b\.jpg is truncated after \d+ bytes; download"):
            decode_image(data[:length], "a/b.jpg")


def test_bytes_after_the_end_and_stuffed_bytes_are_fine() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    data = _encode(noise, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 100)
    assert b"\xff\x00" in data
    np.testing.assert_array_equal(decode_image(data, "x"), decode_image(data + b"tail", "x"))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_grey_alpha_and_sixteen_bits_become_rgb(channels: int, depth: type) -> None:
    photo = _photo(channels=channels)
    scaled = photo.astype(depth) * (257 if depth is np.uint16 else 1)
    image = decode_image(_encode(scaled, ".png"), "x.png")
    expected = photo.repeat(3, 2) if channels == 1 else photo[..., 2::-1]
    np.testing.assert_allclose(image.astype(int), expected, atol=1)


@pytest.mark.parametrize(("orientation", "turned"), [(1, False), (3, False), (6, True), (8, True)])
def test_exif_orientation_is_applied(orientation: int, turned: bool) -> None:
    tiff = b"MM\x00\x2a\x00\x00\x00\x08\x00\x01" + struct.pack(
        ">HHIHHI", 0x0112, 3, 1, orientation, 0, 0
    )
    segment = b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\x00\x00" + tiff
    plain = _encode(_photo(), ".jpg")
    image = decode_image(plain[:2] + segment + plain[2:], "x.jpg")
    assert image.shape[:2] == ((60, 40) if turned else (40, 60))
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    np.testing.assert_array_equal(image, np.rot90(decode_image(plain, "x.jpg"), turns))


def _png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", body), chunk(b"IEND", b"")]
    )


@pytest.mark.parametrize(
    "data",
    [_png_claiming(60_000, 60_000), b"P6 60000\n# comment\n60000 255\n" + bytes(100)],
    ids=["png", "ppm"],
)
def test_decompression_bombs_are_refused_unread(data: bytes) -> None:
    with pytest.raises(ValueError, match="60000 x 60000 pixels, more than the 64000000"):
        decode_image(data, "bomb")


@pytest.mark.parametrize("kind", ENCODINGS)
def test_size_limit_holds_for_every_format(kind: str) -> None:
    extension, settings = ENCODINGS[kind]
    photo = _photo()
    data = _encode(photo if kind != "pgm" else photo[..., 1], extension, *settings)
    assert decode_image(data, "x", maximum_pixels=2400).shape == (40, 60, 3)
    with pytest.raises(ValueError, match="60 x 40 pixels"):
        decode_image(data, "x", maximum_pixels=2399)


@pytest.mark.parametrize("data", [b"hello", b"<html>", b"\xff\xd8", b"GIF89a" + bytes(20)])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="supported format"):
        decode_image(data, "x")


def test_an_empty_file_is_called_empty() -> None:
    with pytest.raises(ValueError, match="x is empty"):
        decode_image(b"", "x")


def test_random_damage_never_escapes_as_another_error() -> None:
    generator = np.random.default_rng(0)
    for extension, settings in ENCODINGS.values():
        photo = _photo(channels=1 if extension == ".pgm" else 3)
        data = bytearray(_encode(photo, extension, *settings))
        for _ in range(30):
            damaged = bytearray(data)
            for place in generator.integers(4, len(data), 3):
                damaged[place] = generator.integers(256)
            try:
                assert decode_image(bytes(damaged), "x", 10_000_000).shape[2] == 3
            except ValueError as error:
                assert str(error).startswith("x ")


@pytest.mark.parametrize("shape", [(30, 90), (90, 30), (64, 64), (300, 200), (1, 500)])
@pytest.mark.parametrize("how", ["crop", "stretch", "pad"])
def test_fit_gives_a_square(shape: tuple[int, int], how: str) -> None:
    image = np.full((*shape, 3), 200, np.uint8)
    fitted = fit_image(image, 64, how)  # type: ignore[arg-type]
    assert fitted.shape == (64, 64, 3)
    if how == "pad" and shape[0] != shape[1]:
        assert 0 < (fitted == 0).mean() < 1
    else:
        assert (fitted == 200).all()


def test_crop_keeps_the_middle_and_size_keeps_the_pixels() -> None:
    image = _photo(112, 200)
    np.testing.assert_array_equal(fit_image(image, 112, "crop"), image[:, 44:156])
    square = _photo(112, 112)
    np.testing.assert_array_equal(fit_image(square, 112, "stretch"), square)


def test_shrinking_averages() -> None:
    board = np.indices((64, 64)).sum(0)[..., None].repeat(3, 2) % 2 * 200
    assert (fit_image(board.astype(np.uint8), 16) == 100).all()


def test_unknown_fit_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="crop, pad, stretch"):
        fit_image(_photo(), 10, "squash")  # type: ignore[arg-type]


def jpeg(side: int = 64, progressive: bool = False) -> bytes:
    parameters = [cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    return cv2.imencode(".jpg", np.zeros((side, side, 3), np.uint8), parameters)[1].tobytes()


def frame_of(data: bytes) -> bytes:
    """A JPEG's frame header."""
    start = min(place for mark in (b"\xff\xc0", b"\xff\xc2") if (place := data.find(mark)) > 0)
    return data[start : start + 2 + struct.unpack(">H", data[start + 2 : start + 4])[0]]


@pytest.mark.parametrize("end", [b"\xff\xd9", b"\xff\xd9\x00"])
def test_a_second_frame_hides_no_size(end: bytes) -> None:
    """Decoders go by the first."""
    data = jpeg()
    frame = frame_of(data)
    sized = {side: frame[:5] + struct.pack(">HH", side, side) + frame[9:] for side in (8, 20_000)}
    bomb = data.replace(frame, sized[20_000])[:-2] + sized[8] + end
    with pytest.raises(ValueError, match="declares 20000 x 20000 pixels"):
        decode_image(bomb, "bomb.jpg")


def test_a_picture_that_is_gone_over_again_and_again_is_refused() -> None:
    data = jpeg(64, progressive=True)
    frame = frame_of(data)
    huge = data.replace(frame, frame[:5] + struct.pack(">HH", 7000, 7000) + frame[9:])
    start = huge.index(b"\xff\xda")
    scan = huge[start : huge.index(b"\xff\xda", start + 2)]
    bomb = huge[:-2] + scan * 500 + huge[-2:]
    assert len(bomb) < 100_000
    with pytest.raises(ValueError, match="scans of 49000000 pixels"):
        decode_image(bomb, "bomb.jpg")
    assert decode_image(data, "fine.jpg").shape == (64, 64, 3)


def test_a_png_with_much_packed_text_is_refused_and_one_with_little_is_read() -> None:
    content = cv2.imencode(".png", np.zeros((3, 4, 3), np.uint8))[1].tobytes()
    head, body = content[:33], content[33:]
    packed = b"k\0\0" + zlib.compress(b"a" * 7_900_000, 9)
    chunk = struct.pack(">I", len(packed)) + b"zTXt" + packed
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + packed))
    assert decode_image(head + chunk * 30 + body, "text.png").shape == (3, 4, 3)
    with pytest.raises(ValueError, match=r"text\.png contains compressed metadata"):
        decode_image(head + chunk * 900 + body, "text.png")
