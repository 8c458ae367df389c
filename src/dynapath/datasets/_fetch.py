"""Where a public data file is looked for: the given path, known folders, then a cached download."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT_VARIABLE = "DYNAPATH_DATA"


@dataclass(frozen=True)
class Source:
    """A public data file: what it is called here, where it comes from, and under which terms."""

    name: str
    filename: str  # in a data folder
    folder: str  # subfolder of a data folder that may hold it
    url: str  # of the public original, which may need conversion
    origin: str
    licence: str
    shape: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name}: {self.origin}. Licence: {self.licence}. Public original: {self.url}"


def find(source: Source, path: str | os.PathLike[str] | None) -> Path:
    """The file of `source`.

    With `path`, that file, or the file within that folder, and nothing else. Else the folder named by the environment
    variable DYNAPATH_DATA, then a `shared/data` folder beside the checkout, then a cached download of the original.

    Raises
    ------
    FileNotFoundError
        If `path` does not hold it, or nothing does and the download fails.
    """
    if path is not None:
        candidates = _candidates(source, Path(path).expanduser())
        if (found := _first_file(candidates)) is None:
            raise FileNotFoundError(
                f"{path} is no file and holds neither {' nor '.join(_relative(source))}. "
                f"Leave out path to download it, or save the public original there. {source}"
            )
        return found
    folders = _default_folders()
    if (found := _first_file([c for folder in folders for c in _candidates(source, folder)])) is not None:
        return found
    try:
        return _download(source)
    except OSError as error:  # what requests and urllib raise derives from it
        looked = f"is not in {', '.join(map(str, folders))}" if folders else "has no folder to be looked for in"
        raise FileNotFoundError(
            f"{source.filename} {looked}, and its download failed ({type(error).__name__}: {error}). "
            f"Download the public original by hand and give its place as path, or put it as {source.filename} into a "
            f"folder named by {ENVIRONMENT_VARIABLE}. {source}"
        ) from error


def _default_folders() -> list[Path]:
    folders = []
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        folders.append(Path(named).expanduser())
    if (beside := _folder_beside_checkout()) is not None:
        folders.append(beside)
    return folders


def _folder_beside_checkout() -> Path | None:
    """`../shared/data` as seen from the checkout; None when the package is installed or there is no such folder."""
    checkout = Path(__file__).resolve().parents[3]
    beside = checkout.parent / "shared" / "data"
    return beside if (checkout / "pyproject.toml").is_file() and beside.is_dir() else None


def _relative(source: Source) -> list[str]:
    return [source.filename, f"{source.folder}/{source.filename}"]


def _candidates(source: Source, place: Path) -> list[Path]:
    return [place / relative for relative in _relative(source)] if place.is_dir() else [place]


def _first_file(candidates: list[Path]) -> Path | None:
    return next((c for c in candidates if c.is_file()), None)


def _download(source: Source) -> Path:
    """The public original, from the cache if it was downloaded before."""
    import pooch

    # The URL names a commit, so the file cannot change under it; no checksum of it is published.
    return Path(
        pooch.retrieve(
            source.url, known_hash=None, fname=f"original_{source.filename}", path=pooch.os_cache("dynapath")
        )
    )
