"""A process that cannot import percepta draws from exported pipelines: child.py JOBS.json OUT.safetensors."""

import json
import sys
from pathlib import Path


class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "percepta":
            raise ImportError("percepta is not installed here")


sys.meta_path.insert(0, Block())
try:
    import percepta  # noqa: F401
except ImportError:
    pass
else:
    sys.exit("percepta could be imported")
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

torch.set_num_threads(1)
images = {}
for job in json.loads(Path(sys.argv[1]).read_text()):
    pipe = DiffusionPipeline.from_pretrained(job["folder"], local_files_only=True, **job["load"])
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(job["seed"])
    out = pipe(generator=generator, output_type="pt" if job["pt"] else "np", num_inference_steps=job["steps"], **job["call"]).images
    images[job["name"]] = out if job["pt"] else torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()
    assert not any(name.split(".")[0] == "percepta" for name in sys.modules)
save_file({k: v.float().contiguous() for k, v in images.items()}, sys.argv[2])
