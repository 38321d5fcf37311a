"""From the bytes of a camera message to an RGB array, and from there to the square image of a model.

Encodings: https://docs.ros2.org/latest/api/sensor_msgs (image_encodings.hpp).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from dr_core.errors import BagError, ConfigError

# A camera image is never larger; what claims to be is damaged or hostile.
PIXEL_LIMIT = 64 * 10**6

Bytes = bytes | memoryview | NDArray[np.uint8]
Rgb = NDArray[np.uint8]


class DamagedImage(BagError):
    """One image cannot be decoded; others of its topic may be whole, so a reader may drop and count it."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__("image", expected=expected, found=found, next_step="drop it, or check the recording")


def _yuv(code: int) -> Callable[[Rgb], Rgb]:
    return lambda packed: np.asarray(cv2.cvtColor(packed, code), np.uint8)


# Encoding: bytes per pixel, and how the pixels (H, W, bytes per pixel) become RGB (H, W, 3).
# yuv422 is UYVY in ROS; newer releases name both orders after their bytes.
_ENCODINGS: dict[str, tuple[int, Callable[[Rgb], Rgb]]] = {
    "rgb8": (3, lambda pixels: pixels),
    "bgr8": (3, lambda pixels: pixels[:, :, ::-1]),
    "rgba8": (4, lambda pixels: pixels[:, :, :3]),
    "bgra8": (4, lambda pixels: pixels[:, :, 2::-1]),
    "mono8": (1, lambda pixels: np.repeat(pixels, 3, axis=2)),
    "yuv422": (2, _yuv(cv2.COLOR_YUV2RGB_UYVY)),
    "uyvy": (2, _yuv(cv2.COLOR_YUV2RGB_UYVY)),
    "yuv422_yuy2": (2, _yuv(cv2.COLOR_YUV2RGB_YUY2)),
    "yuyv": (2, _yuv(cv2.COLOR_YUV2RGB_YUY2)),
}


def decode_raw(data: Bytes, *, encoding: str, height: int, width: int, step: int) -> Rgb:
    """Decode the fields of a sensor_msgs/Image.

    Args:
        data: height * step bytes.
        encoding: see ``_ENCODINGS``; yuv422 is converted by BT.601, limited range.
        height, width: in pixels.
        step: bytes from one row to the next; larger than a row of pixels where rows are padded.

    Returns:
        RGB (H, W, 3); it may share memory with ``data``.

    Raises:
        BagError: an encoding that is not supported.
        DamagedImage: sizes that do not agree.
    """
    if encoding not in _ENCODINGS:
        raise BagError(
            f"encoding {encoding!r}",
            expected=f"one of {', '.join(_ENCODINGS)}",
            found=repr(encoding) if encoding else "no encoding",
            next_step="choose the topic of a colour camera, or convert the images",
        )
    pixel_bytes, to_rgb = _ENCODINGS[encoding]
    _check_size(height, width)
    if step < width * pixel_bytes:
        raise DamagedImage(f"a step of at least {width * pixel_bytes} bytes", f"{step}")
    flat = np.frombuffer(data, np.uint8)
    if flat.size != height * step:
        raise DamagedImage(f"{height} rows of {step} bytes", f"{flat.size} bytes")
    if pixel_bytes == 2 and width % 2:
        raise DamagedImage("an even width, as two pixels share their colour", f"width {width}")
    pixels = flat.reshape(height, step)[:, : width * pixel_bytes].reshape(height, width, pixel_bytes)
    return np.ascontiguousarray(to_rgb(pixels))


