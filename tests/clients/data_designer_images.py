"""NeMo Data Designer's documented example of an image column: samplers, a Jinja2 prompt."""

import json
import os
import sys
from pathlib import Path

import data_designer.config as dd
from data_designer.interface import DataDesigner

providers = [
    dd.ModelProvider(
        name="imagemill", endpoint=os.environ["OPENAI_API_BASE"], api_key="OPENAI_API_KEY"
    )
]
models = [
    dd.ModelConfig(
        alias="images",
        model="dall-e-3",
        provider="imagemill",
        inference_parameters=dd.ImageInferenceParams(
            extra_body={"size": "1024x1024", "quality": "hd"}
        ),
    )
]
builder = dd.DataDesignerConfigBuilder(model_configs=models)
builder.add_column(
    dd.SamplerColumnConfig(
        name="subject",
        sampler_type=dd.SamplerType.CATEGORY,
        params=dd.CategorySamplerParams(values=["a red circle", "a blue square"]),
    )
)
builder.add_column(
    dd.ImageColumnConfig(name="picture", prompt="{{ subject }} on a table", model_alias="images")
)
designer = DataDesigner(artifact_path=sys.argv[1], model_providers=providers)
made = designer.create(builder, num_records=8)
rows = made.load_dataset().to_dict("records")
files = sorted(Path(sys.argv[1]).rglob("*.png"))
print(json.dumps({"rows": len(rows), "files": list(map(str, files))}))
