"""Damaged bags: found, refused in one line, and repaired as far as their bytes go."""

from __future__ import annotations

import hashlib
import pickle
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mcap.records import Chunk, Message
from mcap.stream_reader import StreamReader, breakup_chunk
from numpy.typing import NDArray
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from dr_core.data import commands
from dr_core.data.bags import bag_info, check_bag, export_video, repair_bag
from dr_core.data.episodes import IMAGE_TOPIC, EpisodeMetadata, EpisodeWriter, read_episode, read_metadata
from dr_core.data.images import ImageRule
from dr_core.data.video import read_video
from dr_core.errors import BagError, OutputInUseError

RULE = ImageRule(64)
REPOSITORY = Path(__file__).resolve().parents[2]
METADATA = EpisodeMetadata(
    task="door-open-v3",
    outcome="partial",
    operator="Ada",
    camera="front",
    camera_serial="123",
    quality=None,
    seed=None,
    rate_hz=10.0,
    render={},
    versions={},
    calibration_hash="c0ffee",
    drops={},
)


def frame(k: int) -> NDArray[np.uint8]:
    """The k-th picture; every one differs from every other."""
    return np.random.default_rng(k).integers(0, 256, (64, 64, 3), np.uint8)


def record(path: Path, count: int = 24, outcome: Any = "success", drops: dict[str, int] | None = None) -> None:
    with EpisodeWriter(path, METADATA) as writer:
        for k in range(count):
            writer.write_image((k + 1) * 10**8, frame(k))
            writer.write_action((k + 1) * 10**8, np.array([k, 0.5]))
        writer.close(outcome, drops)


def assert_is_start_of_recording(path: Path) -> int:
    """All frames are those that were recorded, none missing in between; returns their number."""
    episode = read_episode(path, rule=RULE)
    for k, image in enumerate(episode.frames):
        assert (image == frame(k)).all()
    assert episode.stamps_ns.tolist() == [(k + 1) * 10**8 for k in range(len(episode.frames))]
    return len(episode.frames)


def messages_in_whole_chunks(path: Path) -> int:
    """Messages that the reader of the mcap package gets out of a file before it ends."""
    count = 0
    try:
        with path.open("rb") as stream:
            for found in StreamReader(stream, emit_chunks=True).records:
                if isinstance(found, Chunk):
                    if len(found.data) < found.uncompressed_size:
                        break  # the reader returns what there is of the last chunk
                    count += sum(isinstance(inner, Message) for inner in breakup_chunk(found))
    except Exception:  # the reader of the mcap package fails in many ways at the end of a truncated file
        return count
    return count


def digest(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}


# ---- whole bags ----


def test_a_whole_bag_is_good_and_described(tmp_path: Path) -> None:
    record(tmp_path / "e")
    assert check_bag(tmp_path / "e") == []
    info = bag_info(tmp_path / "e")
    assert {topic.topic: topic.count for topic in info.topics} == {"/action": 24, "/episode": 2, IMAGE_TOPIC: 24}
    assert info.storage == "mcap" and info.has_index and info.duration_s == pytest.approx(2.3)
    assert info.size_bytes > 24 * 64 * 64 * 3
    assert info.metadata is not None and info.metadata.outcome == "success"


def test_a_good_bag_is_repaired_to_the_same_content_with_its_outcome(tmp_path: Path) -> None:
    record(tmp_path / "e", outcome="failure")
    report = repair_bag(tmp_path / "e", tmp_path / "f")
    assert report.lost == () and report.lost_bytes == 0 and report.messages[IMAGE_TOPIC] == 24
    assert assert_is_start_of_recording(tmp_path / "f") == 24
    assert read_metadata(tmp_path / "f").outcome == "failure"
    assert check_bag(tmp_path / "f") == []


def test_faults_of_the_content_are_found(tmp_path: Path) -> None:
    path = tmp_path / "e"
    with EpisodeWriter(path, METADATA) as writer:
        for k, stamp_ns in enumerate([100, 300, 200, 300, 400]):
            writer.write_image(stamp_ns, frame(k))
        writer.write_image(500, np.zeros((32, 32, 3), np.uint8))
        writer.write_action(100, np.array([1.0, np.nan]))
        writer.write_action(200, np.array([1.0]))
        writer.close("success", {IMAGE_TOPIC: 1, "/action": 0, "/gone": 1})
    problems = "\n".join(check_bag(path))
    for words in ("go back in time", "repeat", "differ in size", "not finite", "lengths differ"):
        assert words in problems
    assert f"{IMAGE_TOPIC}: 1 messages dropped" in problems and "/gone: 1" in problems