def decode_compressed(data: Bytes, fmt: str) -> Rgb:
    """Decode a sensor_msgs/CompressedImage (JPEG or PNG).

    Args:
        data: the whole file.
        fmt: the message's format, such as "jpeg" or "rgb8; jpeg compressed bgr8".

    Returns:
        RGB (H, W, 3), pixels as stored (an orientation tag is ignored, as the calibration knows none).

    Raises:
        BagError: another format, or depth.
        DamagedImage: a truncated or otherwise unreadable file.
    """
    kind = fmt.lower()
    if "compresseddepth" in kind or not ("jpeg" in kind or "jpg" in kind or "png" in kind):
        raise BagError(
            f"compressed format {fmt!r}",
            expected="jpeg or png",
            found=repr(fmt) if fmt else "no format",
            next_step="choose the topic of a colour camera, or convert the images",
        )
    buffer = bytes(data)
    if buffer.startswith(b"\xff\xd8"):
        height, width = _jpeg_size(buffer)
    elif buffer.startswith(b"\x89PNG\r\n\x1a\n"):
        height, width = _png_size(buffer)
    else:
        raise DamagedImage("a JPEG or PNG file", f"{len(buffer)} bytes that start otherwise")
    _check_size(height, width)
    try:
        bgr = cv2.imdecode(np.frombuffer(buffer, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise DamagedImage("a whole image", " ".join(str(error).split())) from error
    if bgr is None or bgr.shape != (height, width, 3):
        raise DamagedImage(f"an image of {width} x {height}", "a file that does not decode to it")
    return np.ascontiguousarray(bgr[:, :, ::-1]).astype(np.uint8, copy=False)


def _check_size(height: int, width: int) -> None:
    if height <= 0 or width <= 0 or height * width > PIXEL_LIMIT:
        raise DamagedImage(f"1 to {PIXEL_LIMIT} pixels", f"{width} x {height}")


def _jpeg_size(buffer: bytes) -> tuple[int, int]:
    """Height and width from the frame header; the end marker has to be there, as decoders make it up."""
    if not buffer.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise DamagedImage("a whole JPEG", f"{len(buffer)} bytes without its end")
    position = 2
    while position + 9 <= len(buffer) and buffer[position] == 0xFF:
        marker = buffer[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", buffer, position + 5)
            return height, width
        else:
            position += 2 + struct.unpack_from(">H", buffer, position + 2)[0]
    raise DamagedImage("a JPEG with a frame header", "none")


def is_whole_png(data: bytes) -> bool:
    """Whether all chunks of a PNG file are there, up to its end.

    OpenCV takes as much memory as a chunk says that it has, up to 4 GiB, before it sees that the file ends.
    """
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        position += 12 + length
        if kind == b"IEND":
            return length == 0
    return False


def _png_size(buffer: bytes) -> tuple[int, int]:
    """Height and width from IHDR; 16-bit images are refused, as cutting them to 8 bits is not exact."""
    if len(buffer) < 33 or not is_whole_png(buffer):
        raise DamagedImage("a whole PNG", f"{len(buffer)} bytes without its end")
    width, height, depth = struct.unpack_from(">IIB", buffer, 16)
    if depth == 16:
        raise BagError(
            "16-bit PNG",
            expected="8 bits per channel",
            found="16",
            next_step="choose the topic of a colour camera, or convert the images",
        )
    return height, width


@dataclass(frozen=True)
class ImageRule:
    """How camera frames become the square images of a model; part of what a model is trained with.

    Attributes:
        size: edge of the result in pixels.
        crop: "none" takes square frames only; "center" the largest centred square; (x, y, width, height) in
            pixels, which has to be square.
    """

    size: int = 64
    crop: Literal["none", "center"] | tuple[int, int, int, int] = "none"

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 4096:
            raise ValueError(f"size must be between 1 and 4096, not {self.size}")
        if isinstance(self.crop, tuple):
            x, y, width, height = self.crop
            if min(x, y) < 0 or width != height or width < 1:
                raise ValueError(f"crop must be a square (x, y, width, height), not {self.crop}")
        elif self.crop not in ("none", "center"):
            raise ValueError(f"crop must be 'none', 'center' or four numbers, not {self.crop!r}")

    def with_crop(self, text: str) -> ImageRule:
        """The same rule with the crop that a text names: none, center, or x,y,width,height; empty leaves it.

        Raises:
            ConfigError: not a crop.
        """
        if not text:
            return self
        try:
            parts: Any = tuple(int(part) for part in text.split(",")) if "," in text else text
            if isinstance(parts, tuple) and len(parts) != 4:
                raise ValueError(f"{len(parts)} numbers")
            return ImageRule(self.size, parts)
        except ValueError as error:
            raise ConfigError(
                "crop", expected="none, center, or x,y,width,height", found=str(error), next_step="correct it"
            ) from error

    def apply(self, frame: NDArray[Any]) -> Rgb:
        """Crop and resize one frame (H, W, 3) to (size, size, 3); unchanged where it already is that.

        Raises:
            BagError: the frame is not square and no crop is declared, or the crop leaves the frame.
        """
        height, width = frame.shape[:2]
        if self.crop == "none":
            if height != width:
                raise BagError(
                    f"frame of {width} x {height}",
                    expected="a square",
                    found="another aspect",
                    next_step="declare a crop: center, or x y width height",
                )
        elif self.crop == "center":
            edge = min(height, width)
            top, left = (height - edge) // 2, (width - edge) // 2
            frame = frame[top : top + edge, left : left + edge]
        else:
            x, y, edge, _ = self.crop
            if x + edge > width or y + edge > height:
                raise BagError(
                    f"frame of {width} x {height}",
                    expected=f"room for the declared crop {self.crop}",
                    found="a smaller frame",
                    next_step="declare a crop that lies inside",
                )
            frame = frame[y : y + edge, x : x + edge]
        if frame.shape[:2] == (self.size, self.size):
            return np.asarray(frame, np.uint8)
        resized = cv2.resize(frame, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return np.asarray(resized, np.uint8)
