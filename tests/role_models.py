"""Toys whose inputs are not named or shaped as usual, and what each of their inputs is.

`inputs(step)` gives one call of each: the samples and what goes with the step change with it, and
the rest stays.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from models import AdaLNBlock, B, C, Conditioning, CrossAttentionBlock, D, S, T, noise
from models.parts import mlp
from models.toys import TwoStreamBlock
from torch import Tensor, nn
from torch.nn import functional as F

DEPTH = 4


class Toy(nn.Module):
    """`roles` says of every input what it is; what is left out is conditioning."""

    roles: ClassVar[dict[str, str]] = {}

    def __init__(self, block: Callable[[], nn.Module] = AdaLNBlock) -> None:
        super().__init__()
        self.embedding, self.time, self.out = nn.Linear(C, D), Conditioning(), nn.Linear(D, C)
        self.text = nn.Linear(D, D)
        self.blocks = nn.ModuleList(block() for _ in range(DEPTH))

    def given(self, step: int) -> dict[str, Tensor]:
        raise NotImplementedError

    def inputs(self, step: int) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        return (), self.given(step)

    def run(self, x: Tensor, c: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, c)
        return x


def moment(step: int) -> Tensor:
    return torch.full((B,), 900.0 - 100 * step)


class VideoThird(Toy):
    """(batch, frames, channels, height, width), read by cross-attention to a text."""

    roles: ClassVar = {"video": "sample", "timestep": "timestep"}

    def __init__(self) -> None:
        super().__init__(CrossAttentionBlock)

    def forward(self, video: Tensor, words: Tensor, timestep: Tensor) -> Tensor:
        x = self.embedding(video.permute(0, 1, 3, 4, 2).flatten(1, 3))
        c, text = self.time(timestep), self.text(words)
        for block in self.blocks:
            x = block(x, text, c)
        return self.out(x).unflatten(1, (2, 4, 4)).permute(0, 1, 4, 2, 3)

    def given(self, step: int) -> dict[str, Tensor]:
        video = noise(step, B, 2, C, 4, 4)
        return {"video": video, "words": noise(70, B, S, D), "timestep": moment(step)}


class JointBlock(nn.Module):
    """Two streams that are added to each other's, without a last one that drops one."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.across = AdaLNBlock(), AdaLNBlock(), nn.Linear(D, D)

    def forward(self, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        x = self.one(x, c)
        y = y + self.across(F.layer_norm(x, (D,))).mean(dim=1, keepdim=True)
        return x, self.two(y, c)


class Joint(Toy):
    """Two noisy samples, each with an output of its own, and a text for both."""

    roles: ClassVar = {
        "hidden_states": "sample",
        "audio_hidden_states": "sample",
        "timestep": "timestep",
    }

    def __init__(self) -> None:
        super().__init__(JointBlock)
        self.audio, self.audio_out = nn.Linear(3, D), nn.Linear(D, 3)

    def forward(
        self,
        hidden_states: Tensor,
        audio_hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
    ) -> tuple[Tensor, Tensor]:
        x, y = self.embedding(hidden_states), self.audio(audio_hidden_states)
        c = self.time(timestep) + self.text(encoder_hidden_states).mean(dim=1)
        for block in self.blocks:
            x, y = block(x, y, c)
        return self.out(x), self.audio_out(y)

    def given(self, step: int) -> dict[str, Tensor]:
        return {
            "hidden_states": noise(step, B, T, C),
            "audio_hidden_states": noise(300 + step, B, 7, 3),
            "encoder_hidden_states": noise(70, B, S, D),
            "timestep": moment(step),
        }


class OtherNames(Joint):
    """The same under names that say nothing: which of the two are samples must be stated."""

    roles: ClassVar = {"timestep": "timestep"}

    def forward(  # type: ignore[override]
        self, one: Tensor, two: Tensor, three: Tensor, timestep: Tensor
    ) -> tuple[Tensor, Tensor]:
        return super().forward(one, two, three, timestep)

    def given(self, step: int) -> dict[str, Tensor]:
        names = ("one", "two", "three", "timestep")
        return dict(zip(names, super().given(step).values(), strict=True))


class TextAlike(Toy):
    """A text of the sample's very shape, which makes a stream that the last block drops."""

    roles: ClassVar = {"one": "sample", "timestep": "timestep"}

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TwoStreamBlock(last=at == DEPTH - 1) for at in range(DEPTH))
        self.caption = nn.Linear(C, D)

    def forward(self, two: Tensor, one: Tensor, timestep: Tensor) -> Tensor:
        image, text, c = self.embedding(one), self.caption(two), self.time(timestep)
        for block in self.blocks:
            image, text = block(image, text, c)
        return self.out(F.layer_norm(image, (D,)))

    def given(self, step: int) -> dict[str, Tensor]:
        one = noise(step, B, T, C)
        return {"two": noise(70, B, T, C), "one": one, "timestep": moment(step)}