def test_more_than_two_percent_of_drops_are_a_problem(tmp_path: Path) -> None:
    for dropped, good in ((1, True), (2, False)):
        record(tmp_path / str(dropped), count=49, drops={IMAGE_TOPIC: dropped})
        assert (check_bag(tmp_path / str(dropped)) == []) is good


def test_export_is_lossless_and_never_overwrites(tmp_path: Path) -> None:
    record(tmp_path / "e", count=7)
    assert export_video(tmp_path / "e", tmp_path / "x.mp4") == 7
    frames, stamps_ns = read_video(tmp_path / "x.mp4")
    assert (frames == np.stack([frame(k) for k in range(7)])).all()
    assert np.diff(stamps_ns).tolist() == [10**8] * 6
    with pytest.raises(OutputInUseError):
        export_video(tmp_path / "e", tmp_path / "x.mp4")


# ---- killed recordings ----

RECORDER = """
import sys, signal
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_bags import METADATA, EpisodeWriter, frame
import numpy as np
stop = []  # an exception raised by the handler itself could land in a destructor, which swallows it
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
with EpisodeWriter(Path(sys.argv[1]), METADATA) as writer:
    print("started", flush=True)
    for k in range(10**9):
        writer.write_image((k + 1) * 10**8, frame(k))
        writer.write_action((k + 1) * 10**8, np.array([k, 0.5]))
        if stop:
            sys.exit(0)
"""


def start_recorder(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RECORDER, str(path), str(Path(__file__).parent)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env={"PYTHONPATH": str(REPOSITORY)}
    )
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    return process


@pytest.mark.parametrize("attempt", range(4))
def test_a_killed_recording_keeps_every_whole_chunk(tmp_path: Path, attempt: int) -> None:
    path = tmp_path / "e"
    process = start_recorder(path)
    try:
        time.sleep(random.Random(attempt).uniform(0.02, 0.3))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = tmp_path / ".e.recording"
    assert not path.exists()
    file = left / "e_0.mcap"
    before = digest(left)
    with pytest.raises(BagError, match="dr bag repair"):
        read_episode(left, rule=RULE)
    assert any("never completed" in problem for problem in check_bag(left))
    expected = messages_in_whole_chunks(file)
    if expected == 0:  # killed before the first chunk was full
        with pytest.raises(BagError, match="record the episode again"):
            repair_bag(left, path)
        return
    report = repair_bag(left, path)
    assert sum(report.messages.values()) == expected
    assert read_metadata(path).outcome == "partial"
    images = assert_is_start_of_recording(path)
    assert images == report.messages[IMAGE_TOPIC]
    # What is lost is less than one chunk beyond what is on disk.
    assert file.stat().st_size - report.lost_bytes >= images * 64 * 64 * 3
    assert digest(left) == before


def test_sigterm_completes_the_recording(tmp_path: Path) -> None:
    process = start_recorder(tmp_path / "e")
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()  # it would fill the disk
    assert read_metadata(tmp_path / "e").outcome == "aborted"


# ---- truncated and damaged files ----


def record_boundaries(content: bytes) -> list[int]:
    """Where the records of an MCAP file start."""
    starts, position = [], 8
    while position < len(content) - 8:
        starts.append(position)
        position += 9 + struct.unpack_from("<Q", content, position + 1)[0]
    return starts


def test_a_file_truncated_anywhere_is_refused_and_repaired(tmp_path: Path) -> None:
    record(tmp_path / "e", count=12)
    source = tmp_path / "e" / "e_0.mcap"
    whole = source.read_bytes()
    starts = record_boundaries(whole)
    cuts = {0, 1, 7, 8, len(whole) - 1, len(whole) - 8, len(whole) - 9}
    for start in starts:
        cuts |= {start, start + 1, start + 5, start + 9, start + 20, start + 60}
    for cut in sorted(cut for cut in cuts if cut < len(whole)):
        source.write_bytes(whole[:cut])
        for bag in (source, tmp_path / "e"):
            with pytest.raises(BagError) as caught:
                read_episode(bag, rule=RULE)
            assert "\n" not in str(caught.value)
            assert check_bag(bag)
        out = tmp_path / f"out{cut}"
        expected = messages_in_whole_chunks(source)
        if expected == 0:
            with pytest.raises(BagError):
                repair_bag(tmp_path / "e", out)
            assert not out.exists()
            continue
        assert "dr bag repair" in str(caught.value)
        report = repair_bag(tmp_path / "e", out)
        assert report.lost
        assert sum(report.messages.values()) == expected
        assert_is_start_of_recording(out)
        # The outcome is in the last chunk, which ends where the records after it start.
        assert read_metadata(out).outcome == ("success" if report.messages["/episode"] == 2 else "partial")
        assert source.read_bytes() == whole[:cut]


