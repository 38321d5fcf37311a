"""Decoding of camera messages against slow, obvious implementations."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from dr_core.data.images import DamagedImage, ImageRule, decode_compressed, decode_raw
from dr_core.errors import BagError

HEIGHT, WIDTH = 6, 10
PIXEL_BYTES = {
    "rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1,
    "yuv422": 2, "uyvy": 2, "yuv422_yuy2": 2, "yuyv": 2,
}  # fmt: skip


def yuv_to_rgb(y: int, u: int, v: int) -> tuple[int, int, int]:
    """BT.601, limited range, in floating point; luma below black counts as black, as in cv_bridge."""
    luma = 255 / 219 * max(0, y - 16)
    red = luma + 1.596027 * (v - 128)
    green = luma - 0.391762 * (u - 128) - 0.812968 * (v - 128)
    blue = luma + 2.017232 * (u - 128)
    return tuple(int(min(255, max(0, round(channel)))) for channel in (red, green, blue))  # type: ignore[return-value]


def slow_decode(data: bytes, encoding: str, step: int) -> NDArray[np.uint8]:
    """Pixel by pixel, straight from the definition of each encoding."""
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            at = row * step + column * PIXEL_BYTES[encoding]
            pixel = data[at : at + PIXEL_BYTES[encoding]]
            if encoding in ("rgb8", "rgba8"):
                rgb[row, column] = pixel[0], pixel[1], pixel[2]
            elif encoding in ("bgr8", "bgra8"):
                rgb[row, column] = pixel[2], pixel[1], pixel[0]
            elif encoding == "mono8":
                rgb[row, column] = pixel[0]
            else:
                pair = data[row * step + column // 2 * 4 :][:4]
                if encoding in ("yuv422", "uyvy"):
                    u, y, v = pair[0], pair[1 + 2 * (column % 2)], pair[2]
                else:
                    y, u, v = pair[2 * (column % 2)], pair[1], pair[3]
                rgb[row, column] = yuv_to_rgb(y, u, v)
    return rgb


@pytest.mark.parametrize("padding", [0, 7, 16])
@pytest.mark.parametrize("encoding", PIXEL_BYTES)
def test_raw_images_decode_like_the_definition(encoding: str, padding: int) -> None:
    rng = np.random.default_rng(3)
    step = WIDTH * PIXEL_BYTES[encoding] + padding
    data = rng.integers(0, 256, HEIGHT * step, np.uint8).tobytes()
    result = decode_raw(data, encoding=encoding, height=HEIGHT, width=WIDTH, step=step)
    expected = slow_decode(data, encoding, step)
    assert result.shape == (HEIGHT, WIDTH, 3) and result.dtype == np.uint8
    # Fixed-point conversion of YUV may round the last bit the other way.
    tolerance = 1 if PIXEL_BYTES[encoding] == 2 else 0
    assert np.abs(result.astype(int) - expected.astype(int)).max() <= tolerance


@pytest.mark.parametrize("kind", [bytes, memoryview, lambda data: np.frombuffer(data, np.uint8)])
def test_all_kinds_of_buffers_are_taken(kind: type) -> None:
    data = bytes(range(HEIGHT * WIDTH * 3 % 256)) + bytes(HEIGHT * WIDTH * 3 - HEIGHT * WIDTH * 3 % 256)
    result = decode_raw(kind(data), encoding="rgb8", height=HEIGHT, width=WIDTH, step=WIDTH * 3)
    assert result.tobytes() == data


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1", "8UC3", "bayer_rggb8", "nv12", "mono16", ""])
def test_other_encodings_are_refused_by_name(encoding: str) -> None:
    with pytest.raises(BagError, match=encoding or "no encoding") as caught:
        decode_raw(bytes(8), encoding=encoding, height=2, width=2, step=4)
    assert not isinstance(caught.value, DamagedImage)


@pytest.mark.parametrize(
    ("size", "height", "width", "step"),
    [
        (17, 2, 3, 9),  # a byte short
        (19, 2, 3, 9),  # a byte too many
        (0, 2, 3, 9),
        (18, 2, 4, 9),  # a step shorter than a row
        (0, 0, 3, 9),
        (9, 1, 0, 9),
        (18, 2**32 - 1, 2**32 - 1, 2**32 - 1),
        (18, 2, 3, 2**62),
    ],
)
def test_sizes_that_disagree_are_refused(size: int, height: int, width: int, step: int) -> None:
    with pytest.raises(DamagedImage):
        decode_raw(bytes(size), encoding="rgb8", height=height, width=width, step=step)


def test_yuv_of_odd_width_is_refused() -> None:
    with pytest.raises(DamagedImage, match="even"):
        decode_raw(bytes(12), encoding="yuv422", height=2, width=3, step=6)


def gradient() -> NDArray[np.uint8]:
    rows, columns = np.mgrid[0:48, 0:64]
    return np.stack([rows * 5, columns * 4, 255 - rows * 5], axis=2).astype(np.uint8)


def encoded(suffix: str, image: NDArray[np.generic]) -> bytes:
    ok, buffer = cv2.imencode(suffix, image)
    assert ok
    return bytes(buffer)


@pytest.mark.parametrize("fmt", ["png", "rgb8; png compressed bgr8"])
def test_png_is_exact(fmt: str) -> None:
    rgb = gradient()
    assert (decode_compressed(encoded(".png", rgb[:, :, ::-1]), fmt) == rgb).all()


@pytest.mark.parametrize("fmt", ["jpeg", "jpg", "bgr8; jpeg compressed bgr8"])
def test_jpeg_is_close_and_in_the_right_order(fmt: str) -> None:
    rgb = gradient()
    result = decode_compressed(encoded(".jpg", rgb[:, :, ::-1]), fmt)
    assert np.abs(result.astype(int) - rgb).mean() < 3


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_truncated_images_are_refused_at_every_length(suffix: str) -> None:
    whole = encoded(suffix, gradient()[:, :, ::-1])
    for size in range(0, len(whole), 7):
        with pytest.raises(DamagedImage):
            decode_compressed(whole[:size], "jpeg" if suffix == ".jpg" else "png")


def test_an_image_that_claims_to_be_huge_is_refused_before_it_is_decoded() -> None:
    png = bytearray(encoded(".png", gradient()))
    struct.pack_into(">II", png, 16, 2**30, 2**30)
    with pytest.raises(DamagedImage, match="1073741824"):
        decode_compressed(bytes(png), "png")
    jpeg = bytearray(encoded(".jpg", gradient()))
    frame = jpeg.index(b"\xff\xc0")
    struct.pack_into(">HH", jpeg, frame + 5, 65535, 65535)
    with pytest.raises(DamagedImage, match="65535"):
        decode_compressed(bytes(jpeg), "jpeg")


CLAIMING = """
import sys
from pathlib import Path