class Joined(TextAlike):
    """Text and image as one sequence, parted after the blocks; by split, slice or narrow."""

    def __init__(self, part: str = "slice") -> None:
        super().__init__()
        self.part, self.blocks = part, nn.ModuleList(AdaLNBlock() for _ in range(DEPTH))

    def forward(self, two: Tensor, one: Tensor, timestep: Tensor) -> Tensor:
        x = torch.cat([self.caption(two), self.embedding(one)], dim=1)
        x = F.layer_norm(self.run(x, self.time(timestep)), (D,))
        if self.part == "split":
            return self.out(x.split([T, T], dim=1)[1])
        if self.part == "narrow":
            return self.out(x.narrow(1, T, T))
        if self.part == "transposed":
            return self.out(x.transpose(1, 2)[..., T:].transpose(1, 2))
        return self.out(x)[:, T:]


class Attended(TextAlike):
    """A text of the sample's very shape, which is attended to."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CrossAttentionBlock() for _ in range(DEPTH))

    def forward(self, two: Tensor, one: Tensor, timestep: Tensor) -> Tensor:
        x, text, c = self.embedding(one), self.caption(two), self.time(timestep)
        for block in self.blocks:
            x = block(x, text, c)
        return self.out(x)


class AddedAgain(TextAlike):
    """A text of the sample's very shape that is added to the stream: data flow cannot tell.

    With `late` it is added once, after it was attended to.
    """

    roles: ClassVar = {"timestep": "timestep"}

    def __init__(self, *, late: bool = False) -> None:
        super().__init__()
        self.late = late
        block = CrossAttentionBlock if late else AdaLNBlock
        self.blocks = nn.ModuleList(block() for _ in range(DEPTH))

    def forward(self, two: Tensor, one: Tensor, timestep: Tensor) -> Tensor:
        x, text, c = self.embedding(one), self.caption(two), self.time(timestep)
        for block in self.blocks:
            x = block(x, text, c) if self.late else text + block(x, c)
        return self.out(x + text if self.late else x)


class OnTopOfIt(TextAlike):
    """Predicts what is to be added to a smaller picture, with which the sample is joined."""

    roles: ClassVar = {"noisy": "sample", "timestep": "timestep"}

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.both = nn.ModuleList(AdaLNBlock() for _ in range(DEPTH)), nn.Linear(8, D)

    def forward(self, low: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:  # type: ignore[override]
        x = self.both(torch.cat([noisy, low], dim=-1))
        return low + self.out(self.run(x, self.time(timestep)))

    def given(self, step: int) -> dict[str, Tensor]:
        return dict(zip(("low", "noisy", "timestep"), super().given(step).values(), strict=True))


class TextReturned(TextAlike):
    """Hands back the text that was read along, which has the shape it came in."""

    roles: ClassVar = {"x": "sample", "timestep": "timestep"}

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(JointBlock() for _ in range(DEPTH))

    def forward(self, words: Tensor, x: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        text, image, c = self.caption(words), self.embedding(x), self.time(timestep)
        for block in self.blocks:
            text, image = block(text, image, c)
        return self.out(text), self.out(image)

    def given(self, step: int) -> dict[str, Tensor]:
        return dict(zip(("words", "x", "timestep"), super().given(step).values(), strict=True))


class Tokens(Toy):
    """Discrete diffusion: whole numbers as tokens, and one as the class; no timestep."""

    roles: ClassVar = {"tokens": "sample"}

    def __init__(self) -> None:
        super().__init__()
        self.table, self.classes = nn.Embedding(20, D), nn.Embedding(9, D)
        self.logits = nn.Linear(D, 20)

    def forward(self, kind: Tensor, tokens: Tensor) -> Tensor:
        return self.logits(self.run(self.table(tokens), self.classes(kind)))

    def given(self, step: int) -> dict[str, Tensor]:
        tokens = (torch.arange(B * T).reshape(B, T) * (step + 3)) % 20
        return {"kind": torch.tensor([1, 7]), "tokens": tokens}


class Wrapped(Toy):
    """A forward behind a decorator, called by position with lists among the inputs."""

    roles: ClassVar = {"latents": "sample", "sigma": "timestep"}

    def forward(self, latents: Tensor, words: Tensor, sigma: Tensor) -> Tensor:
        return self.out(self.run(self.embedding(latents), self.time(sigma) + self.text(words)))

    def inputs(self, step: int) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        return (noise(step, B, T, C), noise(70, B, D), moment(step)), {}


def passing(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator, as those that scale adapters."""

    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    return wrapper


class Decorated(Wrapped):
    forward = passing(Wrapped.forward)


class DecoratedTwice(Wrapped):
    forward = passing(passing(Wrapped.forward))


