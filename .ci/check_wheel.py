"""Check an installed wheel from outside the checkout. Usage: python -P check_wheel.py CHECKOUT.

Takes the checkout's path to compare files; everything imported must come from the wheel.
"""

import sys
import zipfile
from importlib import import_module, metadata, resources
from pathlib import Path

import torch


class Layer(torch.nn.Module):
    """One residual block of the small stack that is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add a small change to x."""
        return x + torch.tanh(self.linear(x))


class Stack(torch.nn.Module):
    """Four equal blocks with a timestep input."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Layer() for _ in range(4))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Run the blocks in order."""
        x = x + timestep
        for block in self.blocks:
            x = block(x)
        return x


def check_backend() -> None:
    """The entry point alone makes the backend known: deltapass is imported only by torch."""
    assert not any(name.partition(".")[0] == "deltapass" for name in sys.modules)
    torch.manual_seed(0)
    model = Stack().eval()
    compiled = torch.compile(model, backend="deltadit", options={"lowering": "eager"})
    x, timestep = torch.randn(2, 8), torch.full((1,), 900.0)
    with torch.no_grad():
        assert torch.equal(compiled(x, timestep), model(x, timestep))
    print("torch.compile(backend='deltadit') is found by entry point, and exact on its first step")


def check_imports(checkout: Path) -> None:
    """The mapped package imports, and from site-packages."""
    for name in ("deltapass", "deltapass.backends.eager", "deltapass.backends.inductor"):
        path = Path(str(import_module(name).__file__))
        assert "site-packages" in path.parts, f"{name} comes from {path}, not from the wheel"
        assert path.is_relative_to(sys.prefix), f"{name} comes from {path}, outside {sys.prefix}"
        print(f"{name} imports from {path.relative_to(sys.prefix)}")
    backends = {p.name for p in (checkout / "backends").glob("*.py")}
    installed = {p.name for p in resources.files("deltapass.backends").iterdir()}
    assert backends <= installed, f"missing in the wheel: {sorted(backends - installed)}"


def check_contents(checkout: Path) -> None:
    """Every asset, the page's parts and py.typed are in the wheel, and no tests."""
    (wheel,) = (checkout / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = (checkout / "deltapass" / "assets", checkout / "deltapass" / "bench" / "page" / "web")
    assets = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    wanted = {p.relative_to(checkout).as_posix() for p in assets} | {"deltapass/py.typed"}
    assert wanted <= names, f"missing in the wheel: {sorted(wanted - names)}"
    assert not any(name.startswith(("tests/", "training/", "benchmarks/")) for name in names)
    print(
        f"{wheel.name}: {len(names)} files, {len(wanted) - 1} assets, {wheel.stat().st_size} bytes"
    )


def main() -> None:
    """Run all checks; an AssertionError says what is wrong."""
    checkout = Path(sys.argv[1])
    check_backend()
    check_imports(checkout)
    check_contents(checkout)
    print(f"wheel of deltapass {metadata.version('deltapass')} is sound")


if __name__ == "__main__":
    main()
