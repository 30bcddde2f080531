"""Where the files of a data set lie."""

import os
from pathlib import Path

from privdfs_training.errors import DataError

VARIABLE = "PRIVDFS_DATA"


def data_folder(root: Path | None, how_to_get: str, *, usual: Path = Path()) -> Path:
    """The folder to read a data set from.

    Args:
        root: As given on the command line; None means $PRIVDFS_DATA, unless that is empty or not set.
        how_to_get: Ends the message.
        usual: Where the set is, if nothing says otherwise; the current folder for most.

    Returns:
        A folder that exists.

    Raises:
        DataError: There is no such folder.
    """
    named = os.environ.get(VARIABLE)
    folder = root or (Path(named) if named else usual)
    if not folder.is_dir():
        where = f"the data folder of ${VARIABLE}, {folder}," if named and not root else f"the data folder {folder}"
        raise DataError(f"{where} {'is not a folder' if folder.exists() else 'does not exist'}. {how_to_get}")
    return folder
