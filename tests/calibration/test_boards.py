"""Boards: corners against closed-form truth, OpenCV's own drawings, reasons for refusals, and the printed page."""

import re
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest

from dr_calibration.boards import Board, Detection, Rejection
from dr_calibration.errors import CalibrationError

CHARUCO = Board.parse("charuco:7x5:30mm:22mm:4X4_50")
CHESSBOARD = Board.parse("chessboard:9x6:25mm")
TAGS = Board.parse("apriltag:5x4:40mm:30mm:APRILTAG_36h11")
BOARDS = [CHARUCO, CHESSBOARD, TAGS]
TEXTS = ["charuco:7x5:30mm:22mm:4X4_50", "chessboard:9x6:25mm", "apriltag:5x4:40mm:30mm:APRILTAG_36h11:3"]


def view(board, turn_deg=10.0, width_px=420.0, tilt=0.15, centre=(320.0, 240.0), size=(640, 480)):
    """A picture of the board under a homography, every pixel the mean of 16 samples, and where its corners are."""
    w, h = board.size_m
    angle = np.radians(turn_deg)
    c, s = np.cos(angle) * width_px / w, np.sin(angle) * width_px / w
    to_picture = np.array([[1.0, 0, centre[0]], [0, 1, centre[1]], [0, 0, 1]])
    to_picture = (
        to_picture @ [[c, -s, 0], [s, c, 0], [tilt / w, tilt / h / 2, 1]] @ [[1, 0, -w / 2], [0, 1, -h / 2], [0, 0, 1]]
    )
    px_per_m, fine = 8000.0, 4
    texture = board.draw(px_per_m)
    texture_to_board = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, px_per_m]]) / px_per_m
    texture_to_board[:2, 2] -= board.square_m
    enlarge = np.array([[fine, 0, (fine - 1) / 2], [0, fine, (fine - 1) / 2], [0, 0, 1]])
    whole = enlarge @ to_picture @ texture_to_board
    large = cv2.warpPerspective(texture, whole, (size[0] * fine, size[1] * fine), borderValue=110)
    points = cv2.perspectiveTransform(board.points_m[None, :, :2], to_picture)[0]
    return cv2.resize(large, size, interpolation=cv2.INTER_AREA), points


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.kind)
@pytest.mark.parametrize("turn_deg", [10.0, 100.0, 187.0])
def test_corners_are_found_to_a_twentieth_of_a_pixel_whichever_way_up(board, turn_deg):
    width_px = 300.0 if turn_deg == 100.0 else 420.0
    picture, truth = view(board, turn_deg, width_px)
    found = board.detect(picture)
    assert isinstance(found, Detection), found
    assert np.array_equal(found.ids, np.arange(len(truth)))
    assert np.array_equal(found.points_m, board.points_m)
    error = found.corners_px - truth
    assert np.abs(error.mean(0)).max() < 0.01 and np.linalg.norm(error, axis=1).max() < 0.05
    assert 1.0 < found.edge_width_px < 1.8
    colour = board.detect(np.repeat(picture[..., None], 3, 2))
    assert np.allclose(colour.corners_px, found.corners_px, atol=0.02)


@pytest.mark.parametrize("board", [CHARUCO, TAGS], ids=lambda board: board.kind)
def test_a_part_of_a_board_with_tags_is_enough(board):
    picture, truth = view(board, centre=(520.0, 240.0))
    found = board.detect(picture)
    assert isinstance(found, Detection), found
    assert 6 <= len(found.ids) < len(truth) and (np.diff(found.ids) > 0).all()
    assert np.linalg.norm(found.corners_px - truth[found.ids], axis=1).max() < 0.1
    assert np.array_equal(found.points_m, board.points_m[found.ids])


def test_drawings_agree_with_opencv():
    dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_50)
    for columns, rows, first in ((7, 5, 0), (4, 6, 9)):
        ids = np.arange(first, first + columns * rows // 2)
        theirs = cv2.aruco.CharucoBoard((columns, rows), 0.036, 0.024, dictionary, ids)
        ours = Board("charuco", columns, rows, 0.036, 0.024, "4X4_50", first)
        assert np.array_equal(ours.draw(1000.0, 0.0), theirs.generateImage((36 * columns, 36 * rows)))
        assert np.allclose(np.abs(theirs.getChessboardCorners()), ours.points_m, atol=1e-7)
    family = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_APRILTAG_36h11)
    grid = cv2.aruco.GridBoard((3, 2), 0.032, 0.008, family, np.arange(5, 11))
    tags = Board("apriltag", 3, 2, 0.040, 0.032, "APRILTAG_36h11", 5)
    assert np.array_equal(tags.draw(1000.0, 0.0), grid.generateImage((112, 72)))
    assert np.allclose(np.concatenate(grid.getObjPoints()), tags.points_m, atol=1e-7)
    # Pixels on an edge hold their share: the ink of any scale adds up to the area.
    ink = (255.0 - CHESSBOARD.draw(777.7, 0.0137)).sum() / 255 / 777.7**2
    assert ink == pytest.approx(27 * 0.025**2, rel=1e-3)


