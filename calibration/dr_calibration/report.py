"""One HTML page about a rig, made only from the files of its directory. It holds its pictures and loads nothing."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from dr_calibration import figures
from dr_calibration.errors import CalibrationError
from dr_calibration.folder import PICTURES, STEPS_FILE, RigFolder
from dr_calibration.rig import DAY_S, Rig
from dr_core.files import write_whole

GENERATOR = '<meta name="generator" content="dr calibrate report">'
NEXT = {
    "hand_eye": "dr calibrate hand-eye",
    "time_offset": "dr calibrate time-offset",
    "reference": "dr calibrate reference",
}
TITLES = {
    "intrinsics": "Lens",
    "hand_eye": "Place of the camera",
    "time_offset": "Time offset",
    "reference": "Reference of the camera-moved check",
    "check": "Camera-moved check",
}
LARGEST_JPEG_BYTES = 2**22

Record = Mapping[str, Any]


def write_report(out: Path, now_unix_s: float) -> Path:
    """Write report.html of a rig directory anew.

    Raises:
        CalibrationError: no rig there, a damaged file, or it cannot be written.
    """
    folder = RigFolder.load(out)
    page = render(folder, now_unix_s)
    try:
        write_whole(folder.report_path, page)
    except OSError as error:
        raise CalibrationError(
            str(folder.report_path), expected="a file that can be written", found=error.strerror or "an error",
            next_step="change it",
        ) from error  # fmt: skip
    return folder.report_path


def render(folder: RigFolder, now_unix_s: float) -> str:
    """The page as HTML; text from files is escaped.

    Raises:
        CalibrationError: steps.json is not what the steps wrote.
    """
    # Not above: it loads torch, and a node that computes a calibration shall start without.
    from dr_core.study.report import page_html

    parts: dict[str, Callable[[Record], str]] = {
        "intrinsics": _intrinsics,
        "hand_eye": _hand_eye,
        "time_offset": _time_offset,
        "reference": lambda record: "",
        "check": _check,
    }
    try:
        sections = {"Verdict": _verdict(folder, now_unix_s)}
        for name, more in parts.items():
            if (record := folder.steps.get(name)) is not None:
                sections[TITLES[name]] = _lines(record) + more(record) + _shown(folder, record)
        sections["Rig"] = _rig(folder.rig, folder.rig_path)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CalibrationError(
            str(folder.path / STEPS_FILE), expected="what the steps wrote", found=f"parts that do not fit ({error!r})",
            next_step="calibrate again, or remove the file",
        ) from error  # fmt: skip
    return page_html(f"Calibration of {folder.rig.camera_name}", GENERATOR, sections)


def _verdict(folder: RigFolder, now_unix_s: float) -> str:
    rig, items = folder.rig, []
    for name, title in TITLES.items():
        record = folder.steps.get(name)
        if record is None:
            if name in NEXT:
                items.append(("open", f"{title}: not done; {NEXT[name]}"))
            continue
        verdict = str(record["verdict"])
        kind = "met" if verdict.startswith("good") else "missed" if verdict.startswith("not usable") else "open"
        items.append((kind, f"{title}: {verdict}"))
        if name == "check" and record["rig_hash"] != rig.hash:
            items.append(("open", "The check was made before the rig was changed: run dr calibrate check again"))
    words = "".join(f'<li class="{kind}">{escape(text)}</li>' for kind, text in items)
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(rig.made_unix_s))
    age = (now_unix_s - rig.made_unix_s) / DAY_S
    facts = (
        f"Camera {rig.camera_name}, serial {rig.camera_serial or 'none'}; made {made}, {age:.1f} days ago; "
        f"calibration hash {rig.hash}."
    )
    return f"<ul>{words}</ul><p>{escape(facts)}</p>"


def _intrinsics(record: Record) -> str:
    from dr_core.study.report import figure_html, table_html

    plots = [
        figure_html(
            figures.per_view(record["rms_px"], record["held_out_rms_px"], record["view_numbers"]),
            "Error of each view: fitted, and predicted by a lens fitted without it. Both should be alike and even.",
        ),
        figure_html(
            figures.coverage(np.array(record["coverage"], np.int64)),
            "Where corners were seen. What is never covered, the lens is only guessed at.",
        ),
    ]
    rows = [["lens model", "error on views left out (px, RMS)"]]
    for name, error in record["held_out_by_model_px"].items():
        rows.append([name + (" (taken)" if name == record["model"] else ""), _number(error, 3)])
    text = f'<div class="grid">{"".join(plots)}</div>' + table_html(rows) + _rejected(record)
    if record["dropped"]:
        items = "".join(f"<li>view {escape(i)}: {escape(why)}</li>" for i, why in record["dropped"].items())
        text += f"<p>Views left out of the fit:</p><ul>{items}</ul>"
    if (maker := record["maker"]) is not None:
        rows = [["the maker's lens", "value"]]
        rows.append(["fx, fy, cx, cy (px)", ", ".join(_number(value, 2) for value in maker["fx_fy_cx_cy_px"])])
        rows.append(["k1, k2, p1, p2, k3", ", ".join(_number(value, 4) for value in maker["distortion"])])
        rows.append(["same ray, mean and largest way (px)", f"{maker['mean_px']:.2f}, {maker['max_px']:.2f}"])
        text += table_html(rows)
    return text


def _hand_eye(record: Record) -> str:
    from dr_core.study.report import figure_html, table_html

    unit, checked = str(record["unit"]), record["cross_validation"]
    rows = [["solver", f"error ({unit}, RMS)", "from the result (mm)", "from the result (deg)"]]
    for one in record["solvers"]:
        values = [_number(one["rms"], 2), _number(one["distance_mm"], 2), _number(one["angle_deg"], 3)]
        rows.append([one["name"], *values])
    sd = f"sd {record['total_sd_mm']:.2f} mm", f"sd {record['total_sd_deg']:.3f} deg"
    rows.append(["refined together (the result)", _number(_rms(record), 2), *sd])
    left_out = [_number(checked["residual"], 2), _number(checked["translation_mm"], 2)]
    rows.append(["the result, on poses left out", *left_out, _number(checked["rotation_deg"], 3)])
    motion = record["diversity"]
    moved = [["motion of the tool", "1st", "2nd", "3rd axis"]]
    moved.append(["rotation between poses (deg)", *(_number(value, 1) for value in motion["rotation_deg"])])
    moved.append(["spread of places (mm)", *(_number(value, 0) for value in motion["translation_mm"])])
    advice = "".join(f"<li>{escape(text)}</li>" for text in record["advice"])
    plot = figure_html(figures.per_pose([_or_nan(v) for v in record["residuals"]], record["inliers"], unit),
                       "What remains between the corners seen and those predicted, for each pose.")  # fmt: skip
    text = table_html(rows) + plot + table_html(moved)
    text += f"<p>For the next time:</p><ul>{advice}</ul>" if advice else ""
    return text + _rejected(record)


def _time_offset(record: Record) -> str:
    from dr_core.study.report import figure_html

    curve = record["curve"]
    picture = figures.offset_curve(
        [_or_nan(value) for value in curve["offset_s"]],
        [_or_nan(value) for value in curve["correlation"]],
        record["offset_s"],
    )
    return figure_html(picture, "How well the speeds agree at each offset: one clear peak is good.") + _rejected(record)


def _check(record: Record) -> str:
    from dr_core.study.report import figure_html

    picture = figures.shifts([_or_nan(value) for value in record["shift_px"]], record["threshold_px"])
    return figure_html(picture, "How far each picture is shifted from the reference, and the limit.")


def _lines(record: Record) -> str:
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(float(record["made_unix_s"])))
    board = f", board {record['board']}" if "board" in record else ""
    verdict = f"<p><b>{escape(str(record['verdict']))}</b> ({escape(made + board)})</p>"
    return verdict + "<ul>" + "".join(f"<li>{escape(str(line))}</li>" for line in record["lines"]) + "</ul>"


def _rejected(record: Record) -> str:
    from dr_core.study.report import figure_html

    if not record["rejected"]:
        return ""
    counts = {str(reason): int(count) for reason, count in record["rejected"].items()}
    return figure_html(figures.reasons(counts), f"Why {sum(counts.values())} of {record['seen']} pictures were left.")


def _shown(folder: RigFolder, record: Record) -> str:
    """Example pictures, from the directory itself only."""
    parts = []
    for entry in record["shown"]:
        path = folder.path / PICTURES / Path(str(entry["file"])).name
        if not path.is_file() or path.is_symlink() or path.stat().st_size > LARGEST_JPEG_BYTES:
            continue
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        label = escape(str(entry["text"]), quote=True)
        image = f'<img src="data:image/jpeg;base64,{data}" alt="{label}">'
        parts.append(f"<figure>{image}<figcaption>{label}</figcaption></figure>")
    if not parts:
        return ""
    corners = any("left out" in str(entry["text"]) for entry in record["shown"])
    explained = f"Green: corners seen. Red: the way to where they are predicted, {figures.LONGER} times as long."
    return (f"<p>{explained}</p>" if corners else "") + f'<div class="grid">{"".join(parts)}</div>'


def _rig(rig: Rig, path: Path) -> str:
    from dr_core.study.report import table_html

    k = rig.intrinsics.K
    rows = [
        ["what", "value"],
        ["file", path.name],
        ["pictures", f"{rig.intrinsics.width} x {rig.intrinsics.height} px"],
        ["fx, fy, cx, cy", f"{k[0, 0]:.3f}, {k[1, 1]:.3f}, {k[0, 2]:.3f}, {k[1, 2]:.3f} px"],
    ]
    if rig.pose is not None:
        place = ", ".join(f"{value:.5f}" for value in rig.pose.xyz_m)
        turn = ", ".join(f"{value:.6f}" for value in rig.pose.quaternion_xyzw)
        rows.append([rig.pose.key, f"x, y, z {place} m; quaternion x, y, z, w {turn}"])
        rows.append(["frames on TF", f"{rig.pose.frame} -> {rig.pose.camera_frame}"])
    if rig.time_offset is not None:
        offset = rig.time_offset
        rows.append(["time offset", f"{1e3 * offset.offset_s:+.2f} ms (sd {1e3 * offset.sd_s:.2f} ms), subtracted from "
                                    "the camera's stamps"])  # fmt: skip
    if rig.reference is not None:
        rows.append(["reference picture", rig.reference.file])
    return table_html(rows, wrap=True)


def _rms(record: Record) -> float:
    used = [value for value, inlier in zip(record["residuals"], record["inliers"], strict=True) if inlier]
    return math.sqrt(sum(value**2 for value in used) / len(used))


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _number(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{float(value):.{digits}f}"
