"""Calibration boards: what they are, where their corners are in a picture, and how they are printed at true scale.

Three kinds: "charuco" (a chessboard with a tag in every white square), "chessboard", and "apriltag" (a grid of
tags with white gaps). The frame of a board has its origin at the outer corner of the upper left square or tag, x to the
right, y down and z into the paper, so that a board looked at straight has the axes of the camera's optical frame.
Pixels follow OpenCV: whole numbers are the centres of pixels.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from dr_calibration.errors import CalibrationError

Floats = NDArray[np.float64]
Gray = NDArray[np.uint8]

KINDS = ("charuco", "chessboard", "apriltag")
DICTIONARIES = {
    name.removeprefix("DICT_"): getattr(cv2.aruco, name)
    for name in sorted(dir(cv2.aruco))
    if name.startswith("DICT_") and not re.search(r"\dH\d", name)
}
"""Name, as in OpenCV without DICT_, to OpenCV's number."""

EDGE_LIMIT_PX = 4.0
"""Edges that rise from 10 to 90 % over more than this are blurred: the corners no longer repeat well."""
SPACING_LIMIT_PX = 12.0
"""Neighbouring corners nearer than this leave too few pixels for a sub-pixel fit."""
FEWEST_CORNERS = 6
"""A plane's pose needs four; two more let a wrong one show."""
LONGEST_REACH_PX = 4.0
"""How far an edge is looked at on both sides, at most."""
MISFIT_LIMIT_PX = 0.4
"""Points of an edge that scatter more than this about their parabola are no edge."""
REFINEMENTS = 6

PAPERS_MM = {"A4": (210.0, 297.0), "Letter": (215.9, 279.4), "A3": (297.0, 420.0)}
"""Width and height upright, smallest first."""
MARGIN_MM, FOOTER_MM, RULER_MM = 10.0, 30.0, 100.0
"""What printers leave white; room below the board for the ruler and the text; length of the ruler."""


@dataclass(frozen=True, eq=False)
class Detection:
    """The corners of a board that were found in a picture."""

    ids: NDArray[np.int64]
    """(N,) which corners: rows of `Board.points_m`, ascending."""
    corners_px: Floats
    """(N, 2) where they are, to a fraction of a pixel."""
    points_m: Floats
    """(N, 3) where they are on the board, z = 0."""
    edge_width_px: float = float("nan")
    """Over how many pixels the board's edges rise from 10 to 90 %: about 1.3 in a perfectly sharp picture."""


@dataclass(frozen=True)
class Rejection:
    """Why a picture gives no corners, in words."""

    reason: str


NOTHING = Rejection("no board found: out of the picture, covered, too dark, too small or too blurred")