def refusal(board, picture):
    found = board.detect(picture)
    assert isinstance(found, Rejection), found
    return found.reason


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.kind)
def test_what_cannot_be_used_is_refused_with_the_reason(board):
    picture, truth = view(board)
    for blurred in (cv2.GaussianBlur(picture, (0, 0), 2.5), cv2.blur(picture, (9, 1))):
        assert refusal(board, blurred).startswith("blurred: edges of ")
    # Structure elsewhere does not make a blurred board sharp.
    noisy = cv2.GaussianBlur(picture, (0, 0), 2.5)
    noisy[:60, :60] = np.random.default_rng(0).integers(0, 256, (60, 60))
    assert refusal(board, noisy).startswith("blurred")
    assert "no board found" in refusal(board, np.full((480, 640), 120, np.uint8))
    small = view(board, width_px=10.0 * board.columns)[0]
    assert "too small" in refusal(board, small)
    left = int(np.quantile(truth[:, 0], 0.25))
    cut = picture.copy()
    cut[:, left:] = 110
    expected = "chessboard needs all of its 8 x 5" if board.needs_all else "too few corners"
    if board is TAGS:
        cut[200:] = 110
    assert expected in refusal(board, cut)


def test_another_board_is_told():
    picture = view(CHARUCO)[0]
    told = {
        "charuco:7x5:30mm:22mm:5X5_100": "wrong dictionary: 17 tags of 4X4_1000 seen, none of 5X5_100",
        "charuco:7x5:30mm:22mm:4X4_50:25": "tags 0 to 16 of 4X4_50 seen, this board has 25 to 41",
        "charuco:5x7:30mm:22mm:4X4_50": "the tags stand otherwise than on 5 x 7",
    }
    for text, reason in told.items():
        assert reason in refusal(Board.parse(text), picture)
    inner = Board("chessboard", 9, 6, 0.025)
    larger = view(Board("chessboard", 10, 7, 0.025))[0]  # inner corners given for squares
    reason = refusal(inner, larger)
    assert "9 x 6 inner corners seen, 8 x 5 inner corners on this board; columns and rows count squares" in reason


def test_a_picture_of_another_type_is_refused():
    for wrong in (np.zeros((480, 640)), np.zeros((480, 640, 4), np.uint8), np.zeros(10, np.uint8)):
        with pytest.raises(CalibrationError, match=r"picture: expected uint8"):
            CHARUCO.detect(wrong)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_and_dictionaries_name_a_board(text):
    board = Board.parse(text)
    assert str(board) == text
    assert Board.from_dict(board.to_dict()) == board
    assert hash(Board.parse(text)) == hash(board)


def test_other_ways_to_write_a_board():
    assert Board.parse(" charuco:7x5:0.03m:0.022m:dict_4x4_50:0 ") == CHARUCO
    assert Board.from_dict({"kind": "chessboard", "columns": 4, "rows": 3, "square_m": 1}).square_m == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("charuco:7x5:30:22:4X4_50", "with units"),
        ("charuco:7x5:30mm:22mm", "a text like"),
        ("charuko:7x5:30mm:22mm:4X4_50", "did you mean charuco"),
        ("charuco:7x5:30m:22m:4X4_50", "metres, not millimetres"),
        ("charuco:7x5:30mm:29mm:4X4_50", "white around it"),
        ("charuco:7x5:30mm:22mm:4X4_51", "did you mean 4X4_50"),
        ("charuco:20x20:30mm:22mm:4X4_50", "a larger dictionary"),
        ("charuco:7x5:30mm:22mm:4X4_50:40", "numbers 0 to 49"),
        ("chessboard:8x6:25mm", "count squares, not inner corners"),
        ("chessboard:2x9:25mm", "columns: expected 3 to 50"),
        ("apriltag:5x4:40mm:30mm:4X4_50", "an AprilTag family"),
        ("nonsense", "a text like"),
    ],
)
def test_boards_that_cannot_be_are_refused(text, message):
    with pytest.raises(CalibrationError, match=message):
        Board.parse(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"square": 0.03}, "did you mean square_m"),
        ({"columns": 7.0}, "columns: expected int"),
        ({"columns": True}, "columns: expected int"),
        ({"square_m": "30mm"}, "square_m: expected float or int"),
        ({"square_m": float("nan")}, "0.003 to 1 m"),
        ({"first_id": -1}, "numbers 0 to 49"),
    ],
)
def test_dictionaries_from_files_are_checked(change, message):
    with pytest.raises(CalibrationError, match=message):
        Board.from_dict({**CHARUCO.to_dict(), **change})
    with pytest.raises(CalibrationError, match="expected columns"):
        Board.from_dict({"kind": "charuco"})
    with pytest.raises(CalibrationError, match="keys and values"):
        Board.from_dict(["charuco"])


