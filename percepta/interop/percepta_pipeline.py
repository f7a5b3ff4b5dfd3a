"""A pipeline for networks that diffusers has no pipeline of its own for: class-conditional pixel models with guidance, EDM's
preconditioning, flows in latents, label tokens. This file imports torch and diffusers only, and travels with the weights.

    pipe = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline="percepta_pipeline", trust_remote_code=True)
    images = pipe(class_labels=[0, 1, 2], guidance_scale=2.0, num_inference_steps=50).images
"""

import inspect

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


class PerceptaPipeline(DiffusionPipeline):
    """A network (`unet` or `transformer`), a scheduler, and for latents a `vae`.

    `num_classes` counts the classes; label num_classes stands for "no class" where `null_class` holds. What the network's class cannot say
    lies in its config.json under "_percepta": it reads time * time_factor, has num_heads heads in every attention, and so on.
    (Arguments are without types on purpose: diffusers 0.36 cannot read `int | None`.)
    """

    model_cpu_offload_seq = "unet->transformer->vae"
    _optional_components = ["unet", "transformer", "vae"]  # noqa: RUF012 (diffusers' own class declares a list)

    def __init__(self, scheduler, unet=None, transformer=None, vae=None, num_classes=None, null_class=True,
                 class_token=False, id2label=None, steps=50, guidance=1.0, eta=0.0, timesteps=None):  # fmt: skip
        super().__init__()
        self.register_modules(scheduler=scheduler, unet=unet, transformer=transformer, vae=vae)
        facts = {} if self.network is None else self.network.config.get("_percepta") or {}
        self.time_factor = facts.get("time_factor") or 1.0
        self.register_to_config(num_classes=facts.get("num_classes") if num_classes is None else num_classes, null_class=null_class,
                                class_token=class_token, id2label=id2label, steps=steps, guidance=guidance, eta=eta, timesteps=timesteps)  # fmt: skip
        for module in self.network.modules() if self.network is not None else ():
            if facts.get("num_heads") is not None and hasattr(module, "to_q"):
                module.heads = facts["num_heads"]
            if facts.get("frequency_shift") is not None and hasattr(module, "downscale_freq_shift"):
                module.downscale_freq_shift = facts["frequency_shift"]

    @property
    def network(self):
        return self.transformer if self.unet is None else self.unet

    @property
    def labels(self) -> dict[str, int]:
        """Class numbers by name."""
        return {name: int(number) for number, name in (self.config.id2label or {}).items()}

    def _class_labels(self, class_labels, batch_size):
        """A vector of labels, or None for a network without classes."""
        classes = self.config.num_classes
        if classes is None:
            if class_labels is not None:
                raise ValueError("this network has no classes: leave class_labels out")
            return None
        if class_labels is None:
            if not self.config.null_class:
                raise ValueError(f"class_labels are needed: a list of numbers from 0 to {classes - 1}")
            class_labels = [classes] * (1 if batch_size is None else batch_size)
        named = class_labels if isinstance(class_labels, list | tuple) else torch.as_tensor(class_labels).reshape(-1).tolist()
        numbers = [self.labels[c] if isinstance(c, str) else int(c) for c in named]
        if batch_size is not None and len(numbers) != batch_size:
            raise ValueError(f"batch_size={batch_size}, but {len(numbers)} class labels")
        if not all(0 <= n <= classes for n in numbers):
            raise ValueError(f"class labels lie in 0 .. {classes - 1}, got {numbers}")
        return torch.tensor(numbers, device=self._execution_device)

    def _predict(self, x, t, labels):
        """The network's raw output, without a learned variance. Some networks and schedulers answer a bf16 sample in float32."""
        x = x.to(self.network.dtype)
        time = torch.as_tensor(t).to(x.device)
        time = (time if self.time_factor == 1 else time * self.time_factor).reshape(1).expand(len(x))
        options = {"encoder_hidden_states": None} if type(self.network).__name__ == "UNet2DConditionModel" else {}
        if labels is None and self.unet is None:  # a transformer of one class
            labels = torch.zeros(len(x), dtype=torch.long, device=x.device)
        if self.config.class_token:
            token = torch.nn.functional.one_hot(labels, self.network.config.joint_attention_dim).to(x.dtype)
            out = self.network(x, token[:, None], token, time, return_dict=False)
        elif labels is None:
            out = self.network(x, time, **options)
        else:
            out = self.network(x, time, class_labels=labels, **options)
        out = out if isinstance(out, torch.Tensor) else out[0]
        return out[:, : x.shape[1]]

    def _guided(self, x, t, labels, scale):
        if scale == 1 or labels is None:
            return self._predict(x, t, labels)
        null = torch.full_like(labels, self.config.num_classes)
        with_class, without = self._predict(torch.cat([x, x]), t, torch.cat([labels, null])).chunk(2)
        return without + scale * (with_class - without)

    def _set_timesteps(self, steps):
        """The list that the network was finetuned for; a flow runs on t = 1, 1 - 1/n ..., 1/n, then 0; other schedulers know their own grid."""
        if self.config.timesteps is not None and steps == self.config.steps:
            self.scheduler.set_timesteps(timesteps=self.config.timesteps)
        elif type(self.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler":
            self.scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
        else:
            self.scheduler.set_timesteps(steps)

    @torch.no_grad()
    def __call__(self, class_labels=None, batch_size: int | None = None, generator=None, num_inference_steps: int | None = None,
                 guidance_scale: float | None = None, latents=None, output_type: str = "pil", return_dict: bool = True):  # fmt: skip
        """Images for class labels (numbers or names), or `batch_size` images without a class. `latents` is unit-variance noise to start from."""
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type is pil, np or pt, got {output_type!r}")
        labels = self._class_labels(class_labels, batch_size)
        scale = self.config.guidance if guidance_scale is None else guidance_scale
        if scale != 1 and not (labels is not None and self.config.null_class):
            raise ValueError("guidance needs a network with classes and a null label; leave guidance_scale out")
        config = self.network.config
        size = (config.get("_percepta") or {}).get("sample_size") or config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        count = (1 if batch_size is None else batch_size) if labels is None else len(labels)
        shape, dtype, device = (count, config.in_channels, height, width), self.network.dtype, self._execution_device
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents of shape {shape} are needed, got {tuple(latents.shape)}")
        x = latents.to(device, dtype)
        self._set_timesteps(self.config.steps if num_inference_steps is None else num_inference_steps)
        x = x * getattr(self.scheduler, "init_noise_sigma", 1.0)
        takes = inspect.signature(self.scheduler.step).parameters
        options = {"generator": generator} if "generator" in takes else {}
        if "eta" in takes:
            options["eta"] = self.config.eta
        for t in self.progress_bar(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(x, t) if hasattr(self.scheduler, "scale_model_input") else x
            raw = self._guided(scaled, t, labels, scale)
            x = self.scheduler.step(raw, t, x, **options).prev_sample
        images = (self._decode(x).float() / 2 + 0.5).clamp(0, 1)
        self.maybe_free_model_hooks()
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).numpy()
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _decode(self, x):
        if self.vae is None:
            return x
        config = self.vae.config

        def number(name, default):
            value = default if config.get(name) is None else config[name]
            return torch.as_tensor(value, dtype=x.dtype, device=x.device).reshape(1, -1, 1, 1)

        scale = number("scaling_factor", 1.0) / number("latents_std", 1.0)
        return self.vae.decode((x / scale + number("shift_factor", 0.0) + number("latents_mean", 0.0)).to(self.vae.dtype)).sample