@dataclass(frozen=True)
class Board:
    """A calibration board.

    Raises:
        CalibrationError: sizes that cannot be, an unknown dictionary, or a chessboard that looks the same upside down.
    """

    kind: str
    """One of charuco, chessboard, apriltag."""
    columns: int
    """Squares (not inner corners) or tags side by side."""
    rows: int
    """Squares or tags above each other."""
    square_m: float
    """Edge of a square; for apriltag the distance from a tag to the next, edge and gap together."""
    marker_m: float = 0.0
    """Edge of the black border of a tag; 0 for chessboard."""
    dictionary: str = ""
    """One of DICTIONARIES; empty for chessboard."""
    first_id: int = 0
    """Number of the first tag; the others follow row by row."""

    def __post_init__(self) -> None:
        def refuse(name: str, expected: str, found: object, next_step: str = "change it") -> CalibrationError:
            return CalibrationError(f"board {name}", expected=expected, found=str(found), next_step=next_step)

        if self.kind not in KINDS:
            raise refuse("kind", f"one of {', '.join(KINDS)}", repr(self.kind), _nearest(self.kind, KINDS))
        fewest = 1 if self.kind == "apriltag" else 3
        for name, value in (("columns", self.columns), ("rows", self.rows)):
            if not fewest <= value <= 50:
                raise refuse(name, f"{fewest} to 50", value)
        if not 0.003 <= self.square_m <= 1.0:
            raise refuse("square", "0.003 to 1 m", f"{self.square_m:g} m", "give metres, not millimetres")
        if self.kind == "chessboard":
            if self.marker_m or self.dictionary or self.first_id:
                raise refuse("marker, dictionary and first id", "none on a chessboard", "some", "leave them out")
            if (self.columns + self.rows) % 2 == 0:
                raise refuse(
                    "squares", "an odd and an even number, or the board looks the same turned by 180 degrees",
                    f"{self.columns} x {self.rows}", "count squares, not inner corners, or take another board",
                )  # fmt: skip
            return
        if self.dictionary not in DICTIONARIES:
            known = [name for name in DICTIONARIES if self.kind != "apriltag" or name.startswith("APRILTAG")]
            raise refuse("dictionary", "one of OpenCV's", repr(self.dictionary), _nearest(self.dictionary, known))
        if self.kind == "apriltag" and not self.dictionary.startswith("APRILTAG"):
            raise refuse("dictionary", "an AprilTag family", self.dictionary, "take APRILTAG_36h11")
        cell_m = self.marker_m / (_dictionary(self.dictionary).markerSize + 2)
        white_m = self.square_m - self.marker_m  # charuco: on both sides of a tag together
        if not 0.3 * self.square_m <= self.marker_m or white_m < cell_m:
            raise refuse(
                "marker", "at least 0.3 squares, and white around it of one of its cells or more",
                f"{1e3 * self.marker_m:g} mm in squares of {1e3 * self.square_m:g} mm", "take 0.75 squares",
            )  # fmt: skip
        if self.tags > _dictionary(self.dictionary).bytesList.shape[0] - self.first_id or self.first_id < 0:
            count = _dictionary(self.dictionary).bytesList.shape[0]
            raise refuse(
                "tags", f"numbers 0 to {count - 1} of {self.dictionary}",
                f"{self.first_id} to {self.first_id + self.tags - 1}", "take a larger dictionary or fewer squares",
            )  # fmt: skip

    # Names

    @classmethod
    def parse(cls, text: str) -> Board:
        """The board that a text names: "charuco:7x5:30mm:22mm:4X4_50", "chessboard:9x6:25mm",
        "apriltag:6x4:40mm:30mm:APRILTAG_36h11"; with tags, ":FIRST_ID" may follow.

        Raises:
            CalibrationError: another text, or a board that cannot be.
        """
        parts = text.strip().split(":")
        size = re.fullmatch(r"(\d{1,3})x(\d{1,3})", parts[1]) if len(parts) > 1 else None
        lengths = [re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)(mm|m)", part) for part in parts[2:4]]
        first = re.fullmatch(r"\d{1,4}", parts[5]) if len(parts) == 6 else None
        right = {3} if parts[0] == "chessboard" else {5, 6}
        if size is None or len(parts) not in right or not all(lengths) or (len(parts) == 6 and first is None):
            if len(parts) == 1 or parts[0] in KINDS:
                raise CalibrationError(
                    f"board {text!r}",
                    expected='a text like "charuco:7x5:30mm:22mm:4X4_50", "chessboard:9x6:25mm" or '
                    '"apriltag:6x4:40mm:30mm:APRILTAG_36h11"',
                    found="another",
                    next_step="columns x rows, the square, the tag, the dictionary; with units",
                )
            return cls(parts[0], 3, 4, 0.1)  # which refuses the kind
        metres = [float(match[1]) * (1e-3 if match[2] == "mm" else 1.0) for match in lengths if match]
        if parts[0] == "chessboard":
            return cls("chessboard", int(size[1]), int(size[2]), metres[0])
        name = _dictionary_name(parts[4])
        return cls(parts[0], int(size[1]), int(size[2]), metres[0], metres[1], name, int(first[0]) if first else 0)

    def __str__(self) -> str:
        """The text that `parse` reads."""
        text = f"{self.kind}:{self.columns}x{self.rows}:{1e3 * self.square_m:.10g}mm"
        if self.kind == "chessboard":
            return text
        text += f":{1e3 * self.marker_m:.10g}mm:{self.dictionary}"
        return f"{text}:{self.first_id}" if self.first_id else text

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML."""
        plain: dict[str, Any] = {"kind": self.kind, "columns": self.columns, "rows": self.rows}
        plain["square_m"] = self.square_m
        if self.kind != "chessboard":
            plain |= {"marker_m": self.marker_m, "dictionary": self.dictionary, "first_id": self.first_id}
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Board:
        """The board of `to_dict`.

        Raises:
            CalibrationError: a key is missing, unknown or of a wrong type, or the board cannot be.
        """
        types: dict[str, tuple[type, ...]] = {
            "kind": (str,), "columns": (int,), "rows": (int,), "square_m": (float, int), "marker_m": (float, int),
            "dictionary": (str,), "first_id": (int,),
        }  # fmt: skip
        if not isinstance(plain, Mapping):
            raise CalibrationError(
                "board", expected="keys and values", found=type(plain).__name__, next_step=f"give {', '.join(types)}"
            )
        for key, value in plain.items():
            if key not in types:
                raise CalibrationError(
                    "board", expected="known keys", found=repr(key), next_step=_nearest(str(key), list(types))
                )
            if isinstance(value, bool) or not isinstance(value, types[key]):
                raise CalibrationError(
                    f"board {key}", expected=" or ".join(kind.__name__ for kind in types[key]),
                    found=repr(value), next_step="change it",
                )  # fmt: skip
        if missing := [key for key in ("kind", "columns", "rows", "square_m") if key not in plain]:
            raise CalibrationError("board", expected=missing[0], found="none", next_step="add it")
        values: dict[str, Any] = dict(plain)
        if "dictionary" in values:
            values["dictionary"] = _dictionary_name(values["dictionary"])
        values |= {key: float(value) for key, value in values.items() if key.endswith("_m")}
        return cls(**values)

    # Geometry

    @property
    def tags(self) -> int:
        """How many tags it carries."""
        return {"charuco": self.columns * self.rows // 2, "chessboard": 0}.get(self.kind, self.columns * self.rows)

    @property
    def size_m(self) -> tuple[float, float]:
        """Width and height of what is printed, without white around it."""
        if self.kind == "apriltag":
            gap_m = self.square_m - self.marker_m
            return self.columns * self.square_m - gap_m, self.rows * self.square_m - gap_m
        return self.columns * self.square_m, self.rows * self.square_m

    @property
    def needs_all(self) -> bool:
        """Whether a picture counts only with every corner: nothing else tells which part of a chessboard it shows."""
        return self.kind == "chessboard"

    @cached_property
    def points_m(self) -> Floats:
        """(N, 3) all corners, z = 0: the inner corners row by row, or of each tag the upper left and on clockwise."""
        if self.kind == "apriltag":
            offsets = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * self.marker_m
            plane = (self._tag_places_m[:, None] + offsets).reshape(-1, 2)
        else:
            rows, columns = np.mgrid[1 : self.rows, 1 : self.columns]
            plane = np.stack([columns.ravel(), rows.ravel()], 1) * self.square_m
        points = np.column_stack([plane, np.zeros(len(plane))])
        points.setflags(write=False)
        return points

    @cached_property
    def _tag_places_m(self) -> Floats:
        """(tags, 2) upper left corner of each tag's black border."""
        rows, columns = (index.ravel() for index in np.mgrid[: self.rows, : self.columns])
        if self.kind == "apriltag":
            return np.stack([columns, rows], 1) * self.square_m
        white = (columns + rows) % 2 == 1  # the upper left square is black
        rim_m = (self.square_m - self.marker_m) / 2
        return np.stack([columns[white], rows[white]], 1) * self.square_m + rim_m

    @cached_property
    def _clear_m(self) -> float:
        """How far from a corner or an edge nothing else begins."""
        if self.kind == "chessboard":
            return self.square_m / 2
        if self.kind == "charuco":
            return (self.square_m - self.marker_m) / 2
        return min(self.square_m - self.marker_m, self.marker_m / (_dictionary(self.dictionary).markerSize + 2))

    def _dark_m(self) -> Iterator[tuple[float, float, float, float]]:
        """The black rectangles: x, y, width, height."""
        if self.kind != "apriltag":
            for row in range(self.rows):
                for column in range(row % 2, self.columns, 2):
                    yield column * self.square_m, row * self.square_m, self.square_m, self.square_m
        for index, (x, y) in enumerate(self._tag_places_m if self.tags else ()):
            dictionary = _dictionary(self.dictionary)
            cells = dictionary.markerSize + 2
            cell_m = self.marker_m / cells
            for row, bits in enumerate(cv2.aruco.generateImageMarker(dictionary, self.first_id + index, cells)):
                ends = np.flatnonzero(np.diff(np.concatenate([[False], bits < 128, [False]]).astype(int)))
                for start, stop in ends.reshape(-1, 2):  # runs of black cells
                    yield x + start * cell_m, y + row * cell_m, (stop - start) * cell_m, cell_m

    def draw(self, px_per_m: float, margin_m: float | None = None) -> Gray:
        """The board as a picture (H, W), black 0 on white 255; pixels on an edge hold what part of them is white.

        The point (x, y) of the board is at the pixel ((x + margin_m) px_per_m - 0.5, (y + margin_m) px_per_m - 0.5).

        Args:
            margin_m: white around the board; one square if None.
        """
        margin_m = self.square_m if margin_m is None else margin_m
        width, height = (int(np.ceil((size + 2 * margin_m) * px_per_m - 1e-6)) for size in self.size_m)
        black = np.zeros((height, width))
        for x, y, w, h in self._dark_m():
            covers = []
            for start, length in ((y, h), (x, w)):
                low, high = (start + margin_m) * px_per_m, (start + length + margin_m) * px_per_m
                pixels = np.arange(int(np.floor(low + 1e-9)), int(np.ceil(high - 1e-9)))
                covers.append((pixels[0], np.minimum(pixels + 1, high) - np.maximum(pixels, low)))
            (top, down), (left, across) = covers
            black[top : top + len(down), left : left + len(across)] += np.outer(down, across)
        return np.rint(255 * (1 - np.clip(black, 0, 1))).astype(np.uint8)

    # Finding

    def detect(self, gray: NDArray[np.uint8]) -> Detection | Rejection:
        """The corners of the board in a picture, uint8 (H, W), or RGB (H, W, 3).

        Raises:
            CalibrationError: not such a picture.
        """
        if gray.dtype != np.uint8 or gray.ndim not in (2, 3) or (gray.ndim == 3 and gray.shape[2] != 3):
            raise CalibrationError(
                "picture", expected="uint8 (H, W) or (H, W, 3)", found=f"{gray.dtype} {gray.shape}",
                next_step="convert it",
            )  # fmt: skip
        picture: Gray = np.ascontiguousarray(
            gray if gray.ndim == 2 else cv2.cvtColor(gray, cv2.COLOR_RGB2GRAY), np.uint8
        )
        find = self._find_chessboard if self.kind == "chessboard" else self._find_tags
        found = find(picture)
        if isinstance(found, Rejection):
            # What is blurred is found in a smaller picture, what is too small in a larger one: so the reason is known.
            scales = (0.5, 0.25, 2.0) if found is NOTHING else (0.5, 0.25)
            for scale in (scale for scale in scales if 60 <= scale * min(picture.shape) <= 1200):
                how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
                again = find(_resized(picture, scale, how))
                if not isinstance(again, Rejection):
                    return self._measure(picture, again[0], (again[1] + 0.5) / scale - 0.5)
            if found is NOTHING:
                return self._other_chessboard(picture) if self.kind == "chessboard" else self._other_dictionary(picture)
            return found
        return self._measure(picture, *found)

    def _find_chessboard(self, picture: Gray) -> tuple[NDArray[np.int64], Floats] | Rejection:
        """Ids and rough corners."""
        inner = (self.columns - 1, self.rows - 1)
        flags = cv2.CALIB_CB_NORMALIZE_IMAGE | cv2.CALIB_CB_EXHAUSTIVE
        found, corners = cv2.findChessboardCornersSB(picture, inner, flags=flags)
        if not found:
            return NOTHING
        grid = corners.reshape(self.rows - 1, self.columns - 1, 2).astype(np.float64)
        right, down = grid[:, -1] - grid[:, 0], grid[-1] - grid[0]
        if np.linalg.det(np.stack([right.mean(0), down.mean(0)])) < 0:
            grid = grid[:, ::-1]
        # On a larger board the search may leave its grid.
        points = self.points_m[:, :2]
        to_picture, _ = cv2.findHomography(points, grid.reshape(-1, 2), cv2.LMEDS)
        spacing_px = min(float(np.linalg.norm(np.diff(grid, axis=axis), axis=2).min()) for axis in (0, 1))
        if to_picture is None or spacing_px < 2:
            return NOTHING
        off_px = cv2.perspectiveTransform(points[None], to_picture)[0] - grid.reshape(-1, 2)
        if np.linalg.norm(off_px, axis=1).max() > 0.5 * spacing_px:
            return NOTHING
        # Squares between four corners are black and white in turn, beginning with black.
        middles = (grid[:-1, :-1] + grid[:-1, 1:] + grid[1:, :-1] + grid[1:, 1:]) / 4
        light = _sample(picture, middles)
        black = np.add.outer(np.arange(light.shape[0]), np.arange(light.shape[1])) % 2 == 0
        if light[black].mean() > light[~black].mean():
            grid = grid[::-1, ::-1]
        return np.arange(len(self.points_m)), grid.reshape(-1, 2)

    def _other_chessboard(self, picture: Gray) -> Rejection:
        flags = cv2.CALIB_CB_NORMALIZE_IMAGE
        wanted = f"{self.columns - 1} x {self.rows - 1} inner corners"
        if cv2.findChessboardCornersSB(picture, (self.columns, self.rows), flags=flags)[0]:
            return Rejection(
                f"another chessboard: {self.columns} x {self.rows} inner corners seen, {wanted} on this board; columns "
                "and rows count squares, one more than inner corners"
            )
        found, _, meta = cv2.findChessboardCornersSBWithMeta(picture, (3, 3), flags | cv2.CALIB_CB_LARGER)
        if not found:
            return NOTHING
        rows, columns = meta.shape[:2]
        return Rejection(
            f"cut off, covered or another board: a grid of about {columns} x {rows} seen, and a chessboard needs all "
            f"of its {wanted}"
        )

    def _find_tags(self, picture: Gray) -> tuple[NDArray[np.int64], Floats] | Rejection:
        """Ids and rough corners."""
        corners, tag_ids, _ = _tag_detector(self.dictionary).detectMarkers(picture)
        numbers = np.zeros(0, int) if tag_ids is None else np.asarray(tag_ids).ravel().astype(int)
        ours = (numbers >= self.first_id) & (numbers < self.first_id + self.tags)
        if not ours.any():
            if len(numbers) >= 2:
                last = self.first_id + self.tags - 1
                return Rejection(
                    f"another board: tags {numbers.min()} to {numbers.max()} of {self.dictionary} seen, "
                    f"this board has {self.first_id} to {last}"
                )
            return NOTHING
        numbers = numbers[ours] - self.first_id
        seen_px = np.stack([c.reshape(4, 2) for c, mine in zip(corners, ours, strict=True) if mine]).astype(np.float64)
        places = self._tag_places_m[numbers]
        on_board = (places[:, None] + np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * self.marker_m).reshape(-1, 2)
        side_px = float(np.median(np.linalg.norm(seen_px - np.roll(seen_px, 1, 1), axis=2)))
        if len(numbers) < 2:
            return Rejection(f"too few corners: 1 tag of {self.tags} seen")
        # Half a tag leaves room for the lens: tags of another layout are whole squares away.
        _, fits = cv2.findHomography(on_board, seen_px.reshape(-1, 2), cv2.RANSAC, side_px / 2)
        if fits is None or fits.mean() < 0.8:
            return Rejection(
                f"another board: the tags stand otherwise than on {self.columns} x {self.rows}"
                + (
                    " (or a charuco board of before OpenCV 4.6)"
                    if self.kind == "charuco" and self.rows % 2 == 0
                    else ""
                )
            )
        whole = fits.reshape(-1, 4).all(1)
        if self.kind == "apriltag":
            order = np.argsort(numbers[whole])
            ids = (4 * numbers[whole][order][:, None] + np.arange(4)).ravel()
            return ids, seen_px[whole][order].reshape(-1, 2)
        found, ids, _, _ = _charuco_detector(self).detectBoard(
            picture, None, None, [c[None].astype(np.float32) for c in seen_px[whole]],
            (numbers[whole] + self.first_id)[:, None].astype(np.int32),
        )  # fmt: skip
        if ids is None or len(ids) < FEWEST_CORNERS:
            count = 0 if ids is None else len(ids)
            return Rejection(f"too few corners: {count} of {len(self.points_m)}, at least {FEWEST_CORNERS} are needed")
        return np.asarray(ids).ravel().astype(np.int64), np.asarray(found, np.float64).reshape(-1, 2)

    def _other_dictionary(self, picture: Gray) -> Rejection:
        """Squares that are no tags of this dictionary may be of another one."""
        _, _, candidates = _tag_detector(self.dictionary).detectMarkers(picture)
        if not 4 <= len(candidates) <= 300:
            return NOTHING
        families = [n for n in DICTIONARIES if n.endswith("_1000") or not re.match(r"\dX\d_", n)]
        best, most = "", 3
        for family in families:
            if _same_family(family, self.dictionary):
                continue
            _, ids, _ = _tag_detector(family).detectMarkers(picture)
            if ids is not None and len(set(np.asarray(ids).ravel().tolist())) > most:
                best, most = family, len(ids)
        if not best:
            return NOTHING
        return Rejection(f"wrong dictionary: {most} tags of {best} seen, none of {self.dictionary}")

    def _measure(self, picture: Gray, ids: NDArray[np.int64], rough_px: Floats) -> Detection | Rejection:
        """Refine rough corners, and refuse what is too small, too little or blurred."""
        points_m = self.points_m[ids]
        to_picture, _ = cv2.findHomography(points_m[:, :2], rough_px)
        if to_picture is None or np.linalg.matrix_rank(points_m - points_m.mean(0), tol=1e-6) < 2:
            return Rejection(f"too few corners: {len(ids)}, all in one line")
        side_m = self.marker_m if self.kind == "apriltag" else self.square_m
        across, down = _axes_px(np.asarray(to_picture, np.float64), points_m[:, :2])  # (N, 2) px per m
        spacing_px = side_m * float(np.median(np.minimum(*(np.linalg.norm(a, axis=1) for a in (across, down)))))
        if spacing_px < SPACING_LIMIT_PX:
            return Rejection(
                f"too small in the picture: {'tags' if self.kind == 'apriltag' else 'squares'} of {spacing_px:.0f} px, "
                f"at least {SPACING_LIMIT_PX:.0f} are needed"
            )
        corners_px, widths_px = self._refine(picture, rough_px, across, down)
        inside = (corners_px > 1).all(1) & (corners_px < np.array(picture.shape[::-1]) - 2).all(1)
        near = np.linalg.norm(corners_px - rough_px, axis=1) < max(2.0, 0.15 * spacing_px)
        keep = inside & near & np.isfinite(corners_px).all(1)
        if keep.sum() < FEWEST_CORNERS or (self.needs_all and not keep.all()):
            return Rejection(f"too few corners: {keep.sum()} of {len(self.points_m)} can be measured")
        ids, points_m, corners_px = ids[keep], points_m[keep], corners_px[keep]
        width_px = float(np.median(widths_px[keep], 0).max())
        if width_px > EDGE_LIMIT_PX:
            return Rejection(f"blurred: edges of {width_px:.1f} px or more, at most {EDGE_LIMIT_PX:g} are sharp enough")
        return Detection(ids, corners_px, points_m, width_px)

    def _refine(self, picture: Gray, rough_px: Floats, across: Floats, down: Floats) -> tuple[Floats, Floats]:
        """Corners where the edges that lead to them cross.

        Edges stay where they are when a picture is blurred, while a corner itself is rounded. Each of
        a corner's two edges is measured at points along it, and a parabola laid through them, for the lens bends edges.

        Args:
            rough_px: (N, 2) to a pixel or two.
            across: (N, 2) px per m along the board's x.
            down: (N, 2) px per m along y.

        Returns: corners (N, 2), NaN where no edges are, and over how many px the edges along x and y rise (N, 2).
        """
        if self.kind == "apriltag":
            # From each corner inwards to its neighbours.
            t, length_m, fewest = np.linspace(0.1, 0.9, 20), self.marker_m, 0.75
            turns = len(rough_px) // 4
            sides = np.tile([1.0, -1.0, -1.0, 1.0], turns)[:, None], np.tile([1.0, 1.0, -1.0, -1.0], turns)[:, None]
        else:
            # Up to near the next corner, on both sides.
            t = np.concatenate([-np.linspace(0.2, 0.8, 8), np.linspace(0.2, 0.8, 8)])
            length_m, fewest, sides = self.square_m, 0.5, (np.ones((1, 1)), np.ones((1, 1)))
        basis = np.stack([np.ones_like(t), t, t * t], 1)  # (K, 3)
        axes = across * sides[0] * length_m, down * sides[1] * length_m
        corners, widths = rough_px.copy(), np.zeros((len(rough_px), 2))
        for turn in range(REFINEMENTS):
            bows = []  # of the edge along x and the one along y: (N, 3)
            for k, (along, beside) in enumerate((axes, axes[::-1])):
                unit = beside / np.linalg.norm(beside, axis=1, keepdims=True)
                # Beside the edge, as far as nothing else is drawn.
                reach = np.clip(self._clear_m / length_m * np.linalg.norm(beside, axis=1) - 1, 1.2, LONGEST_REACH_PX)
                steps = np.linspace(-1, 1, 33)
                places = (corners[:, None] + t[:, None] * along[:, None])[:, :, None] + steps[:, None] * (
                    reach[:, None] * unit
                )[:, None, None]  # (N, K, S, 2)
                rise = _rise(_sample(picture, places))
                # A step is where what lies below it on one side is as large as what lacks above it on the other.
                offsets = -rise[..., 1:-1].sum(-1) * (steps[1] - steps[0]) - (rise[..., 0] + rise[..., -1]) / 32 + 1
                offsets *= reach[:, None]
                # While a corner is off by a pixel, some profiles reach into what is drawn beside the edge: the median
                # of the points does not care.
                bow, misfit_px = _fit(offsets, basis, fewest) if turn > 1 else _middle(offsets, fewest)
                bows.append(bow)
                # A step blurred by a Gaussian of sigma has an integral of rise (1 - rise) of sigma / sqrt(pi).
                area = np.nan_to_num((rise * (1 - rise)).sum(-1))
                sigma = (
                    np.sqrt(np.pi)
                    * area.sum(1)
                    / np.maximum(np.isfinite(offsets).sum(1), 1)
                    * (steps[1] - steps[0])
                    * reach
                )
                skew = np.abs(along[:, 0] * unit[:, 1] - along[:, 1] * unit[:, 0]) / np.linalg.norm(along, axis=1)
                widths[:, k] = np.where(misfit_px < MISFIT_LIMIT_PX, 2.563 * sigma * skew, np.nan)
            # The corner is x along one axis and y along the other: y = p0 + p1 x, x = q0 + q1 y, lengths in px.
            lengths = [np.linalg.norm(axis, axis=1) for axis in axes]
            (p0, p1), (q0, q1) = ((b[:, 0], b[:, 1] / size) for b, size in zip(bows, lengths, strict=True))
            units = [axis / size[:, None] for axis, size in zip(axes, lengths, strict=True)]
            y = (p0 + p1 * q0) / (1 - p1 * q1)
            x = q0 + q1 * y
            corners = corners + x[:, None] * units[0] + y[:, None] * units[1]
            axes = axes[0] + bows[0][:, 1:2] * units[1], axes[1] + bows[1][:, 1:2] * units[0]
        return np.where(np.isfinite(widths).all(1, keepdims=True), corners, np.nan), widths

    # Printing

    def write_pdf(self, path: Path | str, paper: str = "A4") -> None:
        """A page with the board at true scale, its name, and a ruler of 100 mm to check the printer with.

        Args:
            paper: one of PAPERS_MM; the page lies or stands as the board needs it.

        Raises:
            CalibrationError: unknown paper, or the board does not fit on it.
        """
        page = self._page(paper)
        unit = 72 / 25.4  # points in a mm
        width, height = page.size_mm
        # Millimetres, y down, as on the board; text is turned back by its own matrix.
        lines = [f"{unit:.10f} 0 0 {-unit:.10f} 0 {height * unit:.10f} cm", "0 g"]
        lines += [f"{x:.5f} {y:.5f} {w:.5f} {h:.5f} re" for x, y, w, h in page.dark_mm] + ["f"]
        for x, y, size, text in page.texts_mm:
            shown = re.sub(r"([\\()])", r"\\\1", text)
            lines.append(f"BT /F1 {size:g} Tf 1 0 0 -1 {x:.3f} {y:.3f} Tm ({shown}) Tj ET")
        content = "\n".join(lines).encode("latin-1")
        objects = [
            b"<< /Type /Catalog /Pages 2 0 R /ViewerPreferences << /PrintScaling /None >> >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width * unit:.6f} {height * unit:.6f}] /Contents 4 0 R "
            "/Resources << /Font << /F1 5 0 R >> >> >>".encode(),
            b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        ]
        written, places = b"%PDF-1.4\n", []
        for number, body in enumerate(objects, 1):
            places.append(len(written))
            written += b"%d 0 obj\n%s\nendobj\n" % (number, body)
        table = "".join(f"{place:010d} 00000 n \n" for place in places)
        count = len(objects) + 1
        written += f"xref\n0 {count}\n0000000000 65535 f \n{table}trailer\n".encode()
        written += f"<< /Size {count} /Root 1 0 R >>\nstartxref\n{written.index(b'xref')}\n%%EOF\n".encode()
        Path(path).write_bytes(written)

    def write_svg(self, path: Path | str, paper: str = "A4") -> None:
        """The page of `write_pdf` as SVG, in millimetres.

        Raises:
            CalibrationError: unknown paper, or the board does not fit on it.
        """
        page = self._page(paper)
        width, height = page.size_mm
        outline = "".join(f"M{x:.5f} {y:.5f}h{w:.5f}v{h:.5f}h{-w:.5f}z" for x, y, w, h in page.dark_mm)
        texts = "\n".join(
            f'<text x="{x:.3f}" y="{y:.3f}" font-family="Helvetica, Arial, sans-serif" font-size="{size:g}">'
            f"{escape(text)}</text>"
            for x, y, size, text in page.texts_mm
        )
        Path(path).write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}mm" height="{height:g}mm" '
            f'viewBox="0 0 {width:g} {height:g}">\n<rect width="100%" height="100%" fill="white"/>\n'
            f'<path d="{outline}" fill="black"/>\n{texts}\n</svg>\n',
            encoding="utf-8",
        )

    def _page(self, paper: str) -> _Page:
        if paper not in PAPERS_MM:
            raise CalibrationError(
                f"paper {paper!r}", expected=", ".join(PAPERS_MM), found="another", next_step=_nearest(paper, PAPERS_MM)
            )
        board_mm = 1e3 * np.array(self.size_m)
        size_mm = _turned_to_fit(board_mm, paper)
        if size_mm is None:
            fitting = [name for name in PAPERS_MM if _turned_to_fit(board_mm, name) is not None]
            share = max(min(_room_mm(*size) / board_mm) for size in _both_ways(paper))
            # Down to half a millimetre.
            smaller_mm = np.floor(2e3 * share * self.square_m) / 2
            raise CalibrationError(
                f"board {self} on {paper}",
                expected=" or ".join("{:.0f} x {:.0f} mm".format(*_room_mm(*size)) for size in _both_ways(paper)),
                found=f"{board_mm[0]:.0f} x {board_mm[1]:.0f} mm",
                next_step=(f"take {fitting[0]}, or " if fitting else "take ")
                + f"squares of {smaller_mm:g} mm or less, everything in proportion",
            )
        left = (size_mm[0] - board_mm[0]) / 2
        top = max(MARGIN_MM, (size_mm[1] - FOOTER_MM - board_mm[1]) / 2)
        dark = [(left + 1e3 * x, top + 1e3 * y, 1e3 * w, 1e3 * h) for x, y, w, h in self._dark_m()]
        x0, y0 = MARGIN_MM, size_mm[1] - MARGIN_MM - 8.0
        dark.append((x0, y0, RULER_MM, 0.2))
        dark += [(x0 + mm - 0.1, y0 - (4 if mm % 50 == 0 else 2.5), 0.2, 4.2 if mm % 50 == 0 else 2.7)
                 for mm in range(0, int(RULER_MM) + 1, 10)]  # fmt: skip
        texts = [
            (x0 + RULER_MM + 2, y0, 3.0, f"{RULER_MM:g} mm"),
            (x0, y0 + 4.5, 3.0, "Print at 100 % and measure the ruler and one square."),
            (x0, y0 + 8.5, 3.0, str(self)),
        ]
        return _Page(size_mm, dark, texts)


