"""Reads the sqlite3 files of rosbag2, whole or damaged."""

from __future__ import annotations

import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from dr_core.data.raw import Channel, OnDamage, RawMessage


def scan_sqlite(path: Path, topics: Collection[str] | None, on_damage: OnDamage) -> Iterator[RawMessage]:
    """All messages of ``topics`` (None: of all) in the order in which they were stored."""
    with path.open("rb") as stream:
        head = stream.read(100)
    if len(head) < 100:
        on_damage(f"{path.name}: its header is cut off", len(head))
        return
    # Offsets 16 and 28 of https://www.sqlite.org/fileformat.html: page size (1 means 65536), number of pages.
    page_bytes, pages = struct.unpack_from(">H", head, 16)[0], struct.unpack_from(">I", head, 28)[0]
    missing = (65536 if page_bytes == 1 else page_bytes) * pages - path.stat().st_size
    if missing > 0:
        on_damage(f"{path.name}: the last {missing} bytes are missing", missing)
    logs = [Path(f"{path}{suffix}") for suffix in ("-wal", "-journal")]
    logs = [log for log in logs if log.is_file() and not log.is_symlink() and log.stat().st_size]
    for log in logs:
        on_damage(f"{path.name}: not closed; {log.name} is replayed as far as it goes", 0)
    with ExitStack() as stack:
        address = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        if logs:
            # Replaying writes to the database, and the source is never touched.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for file in (path, *logs):
                shutil.copyfile(file, folder / file.name)
            address = f"{(folder / path.name).as_uri()}?mode=rw"
        last = "the start"
        try:
            database = stack.enter_context(closing(sqlite3.connect(address, uri=True)))
            # SQLite opens a database shorter than its header says only in this mode; nothing is written.
            database.execute("PRAGMA writable_schema=ON")
            _refuse_programs(database)
            channels = _sqlite_channels(database)
            before = None
            numbers = [number for number, item in channels.items() if topics is None or item.topic in topics]
            marks = ",".join("?" * len(numbers))
            query = "SELECT id, topic_id, timestamp, data FROM messages"
            query += f" WHERE topic_id IN ({marks}) ORDER BY id"
            for row, number, stamp_ns, data in database.execute(query, numbers):
                last = f"message {row}"
                if before is not None and row <= before:
                    raise ValueError("its pages go round in circles")
                before = row
                if not isinstance(data, bytes) or not isinstance(stamp_ns, int) or stamp_ns < 0:
                    on_damage(f"{path.name}: {last} is not a message", 0)
                    continue
                yield RawMessage(channels[number], stamp_ns, memoryview(data))
        except (sqlite3.Error, ValueError, OverflowError, MemoryError) as error:
            # SQLite quotes the damaged text in its message.
            on_damage(f"{path.name}: unreadable after {last}: {ascii(str(error))[1:-1]}", 0)


def _refuse_programs(database: sqlite3.Connection) -> None:
    """ValueError where tables are not what is stored but what is computed, which can be without end."""
    tables = ("topics", "messages", "message_definitions")
    query = f"SELECT name, type, sql FROM sqlite_master WHERE lower(name) IN {tables}"
    for name, kind, sql in database.execute(query):
        hidden = [column[6] for column in database.execute(f"PRAGMA table_xinfo({name})")]
        if kind != "table" or not str(sql).lstrip().upper().startswith("CREATE TABLE") or any(hidden):
            raise ValueError(f"{name} is computed")


def _sqlite_channels(database: sqlite3.Connection) -> dict[int, Channel]:
    """Topics by number; the columns depend on the version of rosbag2 that wrote them."""
    columns = {row[1] for row in database.execute("PRAGMA table_info(topics)")}
    qos = "offered_qos_profiles" if "offered_qos_profiles" in columns else "''"
    definitions: dict[str, tuple[str, bytes]] = {}
    if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'message_definitions'").fetchone():
        query = "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
        for msgtype, language, text in database.execute(query):
            definitions[msgtype] = (str(language), str(text).encode())
    channels = {}
    query = f"SELECT id, name, type, serialization_format, {qos} FROM topics"
    for number, topic, msgtype, encoding, profiles in database.execute(query):
        language, definition = definitions.get(msgtype, ("", b""))
        channels[number] = Channel(str(topic), str(msgtype), str(encoding), language, definition, str(profiles))
    return channels