def test_a_damaged_chunk_in_the_middle_costs_only_itself(tmp_path: Path) -> None:
    record(tmp_path / "e")
    file = tmp_path / "e" / "e_0.mcap"
    whole = file.read_bytes()
    chunks = [start for start in record_boundaries(whole) if whole[start] == 0x06]
    assert len(chunks) >= 4
    for damage in ("content", "length"):
        content = bytearray(whole)
        if damage == "content":
            content[chunks[1] + 3000] ^= 0x10
        else:
            struct.pack_into("<Q", content, chunks[1] + 1, 2**63)
        file.write_bytes(content)
        with pytest.raises(BagError, match="dr bag repair"):
            read_episode(tmp_path / "e", rule=RULE)
        report = repair_bag(tmp_path / "e", tmp_path / damage)
        assert report.lost and 60_000 < report.lost_bytes < 90_000
        assert 24 - 7 <= report.messages[IMAGE_TOPIC] < 24
        times = read_episode(tmp_path / damage, rule=RULE).stamps_ns
        assert times[0] == 10**8 and times[-1] == 24 * 10**8


def test_a_damaged_index_is_not_believed(tmp_path: Path) -> None:
    record(tmp_path / "e")
    file = tmp_path / "e" / "e_0.mcap"
    whole = file.read_bytes()
    statistics = next(start for start in record_boundaries(whole) if whole[start] == 0x0B)
    content = bytearray(whole)
    content[-12:-8] = bytes(4)  # no checksum, so that only the counts disagree
    for at in range(statistics + 9 + 46, statistics + 9 + 46 + 30, 10):  # channel, count
        struct.pack_into("<Q", content, at + 2, 1000)
    file.write_bytes(content)
    with pytest.raises(BagError, match="1000 images"):
        read_episode(tmp_path / "e", rule=RULE)
    content[-12:-8] = whole[-12:-8]
    file.write_bytes(content)
    assert assert_is_start_of_recording(tmp_path / "e") == 24


def test_random_damage_never_ends_in_anything_but_a_bag_error(tmp_path: Path) -> None:
    record(tmp_path / "e", count=7)
    file = tmp_path / "e" / "e_0.mcap"
    whole = file.read_bytes()
    rng = random.Random(5)
    starts = record_boundaries(whole)
    for trial in range(200):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 1, 4])):
            start = rng.choice(starts)
            at = min(len(content) - 1, start + rng.choice([rng.randrange(9), rng.randrange(80)]))
            content[at] = rng.choice([0, 0xFF, rng.randrange(256)])
        file.write_bytes(content)
        check_bag(file)
        for use in (
            lambda: read_episode(file, rule=RULE),
            lambda: bag_info(file),
            lambda trial=trial: repair_bag(file, tmp_path / f"out{trial}"),
        ):
            try:
                use()
            except BagError as error:
                assert "\n" not in str(error)


def test_sizes_in_the_file_are_not_trusted(tmp_path: Path) -> None:
    """A chunk that claims to unpack to terabytes is refused without taking memory for it."""
    packed = b"\x28\xb5\x2f\xfd" + b"\xe0" + struct.pack("<Q", 2**42) + b"\x01\x00\x00"
    for claimed in (2**42, 1000):
        body = struct.pack("<QQQI", 0, 1, claimed, 0)
        body += struct.pack("<I", 4) + b"zstd" + struct.pack("<Q", len(packed)) + packed
        header = struct.pack("<BQ", 1, 12) + struct.pack("<I", 4) + b"ros2" + struct.pack("<I", 0)
        chunk = struct.pack("<BQ", 6, len(body)) + body
        footer = struct.pack("<BQQQI", 2, 20, 0, 0, 0)
        magic = b"\x89MCAP0\r\n"
        file = tmp_path / "x.mcap"
        file.write_bytes(magic + header + chunk + footer + magic)
        with pytest.raises(BagError, match="claims to unpack to"):
            read_episode(file, rule=RULE)


def sqlite_bag(path: Path, count: int = 40) -> None:
    store = get_typestore(Stores.ROS2_HUMBLE)
    types = store.types
    with Writer(path, version=8, storage_plugin=StoragePlugin.SQLITE3) as writer:
        images = writer.add_connection(IMAGE_TOPIC, "sensor_msgs/msg/Image", typestore=store)
        for k in range(count):
            stamp_ns = (k + 1) * 10**8
            stamp = types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
            message = types["sensor_msgs/msg/Image"](
                header=types["std_msgs/msg/Header"](stamp=stamp, frame_id=""),
                height=64, width=64, encoding="rgb8", is_bigendian=0, step=192, data=frame(k).reshape(-1),
            )  # fmt: skip
            writer.write(images, stamp_ns, store.serialize_cdr(message, "sensor_msgs/msg/Image"))


