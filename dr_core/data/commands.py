"""Commands ``dr bag ...``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class BagInfo:
    """Show the topics, size, duration and episode metadata of bags."""

    paths: Positional[tuple[Path, ...]]
    """Bags, or directories that hold some."""

    def run(self) -> int:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        from dr_core.data.bags import bag_info

        console = Console()
        for path in _bags(self.paths):
            info = bag_info(path)
            title = f"{path}  {info.storage}, {info.size_bytes / 2**20:.1f} MiB, {info.duration_s:.2f} s"
            table = Table("topic", "type", "messages", title=escape(title), title_justify="left")
            table.columns[2].justify = "right"
            for topic in info.topics:
                kind = topic.msgtype if topic.known else f"{topic.msgtype} (unknown, not read)"
                table.add_row(escape(topic.topic), escape(kind), str(topic.count))
            console.print(table)
            if path.is_dir() and not info.has_index:
                console.print("metadata.yaml is missing; the files in the directory were read without it")
            if info.metadata is None:
                console.print("no episode metadata")
            else:
                console.print(escape(info.metadata.to_json()), soft_wrap=True)
        return 0


@dataclass(frozen=True)
class BagCheck:
    """Read bags completely and list what is wrong with them; exit status 1 if anything is."""

    paths: Positional[tuple[Path, ...]]
    """Bags, or directories that hold some; an unfinished recording may be named too."""

    def run(self) -> int:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        from dr_core.data.bags import check_bag

        table = Table("bag", "problem")
        bags = _bags(self.paths)
        for path in bags:
            for problem in check_bag(path):
                table.add_row(escape(str(path)), escape(problem))
        console = Console()
        if table.row_count:
            console.print(table)
            return 1
        console.print(f"{len(bags)} good")
        return 0


@dataclass(frozen=True)
class BagRepair:
    """Copy what can be read of a damaged bag, or of a recording that was killed, to a new bag."""

    path: Positional[Path]
    """The damaged bag; it is not changed."""
    out: Path
    """The bag to write; it must not exist."""

    def run(self) -> int:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        from dr_core.data.bags import repair_bag

        report = repair_bag(self.path, self.out)
        console = Console()
        table = Table("topic", "recovered", title=escape(str(report.out)), title_justify="left")
        table.columns[1].justify = "right"
        for topic, count in sorted(report.messages.items()):
            table.add_row(escape(topic), str(count))
        console.print(table)
        console.print(f"outcome: {report.metadata.outcome}")
        for line in report.lost:
            console.print(escape(f"lost: {line}"), soft_wrap=True)
        console.print(f"{report.lost_bytes} bytes could not be read")
        return 0


@dataclass(frozen=True)
class BagExport:
    """Write the images of a bag to a lossless mp4."""

    path: Positional[Path]
    """The bag."""
    out: Path
    """The video to write, for example x.mp4; it must not exist."""
    image_topic: str | None = None
    """The image topic, needed where the bag has several."""

    def run(self) -> int:
        from rich.console import Console
        from rich.markup import escape

        from dr_core.data.bags import export_video

        count = export_video(self.path, self.out, self.image_topic)
        Console().print(escape(f"{self.out}: {count} frames"), soft_wrap=True)
        return 0


def _bags(paths: tuple[Path, ...]) -> list[Path]:
    """Directories of episodes stand for all their bags, anything else for itself."""
    from dr_core.data.episodes import find_episodes
    from dr_core.data.raw import is_recording
    from dr_core.data.video import VIDEO_SUFFIXES
    from dr_core.errors import BagError

    if not paths:
        raise BagError("bag", expected="at least one path", found="none", next_step="name a bag")
    bags: list[Path] = []
    for path in paths:
        if path.is_dir() and not is_recording(path):
            bags += [found for found in find_episodes([path]) if found.suffix.lower() not in VIDEO_SUFFIXES]
        else:
            bags.append(path)
    return bags