from dr_calibration.errors import CalibrationError
from dr_calibration.moved import Reference
from dr_core.data.images import DamagedImage, decode_compressed

path = Path(sys.argv[1])
for read, refusal in ((lambda: decode_compressed(path.read_bytes(), "png"), DamagedImage),
                      (lambda: Reference.load(path), CalibrationError)):
    try:
        read()
    except refusal as error:
        print(type(error).__name__)
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line))
"""


def test_a_chunk_that_claims_to_be_huge_takes_no_memory(tmp_path: Path) -> None:
    png = bytearray(encoded(".png", np.random.default_rng(0).integers(0, 255, (48, 64, 4), np.uint8)))
    assert png[37:41] == b"IDAT"
    struct.pack_into(">I", png, 33, 3_500_000_000)
    (tmp_path / "claims.png").write_bytes(png)
    words = [sys.executable, "-c", CLAIMING, str(tmp_path / "claims.png")]
    first, second, kib = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert (first, second) == ("DamagedImage", "CalibrationError")
    assert int(kib) < 2**20, "what it claims is 3.3 GiB"


@pytest.mark.parametrize("fmt", ["16UC1; compressedDepth png", "tiff", ""])
def test_other_compressed_formats_are_refused(fmt: str) -> None:
    with pytest.raises(BagError) as caught:
        decode_compressed(encoded(".png", gradient()), fmt)
    assert not isinstance(caught.value, DamagedImage)


def test_16_bit_png_is_refused() -> None:
    with pytest.raises(BagError, match="16"):
        decode_compressed(encoded(".png", gradient().astype(np.uint16) * 257), "png")


def test_a_frame_of_the_right_size_is_unchanged() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert (ImageRule(64).apply(frame) == frame).all()


def test_resizing_averages_areas() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    blocks = frame.reshape(64, 2, 64, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(ImageRule(64).apply(frame) - blocks).max() <= 0.5


def test_other_aspects_need_a_crop() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    with pytest.raises(BagError, match="declare a crop"):
        ImageRule(48).apply(frame)
    assert (ImageRule(48, "center").apply(frame) == frame[:, 8:56]).all()
    assert (ImageRule(16, (3, 5, 16, 16)).apply(frame) == frame[5:21, 3:19]).all()
    with pytest.raises(BagError, match="inside"):
        ImageRule(16, (50, 5, 16, 16)).apply(frame)


@pytest.mark.parametrize("crop", [(0, 0, 4, 5), (-1, 0, 4, 4), (0, 0, 0, 0), "middle"])
def test_impossible_crops_are_refused(crop: object) -> None:
    with pytest.raises(ValueError, match="crop"):
        ImageRule(16, crop)  # type: ignore[arg-type]