def test_a_truncated_sqlite3_bag_is_repaired_as_far_as_it_goes(tmp_path: Path) -> None:
    sqlite_bag(tmp_path / "s")
    assert assert_is_start_of_recording(tmp_path / "s") == 40
    file = tmp_path / "s" / "s.db3"
    whole = file.read_bytes()
    recovered = []
    for cut in (50, 100, 4096, 4097, 20_000, len(whole) // 2, len(whole) * 3 // 4, len(whole) - 5000):
        file.write_bytes(whole[:cut])
        with pytest.raises(BagError, match="dr bag repair"):
            read_episode(tmp_path / "s", rule=RULE)
        assert check_bag(tmp_path / "s")
        try:
            report = repair_bag(tmp_path / "s", tmp_path / f"out{cut}")
        except BagError:
            recovered.append(0)
            continue
        assert report.lost and report.lost_bytes >= len(whole) - cut
        assert report.metadata.outcome == "partial"
        recovered.append(assert_is_start_of_recording(tmp_path / f"out{cut}"))
        assert file.read_bytes() == whole[:cut]
    assert recovered == sorted(recovered) and recovered[-3] >= 15 and recovered[-2] >= 25
    for trial in range(60):
        rng = random.Random(trial)
        content = bytearray(whole)
        for _ in range(3):
            content[rng.choice([rng.randrange(200), rng.randrange(len(content))])] = rng.randrange(256)
        file.write_bytes(content)
        check_bag(tmp_path / "s")
        try:
            repair_bag(tmp_path / "s", tmp_path / f"random{trial}")
        except BagError as error:
            assert "\n" not in str(error)


def test_a_sqlite3_bag_that_was_not_closed_is_replayed_on_a_copy(tmp_path: Path) -> None:
    sqlite_bag(tmp_path / "s", count=6)
    file = tmp_path / "s" / "s.db3"
    database = sqlite3.connect(file)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("DELETE FROM messages WHERE id > 4")
    database.commit()
    # A copy of the open files is what a killed recorder leaves.
    left = tmp_path / "left"
    left.mkdir()
    for name in ("s.db3", "s.db3-wal"):
        (left / name).write_bytes((tmp_path / "s" / name).read_bytes())
    database.close()
    before = digest(left)
    with pytest.raises(BagError, match="dr bag repair"):
        read_episode(left, rule=RULE)
    report = repair_bag(left, tmp_path / "out")
    assert report.messages[IMAGE_TOPIC] == 4 and "replayed" in report.lost[0]
    assert digest(left) == before


# ---- what lies around a bag ----


def edit_metadata(bag: Path, **changes: Any) -> None:
    file = bag / "metadata.yaml"
    content = yaml.safe_load(file.read_text())
    content["rosbag2_bagfile_information"].update(changes)
    file.write_text(yaml.safe_dump(content))


def refused_everywhere(bag: Path, tmp_path: Path, words: str) -> None:
    out = tmp_path / "refused"
    for use in (lambda: read_episode(bag, rule=RULE), lambda: bag_info(bag), lambda: repair_bag(bag, out)):
        with pytest.raises(BagError, match=words) as caught:
            use()
        assert "\n" not in str(caught.value)
    assert any(words in problem for problem in check_bag(bag))
    assert not out.exists()


@pytest.mark.parametrize("name", ["../other/other_0.mcap", "/etc/passwd", "..", "sub/../../other_0.mcap", ""])
def test_file_names_that_leave_the_bag_are_refused(tmp_path: Path, name: str) -> None:
    record(tmp_path / "other", count=2)
    record(tmp_path / "e", count=2)
    edit_metadata(tmp_path / "e", relative_file_paths=[name])
    refused_everywhere(tmp_path / "e", tmp_path, "inside the bag")


@pytest.mark.parametrize("name", ["e_0.mcap", "metadata.yaml"])
def test_links_that_leave_the_bag_are_refused(tmp_path: Path, name: str) -> None:
    record(tmp_path / "other", count=2)
    record(tmp_path / "e", count=2)
    (tmp_path / "e" / name).unlink()
    (tmp_path / "e" / name).symlink_to(tmp_path / "other" / name.replace("e_", "other_"))
    refused_everywhere(tmp_path / "e", tmp_path, "a file inside the bag")


@pytest.mark.parametrize(
    "text",
    ["", "x", "- 1", "rosbag2_bagfile_information: 3", "{", "!!python/object/apply:os.system ['touch hacked']"],
)
def test_unreadable_metadata_yaml_is_refused_and_repaired(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "e", count=8)
    (tmp_path / "e" / "metadata.yaml").write_text(text)
    with pytest.raises(BagError, match="dr bag repair") as caught:
        read_episode(tmp_path / "e", rule=RULE)
    assert "\n" not in str(caught.value)
    assert check_bag(tmp_path / "e")
    repair_bag(tmp_path / "e", tmp_path / "f")
    assert assert_is_start_of_recording(tmp_path / "f") == 8
    assert not (tmp_path / "hacked").exists()


def test_missing_metadata_yaml_is_reported_but_read(tmp_path: Path) -> None:
    record(tmp_path / "e", count=8)
    (tmp_path / "e" / "metadata.yaml").unlink()
    assert assert_is_start_of_recording(tmp_path / "e") == 8
    assert not bag_info(tmp_path / "e").has_index
    assert ["metadata.yaml" in problem for problem in check_bag(tmp_path / "e")] == [True]
    assert repair_bag(tmp_path / "e", tmp_path / "f").lost == ()
    assert check_bag(tmp_path / "f") == []


def test_a_missing_part_is_reported(tmp_path: Path) -> None:
    record(tmp_path / "e", count=8)
    edit_metadata(tmp_path / "e", relative_file_paths=["e_0.mcap", "e_1.mcap"])
    with pytest.raises(BagError, match=r"e_1\.mcap"):
        read_episode(tmp_path / "e", rule=RULE)
    assert any("e_1.mcap is missing" in problem for problem in check_bag(tmp_path / "e"))
    assert "e_1.mcap is missing" in repair_bag(tmp_path / "e", tmp_path / "f").lost[0]


@pytest.mark.parametrize("content", [b"", b"\x89MCA", b"hello\n" * 100, pickle.dumps({"a": 1}), bytes(5000)])
@pytest.mark.parametrize("suffix", [".mcap", ".db3"])
def test_foreign_files_are_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"x{suffix}").write_bytes(content)
    refused_everywhere(tmp_path / f"x{suffix}", tmp_path, "expected an MCAP or sqlite3 bag")


