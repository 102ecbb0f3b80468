"""The command line, called in process."""

from __future__ import annotations

from typer.testing import CliRunner

from deltapass.cli.app import app


def call(*words: str) -> tuple[int, str]:
    """The exit code of `deltapass WORDS`, and what it printed with single spaces."""
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "120"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())