@dataclass(frozen=True)
class _Page:
    """What is printed, in millimetres from the upper left corner of the paper, y down."""

    size_mm: tuple[float, float]
    dark_mm: list[tuple[float, float, float, float]]
    """Black rectangles: x, y, width, height."""
    texts_mm: list[tuple[float, float, float, str]]
    """x and y of the left end of the base line, height of the letters, text."""


def _room_mm(width_mm: float, height_mm: float) -> Floats:
    """Width and height that a page leaves for a board."""
    return np.array([width_mm - 2 * MARGIN_MM, height_mm - MARGIN_MM - FOOTER_MM])


def _both_ways(paper: str) -> tuple[tuple[float, float], tuple[float, float]]:
    width, height = PAPERS_MM[paper]
    return (width, height), (height, width)


def _turned_to_fit(board_mm: Floats, paper: str) -> tuple[float, float] | None:
    """The page, upright or lying, on which the board fits."""
    return next((size for size in _both_ways(paper) if (board_mm <= _room_mm(*size) + 1e-6).all()), None)


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), 1, 0.4)
    return f"did you mean {close[0]}?" if close else f"take one of {', '.join(known)}"


def _dictionary_name(text: str) -> str:
    """The name in DICTIONARIES however it is written: dict_4x4_50, 4X4_50."""
    plain = text.upper().removeprefix("DICT_")
    return next((name for name in DICTIONARIES if name.upper() == plain), text)