def test_other_directories_and_databases_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    refused_everywhere(tmp_path / "d", tmp_path, "expected a bag")
    refused_everywhere(tmp_path / "missing", tmp_path, "nothing there")
    with sqlite3.connect(tmp_path / "x.db3") as database:
        database.execute("CREATE TABLE other (a)")
    database.close()
    for use in (lambda: read_episode(tmp_path / "x.db3", rule=RULE), lambda: bag_info(tmp_path / "x.db3")):
        with pytest.raises(BagError, match="no such table"):
            use()


def test_repair_never_overwrites(tmp_path: Path) -> None:
    record(tmp_path / "e", count=2)
    before = digest(tmp_path / "e")
    with pytest.raises(OutputInUseError):
        repair_bag(tmp_path / "e", tmp_path / "e")
    (tmp_path / "f").write_text("precious")
    with pytest.raises(OutputInUseError):
        repair_bag(tmp_path / "e", tmp_path / "f")
    assert (tmp_path / "f").read_text() == "precious" and digest(tmp_path / "e") == before


# ---- commands ----


def test_commands_print_and_give_their_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "bags" / "e", count=8)
    bag = tmp_path / "bags" / "e"
    assert commands.BagInfo((tmp_path / "bags",)).run() == 0
    assert "door-open-v3" in capsys.readouterr().out
    assert commands.BagCheck((bag,)).run() == 0
    assert commands.BagExport(bag, tmp_path / "x.mp4").run() == 0
    file = bag / "e_0.mcap"
    file.write_bytes(file.read_bytes()[:80_000])
    capsys.readouterr()
    assert commands.BagCheck((bag,)).run() == 1
    assert "its end is missing" in " ".join(capsys.readouterr().out.split())
    assert commands.BagRepair(bag, tmp_path / "f").run() == 0
    assert "outcome: partial" in (printed := capsys.readouterr().out) and "lost: " in printed
    with pytest.raises(BagError):
        commands.BagCheck(()).run()


def test_the_command_module_imports_nothing_heavy() -> None:
    code = "import sys, dr_core.data.commands; print({'cv2', 'numpy', 'rosbags', 'av'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert result.stdout.strip() == "set()"
