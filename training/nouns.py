"""The attribute-conditioned model in colour: a PixArt transformer on pictures of Nouns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accuracy import CHANCE, attribute_accuracy
from diffusers import PixArtTransformer2DModel
from loop import Recipe, flow_scheduler
from nouns_parts import ATTRIBUTES, PACKAGE, SHA256, draw, load_parts

from deltapass.demo.attributes import ANY, Attributes
from deltapass.demo.embedded import AttributeConditionalPipeline, generators

MEASURED = 256  # images the card's accuracy is of
CARD = """# Nouns: the embedded model in colour

An attribute-conditioned diffusion transformer in the format of diffusers'
`{kind}`: {blocks} blocks of width {width} with self- and cross-attention on 8 x 8
patches, {parameters:.1f} M parameters, 32 x 32 pixels in colour. It is told four attributes, a
token each. Weights are float16.

![samples of random attributes](samples.png)

- **Attributes**:
{attributes}
  A prompt names them as words, such as `"head-owl glasses-deep-teal body-green background-warm"`;
  what it leaves out may be anything.
- **Accuracy** of the attributes on {measured} random prompts (DPM-Solver++, 20 steps, guidance
  2.0): a picture shows the part whose exact drawing it is nearest to, all other parts as told.

{accuracy}

- **Data**: pictures drawn at random from parts of Nouns, 32 x 32 pixel art: the npm package
  [@nouns/assets 0.10.0]({package})
  (sha256 `{sha256}`), fetched for training
  and for measuring accuracy, not shipped. Of its parts those above are used, and no accessories.
- **Licence of the data**: the project's own site says that the artwork is in the public domain, by
  [CC0 1.0](https://creativecommons.org/publicdomain/zero/1.0/) (`Documentation/index.tsx` of its
  web application). The package says GPL-3.0 of itself and nothing of the art.
- **Licence** of the weights: Apache-2.0, as the package.
- **Objective**: rectified flow (predict noise - image), noise levels logit-normal; all attributes
  dropped for {dropout:.0%} of samples, for classifier-free guidance, and each one for 5%.
- **Training**: {images:,} images in batches of {batch}, AdamW at {rate} with warm-up and cosine
  decay, moving average of the weights (shipped). Last loss {loss:.4f}.
  `python training/train.py --model nouns --run training/runs/nouns` trains it again (about an hour
  on one core of a CPU), with `--export deltapass/assets/nouns` it is written here.
- **Good for**: showing and testing what a sampler, a cache or a compiler does to the images of a
  transformer with cross-attention, with an exact measure of right and wrong.
- **Not good for**: anything beyond the parts above, which make 1,536 different pictures, all of
  them seen in training; and telling good schedules apart by accuracy, which is still 1.000 with 5
  steps (128 prompts): use the distance to the plain images, or to the exact drawing.

![training loss](loss.png)
"""


class Nouns:
    """Cross-attention to one token an attribute; a token may say "any".

    Args:
        data: Folder of the npm package; fetched into it when missing.
    """

    recipe = Recipe(
        images=130_000, batch=32, learning_rate=1e-3, warmup_images=3_000, ema_images=20_000
    )
    card = CARD

    def __init__(self, data: Path) -> None:
        self._parts = load_parts(data / "nouns")
        self.attributes = Attributes(ATTRIBUTES)

    def build_model(self) -> PixArtTransformer2DModel:
        """16 blocks of width 128 on 8 x 8 patches: 4.4 M parameters."""
        model = PixArtTransformer2DModel(
            num_layers=16,
            num_attention_heads=4,
            attention_head_dim=32,
            cross_attention_dim=128,
            in_channels=3,
            out_channels=3,
            sample_size=32,
            patch_size=4,
            caption_channels=self.attributes.width,
        )
        for block in model.transformer_blocks:  # every block starts as the identity
            torch.nn.init.zeros_(block.scale_shift_table)
            torch.nn.init.zeros_(block.attn2.to_out[0].weight)
        for layer in (model.adaln_single.linear, model.proj_out):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        # Its input has a single 1: the layer is a table of learned embeddings.
        torch.nn.init.normal_(model.caption_projection.linear_1.weight)
        return model.eval()

    def batch(self, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Random pictures; some told nothing of, some told of only in part."""
        choice = draw(count)
        images = self._parts.render(choice)
        untold = torch.rand(count) < self.recipe.label_dropout
        told = {
            attribute: numbers.masked_fill(untold | (torch.rand(count) < 0.05), ANY)
            for attribute, numbers in choice.items()
        }
        return images, {"encoder_hidden_states": self.attributes.tokens(told)}

    def pipeline(self, model: torch.nn.Module) -> AttributeConditionalPipeline:
        """The model with the scheduler it ships with."""
        return AttributeConditionalPipeline(model, flow_scheduler(), self.attributes.parts)

    def prompts(self, columns: int) -> list[str]:
        """Four rows of random pictures."""
        return self.attributes.random_prompts(4 * columns)

    def facts(self, pipe: AttributeConditionalPipeline) -> dict[str, Any]:
        """For the card: attributes and how often they are drawn right, data and its hash."""
        prompts = self.attributes.random_prompts(MEASURED, seed=1)
        images = pipe(prompts, generator=generators(1000, MEASURED), output_type="pt").images
        right = attribute_accuracy(self._parts, images, self.attributes.numbers(prompts))
        rows = [f"| {name} | {right[name]:.3f} | {CHANCE[name]:.3f} |" for name in right]
        parts = self.attributes.parts.items()
        return {
            "attributes": "\n".join(f"  - {name}: {', '.join(names)}" for name, names in parts),
            "accuracy": "\n".join(["| attribute | right | by chance |", "|---|---|---|", *rows]),
            "measured": MEASURED,
            "package": PACKAGE,
            "sha256": SHA256,
        }