def _same_family(a: str, b: str) -> bool:
    """4X4_50 holds the first tags of 4X4_1000."""
    return a == b or (re.match(r"\dX\d_", a) is not None and a[:3] == b[:3])


@lru_cache(maxsize=32)
def _dictionary(name: str) -> Any:
    return cv2.aruco.getPredefinedDictionary(DICTIONARIES[name])


@lru_cache(maxsize=32)
def _tag_detector(name: str) -> Any:
    settings = cv2.aruco.DetectorParameters()
    settings.minMarkerPerimeterRate = 0.02  # of the longer edge of the picture
    return cv2.aruco.ArucoDetector(_dictionary(name), settings)


@lru_cache(maxsize=32)
def _charuco_detector(board: Board) -> Any:
    ids = np.arange(board.first_id, board.first_id + board.tags, dtype=np.int32)
    size = (board.columns, board.rows)
    pattern = cv2.aruco.CharucoBoard(size, board.square_m, board.marker_m, _dictionary(board.dictionary), ids)
    return cv2.aruco.CharucoDetector(pattern)


def _resized(picture: Gray, scale: float, how: int) -> Gray:
    return np.asarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=how), np.uint8)


def _axes_px(to_picture: Floats, plane_m: Floats) -> tuple[Floats, Floats]:
    """How far a metre along the board's x and y leads in the picture, at points (N, 2) m: each (N, 2) px per m."""
    w = np.column_stack([plane_m, np.ones(len(plane_m))]) @ to_picture.T  # (N, 3)
    px = w[:, :2] / w[:, 2:]
    x, y = ((to_picture[:2, k] - px * to_picture[2, k]) / w[:, 2:] for k in (0, 1))
    return x, y


