"""LangChain's documented example of DALL-E images."""

import json

from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

print(json.dumps({"url": DallEAPIWrapper().run("a halloween night at a haunted museum")}))