class Guided(Toy):
    """A guidance weight that is embedded just like the timestep."""

    roles: ClassVar = {"x": "sample", "timestep": "timestep"}

    def __init__(self) -> None:
        super().__init__()
        self.guided = Conditioning()

    def forward(self, x: Tensor, guidance: Tensor, timestep: Tensor) -> Tensor:
        return self.out(self.run(self.embedding(x), self.time(timestep) + self.guided(guidance)))

    def given(self, step: int) -> dict[str, Tensor]:
        times = {"guidance": torch.full((B,), 3.5), "timestep": moment(step)}
        return {"x": noise(step, B, T, C), **times}


class TwoNumbers(Guided):
    """The same under names that say nothing: neither is taken for the timestep."""

    roles: ClassVar = {"x": "sample"}

    def forward(self, x: Tensor, w: Tensor, s: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, w, s)

    def given(self, step: int) -> dict[str, Tensor]:
        return dict(zip(("x", "w", "s"), super().given(step).values(), strict=True))


class OneNumber(Toy):
    """The only number of a call, embedded by a layer of one feature."""

    roles: ClassVar = {"x": "sample", "level": "timestep"}

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Sequential(nn.Linear(1, D), nn.SiLU(), mlp())
        self.kinds = nn.Embedding(9, D)

    def forward(self, x: Tensor, kind: Tensor, level: Tensor) -> Tensor:
        return self.out(
            self.run(self.embedding(x), self.level(level[:, None] / 1000) + self.kinds(kind))
        )

    def given(self, step: int) -> dict[str, Tensor]:
        x, kind = noise(step, B, T, C), torch.tensor([1, 7])
        return {"x": x, "kind": kind, "level": moment(step)}


class TwoTimes(Guided):
    """A second time, which changes with the first."""

    roles: ClassVar = {"x": "sample", "timestep": "timestep", "timestep_r": "per_step"}

    def forward(self, x: Tensor, timestep_r: Tensor, timestep: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, timestep_r, timestep)

    def given(self, step: int) -> dict[str, Tensor]:
        times = {"timestep_r": moment(step) - 100, "timestep": moment(step)}
        return {"x": noise(step, B, T, C), **times}


class Sides(Toy):
    """Rotary places, a mask, a pooled text, and a timestep for every token."""

    roles: ClassVar = {"latents": "sample", "timestep": "timestep"}

    def forward(
        self,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor,
        pooled: Tensor,
        latents: Tensor,
        timestep: Tensor,
    ) -> Tensor:
        x = self.embedding(latents) * rotary[0] + self.embedding(latents).flip(-1) * rotary[1]
        x = torch.where(mask[..., None] > 0, x, 0.0)
        wave = torch.cat([timestep.sin(), timestep.cos()], dim=1)
        return self.out(self.run(x, self.text(pooled) + F.pad(wave, (0, D - 2 * T))))

    def given(self, step: int) -> dict[str, Any]:
        return {
            "rotary": (noise(71, T, D), noise(72, T, D)),
            "mask": torch.ones(B, T),
            "pooled": noise(73, B, D),
            "latents": noise(step, B, T, C),
            "timestep": moment(step)[:, None].expand(B, T).contiguous(),
        }


class Patches(Toy):
    """Gives tokens for a picture: the output is not shaped like the sample."""

    roles: ClassVar = {"picture": "sample", "t": "timestep"}

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(C, D, 2, stride=2)

    def forward(self, picture: Tensor, hint: Tensor, t: Tensor) -> Tensor:
        x = self.patches(picture).flatten(2).transpose(1, 2)
        return self.out(self.run(x, self.time(t) + self.text(hint)))

    def given(self, step: int) -> dict[str, Tensor]:
        picture, hint = noise(step, B, C, 8, 8), noise(70, B, D)
        return {"picture": picture, "hint": hint, "t": moment(step)}


SURE: dict[str, Callable[[], Toy]] = {
    "video, channels third": VideoThird,
    "two samples": Joint,
    "text alike, own stream": TextAlike,
    "text alike, joined, sliced": Joined,
    "text alike, joined, split": lambda: Joined("split"),
    "text alike, joined, narrowed": lambda: Joined("narrow"),
    "text alike, joined, transposed": lambda: Joined("transposed"),
    "text alike, attended to": Attended,
    "on top of a picture": OnTopOfIt,
    "text returned": TextReturned,
    "tokens": Tokens,
    "by position": Wrapped,
    "decorated": Decorated,
    "decorated twice": DecoratedTwice,
    "guidance": Guided,
    "two numbers": TwoNumbers,
    "one number": OneNumber,
    "two times": TwoTimes,
    "sides": Sides,
    "patches": Patches,
}
UNSURE: dict[str, tuple[Callable[[], Toy], dict[str, Any]]] = {
    "two samples": (OtherNames, {"sample": ["one", "two"]}),
    "text added again": (AddedAgain, {"sample": "one"}),
    "text added late": (lambda: AddedAgain(late=True), {"sample": "one"}),
}
