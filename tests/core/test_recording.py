"""Recording serialised messages: what is kept, counted, refused, and left behind by a failing disk; without ROS."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dr_core.data import bag_writer
from dr_core.data.bags import bag_info, check_bag
from dr_core.data.episodes import EpisodeMetadata, read_metadata
from dr_core.data.messages import IMAGE, STRING, definition_of, typestore
from dr_core.data.storage import locate, refuse_damage, scan
from dr_core.errors import BagError, ConfigError, OutputInUseError, UserError
from dr_core.robot.recording import (
    EpisodeRecorder,
    Item,
    PreRoll,
    Topic,
    header_stamp_ns,
    lost_in_gaps,
    period_ns,
    rates_by_topic,
    usable_folder,
)

MS = 10**6
START_NS = 10**18
IMAGES = Topic("/image", IMAGE, definition_of(IMAGE), stamped=True)
WORDS = Topic("/words", STRING, definition_of(STRING))
METADATA = EpisodeMetadata(
    task="push", outcome="partial", operator="ann", camera="front", camera_serial="", quality=None, seed=None,
    rate_hz=0.0, render={}, versions={}, calibration_hash=None, drops={},
)  # fmt: skip


def image(stamp_ns: int, size: int = 8) -> bytes:
    types = typestore().types
    seconds, nanoseconds = divmod(stamp_ns, 10**9)
    stamp = types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds)
    header = types["std_msgs/msg/Header"](stamp=stamp, frame_id="eye")
    message = types[IMAGE](
        header=header, height=size, width=size, encoding="rgb8", is_bigendian=0, step=3 * size,
        data=np.zeros(3 * size * size, np.uint8),
    )  # fmt: skip
    return bytes(typestore().serialize_cdr(message, IMAGE))


def recorder(folder: Path, **changes: Any) -> EpisodeRecorder:
    settings = {"preroll_s": 0.0, "queue_bytes": 2**20, "reserve_bytes": 0, **changes}
    made = EpisodeRecorder(folder, **settings)
    made.add_topic(IMAGES)
    made.add_topic(WORDS)
    return made


def push_images(to: EpisodeRecorder, numbers: Any, size: int = 8) -> None:
    for k in numbers:
        stamp_ns = START_NS + k * 100 * MS
        to.push("/image", stamp_ns + MS, image(stamp_ns, size))


def counts(path: Path) -> dict[str, int]:
    return {topic.topic: topic.count for topic in bag_info(path).topics}


def test_the_stamp_is_read_from_the_bytes() -> None:
    assert header_stamp_ns(image(1_700_000_000_123_456_789)) == 1_700_000_000_123_456_789
    assert header_stamp_ns(memoryview(b"\0\0\0\0" + (5).to_bytes(4, "big") + (7).to_bytes(4, "big"))) == 5 * 10**9 + 7


def test_gaps_are_counted_in_periods() -> None:
    stamps = np.array([0, 100, 201, 299, 500, 600, 1000, 1100]) * MS
    assert period_ns(stamps) == 100 * MS
    assert lost_in_gaps(stamps, 100 * MS) == 1 + 3
    assert lost_in_gaps(stamps[::-1].copy(), 100 * MS) == 4, "order of arrival does not matter"
    assert lost_in_gaps(stamps, 0) == lost_in_gaps(stamps[:1], 100 * MS) == 0 == period_ns(stamps[:2])


def test_the_preroll_keeps_a_span_a_size_and_what_is_latched() -> None:
    kept = PreRoll(1000 * MS, 50)
    kept.push(Item("/map", 1, b"map"), latched=True)
    for k in range(20):
        kept.push(Item("/image", START_NS + k * 100 * MS, b"four"), latched=False)
    taken = kept.take()
    assert [item.topic for item in taken] == ["/map", *["/image"] * 11]
    assert taken[0].received_ns == taken[1].received_ns == START_NS + 9 * 100 * MS
    assert [item.topic for item in kept.take()] == ["/map"]
    for k in range(20):
        kept.push(Item("/image", START_NS + k, b"0123456789"), latched=False)
    assert len(kept.take()) == 1 + 5


def test_an_episode_with_its_preroll(tmp_path: Path) -> None:
    one = recorder(tmp_path, preroll_s=0.25)
    push_images(one, range(10))
    assert not one.recording and one.status().path is None
    path = one.start("one", METADATA)
    push_images(one, [10, 11, 13])
    status = one.stop("success")
    assert status.path == path == tmp_path / "one" and status.drops == {"gap:/image": 1}
    assert status.recorded_s == pytest.approx(0.6)
    assert counts(path) == {"/image": 6, "/episode": 2}
    metadata = read_metadata(path)
    assert (metadata.outcome, metadata.drops, metadata.rate_hz) == ("success", {"gap:/image": 1}, 10.0)
    assert check_bag(path) == ["gap:/image: 1 messages dropped, 6 recorded (limit 2%)"]


def test_an_episode_without_any_message_is_a_bag_too(tmp_path: Path) -> None:
    one = recorder(tmp_path)
    one.start("empty", METADATA)
    one.stop("failure")
    assert read_metadata(tmp_path / "empty").outcome == "failure"


def test_a_slow_disk_drops_and_counts_but_never_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    write = bag_writer.BagWriter.write
    monkeypatch.setattr(bag_writer.BagWriter, "write", lambda *a: (gate.wait(30), write(*a))[1])
    one = recorder(tmp_path, queue_bytes=10 * len(image(START_NS)))
    one.start("one", METADATA)
    began_s = time.monotonic()
    push_images(one, range(50))
    assert time.monotonic() - began_s < 5
    gate.set()
    status = one.stop("success")
    lost = status.drops["queue:/image"]
    assert 35 <= lost <= 40 and status.counts["/image"] == 50 - lost
    assert "gap:/image" not in status.drops, "they arrived"
    assert any("messages dropped" in line for line in check_bag(tmp_path / "one"))


def test_a_start_that_waits_for_the_disk_does_not_hold_up_receiving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, waiting = threading.Event(), threading.Event()
    monkeypatch.setattr(bag_writer.BagWriter, "_check_disk", lambda writer: (waiting.set(), gate.wait(60)))
    one = recorder(tmp_path, preroll_s=100.0)
    starting = threading.Thread(target=one.start, args=("one", METADATA))
    starting.start()
    assert waiting.wait(30)
    push_images(one, range(20))
    assert not gate.is_set() and starting.is_alive(), "they were taken while the start waits"
    gate.set()
    starting.join()
    assert one.stop("success").counts == {"/image": 20}, "and belong to the pre-roll"


def test_every_message_is_in_exactly_one_episode(tmp_path: Path) -> None:
    """Messages arrive while episodes start and end; with a long pre-roll none may be lost or doubled between two."""
    one = recorder(tmp_path, preroll_s=1e6, queue_bytes=2**26)
    enough = threading.Event()
    pushed = 0

    def receive() -> None:
        nonlocal pushed
        while not enough.is_set():
            push_images(one, [pushed])
            pushed += 1
            time.sleep(0.001)

    receiving = threading.Thread(target=receive)
    receiving.start()
    try:
        for k in range(20):
            one.start(f"e{k:02}", METADATA)
            time.sleep(0.01)
            one.stop("success")
    finally:
        enough.set()
        receiving.join()
    one.start("last", METADATA)
    one.stop("success")
    stamps: list[int] = []
    for path in sorted(tmp_path.iterdir()):
        assert check_bag(path) == []
        stamps += [header_stamp_ns(m.data) for m in scan(locate(path), {"/image"}, refuse_damage(path))]
    assert stamps == [START_NS + k * 100 * MS for k in range(pushed)]


def test_a_folder_and_rates_that_cannot_be_used(tmp_path: Path) -> None:
    assert usable_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(BagError, match="expected a folder"):
        usable_folder(tmp_path / "file")
    assert rates_by_topic(["/a", "/b"], [0.0]) == {}
    assert rates_by_topic(["/a", "/b"], [0.0, 10.0]) == {"/a": 0.0, "/b": 10.0}
    with pytest.raises(BagError, match="expected 2 rates"):
        rates_by_topic(["/a", "/b"], [10.0])


def test_names_and_outcomes(tmp_path: Path) -> None:
    one = recorder(tmp_path)
    for name in ("../a", "a/b", ".a", "a\nb", "x" * 200):
        with pytest.raises(ConfigError, match="plain file name"):
            one.start(name, METADATA)
    with pytest.raises(BagError, match="/depth: expected a publisher"):
        one.start("one", METADATA, needed=["/image", "/depth"])
    one.start("one", METADATA)
    with pytest.raises(BagError, match="still recorded"):
        one.start("two", METADATA)
    with pytest.raises(ConfigError, match="success or failure or aborted"):
        one.stop("partial")
    one.stop("failure")
    with pytest.raises(BagError, match="expected one that is recorded"):
        one.stop("success")
    with pytest.raises(OutputInUseError):
        one.start("one", METADATA)
    assert read_metadata(tmp_path / "one").outcome == "failure"


def test_a_refused_start_keeps_the_preroll(tmp_path: Path) -> None:
    one = recorder(tmp_path, preroll_s=10.0)
    push_images(one, range(3))
    (tmp_path / "one").mkdir()
    with pytest.raises(OutputInUseError):
        one.start("one", METADATA)
    path = one.start("two", METADATA)
    one.stop("success")
    assert counts(path)["/image"] == 3


def test_discarded_episodes_are_gone_and_closing_aborts(tmp_path: Path) -> None:
    one = recorder(tmp_path)
    one.start("one", METADATA)
    push_images(one, range(3))
    one.discard()
    assert list(tmp_path.iterdir()) == [] and one.close() is None
    path = one.start("two", METADATA)
    push_images(one, range(3))
    status = one.close()
    assert status is not None and not status.recording
    assert read_metadata(path).outcome == "aborted" and counts(path)["/image"] == 3


def test_a_disk_that_fills_up_to_the_reserve_ends_the_episode_as_partial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [2**30]
    monkeypatch.setattr(bag_writer.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, free[0]))  # type: ignore[attr-defined]
    monkeypatch.setattr(bag_writer, "DISK_CHECK_BYTES", 2**16)
    one = recorder(tmp_path, reserve_bytes=2**20)
    path = one.start("one", METADATA)
    push_images(one, range(3))
    free[0] = 2**19
    for k in range(3, 200):
        push_images(one, [k], size=64)
        time.sleep(0.002)
        if not one.recording:
            break
    end_s = time.monotonic() + 30
    while one.recording and time.monotonic() < end_s:
        time.sleep(0.01)
    assert "free disk" in one.status().failure
    assert read_metadata(path).outcome == "partial" and "free disk" in read_metadata(path).notes
    with pytest.raises(UserError, match="free disk"):
        one.stop("success")
    with pytest.raises(BagError, match="never a success"):
        one.label("one", "success")
    with pytest.raises(BagError, match="free disk"):
        one.start("two", METADATA)
    free[0] = 2**30
    one.start("two", METADATA)
    assert one.stop("success").recording is False


def test_a_label_is_corrected_and_the_old_bag_stays_until_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = recorder(tmp_path)
    with pytest.raises(BagError, match="none was recorded yet"):
        one.label("", "success")
    path = one.start("one", METADATA)
    push_images(one, range(5))
    one.stop("success")
    before = (path / "one_0.mcap").read_bytes()
    finish = bag_writer.BagWriter.finish

    def fail(writer: Any) -> None:
        raise BagError("disk", expected="room", found="none", next_step="make some")

    monkeypatch.setattr(bag_writer.BagWriter, "finish", fail)
    with pytest.raises(BagError, match="disk"):
        one.label("one", "failure")
    assert (path / "one_0.mcap").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["one"]
    monkeypatch.setattr(bag_writer.BagWriter, "finish", finish)
    assert one.label("", "failure", "a look at the video") == path
    assert check_bag(path) == [] and counts(path)["/image"] == 5
    assert (read_metadata(path).outcome, read_metadata(path).notes) == ("failure", "a look at the video")
    assert one.status().metadata == read_metadata(path)
