"""LiteLLM's documented examples of image generation and edits."""

import json
import sys

from litellm import image_edit, image_generation

made = image_generation(prompt="A cute baby sea otter", model="openai/dall-e-3")
inline = image_generation(prompt="A cute baby sea otter", model="openai/gpt-image-1", n=2)
with open(sys.argv[1], "rb") as image:
    edited = image_edit(model="openai/gpt-image-1", image=image, prompt="Add a red hat")
print(
    json.dumps(
        {
            "url": made.data[0].url,
            "b64_json": [one.b64_json for one in [*inline.data, *edited.data]],
        }
    )
)