def pdf_rectangles(path):
    """Size of the page and its black rectangles in mm from the upper left corner, as a reader of the file sees them."""
    written = path.read_bytes()
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF", written)[1])
    places = [int(entry) for entry in re.findall(rb"(\d{10}) 00000 n ", written[start:])]
    assert written[start:].startswith(b"xref\n")
    assert all(written[place:].startswith(b"%d 0 obj\n" % (k + 1)) for k, place in enumerate(places))
    length, content = re.search(rb"/Length (\d+) >>\nstream\n(.*?)\nendstream", written, re.S).groups()
    assert int(length) == len(content)
    media = np.array([float(n) for n in re.search(rb"/MediaBox \[([^]]*)\]", written)[1].split()])
    a, b, c, d, e, f = (float(n) for n in content.split(b"\n")[0].split()[:6])
    assert b == c == e == 0 and content.split(b"\n")[0].endswith(b" cm")
    rectangles = np.array([[float(n) for n in line.split()[:4]] for line in content.split(b"\n") if line[-2:] == b"re"])
    x, y, w, h = rectangles.T
    points = np.stack([a * x, media[3] - (d * y + f), a * w, -d * h], 1)  # from the upper left corner, in points
    return media[2:] * 25.4 / 72, points * 25.4 / 72, content.decode("latin-1")


def svg_rectangles(path):
    root = ElementTree.parse(path).getroot()
    size = np.array([float(root.attrib[key].removesuffix("mm")) for key in ("width", "height")])
    assert root.attrib["viewBox"] == f"0 0 {size[0]:g} {size[1]:g}"
    outline = root.find("{*}path").attrib["d"]
    number = r"(-?[\d.]+)"
    found = re.findall(rf"M{number} {number}h{number}v{number}h{number}z", outline)
    return size, np.array(found, float)[:, :4], path.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["pdf", "svg"])
@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.kind)
def test_the_printed_page_is_the_board_at_true_scale(board, kind, tmp_path):
    path = tmp_path / f"board.{kind}"
    (board.write_pdf if kind == "pdf" else board.write_svg)(path)
    size_mm, dark_mm, text = (pdf_rectangles if kind == "pdf" else svg_rectangles)(path)
    assert np.allclose(sorted(size_mm), [210.0, 297.0], atol=1e-3)
    assert str(board) in text and "Print at 100 %" in text and "100 mm" in text
    ruler = dark_mm[np.isclose(dark_mm[:, 2], 100.0, atol=1e-3)]
    assert len(ruler) == 1
    ticks = dark_mm[np.isclose(dark_mm[:, 2], 0.2, atol=1e-3)]
    assert len(ticks) == 11 and np.ptp(ticks[:, 0]) == pytest.approx(100.0, abs=1e-3)
    px_per_mm = 4
    white = np.ones(np.rint(size_mm[::-1]).astype(int) * px_per_mm)
    for x, y, w, h in dark_mm * px_per_mm:
        down, across = (
            np.clip(np.minimum(np.arange(n) + 1, start + length) - np.maximum(np.arange(n), start), 0, 1)
            for n, start, length in zip(white.shape, (y, x), (h, w), strict=True)
        )
        white -= np.outer(down, across)  # what of each pixel it covers
    found = board.detect(np.rint(255 * np.clip(white, 0, 1)).astype(np.uint8))
    assert isinstance(found, Detection) and len(found.ids) == len(board.points_m), found
    mm = (found.corners_px + 0.5) / px_per_mm
    assert np.allclose(mm - mm[0], 1e3 * (found.points_m - found.points_m[0])[:, :2], atol=0.01)
    # The board itself, exactly: its outline, and all of its ink.
    ink = dark_mm[: -1 - len(ticks)]
    span = (ink[:, :2] + ink[:, 2:]).max(0) - ink[:, :2].min(0)
    assert np.allclose(span, 1e3 * np.array(board.size_m), atol=1e-3)
    drawn = (255.0 - board.draw(2000.0, 0.0)).sum() / 255 / 4
    assert (ink[:, 2] * ink[:, 3]).sum() == pytest.approx(drawn, rel=1e-3)
    assert (ink[:, :2] > 9.99).all() and (ink[:, 1] + ink[:, 3]).max() < ruler[0, 1] - 5


def test_a_board_that_does_not_fit_on_the_paper_is_refused(tmp_path):
    board = Board.parse("charuco:7x5:50mm:37mm:4X4_50")  # 350 x 250 mm
    with pytest.raises(CalibrationError, match=r"found 350 x 250 mm; take A3, or squares of 34 mm or less"):
        board.write_pdf(tmp_path / "a.pdf", "A4")
    board.write_pdf(tmp_path / "a.pdf", "A3")
    assert np.allclose(pdf_rectangles(tmp_path / "a.pdf")[0], [420, 297], atol=1e-3)
    with pytest.raises(CalibrationError, match="did you mean Letter"):
        board.write_svg(tmp_path / "a.svg", "letter")
    with pytest.raises(CalibrationError, match=r"; take squares of \d+(\.5)? mm or less"):
        Board.parse("chessboard:9x6:100mm").write_svg(tmp_path / "a.svg", "A3")
    assert not (tmp_path / "a.svg").exists()
