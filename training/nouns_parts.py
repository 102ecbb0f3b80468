"""Nouns drawn from their parts: the pinned package fetched from npm, its pictures decoded.

The art is 32 x 32 pixels in layers of a common palette; a picture is a background, and over it a
body, a head and glasses. Nothing of it is part of this repository: the package (36 KB) is fetched
into a folder and checked against its hash.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

PACKAGE: Final = "https://registry.npmjs.org/@nouns/assets/-/assets-0.10.0.tgz"
SHA256: Final = "60ed1040e399e10113bd3e4a5c47b1618517c3bba082790b8bd5588af6ca3551"
MEMBER: Final = "package/dist/image-data.json"
SIDE: Final = 32

# Parts that differ at a glance, few enough for a small model to draw every one of them well.
ATTRIBUTES: Final = {
    "background": ("cool", "warm"),
    "body": (
        "blue-sky", "computerblue", "green", "grayscale-9", "orange", "magenta", "yellow", "cold",
    ),
    "head": (
        "cone", "crown", "diamond-blue", "doughnut", "fir", "frog",
        "heart", "house", "mushroom", "owl", "rainbow", "shark",
    ),
    "glasses": (
        "square-black", "square-fullblack", "square-blue", "square-frog-green",
        "square-red", "square-magenta", "square-yellow-saturated", "deep-teal",
    ),
}  # fmt: skip
LAYERS: Final = {"body": "bodies", "head": "heads", "glasses": "glasses"}  # as the package names


@dataclass(frozen=True, slots=True)
class Parts:
    """The chosen parts as pictures.

    Shapes:
        colours: attribute -> (P, 3, 32, 32) in [-1, 1]. opaque: attribute -> (P, 1, 32, 32), where
        a part covers what lies under it; everywhere for backgrounds.
    """

    colours: dict[str, torch.Tensor]
    opaque: dict[str, torch.Tensor]

    def render(self, choice: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Pictures of chosen parts.

        Args:
            choice: Attribute -> part numbers (B,).

        Returns:
            (B, 3, 32, 32) in [-1, 1].
        """
        picture = self.colours["background"][choice["background"]]
        for attribute in LAYERS:
            number = choice[attribute]
            covered = self.opaque[attribute][number]
            picture = torch.where(covered, self.colours[attribute][number], picture)
        return picture


def load_parts(folder: Path) -> Parts:
    """The parts named in ATTRIBUTES, from the package in `folder`; fetched when it is not there."""
    data = json.loads(_package(folder))
    pictures = {
        f"{attribute}-{name}": _decode(data["palette"], _find(data["images"][layer], name))
        for attribute, layer in LAYERS.items()
        for name in ATTRIBUTES[attribute]
    }
    for name, colour in zip(ATTRIBUTES["background"], data["bgcolors"], strict=True):
        pictures[f"background-{name}"] = _rgb(colour).view(3, 1, 1).repeat(1, SIDE, SIDE)
    stacks = {
        attribute: torch.stack([pictures[f"{attribute}-{name}"] for name in names])
        for attribute, names in ATTRIBUTES.items()
    }
    # A transparent pixel is NaN until here.
    opaque = {name: ~stack[:, :1].isnan() for name, stack in stacks.items()}
    return Parts({name: stack.nan_to_num() for name, stack in stacks.items()}, opaque)


def _package(folder: Path) -> bytes:
    """The package's data file; its archive is kept in `folder`, and checked at every reading."""
    archive = folder / PACKAGE.rsplit("/", 1)[1]
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with urllib.request.urlopen(PACKAGE, timeout=60) as reply:
                archive.write_bytes(reply.read())
        except (urllib.error.URLError, TimeoutError) as error:
            raise SystemExit(
                f"The parts are not in {folder} and could not be fetched ({error}). Put {PACKAGE} "
                f"there as {archive.name}, for example with: npm pack @nouns/assets@0.10.0"
            ) from error
    content = archive.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{archive} has hash {found}, not {SHA256}. Delete it and fetch it again.")
    with tarfile.open(fileobj=io.BytesIO(content)) as package:
        member = package.extractfile(MEMBER)
        assert member is not None
        return member.read()


def _find(pictures: list[dict[str, str]], name: str) -> str:
    return next(
        picture["data"] for picture in pictures if picture["filename"].split("-", 1)[1] == name
    )


def _decode(palette: list[str], code: str) -> torch.Tensor:
    """One picture (3, 32, 32): a byte of version, four of bounds, then pairs (length, colour)."""
    numbers = bytes.fromhex(code.removeprefix("0x"))
    top, right, bottom, left = numbers[1:5]
    runs = zip(numbers[5::2], numbers[6::2], strict=True)
    row = [colour for length, colour in runs for _ in range(length)]
    window = torch.tensor(row).view(-1, right - left)
    # Colour 0 is transparent.
    colours = torch.stack([torch.full((3,), torch.nan), *(_rgb(colour) for colour in palette[1:])])
    picture = torch.full((3, SIDE, SIDE), torch.nan)
    picture[:, top : top + len(window), left:right] = colours[window].permute(2, 0, 1)
    assert top + len(window) >= bottom
    return picture


def _rgb(colour: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(colour))) / 127.5 - 1


def draw(count: int) -> dict[str, torch.Tensor]:
    """Part numbers of `count` random pictures: every attribute on its own, all parts alike."""
    return {
        attribute: torch.randint(len(names), (count,)) for attribute, names in ATTRIBUTES.items()
    }
