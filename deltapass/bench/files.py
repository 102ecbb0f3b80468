"""Suite files read and checked; digests of what was asked; files written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tomllib
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from deltapass.bench.suite import Suite
from deltapass.errors import BenchError, did_you_mean

SUITES: Final = Path(__file__).parent / "suites"  # shipped with the package
ALL: Final = "all"
Read = TypeVar("Read")


def shipped() -> tuple[str, ...]:
    """Names of the suites that come with the package, tables first, in their order."""
    names = [path.stem for path in SUITES.glob("*.toml")]
    return tuple(sorted(names, key=lambda name: (name.startswith("fig"), _number(name), name)))


def read_suites(names: tuple[str, ...] | list[str]) -> tuple[Suite, ...]:
    """Suites by name or path; "all" stands for every shipped one. Each is there once.

    Raises:
        BenchError: If one does not exist, or its file says what nobody understands.
    """
    wanted = [each for name in names for each in (shipped() if name == ALL else (name,))]
    return tuple(read_suite(name) for name in dict.fromkeys(wanted))


def read_suite(name: str) -> Suite:
    """One suite.

    Raises:
        BenchError: If it does not exist, or its file says what nobody understands.
    """
    path = Path(name) if name.endswith(".toml") else SUITES / f"{name}.toml"
    if not path.is_file():
        known = (ALL, *shipped())
        raise BenchError(
            f"there is no suite {name!r}",
            f"{did_you_mean(name, known)}Give {', '.join(known)}, or the path of a .toml file",
        )
    suite = read_toml(path, Suite, "suite")
    if not suite.methods:
        raise BenchError(f"suite {path.name} has no method", "Give at least [[method]] 'plain'")
    for field in ("steps", "images", "rounds"):
        if getattr(suite, field) < 1:
            raise BenchError(f"suite {path.name}: {field} is {getattr(suite, field)}", "Give 1 on")
    return suite


def read_toml(path: Path, kind: type[Read], what: str) -> Read:
    """A TOML file as one of our plain types.

    Raises:
        BenchError: If it cannot be read, is no TOML, or has a key or value without a meaning.
    """
    fields = (field.encode_name for field in msgspec.structs.fields(kind))  # type: ignore[arg-type]
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return msgspec.convert(content, kind)
    except OSError as error:
        problem = error.strerror or str(error)
        raise BenchError(f"{what} {path}: {problem}", "Give the path of a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"{what} {path.name} is no TOML: {error}", "Mend that line") from error
    except msgspec.ValidationError as error:
        known = f"Its keys are {', '.join(fields)}"
        raise BenchError(f"{what} {path.name}: {error}", known) from error


def as_data(value: Any) -> Any:
    """One of our plain types as JSON holds it."""
    return msgspec.to_builtins(value)


def digest(value: Any) -> str:
    """SHA-256 of plain data, as JSON with sorted keys and no spaces: of what is said, not how."""
    text = json.dumps(as_data(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all: whoever is stopped leaves the old one.

    Raises:
        BenchError: If it cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        aside.replace(path)
    except OSError as error:
        raise BenchError(
            f"{path} cannot be written: {error.strerror or error}", "Choose another --output"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """What `write_whole` wrote as JSON; None where there is none, or none of ours."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _number(name: str) -> int:
    return int("".join(letter for letter in name if letter.isdigit()) or 0)
