"""Files that are replaced as a whole: a kill leaves the old content or the new one."""

import os
import pathlib


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes or replaces a file; it never holds a part of `text`, even if the process is killed meanwhile."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
