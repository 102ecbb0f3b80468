"""The measures by name: what each means, and how it is taken of images.

The margins were chosen before anything was judged, and not from data: each is about what a reader
would not care for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch

from deltapass.bench.metrics import wording
from deltapass.bench.metrics.asking import Ask
from deltapass.bench.metrics.context import JudgingContext
from deltapass.bench.metrics.distances import cmmd_parts, fid_parts, inception_parts, kid_parts
from deltapass.bench.metrics.fidelity import perceptual, psnr, ssim
from deltapass.bench.metrics.intervals import Values
from deltapass.bench.metrics.published import learned_distance, learned_network
from deltapass.bench.record import Measure
from deltapass.errors import BenchError


@dataclass(frozen=True, kw_only=True)
class Meter:
    """One measure.

    Attributes:
        means: `{steps}` and `{fine}` stand in its title for the steps of what is compared with.
        ask: (images, context) -> what is to be answered with one value an image, (N,).
        ready: Raises where it cannot be had, and does little else.
        to_plain: Whether it is nearness to the reference, and so says nothing of the reference.
        of_real: Whether real images can be measured too: the floor.
        features: Name of the network whose features of the images it rests on.
    """

    means: Measure
    ask: Callable[[torch.Tensor, JudgingContext], Ask]
    ready: Callable[[JudgingContext], Any]
    to_plain: bool = False
    of_real: bool = False
    features: str | None = None


# ---- to other images -----------------------------------------------------------------------------


def _plain(context: JudgingContext) -> torch.Tensor:
    if context.plain is None:
        raise BenchError("there are no images of the reference", "Give its row first")
    return context.plain


def _fine(context: JudgingContext) -> torch.Tensor:
    if context.fine is None:
        raise BenchError(
            "no trajectory of many steps was drawn", "Set `fine_steps` in the suite, such as 60"
        )
    return context.fine


def _nearness(name: str, title: str, wanted: Any, values: Any, **means: Any) -> Meter:
    return Meter(
        means=Measure(name=name, title=title, **means),
        ask=lambda images, context: Ask(values, (images, wanted(context))),
        ready=(lambda _: None) if wanted is _plain else wanted,
        to_plain=wanted is _plain,
    )


DECIBEL: Final = {
    "higher": True,
    "digits": 1,
    "margin": 0.25,
    "about": "Error of pixels. Blind to whether another image would be as good.",
}
TO_OTHERS: Final = (
    _nearness("psnr", "PSNR to {steps} plain steps, dB", _plain, psnr, **DECIBEL),
    _nearness("psnr_fine", "PSNR to {fine} plain steps, dB", _fine, psnr, **DECIBEL),
    _nearness(
        "ssim",
        "SSIM to {steps} plain steps",
        _plain,
        ssim,
        higher=True,
        digits=3,
        margin=0.005,
        about="Likeness of local structure, in windows of 11 pixels.",
    ),
    Meter(
        means=Measure(
            name="perceptual",
            title="perceptual distance to {steps} plain steps, EffLite0 x 1000",
            higher=False,
            scale=1000,
            digits=1,
            margin=0.002,
            about="Between the stages of EfficientNet-Lite0, all channels alike. Built as LPIPS "
            "is, without its fitted weights: not LPIPS.",
        ),
        ask=lambda images, context: Ask(perceptual, (images, _plain(context)), "efflite0"),
        ready=lambda context: context.store.network("efflite0"),
        to_plain=True,
    ),
    Meter(
        means=Measure(
            name="lpips",
            title="LPIPS (AlexNet) to {steps} plain steps",
            higher=False,
            digits=3,
            margin=0.005,
            about="Learned perceptual distance, with its published weights.",
        ),
        ask=lambda images, context: Ask(learned_distance, (images, _plain(context))),
        ready=lambda _: learned_network(),
        to_plain=True,
    ),
)

# ---- exact ---------------------------------------------------------------------------------------


def _same(found: Values) -> Values:
    return found


def _exact(name: str, **means: Any) -> Meter:
    def ready(context: JudgingContext) -> None:
        if name not in context.judged.measures:
            raise BenchError(
                f"the judge of {context.judged.name} does not say {name!r}",
                f"It says: {', '.join(context.judged.measures) or 'nothing exact'}",
            )

    return Meter(
        means=Measure(name=name, **means),
        # Answered where the judge is, who may hold more than can be sent.
        ask=lambda images, context: Ask(
            _same, (context.judged.exact(images, context.prompts)[name],)
        ),
        ready=ready,
    )


EXACT: Final = (
    _exact(
        "right",
        title="right, %",
        higher=True,
        scale=100,
        digits=1,
        margin=0.01,
        about="Share of what was asked for that the image shows, as the model's judge tells it.",
    ),
    _exact(
        "drawing",
        title="off the exact drawing, %",
        higher=False,
        scale=100,
        digits=3,
        margin=0.0001,
        about="Mean absolute error to the one right picture of that prompt.",
    ),
)

# ---- of all images together ----------------------------------------------------------------------

NETWORKS: Final = {"efflite0": "EffLite0", "inception": "Inception"}
RESTS: Final = {
    "efflite0": "Features of EfficientNet-Lite0 at 112 x 112, not of Inception: not comparable "
    "with published figures.",
    "inception": "Features of Inception v3, as published figures have them.",
    "clip": "Features of CLIP.",
}


def _to_real(name: str, network: str, parts: Any, **means: Any) -> Meter:
    def ready(context: JudgingContext) -> None:
        context.store.network(network)
        _ = context.judged

    def ask(images: torch.Tensor, context: JudgingContext) -> Ask:
        taken = context.store.pooled
        return Ask(parts, (taken(network, images), taken(network, context.real)))

    about = f"{means.pop('about')} {RESTS[network]}"
    return Meter(
        means=Measure(name=name, higher=False, about=about, **means),
        ask=ask,
        ready=ready,
        of_real=True,
        features=network,
    )


def _score(name: str, network: str, **means: Any) -> Meter:
    def ask(images: torch.Tensor, context: JudgingContext) -> Ask:
        seen = context.store.network(network)
        return Ask(inception_parts, (seen.probabilities(context.store.pooled(network, images)),))

    about = "Sure and varied classes, one split. Needs no real images, and grows with their number."
    return Meter(
        means=Measure(name=name, higher=True, about=f"{about} {RESTS[network]}", **means),
        ask=ask,
        ready=lambda context: context.store.network(network),
        of_real=True,
        features=network,
    )


def _distances(network: str, ending: str, margin: float) -> tuple[Meter, ...]:
    """KID, FID and IS; the margin is FID's, whose size depends on the features."""
    shown = NETWORKS[network]
    return (
        _to_real(
            f"kid{ending}",
            network,
            kid_parts,
            title=f"KID-{shown} x 1000",
            scale=1000,
            margin=0.0005,
            about="Distance to real images, unbiased.",
        ),
        _to_real(
            f"fid{ending}",
            network,
            fid_parts,
            title=f"FID-{shown}",
            margin=margin,
            about="Distance to real images; larger for fewer images, so only of equally many.",
        ),
        _score(f"is{ending}", network, title=f"IS-{shown}", margin=0.05),
    )


