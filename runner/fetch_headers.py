"""Put ONNX Runtime's C++ headers into a folder, from the one registry package that has them.

    python fetch_headers.py build/onnxruntime-headers

The wheel `onnxruntime` has the library without headers. The npm package below, made for another
purpose, contains them as published by the ONNX Runtime project (MIT licence, API version 29);
a newer library serves older headers. Nothing of its code is run, and only headers are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

PACKAGE = "com.github.asus4.onnxruntime@0.4.9"
SHA256 = "e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d"
INSIDE = "ios-arm64/onnxruntime.framework/Headers"  # the same in every folder of the package
MARK = "onnxruntime_cxx_api.h"


def download(folder: Path) -> Path:
    """The package's archive, by npm; 150 MB.

    Raises:
        SystemExit: If npm is missing or fails, or gives another archive than the pinned one.
    """
    npm = shutil.which("npm")
    if npm is None:
        sys.exit(
            "npm is not installed. Install it, or take the headers from an ONNX Runtime release."
        )
    command = [npm, "pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
    if subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=False).returncode:
        sys.exit(f"npm could not fetch {PACKAGE}. Check that the npm registry is reached.")
    [archive] = folder.glob("*.tgz")
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        sys.exit(f"{PACKAGE} has sha256 {found}, pinned is {SHA256}. Look at what changed.")
    return archive


def extract(archive: Path, target: Path) -> int:
    """Write the headers, flat; the number of them. The one that is looked for comes last."""
    headers: dict[str, bytes] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            content = tar.extractfile(member) if str(path.parent).endswith(INSIDE) else None
            if content is not None and path.suffix == ".h":
                headers[path.name] = content.read()
    target.mkdir(parents=True, exist_ok=True)
    for name in sorted(headers, key=lambda name: name == MARK):
        (target / name).write_bytes(headers[name])
    return len(headers)


def main() -> None:
    """Fetch, unless the folder has them already."""
    parser = argparse.ArgumentParser(description="Fetch ONNX Runtime's C++ headers.")
    parser.add_argument("target", type=Path)
    target = parser.parse_args().target
    if (target / MARK).exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        count = extract(download(Path(folder)), target)
    sys.stderr.write(f"{count} headers in {target}\n")


if __name__ == "__main__":
    main()
