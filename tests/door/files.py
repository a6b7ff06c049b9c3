"""All the files that the door should open at the first try."""

from __future__ import annotations

from pathlib import Path

from tests.door.annotation_exports import ANNOTATION_EXPORTS
from tests.door.arrow_files import ARROW_FILES
from tests.door.chat_files import CHAT_FILES
from tests.door.column_files import COLUMN_FILES
from tests.door.dataset_files import DATASET_FILES
from tests.door.documents import DOCUMENTS
from tests.door.json_files import JSON_FILES
from tests.door.more_json_files import MORE_JSON_FILES
from tests.door.quoted_tables import QUOTED_TABLES
from tests.door.real_file import RealFile
from tests.door.service_files import SERVICE_FILES
from tests.door.spreadsheets import SPREADSHEETS

FILES: tuple[RealFile, ...] = (
    *SPREADSHEETS,
    *JSON_FILES,
    *ARROW_FILES,
    *DOCUMENTS,
    *ANNOTATION_EXPORTS,
    *CHAT_FILES,
    *COLUMN_FILES,
    *QUOTED_TABLES,
    *DATASET_FILES,
    *SERVICE_FILES,
    *MORE_JSON_FILES,
)


def write(file: RealFile, folder: Path) -> Path:
    """Writes a file into a folder of its own, and gives the path that a user passes."""
    home = folder / file.name
    home.mkdir(parents=True)
    file.write(home)
    return home / file.path