# ---- to the prompt -------------------------------------------------------------------------------


def _to_words(name: str, title: str, values: Any, ready: Any, about: str) -> Meter:
    return Meter(
        means=Measure(name=name, title=title, higher=True, margin=0.1, about=about),
        ask=lambda images, context: Ask(values, (images, context.prompts)),
        ready=lambda context: ready(context.prompts),
    )


PREFERRED: Final = "Fitted to what people preferred."
PASSES_BLACK: Final = "Likeness of image and prompt. Passes black frames: never decides alone."
TO_WORDS: Final = (
    _to_words("clip", "CLIP score", wording.clip_scores, wording.clip_ready, PASSES_BLACK),
    _to_words(
        "image_reward",
        "ImageReward",
        wording.image_rewards,
        wording.image_reward_ready,
        PREFERRED,
    ),
    _to_words("hpsv2", "HPSv2 x 100", wording.hps_scores, wording.hps_ready, PREFERRED),
    _to_real(
        "cmmd",
        "clip",
        cmmd_parts,
        title="CMMD x 1000",
        scale=1000,
        margin=0.00001,
        about="Distance to real images, unbiased.",
    ),
)

MEASURES: Final[Mapping[str, Meter]] = MappingProxyType(
    {
        meter.means.name: meter
        for meter in (
            *TO_OTHERS,
            *EXACT,
            *_distances("efflite0", "", 1.0),
            *_distances("inception", "_inception", 0.1),
            *TO_WORDS,
        )
    }
)
ALONE_NEVER: Final = "clip"  # black frames pass it
