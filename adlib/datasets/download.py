"""What is present, and how to get the rest: download with checksum and resume, safe unpacking, or instructions."""

import gzip
import hashlib
import lzma
import os
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path, PurePosixPath

import pandas as pd
from tqdm import tqdm

from adlib.datasets import catalogue, demo, elpv, loading
from adlib.datasets.table import subfolders
from adlib.errors import InputError
from adlib.paths import data_dir, temporary_beside, writing
from adlib.settings import choice

CHUNK = 1 << 20  # bytes
LARGEST = 100  # times its own size that an archive may unpack to; pictures hardly shrink
# Of archives; a zip that is encrypted raises a RuntimeError, one of an unknown compression a NotImplementedError.
UNREADABLE = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError),
    *(RuntimeError, ValueError),
)


def listing(data_root=None) -> pd.DataFrame:
    """Return every known data set: name, layout, licence, size of the download, present.

    Args:
        data_root: folder of data sets, `<data_root>/<name>`; default `data/`. What lies there under another name
            is listed too.
    """
    data_root = Path(data_root) if data_root is not None else data_dir()
    rows = [
        (entry.name, entry.layout, entry.licence, entry.size or "?", _presence(entry, data_root))
        for entry in catalogue.DATASETS.values()
    ]
    if data_root.is_dir():
        for name, layout, _, names in loading.discover(data_root):
            if name not in catalogue.DATASETS:
                rows.append((name, layout, "?", "?", _count(names)))
    return pd.DataFrame(rows, columns=["name", "layout", "licence", "size", "present"])


def _count(names: list[str]) -> str:
    return f"{len(names)} categor{'y' if len(names) == 1 else 'ies'}"


def _presence(entry: catalogue.DataSet, data_root: Path) -> str:
    folder = data_root / entry.name
    if entry.layout == "elpv":
        return "no" if elpv.package_folder() is None else "package"
    if entry.layout in ("demo", "textures"):
        there = folder.glob(demo.STAMP if entry.layout == "demo" else "**/*.jpg")
        return "yes" if next(there, None) else "no"
    names = loading.categories(entry.name, folder) if folder.is_dir() else []
    return _count(names) if names else "no"


def get(name: str, root=None) -> Path | None:
    """Download a data set to `<root>/<name>`, or print exactly what to do where that is not possible.

    An interrupted download goes on where it stopped when the command is run again. An archive that you downloaded
    yourself and put into `root` is checked and unpacked. Links and paths that lead out of the folder are refused.

    Args:
        name: a name of the catalogue.
        root: folder of data sets; default `data/`.

    Returns:
        the folder of the data set; None where something is left to do by hand.

    Raises:
        InputError: unknown name, no connection, wrong checksum, an archive that cannot be unpacked safely.
    """
    choice("data set", name, catalogue.DATASETS)
    entry = catalogue.DATASETS[name]
    root = Path(os.path.abspath(Path(root).expanduser())) if root is not None else data_dir()
    if entry.layout == "demo":
        folder = demo.generate(root / name)
        print(f"{name}: in {folder}")
        return folder
    if entry.layout == "elpv":
        folder = elpv.package_folder()
        print(f"{name}: in its package, {folder}" if folder else f"{name}: {entry.steps}")
        return folder
    folder, archive = root / name, root / entry.archive
    if folder.is_dir() and any(folder.iterdir()):
        print(f"{name}: already in {folder} (check it with: adlib data check {name} --data-root {folder})")
        return folder
    own_archive = bool(entry.archive) and archive.is_file()
    if not own_archive and not entry.url:
        print(_instructions(entry, folder, archive))
        return None
    try:
        if not own_archive:
            print(f"{name}: licence {entry.licence}; {entry.page}\n{name}: please cite {entry.citation}")
            download(entry.url, archive, entry.sha256)
        elif entry.sha256:
            _verify(archive, entry.sha256)
        try:
            unpack(archive, folder)
        except InputError as error:
            if not own_archive and not isinstance(error.__cause__, OSError):  # as a full disk
                archive.unlink()  # or it would be taken for a whole one the next time
            raise
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{folder}: cannot be written ({reason}); free space or choose another root") from None
    if not own_archive:
        archive.unlink()
    print(f"{name}: in {folder}")
    return folder


