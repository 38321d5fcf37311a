"""Writes rosbag2 directories whose chunks survive the death of the process."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import yaml
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter

from dr_core.data.raw import Channel, repair_hint
from dr_core.errors import BagError, OutputInUseError
from dr_core.files import fsync

# A killed recording of 64x64 images loses about five frames with this; larger images fill one chunk each.
CHUNK_BYTES = 64 * 1024
# The newest rosbag2 metadata whose QoS is still a string: ROS 2 Humble and Jazzy both read it.
METADATA_VERSION = 8
DISK_CHECK_BYTES = 16 * 2**20


class _PlainDumper(yaml.SafeDumper):
    """YAML without aliases (&id001), which rosbag2's reader is not promised to follow."""

    def ignore_aliases(self, data: object) -> bool:
        return True


class BagWriter:
    """Writes one rosbag2 directory: ``<name>/metadata.yaml`` and ``<name>/<name>_0.mcap``.

    The directory is built under the name ``building`` beside it. Every full chunk goes to the operating
    system at once, so killing the process costs at most the last ``CHUNK_BYTES`` of messages.

    Args:
        path: the directory to create; nothing may be there.
        building: its name while it is written.
        reserve_bytes: free disk space that recording must leave.

    Raises:
        OutputInUseError: something exists at ``path`` or ``building``.
        BagError: the disk has less than ``reserve_bytes`` left.
    """

    def __init__(self, path: Path, *, building: Path, reserve_bytes: int = 0) -> None:
        self.path = path
        self._building = building
        self._reserve_bytes = reserve_bytes
        if os.path.lexists(path):
            raise OutputInUseError(
                str(path), expected="a free name", found="an existing file", next_step="choose another name"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        self._check_disk()
        try:
            self._building.mkdir()
        except FileExistsError:
            raise OutputInUseError(
                str(path),
                expected="no unfinished recording of that name",
                found=str(self._building),
                next_step="choose another name, or repair or remove that directory",
            ) from None
        self._file = (self._building / f"{path.name}_0.mcap").open("xb")
        # Checksums make bit errors visible; compression would cost more time than 30 Hz images leave.
        self._mcap = McapWriter(self._file, chunk_size=CHUNK_BYTES, compression=CompressionType.NONE)
        self._mcap.start(profile="ros2", library="dr_core")
        self._file.flush()
        self._schemas: dict[tuple[str, bytes], int] = {}
        self._topics: dict[int, dict[str, Any]] = {}
        self._start_ns = 2**63 - 1
        self._end_ns = 0
        self._checked_at_bytes = 0
        self._broken = False

    def add_channel(self, channel: Channel) -> int:
        """Declare a topic; returns its number for :meth:`write`."""
        key = (channel.msgtype, channel.definition)
        if key not in self._schemas:
            self._schemas[key] = self._mcap.register_schema(
                channel.msgtype, channel.definition_format, channel.definition
            )
        number = self._mcap.register_channel(
            channel.topic, channel.encoding, self._schemas[key], {"offered_qos_profiles": channel.qos}
        )
        self._topics[number] = {
            "topic_metadata": {
                "name": channel.topic,
                "type": channel.msgtype,
                "serialization_format": channel.encoding,
                "offered_qos_profiles": channel.qos,
                "type_description_hash": "",
            },
            "message_count": 0,
        }
        return number

    def write(self, number: int, stamp_ns: int, data: bytes | memoryview) -> None:
        """Append one message.

        Raises:
            BagError: the disk is full (the bag stays unfinished) or its reserve is reached.
        """
        try:
            self._mcap.add_message(number, stamp_ns, data, stamp_ns)  # type: ignore[arg-type]
            self._file.flush()
        except OSError as error:
            self._broken = True
            raise self._failure(error) from error
        self._topics[number]["message_count"] += 1
        self._start_ns = min(self._start_ns, stamp_ns)
        self._end_ns = max(self._end_ns, stamp_ns)
        if self._file.tell() - self._checked_at_bytes >= DISK_CHECK_BYTES:
            self._checked_at_bytes = self._file.tell()
            self._check_disk()

    def finish(self) -> None:
        """Complete the bag and give it its final name; after a disk error it stays unfinished.

        Raises:
            BagError: the disk failed, or another bag has taken the name meanwhile.
        """
        try:
            if self._broken:
                raise OSError("an earlier write failed")
            self._mcap.finish()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            with (self._building / "metadata.yaml").open("x", encoding="utf-8") as stream:
                yaml.dump(self._metadata(), stream, Dumper=_PlainDumper, sort_keys=False)
                stream.flush()
                os.fsync(stream.fileno())
            fsync(self._building)
            if os.path.lexists(self.path):
                raise FileExistsError(f"{self.path} has appeared")
            os.rename(self._building, self.path)
            fsync(self.path.parent)
        except OSError as error:
            self.abandon()
            raise self._failure(error) from error

    def abandon(self) -> None:
        """Stop writing and leave what is on disk under the temporary name."""
        self._broken = True
        try:
            self._file.close()
        except OSError:
            # Closing retries the write that failed; what did reach the disk is what repair works on.
            self._file.raw.close()

    @property
    def broken(self) -> bool:
        """A write has failed, so that the file may end in the middle of a record."""
        return self._broken

    def _failure(self, error: OSError) -> BagError:
        return BagError(
            str(self._building),
            expected="every message written to disk",
            found=str(error),
            next_step=f"free some space, then {repair_hint(self._building)}",
        )

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self.path.parent).free
        if free < self._reserve_bytes:
            raise BagError(
                str(self.path.parent),
                expected=f"at least {self._reserve_bytes / 2**20:.0f} MiB of free disk",
                found=f"{free / 2**20:.0f} MiB",
                next_step="free some space or record to another disk",
            )

    def _metadata(self) -> dict[str, Any]:
        count = sum(topic["message_count"] for topic in self._topics.values())
        start = {"nanoseconds_since_epoch": self._start_ns if count else 0}
        duration = {"nanoseconds": self._end_ns - self._start_ns if count else 0}
        name = f"{self.path.name}_0.mcap"
        span = {"starting_time": start, "duration": duration, "message_count": count}
        information = {
            "version": METADATA_VERSION,
            "storage_identifier": "mcap",
            **span,
            "topics_with_message_count": list(self._topics.values()),
            "compression_format": "",
            "compression_mode": "",
            "relative_file_paths": [name],
            "files": [{"path": name, **span}],
            "custom_data": {},
            "ros_distro": "",
        }
        return {"rosbag2_bagfile_information": information}