def _sample(picture: Gray, places_px: Floats) -> Floats:
    """Grey values (...) at places (..., 2) between pixels, NaN outside the picture."""
    x, y = np.moveaxis(places_px, -1, 0)
    return map_coordinates(picture, [y, x], np.float64, order=1, mode="constant", cval=np.nan)


def _fit(offsets: Floats, basis: Floats, fewest: float) -> tuple[Floats, Floats]:
    """Curves through points, those that are NaN left out.

    Args:
        offsets: (N, K) of each curve.
        basis: (K, P) functions at the points.
        fewest: share of the points that must be left.

    Returns: coefficients (N, P) and the scatter (N,) about them; both NaN where too few points are left.
    """
    there = np.isfinite(offsets)
    known = np.where(there, offsets, 0.0)
    squares = np.einsum("nk,ki,kj->nij", there.astype(float), basis, basis)
    enough = there.mean(1) >= fewest
    squares[~enough] = np.eye(basis.shape[1])
    fitted = np.linalg.solve(squares, (known @ basis)[..., None])[..., 0]
    misfit = np.where(there, known - fitted @ basis.T, 0.0)
    scatter = np.sqrt((misfit**2).sum(1) / np.maximum(there.sum(1), 1))
    return np.where(enough[:, None], fitted, np.nan), np.where(enough, scatter, np.nan)


def _middle(offsets: Floats, fewest: float) -> tuple[Floats, Floats]:
    """Like `_fit`, with the median of the points for a curve, and no scatter."""
    enough = np.isfinite(offsets).mean(1) >= fewest
    fitted = np.zeros((len(offsets), 3))
    fitted[:, 0] = np.nan
    fitted[enough, 0] = np.nanmedian(offsets[enough], 1)
    return fitted, np.where(enough, 0.0, np.nan)


def _rise(profiles: Floats) -> Floats:
    """Profiles (..., S) from about 0 at their first end to 1 at their last, whichever is dark."""
    ends = max(1, profiles.shape[-1] // 8)
    first, last = profiles[..., :ends].mean(-1), profiles[..., -ends:].mean(-1)
    height = (last - first)[..., None]
    return (profiles - first[..., None]) / np.where(np.abs(height) < 5, np.nan, height)