def _instructions(entry: catalogue.DataSet, folder: Path, archive: Path) -> str:
    lines = [
        f"{entry.name} cannot be downloaded by a program. Licence: {entry.licence}",
        f"  1. Open {entry.page}",
        f"  2. {entry.steps}",
    ]
    if entry.archive:
        lines.append(
            f"  3. Put {entry.archive} into {archive.parent} and run this command again: it checks and unpacks it."
        )
        if entry.sha256:
            lines.append(f"     Its sha256 is {entry.sha256}")
    else:
        example = entry.categories[0] if entry.categories else "<category>"
        lines.append(f"  3. Unpack it so that there is {folder / example}")
    lines.append(f"  4. Check it: adlib data check {entry.name} --data-root {folder}")
    lines.append(f"  Please cite: {entry.citation}")
    return "\n".join(lines)


# -- download ---------------------------------------------------------------------------------------------------------


def download(url: str, target: Path, sha256: str = "") -> Path:
    """Download `url` to `target` by way of `<target>.part`, going on from what is there.

    Raises:
        InputError: no connection, a connection that broke (run again to go on), or another checksum than `sha256`.
    """
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            # Some servers send the whole file again, and some of these say that they do not.
            sent = response.headers.get("Content-Range", "")
            if start and (response.status != 206 or sent.startswith("bytes 0-")):
                start = 0
            elif start and not sent.startswith(f"bytes {start}-"):
                raise InputError(f"{url}: asked to go on at byte {start}, the server answers {sent!r}; delete {part}")
            length = response.headers.get("Content-Length")
            total = start + int(length) if length else None
            with (
                open(part, "ab" if start else "wb") as file,
                tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=target.name, disable=None) as bar,
            ):
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing is left to send, so the part is the whole file or a wrong one
            answer = f"{error.code} {error.reason}"
            raise InputError(f"{url}: the server answers {answer}; try later or see its page") from None
        total = None
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"{url}: no connection ({reason}); run the command again to go on") from None
    except OSError:
        with writing(part):
            raise
    size = part.stat().st_size
    if total is not None and size < total:
        raise InputError(f"{url}: the connection ended after {size} of {total} bytes; run the command again to go on")
    if sha256:
        try:
            _verify(part, sha256)
        except InputError:
            part.unlink()  # going on from wrong bytes could never end well
            raise
    os.replace(part, target)
    return target


def _verify(path: Path, sha256: str) -> None:
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256:
        raise InputError(f"{path}: sha256 is {actual}, expected {sha256}; download it again")


# -- unpacking --------------------------------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a tar or zip archive into `folder`, which must not be there; all of it or nothing.

    Only plain files and folders are accepted. A single folder around everything is left out.

    Raises:
        InputError: not an archive, a damaged one, or one with links, devices or paths that lead out of it.
    """
    with writing(folder), temporary_beside(folder) as temporary:
        content = temporary / "content"
        content.mkdir()
        if not zipfile.is_zipfile(archive) and not tarfile.is_tarfile(archive):
            raise InputError(f"{archive}: neither a tar nor a zip archive; download it again")
        try:
            _extract(archive, content)
        except InputError:
            raise
        except UNREADABLE as error:
            raise InputError(f"{archive}: cannot be unpacked ({error}); download it again") from None
        while len(inner := subfolders(content)) == 1 and not any(f.is_file() for f in content.iterdir()):
            content = inner[0]
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        content.rename(folder)
    return folder


def _extract(archive: Path, folder: Path) -> None:
    """Extract an archive member by member; the standard filter repairs some of what is refused here."""
    is_zip, safe = zipfile.is_zipfile(archive), {}
    bytes_left = LARGEST * max(archive.stat().st_size, CHUNK)  # bytes that may come out
    if not is_zip and hasattr(tarfile, "data_filter"):  # from Python 3.11.4
        safe = {"filter": "data"}
    with zipfile.ZipFile(archive) if is_zip else tarfile.open(archive) as opened:
        members = opened.infolist() if is_zip else opened
        for member in tqdm(members, desc=f"unpack {archive.name}", unit=" files", disable=None, leave=False):
            name = member.filename if is_zip else member.name
            path = PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]):
                raise InputError(f"{archive}: {name!r} leads out of the archive; do not use this file")
            kind = stat.S_IFMT(member.external_attr >> 16) if is_zip else 0
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or not (is_zip or member.isreg() or member.isdir()):
                raise InputError(f"{archive}: {name!r} is a link or a device; do not use this file")
            if (bytes_left := bytes_left - (member.file_size if is_zip else member.size)) < 0:
                raise InputError(f"{archive}: unpacks to more than {LARGEST} times its size; do not use this file")
            opened.extract(member, folder, **safe)
